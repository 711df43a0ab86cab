"""``plait runs``: list the runs of a folder, or compare some of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from plait.runs.listing import RunSummary


def command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER | RUN RUN...]", help="A folder of runs (runs by default), or runs to compare."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file of models and checkpoints and compare hashes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs of a folder with their state and scores; of several runs show only what differs."""
    from plait.runs.listing import differences, find_runs, summarise

    given = folders or [Path("runs")]
    if len(given) > 1:
        runs = [summarise(folder, verify=verify) for folder in given]
        table = differences(runs)
        if as_json:
            print_json({"runs": [run.record() for run in runs], "differences": table})
        else:
            _print_comparison(runs, table)
        return
    runs = [summarise(folder, verify=verify) for folder in find_runs(given[0])]
    if as_json:
        print_json([run.record() for run in runs])
    elif runs:
        _print_list(runs)
    else:
        say(f"{given[0]} holds no runs.")


def _print_list(runs: list[RunSummary]) -> None:
    header = ["run", "model", "steps", "state", "loss", "bits per byte", "accuracy", "time"]
    rows = [
        [run.name, run.model, f"{run.steps:,}/{run.total:,}", run.state, *_scores(run), _duration(run.seconds)]
        for run in runs
    ]
    print_table(header, rows, right=(2, 4, 5, 6, 7))
    for run in runs:
        if run.why:
            say(f"  {run.name}: {run.why}")


def _print_comparison(runs: list[RunSummary], table: dict[str, list[Any]]) -> None:
    names = [run.folder for run in runs]
    rows = [[key, *("-" if value is None else str(value) for value in values)] for key, values in table.items()]
    if rows:
        print_table(["setting", *names], rows)
    else:
        say("All settings are the same.")
    say()
    facts: list[tuple[str, list[str]]] = [
        ("state", [run.state for run in runs]),
        ("steps", [f"{run.steps:,}/{run.total:,}" for run in runs]),
    ]
    scores = zip(*(_scores(run) for run in runs), strict=True)
    facts += [
        (label, list(values)) for label, values in zip(("loss", "bits per byte", "accuracy"), scores, strict=True)
    ]
    facts.append(("time", [_duration(run.seconds) for run in runs]))
    print_table(["result", *names], [[label, *values] for label, values in facts], right=range(1, len(runs) + 1))
    for run in runs:
        if run.why:
            say(f"  {run.folder}: {run.why}")


def _scores(run: RunSummary) -> list[str]:
    accuracy = "-" if run.accuracy is None else f"{run.accuracy:.1%}"
    return [*("-" if value is None else f"{value:.4f}" for value in (run.loss, run.bits_per_byte)), accuracy]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
