"""Variable tracking: the prompt word by word, the chain, the example."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from benchmarks.ruler.material import NOISE, task, tokenizer
from plait.benchmarks.base import Prompt

QUESTION = "Question: Find all variables that are assigned the value {0} in the text above."
ANSWER = (
    " Answer: According to the chain(s) of variable assignment in the text above, 5 variables are assigned the value "
    "{0}, they are: "
)
BEGIN = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    benchmark = task("vt")
    return [benchmark.prompt(index, tokenizer()) for index in range(20)]


def chain(context: str) -> tuple[list[str], str, list[int]]:
    """Names in their order, the value, and the lines of the assignments."""
    lines = context.split("\n")
    places = [place for place, line in enumerate(lines) if line != NOISE]
    first = re.fullmatch(r"VAR ([A-Z]+) = ([0-9]{5})", lines[places[0]])
    assert first
    names = [first[1]]
    for place in places[1:]:
        link = re.fullmatch(r"VAR ([A-Z]+) = VAR ([A-Z]+) ", lines[place])
        assert link
        assert link[2] == names[-1]
        names.append(link[1])
    return names, first[2], places


def test_prompt_word_by_word(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        empty, example, rest = prompt.text.split(BEGIN)
        assert empty == ""
        context, question = example.split("\nQuestion: ")
        names, value, _ = chain(context)
        assert [len(name) for name in names] == [3] * 5
        said = f"{QUESTION}{ANSWER}".format(value) + f" {' '.join(names)}\n\n"
        assert f"Question: {question}" == said

        context, question = rest.split("\nQuestion: ")
        names, value, places = chain(context)
        assert [len(name) for name in names] == [5] * 5
        assert (
            min(after - before for before, after in pairwise(places)) >= 2
        )  # noise between any two, and after the last
        assert places[-1] < len(context.split("\n")) - 1
        assert f"Question: {question}" == f"{QUESTION}{ANSWER}".format(value)
        assert prompt.references == tuple(names)
        assert len(set(names)) == 5
        assert 10_000 <= int(value) < 99_999
        assert context.split("\n").count(NOISE) == prompt.facts["size"]
        assert prompt.max_new_tokens == 30


def test_example_has_its_lines_in_the_same_places_and_new_names(prompts: list[Prompt]) -> None:
    found = [chain(prompt.text.split(BEGIN)[1].split("\nQuestion: ")[0]) for prompt in prompts]
    assert len({tuple(places) for _, _, places in found}) == 1
    assert len({tuple(names) for names, _, _ in found}) == 20
    assert len({value for _, value, _ in found}) == 20
    main = [chain(prompt.text.split(BEGIN)[2].split("\nQuestion: ")[0])[2] for prompt in prompts]
    assert len({tuple(places) for places in main}) > 10


def test_the_example_fills_500_tokens() -> None:
    """With a token a word, 17 of noise a repetition: 500 hold 21; a byte tokenizer has room for none, so 5 it is."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[EOS]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wide = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[EOS]")

    def example(tokenizer: PreTrainedTokenizerFast, length: int, index: int = 0) -> str:
        text = task("vt", length=length).prompt(index, tokenizer).text
        return BEGIN + text.split(BEGIN)[1].split("they are: ")[0] + "they are: "

    found = example(wide, 3000)
    size = found.count(NOISE)
    assert len(found.split()) <= 500 < len(found.split()) + len(NOISE.split())
    assert size > 15
    places = {tuple(chain(example(wide, 3000, i)[len(BEGIN) :].split("\nQuestion: ")[0])[2]) for i in range(4)}
    assert len(places) == 1
    assert example(tokenizer(), 2600).count(NOISE) == 5


def test_lm_eval_has_the_typing_error() -> None:
    text = task("vt", compat="lm_eval").prompt(0, tokenizer()).text
    assert text.count("5 variables are assgined the value") == 2
    assert "variables are assigned the value" not in text.replace("all variables that are", "")
