"""``plait run``: generate with a pretrained model under a policy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli.options import key_values
from plait.cli.output import print_json, quantity, size
from plait.errors import DataError, OptionError

if TYPE_CHECKING:
    from plait.policies import Report


def command(
    model: Annotated[str, typer.Argument(help="Folder of a saved model, fixture:NAME, or a name on the hub.")],
    policy: Annotated[str, typer.Option(help="Name of a policy; see plait list --kind policy.")],
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="File with the text to continue; - is stdin.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Option of the policy, NAME=VALUE; repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add.")] = 64,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature; greedy decoding by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    echo: Annotated[bool, typer.Option("--echo", help="Repeat the prompt before its continuation.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress and no figures.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the text and what the policy did.")] = False,
) -> None:
    """Generate under a policy; the new text goes to stdout, speed and what the policy did to stderr."""
    if (prompt is None) == (prompt_file is None):
        raise OptionError("Give --prompt or --prompt-file, one of the two.")
    if temperature is not None and temperature <= 0:
        raise OptionError(f"--temperature {temperature:g} must be above 0; leave it out for the most probable token.")
    text = prompt if prompt is not None else _read(prompt_file)

    import dataclasses

    import torch

    from plait import policy as apply
    from plait.cli.continuation import Shown, continue_prompt
    from plait.evaluation.run import open_model
    from plait.runs.folder import model_folder

    network, tokenizer = open_model(model_folder(model))
    sampling = {"do_sample": False} if temperature is None else {"do_sample": True, "temperature": temperature}
    torch.manual_seed(seed)
    with apply(network, policy, **key_values(option or [])) as applied:
        shown = Shown(echo, quiet, text=not as_json)
        said = continue_prompt(network, tokenizer, text, model, shown, max_new_tokens=max_new_tokens, **sampling)
    report = applied.report()
    if as_json:
        print_json({"model": model, **dataclasses.asdict(said), "policy": _record(report)})
    elif not quiet:
        typer.echo("\n".join([said.sentence(), *_rows(report)]), err=True)


def _read(path: Path | None) -> str:
    assert path is not None
    if str(path) == "-":
        return sys.stdin.read()
    from plait.files import read_text

    text = read_text(path)
    if not text:
        raise DataError(f"{path} is empty.")
    return text


def _rows(report: Report) -> list[str]:
    """What the policy scored and held, beside dense attention."""
    rows = [f"policy    {report.policy} in layers {', '.join(map(str, report.served))}"]
    for name, work in (("prefill", report.prefill), ("decode", report.decode)):
        if work.dense_pairs:
            index = f", {quantity(int(work.index_pairs))} to choose them" if work.index_pairs else ""
            rows.append(
                f"  {name:<8}{quantity(int(work.pairs))} of {quantity(int(work.dense_pairs))} query-key pairs scored "
                f"({int(work.pairs) / int(work.dense_pairs):.1%}){index}"
            )
    return [*rows, f"  {'cache':<8}{size(report.bytes_held)} of {size(report.bytes_held_dense)} with dense attention"]


def _record(report: Report) -> dict[str, Any]:
    """The same, for JSON."""
    work = {
        name: {"pairs": int(part.pairs), "index_pairs": int(part.index_pairs), "dense_pairs": int(part.dense_pairs)}
        for name, part in (("prefill", report.prefill), ("decode", report.decode))
    }
    held = {"bytes_held": report.bytes_held, "bytes_held_dense": report.bytes_held_dense}
    return {"name": report.policy, "layers": list(report.served), **work, **held}
