"""``plait import``: take over a model of flash-linear-attention."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="Folder of flash-linear-attention, or a name on the hub.")],
    out: Annotated[str, typer.Argument(help="Folder to write, new or empty.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read a model of flash-linear-attention and save it as plait's."""
    from plait.cli.model_summary import print_summary
    from plait.models.checkpoints import load_fla
    from plait.models.checkpoints.folders import copy_tokenizer, find_folder, new_folder
    from plait.training.runner import quiet

    target = new_folder(out)
    source = find_folder(model)
    network = load_fla(source)
    with quiet():
        network.save_pretrained(target)
    print_summary(network, model, out, copy_tokenizer(source, target), as_json)
