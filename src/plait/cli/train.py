"""``plait train``: a run file becomes a trained and measured model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from plait.cli.output import print_json, quantity
from plait.errors import OptionError


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Run file; see docs/training.md.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME by default.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Dotted key, such as training.steps=100.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a model from a run file, then measure it; resumes where it stopped.

    Exit status 130 after Ctrl-C: a checkpoint was saved, and the same command goes on from it.
    For several devices: torchrun --nproc-per-node N -m plait train CONFIG.yaml.
    """
    from plait.training.config import RunConfig, read_yaml, validated

    run = validated(RunConfig, with_overrides(read_yaml(config), overrides or []), str(config))

    from plait.cli.evaluate import print_evaluation
    from plait.evaluation.run import train_and_evaluate
    from plait.training.checkpoint import write_json
    from plait.training.runner import Interrupted, train

    folder = out or Path("runs") / run.name
    first = int(os.environ.get("RANK", 0)) == 0  # set by torchrun and accelerate
    try:
        if not first:
            train(run, folder, progress=False)
            return
        result = train_and_evaluate(run, folder, announce=lambda line: typer.echo(line, err=True))
    except Interrupted as stop:
        if first:
            typer.echo(f"\nplait: {stop}", err=True)
        raise typer.Exit(130) from None
    write_json(folder / "result.json", result)
    if as_json:
        print_json(result)
        return
    spent = result["train"]
    typer.echo(
        f"Trained on {quantity(spent['tokens'])} tokens in {spent['seconds']:.0f} s; the model is in {folder}/model."
    )
    print_evaluation(result["evaluation"])


def with_overrides(values: Any, overrides: list[str]) -> Any:
    """The content of a run file with single values replaced.

    Args:
        values: content of the file.
        overrides: each ``section.key=value``; the value is JSON, a list or mapping as YAML writes it, or plain text.

    Raises:
        OptionError: an entry of another form, or a key inside something that is not a section.
    """
    for entry in overrides:
        key, equals, text = entry.partition("=")
        if not equals or not key:
            raise OptionError(f"--set {entry!r}: write KEY=VALUE, such as training.steps=100.")
        *path, last = key.split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {}) if isinstance(place, dict) else place
        if not isinstance(place, dict):
            raise OptionError(f"--set {entry!r}: {'.'.join(path) or 'the file'} is not a section.")
        place[last] = _value(text)
    return values


def _value(text: str) -> Any:
    import json

    import yaml

    try:
        return json.loads(text)
    except ValueError:  # such as 3:1, or a path
        pass
    try:
        return yaml.safe_load(text) if text.startswith(("[", "{")) else text
    except yaml.YAMLError:
        return text
