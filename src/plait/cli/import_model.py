"""``plait import``: take over a model of another library."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder of flash-linear-attention or of transformers (llama, qwen3, qwen3_next, qwen3_5, olmo_hybrid, "
            "kimi_linear), or a name on the hub."
        ),
    ],
    out: Annotated[str, typer.Argument(help="Folder to write, new or empty.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read a model of another library and save it as plait's."""
    from plait.cli.model_summary import print_summary
    from plait.models.checkpoints import load_fla, load_transformers
    from plait.models.checkpoints.folders import copy_tokenizer, find_folder, model_type, new_folder
    from plait.models.checkpoints.twins import BY_MODEL_TYPE
    from plait.training.runner import quiet

    target = new_folder(out)
    source = find_folder(model)
    with quiet():
        network = load_transformers(source) if model_type(source) in BY_MODEL_TYPE else load_fla(source)
        network.save_pretrained(target)
    print_summary(network, model, out, copy_tokenizer(source, target), as_json)
