"""``plait export``: write a model in another library's layout."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from plait.errors import OptionError


def command(
    model: Annotated[str, typer.Argument(help="Folder of a run or of a saved model, or a name on the hub.")],
    out: Annotated[
        str, typer.Argument(help="Folder to write, new or empty; with --to gguf also a new file NAME.gguf.")
    ],
    to: Annotated[
        Literal["fla", "llama", "qwen3", "qwen3_next", "qwen3_5", "olmo_hybrid", "kimi_linear", "gguf"],
        typer.Option(
            help="Layout: fla is flash-linear-attention's, gguf is llama.cpp's, all others are transformers'."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a model as a folder that flash-linear-attention or transformers loads, or as a file for llama.cpp."""
    from plait.cli.model_summary import print_summary
    from plait.models import PlaitForCausalLM, load
    from plait.models.checkpoints import save_fla, save_gguf, to_transformers
    from plait.models.checkpoints.folders import copy_tokenizer, find_folder, new_file, new_folder
    from plait.runs.folder import model_folder
    from plait.training.runner import quiet

    target = new_file(out) if to == "gguf" else new_folder(out)
    source = find_folder(model_folder(model))
    with quiet():
        network, tokenizer = load(source)
    if not isinstance(network, PlaitForCausalLM):
        raise OptionError(f"{model} is a {network.config.model_type!r} model; plait export writes plait's own.")
    if to == "gguf":
        save_gguf(network, target, tokenizer)
        inside = [] if tokenizer is None else ["inside"]
        print_summary(network, model, str(target), inside, as_json)
        return
    if to == "fla":
        save_fla(network, target)
    else:
        to_transformers(network, to).save_pretrained(target)
    print_summary(network, model, out, copy_tokenizer(source, target), as_json)
