"""Made-up records: a page of fields with their values, then the name of one field; the model goes on with its value.

A stand-in for FDA and SWDE of the Based recall suite (2402.18668, section 6) that needs no data: pages in several
layouts, fields that are easily mistaken for each other, sentences between them, each value only once in a page.
An example in the layout ``lines`` with four fields, of which the third is asked::

    Applicant: Norvelta Works
    Predicate trade name: Orbindo 7
    Trade name: Kestalu 12
    Date received: 3 May 2011

    Trade name:
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from plait.benchmarks.base import Benchmark, Prompt
from plait.benchmarks.based_recall import NEW_TOKENS, STOP, contains
from plait.benchmarks.lengths import largest, token_count
from plait.errors import DataError, nearest

_SYLLABLES = ("ba", "do", "ka", "le", "lu", "mi", "no", "ra", "ri", "sa", "ta", "ve", "zu")
_GIVEN_NAMES = ("Ada", "Boris", "Chen", "Dalia", "Emeka", "Farid", "Greta", "Hana", "Igor", "Jun", "Karim", "Lena")
_SUFFIXES = ("Works", "Systems", "Instruments", "Laboratories", "Brothers", "Partners")
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_STREETS = ("Mill Lane", "Harbour Road", "Station Street", "Orchard Avenue", "Bridge Square", "Quarry Hill")

#: Sentences between the fields. They hold no digits and none of the values.
_SENTENCES = (
    "This summary is given in the form that the authority asks for.",
    "The entries below were taken from the file as it was received.",
    "Nothing in this part replaces the instructions for use.",
    "Further papers can be had from the applicant on request.",
    "The reader is asked to compare the entries with the earlier notice.",
    "Some entries were corrected by hand after the first reading.",
    "The description follows the order of the older form.",
    "No changes were made to the parts that are not listed here.",
    "The reviewers had no objection to the wording of this section.",
    "All entries are valid until a newer page has been filed.",
)


def _word(rng: Random) -> str:
    return "".join(rng.choice(_SYLLABLES) for _ in range(3)).capitalize()


def _company(rng: Random) -> str:
    return f"{_word(rng)} {rng.choice(_SUFFIXES)}"


def _product(rng: Random) -> str:
    return f"{_word(rng)} {rng.randint(2, 99)}"


def _person(rng: Random) -> str:
    return f"{rng.choice(_GIVEN_NAMES)} {_word(rng)}"


def _date(rng: Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(1990, 2024)}"


def _number(rng: Random) -> str:
    return f"{rng.choice('BDHKPQT')}{rng.randint(100_000, 999_999)}"


def _telephone(rng: Random) -> str:
    return f"+{rng.randint(20, 99)} {rng.randint(100, 999)} {rng.randint(100_000, 999_999)}"


def _address(rng: Random) -> str:
    return f"{rng.randint(2, 199)} {rng.choice(_STREETS)}, {_word(rng)}"


def _measure(unit: str) -> Callable[[Random], str]:
    return lambda rng: f"{rng.randint(10, 999)}.{rng.randint(0, 9)} {unit}"


#: Names of fields and what makes their values; neighbours of one kind are easily mistaken for each other.
FIELDS: Mapping[str, Callable[[Random], str]] = {
    "Trade name": _product,
    "Predicate trade name": _product,
    "Accessory trade name": _product,
    "Registration number": _number,
    "Predicate registration number": _number,
    "Batch number": _number,
    "Applicant": _company,
    "Previous applicant": _company,
    "Manufacturer": _company,
    "Distributor": _company,
    "Contact person": _person,
    "Reviewer": _person,
    "Inspector": _person,
    "Date prepared": _date,
    "Date received": _date,
    "Date of decision": _date,
    "Telephone": _telephone,
    "Telefax": _telephone,
    "Office address": _address,
    "Warehouse address": _address,
    "Mass": _measure("kg"),
    "Shipping mass": _measure("kg"),
    "Height": _measure("cm"),
    "Width": _measure("cm"),
    "Supply voltage": _measure("V"),
    "Storage temperature": _measure("K"),
}

#: Layout -> how a field, a sentence, and the page around them are written.
_LAYOUTS: Mapping[str, tuple[str, str, str]] = {
    "lines": ("{name}: {value}", "{sentence}", "{page}"),
    "form": ("{name}\n    {value}", "\n{sentence}\n", "{page}"),
    "markdown": ("| {name} | {value} |", "| | {sentence} |", "| Entry | Content |\n| --- | --- |\n{page}"),
    "table": (
        "<tr><th>{name}</th><td>{value}</td></tr>",
        '<tr><td colspan="2">{sentence}</td></tr>',
        "<table>\n{page}\n</table>",
    ),
    "list": ("<dt>{name}</dt><dd>{value}</dd>", "<p>{sentence}</p>", "<dl>\n{page}\n</dl>"),
    "prose": ("The entry for {name} reads {value}.", "{sentence}", "{page}"),
}


@dataclass(frozen=True, kw_only=True)
class Records(Benchmark):
    """Options of the records.

    The facts of a prompt are its ``layout`` and the ``depth`` of the field (percent, to the quarter). Copying the value
    of any field scores about ``1 / fields``.

    Args:
        fields: on a page, at most 26.
        layouts: that take turns: ``lines``, ``form``, ``markdown``, ``table``, ``list``, ``prose``; without them all.
        sentences: between the fields.
        length: instead of ``sentences``: as many as fit, so that prompt and answer have at most so many tokens.

    Raises:
        DataError: a number of fields outside 2..26, an unknown layout, or both ``sentences`` and ``length``.
    """

    fields: int = 16
    layouts: Sequence[str] = ()
    sentences: int | None = None
    length: int | None = None
    metric: ClassVar[str] = "contains"

    def __post_init__(self) -> None:
        if not 2 <= self.fields <= len(FIELDS):
            raise DataError(f"records: fields={self.fields} must be 2 to {len(FIELDS)}.")
        for layout in self.layouts:
            if layout not in _LAYOUTS:
                raise DataError(f"records: there is no layout {layout!r}.{nearest(layout, list(_LAYOUTS))}")
        object.__setattr__(self, "layouts", tuple(self.layouts) or tuple(_LAYOUTS))
        if self.sentences is not None and self.length is not None:
            raise DataError("records: give either sentences or length, not both.")
        if self.sentences is None and self.length is None:
            object.__setattr__(self, "sentences", self.fields // 2)
        if self.sentences is not None and self.sentences < 0:
            raise DataError(f"records: sentences={self.sentences} must be at least 0.")

    def prompt(self, index: int, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        rng = Random(f"records {self.seed} {index}")
        layout = self.layouts[index % len(self.layouts)]
        record = _record(rng, self.fields)
        asked = rng.choice(list(record))
        places: list[tuple[int, str]] = []  # of the sentences: before which field

        def text(sentences: int) -> str:
            while len(places) < sentences:
                places.append((rng.randint(0, self.fields), rng.choice(_SENTENCES)))
            return f"{_page(layout, record, places[:sentences])}\n\n{asked}:"

        def tokens(sentences: int) -> int:
            return token_count(tokenizer, text(sentences)) + NEW_TOKENS

        sentences = self.sentences
        if sentences is None:
            assert self.length is not None
            sentences = largest(tokens, self.length, start=self.length // 20)
            if sentences < 0:
                raise DataError(
                    f"records: length={self.length} is too short for {self.fields} fields; use length >= {tokens(0)} "
                    "or fewer fields."
                )
        prompt, value = text(sentences), record[asked]
        depth = round(4 * prompt.index(value) / len(prompt)) * 25
        return Prompt(
            text=prompt,
            references=(value,),
            max_new_tokens=NEW_TOKENS,
            stop=STOP,
            facts={"layout": layout, "depth": depth},
        )

    def score(self, prediction: str, prompt: Prompt) -> float:
        """1 if the answer contains the value, in whatever case."""
        return contains(prediction, prompt.references)


def _record(rng: Random, count: int) -> dict[str, str]:
    """``count`` fields in random order, whose values are no part of each other."""
    record: dict[str, str] = {}
    for name in rng.sample(list(FIELDS), count):
        value = FIELDS[name](rng)
        while any(value.lower() in other.lower() or other.lower() in value.lower() for other in record.values()):
            value = FIELDS[name](rng)
        record[name] = value
    return record


def _page(layout: str, record: Mapping[str, str], sentences: Sequence[tuple[int, str]]) -> str:
    field, sentence, page = _LAYOUTS[layout]
    lines = []
    for place, (name, value) in enumerate([*record.items(), ("", "")]):
        lines += [sentence.format(sentence=text) for before, text in sentences if before == place]
        if name:
            lines.append(field.format(name=name, value=value))
    return page.format(page="\n".join(lines))
