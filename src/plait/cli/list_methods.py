"""``plait list``: what exists."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from plait import catalog
from plait.cli.output import print_json, print_table
from plait.errors import OptionError, nearest


def command(
    kind: Annotated[str | None, typer.Option(help="Only methods of this kind, such as mixer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List mixers, tasks and all other methods."""
    kinds = {method.kind for method in catalog.methods()}
    if kind is not None and kind not in kinds:
        raise OptionError(f"The catalogue has no kind {kind!r}.{nearest(kind, kinds)}")
    methods = catalog.methods(kind)
    if as_json:
        print_json([asdict(method) for method in methods])
        return
    columns: dict[str, list[str]] = {
        "name": [method.name for method in methods],
        "kind": [method.kind for method in methods],
        "title": [method.title for method in methods],
        "paper (arXiv)": [method.paper for method in methods],
        "decoding state": [str(method.state) for method in methods],
    }
    if kind is not None:
        columns |= {
            "work": [str(method.work) for method in methods],
            "tags": [", ".join(method.tags) for method in methods],
        }
    shown = {header: cells for header, cells in columns.items() if any(cells)}
    print_table(list(shown), [[cell or "-" for cell in row] for row in zip(*shown.values(), strict=True)])
