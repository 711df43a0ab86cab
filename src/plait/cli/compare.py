"""``plait compare``: two measured models on the same samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from plait.cli.output import print_json, print_table, say


def command(
    first: Annotated[str, typer.Argument(help="Folder of a model that plait eval has measured, or of its results.")],
    second: Annotated[str, typer.Argument(help="The other one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two measured models on the same samples: difference, interval, p of no difference."""
    from plait.evaluation.compare import compare
    from plait.evaluation.session import results_folder

    compared = compare(results_folder(first), results_folder(second))
    if as_json:
        print_json(dataclasses.asdict(compared))
        return
    say(f"A  {Path(first)}\nB  {Path(second)}\n")
    rows = [
        [
            comparison.name,
            comparison.metric,
            str(comparison.samples),
            f"{comparison.first:.3f}",
            f"{comparison.second:.3f}",
            f"{comparison.difference:+.3f}",
            f"{comparison.low:+.3f} to {comparison.high:+.3f}",
            f"{comparison.p:.3g}",
            comparison.test,
        ]
        for comparison in compared.comparisons
    ]
    header = ["measured", "metric", "samples", "A", "B", "B - A", "95 % interval", "p", "test"]
    print_table(header, rows, right=(2, 3, 4, 5, 7))
    say("\np: how often a difference this large would come by chance between equally good models.")
    if compared.refused:
        say("\nNot compared")
        for name, reason in compared.refused.items():
            say(f"  {name}: {reason}")
