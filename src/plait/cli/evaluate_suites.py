"""The part of ``plait eval`` that measures suites, tasks and standard sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.cli.interruption import says_how_to_go_on
from plait.cli.output import interval_notes, print_json, print_table, say
from plait.errors import OptionError

if TYPE_CHECKING:
    from plait.evaluation.subject import Subject


@dataclass(frozen=True)
class Chosen:
    """What the command line asks for: suites, names, and what they have in common."""

    suites: Sequence[str]
    tasks: Sequence[str]
    harness: Sequence[str]
    lengths: Sequence[int]
    limit: int | None
    options: Mapping[str, Any]

    def sections(self, data_dir: str | None) -> list[dict[str, Any]]:
        """As ``evaluate.suites`` of a run file says it."""
        shared = {"lengths": list(self.lengths), "limit": self.limit, "data_dir": data_dir, "options": self.options}
        kinds: list[dict[str, Any]] = [{"suite": name} for name in self.suites]
        kinds += [{"tasks": list(self.tasks)}] if self.tasks else []
        kinds += [{"harness": list(self.harness)}] if self.harness else []
        return [{**kind, **shared} for kind in kinds]


@dataclass(frozen=True)
class Under:
    """The policy that is in force while measuring; ``name`` None for none."""

    name: str | None
    options: Mapping[str, Any]

    @contextmanager
    def applied(self, subject: Subject) -> Iterator[Subject]:
        """The subject, under the policy where there is one."""
        if self.name is None:
            if self.options:
                raise OptionError("--policy-option goes with --policy.")
            yield subject
            return
        from plait.evaluation.under_policy import under_policy

        with under_policy(subject, self.name, self.options) as (changed, _):
            yield changed


def measure_suites(
    model: str,
    chosen: Chosen,
    under: Under,
    data_dir: str | None,
    out: str | None,
    batch_size: str | None,
    as_json: bool,
) -> None:
    """Measure, write and print."""
    from plait.evaluation.batching import Batches
    from plait.evaluation.session import measure, results_folder
    from plait.evaluation.subject import open_subject
    from plait.evaluation.suites import Unavailable, asked
    from plait.runs.config import SuiteSection
    from plait.sections import validated

    if batch_size not in (None, "auto") and not (batch_size or "").isdecimal():
        raise OptionError(f"--batch-size {batch_size!r} must be a whole number of at least 1, or auto.")
    size: Any = "auto" if batch_size in (None, "auto") else int(batch_size or 0)
    folder = results_folder(model) if out is None else Path(out)
    again = f"Stopped; the same command goes on: what is measured is kept in {folder}."
    with says_how_to_go_on(again), under.applied(open_subject(model)) as subject:
        wanted = [
            one
            for section in chosen.sections(data_dir)
            for one in asked(validated(SuiteSection, section, "plait eval"), subject)
        ]
        unavailable = [{"name": one.name, "reason": one.reason} for one in wanted if isinstance(one, Unavailable)]
        measurements = [one for one in wanted if not isinstance(one, Unavailable)]
        found = list(measure(subject, measurements, folder, Batches(size, subject.device)))
    results = [result for result in found if "reason" not in result]
    unavailable += [result for result in found if "reason" in result]
    pictures = draw_grids(results, folder)
    if as_json:
        drawn = [str(path) for path in pictures]
        print_json({"results": results, "unavailable": unavailable, "folder": str(folder), "pictures": drawn})
        return
    print_scores(results)
    for path in pictures:
        say(f"\nLength by depth: {path}")
    print_unavailable(unavailable)
    say(f"\nResults are in {folder}")


def draw_grids(results: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """A heat map of each result whose samples differ in length and depth, beside the results."""
    from plait.benchmarks.needle import draw_grid, grid
    from plait.evaluation.session import file_name

    drawn = []
    for result in results:
        if result["groups"] and {"length", "depth"} <= result["groups"][0].keys():
            path = folder / f"{file_name(result['name'])}.html"
            drawn.append(draw_grid(grid(result["groups"]), path, f"{result['name']}: {result['model']}"))
    return drawn


def print_scores(results: Sequence[Mapping[str, Any]]) -> None:
    """One line for each measurement: score, interval and how it was found, chance, samples."""
    rows = []
    for result in results:
        method = result.get("interval", "none")
        said = "-" if method == "none" else f"{result['low']:.3f} to {result['high']:.3f}"
        chance = "-" if result["chance"] is None else f"{result['chance']:.3f}"
        samples = str(len(result["per_sample"]) or result["more"].get("n", "-"))
        name = result["name"]
        rows.append([name, result["metric"], f"{result['score']:.3f}", said, method, chance, samples])
    header = ["measured", "metric", "score", "95 % interval", "method", "chance", "samples"]
    print_table(header, rows, right=(2, 5, 6))
    if notes := interval_notes(result.get("interval", "none") for result in results):
        say(f"\n{notes}")
    for result in results:
        if "baselines" in result["more"]:
            bits = result["more"]["perplexity"]["bits_per_byte"]
            say(f"\n{result['name']}: {bits:.4f} bits per byte in all")
            say(beside(bits, result["more"]["baselines"]))
            if result["spec"].get("text") == "python-stdlib":
                say("plait eval MODEL --corpus python-stdlib also sets a byte n-gram beside it.")


def print_unavailable(unavailable: Sequence[Mapping[str, Any]]) -> None:
    """What this model cannot be measured on, and why."""
    if unavailable:
        say("\nNot measured")
    for one in unavailable:
        say(f"  {one['name']}: {one['reason']}")


def beside(bits: float, others: Mapping[str, Any]) -> str:
    """What compressors and counts of bytes make of the same text."""
    figures = {"gzip": others["gzip"], "xz": others["xz"]}
    if others.get("ngram") is not None:
        figures[f"byte {others['ngram']['length']}-gram of the training text"] = others["ngram"]["bits_per_byte"]
    said = f"of the same {others['bytes']:,} bytes: " + ", ".join(f"{name} {v:.4f}" for name, v in figures.items())
    best = min(figures, key=lambda name: figures[name])
    if bits >= figures[best]:
        return f"{said}.\nThe model is not better than {best}."
    return f"{said}."
