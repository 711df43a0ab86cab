"""``plait run``: generate with a pretrained model under a policy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plait.cli.options import key_values
from plait.cli.output import quantity, size
from plait.errors import DataError, OptionError

if TYPE_CHECKING:
    from plait.policies import Report


def command(
    model: Annotated[str, typer.Argument(help="Folder of a saved model, fixture:NAME, or a name on the hub.")],
    policy: Annotated[str, typer.Option(help="Policy, as plait list --kind policy prints it.")],
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="File with the text to continue; - is stdin.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the policy; repeat it for more.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add.")] = 64,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; greedy without it.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
) -> None:
    """Generate under a policy; the text goes to stdout, what the policy did to stderr."""
    if (prompt is None) == (prompt_file is None):
        raise OptionError("Give --prompt or --prompt-file, one of the two.")
    if temperature is not None and temperature <= 0:
        raise OptionError(f"--temperature {temperature:g} must be above 0; leave it out for the most probable token.")
    text = prompt if prompt is not None else _read(prompt_file)

    import torch

    from plait import policy as apply
    from plait.cli.generate import continue_prompt
    from plait.evaluation.run import open_model
    from plait.training.folder import model_folder

    network, tokenizer = open_model(model_folder(model))
    sampling = {"do_sample": False} if temperature is None else {"do_sample": True, "temperature": temperature}
    torch.manual_seed(seed)
    with apply(network, policy, **key_values(option or [])) as applied:
        continue_prompt(network, tokenizer, text, model, max_new_tokens=max_new_tokens, **sampling)
    _print_report(applied.report())


def _read(path: Path | None) -> str:
    assert path is not None
    if str(path) == "-":
        return sys.stdin.read()
    from plait.data.files import read_text

    text = read_text(path)
    if not text:
        raise DataError(f"{path} is empty.")
    return text


def _print_report(report: Report) -> None:
    """What the policy scored and held, beside dense attention."""
    rows = [f"policy    {report.policy}, layers {', '.join(map(str, report.served))}"]
    for name, work in (("prefill", report.prefill), ("decode", report.decode)):
        if work.dense_pairs:
            index = f", {quantity(int(work.index_pairs))} to choose" if work.index_pairs else ""
            rows.append(
                f"{name:<9} {quantity(int(work.pairs))} of {quantity(int(work.dense_pairs))} pairs "
                f"({int(work.pairs) / int(work.dense_pairs):.1%}){index}"
            )
    rows.append(f"cache     {size(report.bytes_held)}, dense {size(report.bytes_held_dense)}")
    typer.echo("\n".join(rows), err=True)
