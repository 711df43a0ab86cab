"""``plait convert``: a pretrained transformer becomes a hybrid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plait.cli.options import integers, key_values
from plait.cli.output import print_json, print_table, say


def command(
    model: Annotated[str, typer.Argument(help="Folder or hub name of a Llama or Qwen3 checkpoint, or fixture:NAME.")],
    out: Annotated[
        Path, typer.Argument(help="Output folder: a new one, or that of the same conversion, which then continues.")
    ],
    recipe: Annotated[str, typer.Option(help="Name of a recipe; see plait list --kind recipe.")] = "halo",
    ratio: Annotated[
        str | None, typer.Option(help="Linear layers per full one: R:1, pure or full; by default the recipe's.")
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(help="How full layers are chosen: every, importance or heads; by default the recipe's."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Indices of the full layers, such as 3,7.")] = None,
    scores: Annotated[str | None, typer.Option(help="JSON table of retrieval heads, for --select heads.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Text file, corpus, or YAML file with a data section; by default what the model was trained on."
        ),
    ] = None,
    skip: Annotated[
        str | None, typer.Option(help="Stages to leave out: select, transfer, align, distil, tune, merge.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Option of the recipe, such as align_steps=100."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Held-out rows that measure each stage.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of new weights and of the rows.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Convert a pretrained transformer into a hybrid; the same command goes on where it stopped."""
    from plait.cli.interruption import says_how_to_go_on
    from plait.conversion.run import convert

    with says_how_to_go_on("Stopped. Run the same command to continue from the last checkpoint."):
        result = convert(
            model,
            recipe,
            out,
            ratio=ratio,
            select=select,
            layers=None if layers is None else integers(layers, "layers", least=0),
            scores=scores,
            data=data,
            skip=[] if skip is None else [name.strip() for name in skip.split(",") if name.strip()],
            options=key_values(overrides or [], "set"),
            samples=samples,
            seed=seed,
            announce=lambda line: typer.echo(line, err=True),
        )
    if as_json:
        print_json(result.report)
    else:
        print_report(result.report, out)


def print_report(report: dict[str, Any], out: Path) -> None:
    """Print what each stage cost and what the model scored after it."""
    named = [("teacher", report["teacher"], None)]
    named += [(stage["name"], stage["after"], stage) for stage in report["stages"] if stage["after"] is not None]
    columns = [result["name"] for result in report["teacher"]]
    table = []
    for name, results, stage in named:
        cost = ["", ""] if stage is None else [f"{stage['tokens']:,}", f"{stage['seconds']:.0f}"]
        table.append([name, *cost, *(f"{result['scores'][0]['score']:.3f}" for result in results)])
    print_table(["after", "tokens", "seconds", *columns], table, right=range(1, 3 + len(columns)))
    kept = ", ".join(map(str, report["kept"])) or "none"
    say(f"\nLayers that stay attention: {kept}. The model is in {out}.")
