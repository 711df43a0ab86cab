"""``plait fixture``: train a small model that others can lean on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plait.cli.output import print_json, print_table, say


def command(
    name: Annotated[str, typer.Argument(help="Name of a recipe (recall-small), or a recipe's file.")],
    out: Annotated[str | None, typer.Option(help="Output folder; runs/fixture-NAME by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a fixture's models, save and measure them; resumes where it stopped."""
    from plait.cli.interruption import says_how_to_go_on
    from plait.evaluation.fixtures import build, read_recipe

    folder = Path(out) if out is not None else Path("runs") / f"fixture-{Path(name).stem}"
    with says_how_to_go_on():
        scores = build(read_recipe(name), folder, announce=lambda line: typer.echo(line, err=True))
    if as_json:
        print_json({"folder": str(folder), "scores": scores})
        return
    for member, results in scores.items():
        say(f"\n{folder / member}")
        rows = [
            [score["name"], score["metric"], f"{score['score']:.3f}", f"{score['low']:.3f} to {score['high']:.3f}"]
            for score in results
        ]
        print_table(["measured", "metric", "score", "95 % interval"], rows, right=(2,))
