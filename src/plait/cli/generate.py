"""``plait generate``: continue a prompt."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from plait.cli.output import print_json
from plait.errors import OptionError


def command(
    model: Annotated[str, typer.Argument(help="Folder of a run or of a saved model, or a name on the hub.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add.")] = 256,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature; 0.8 by default.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from the k most probable tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the most probable tokens whose probabilities add up to this.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the most probable token.")] = False,
    echo: Annotated[bool, typer.Option("--echo", help="Repeat the prompt before its continuation.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress and no speed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the text, tokens and seconds.")] = False,
) -> None:
    """Continue a prompt; the new text streams to stdout, speed goes to stderr."""
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given = {key: value for key, value in sampling.items() if value is not None}
    if greedy and given:
        raise OptionError(f"--greedy takes no --{next(iter(given)).replace('_', '-')}: drop one of the two.")
    if temperature is not None and temperature <= 0:
        raise OptionError(f"--temperature {temperature:g} must be above 0; use --greedy for the most probable token.")
    if top_p is not None and not 0 < top_p <= 1:
        raise OptionError(f"--top-p {top_p:g} must be above 0 and at most 1.")

    import dataclasses

    import torch

    from plait.cli.continuation import Shown, continue_prompt
    from plait.evaluation.run import open_model
    from plait.runs.folder import model_folder

    network, tokenizer = open_model(model_folder(model))
    options: dict[str, Any] = {"do_sample": not greedy}
    if not greedy:
        options |= {"temperature": 0.8, "top_k": 0, **given}
    torch.manual_seed(seed)
    shown = Shown(echo, quiet, text=not as_json)
    said = continue_prompt(network, tokenizer, prompt, model, shown, max_new_tokens=max_new_tokens, **options)
    if as_json:
        print_json({"model": model, **dataclasses.asdict(said)})
    elif not quiet:
        typer.echo(said.sentence(), err=True)
