"""``plait train``: a run file becomes a trained and measured model."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli.output import print_json, quantity, say
from plait.errors import OptionError
from plait.files import quoted

if TYPE_CHECKING:
    from plait.runs.config import RunConfig


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Run file; see docs/training.md.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME by default.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the run file, such as training.steps=100."),
    ] = None,
    init_from: Annotated[
        str | None, typer.Option(metavar="RUN|MODEL", help="Start from the weights of this run or saved model.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure a finished run again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a model from a run file, then measure it; resumes where it stopped.

    A finished run keeps its result, unless its evaluate section has changed. A larger training.steps goes on with it.
    Exit status 130 after Ctrl-C: a checkpoint was saved, and the same command goes on from it.
    For several devices: torchrun --nproc-per-node N -m plait train CONFIG.yaml.
    """
    from plait.evaluation.harness.names import check_section
    from plait.runs.config import RunConfig
    from plait.runs.paths import check_paths
    from plait.sections import read_yaml, validated

    run = validated(RunConfig, with_overrides(read_yaml(config), overrides or []), str(config))
    check_paths(run)
    check_section(run.evaluate)

    from plait.cli.interruption import says_how_to_go_on

    folder = out or Path("runs") / run.name
    with says_how_to_go_on(f"Stopped. Run the same command to continue {folder} from its last checkpoint."):
        result = _result(run, folder, again, init_from)
    if result is None:
        return
    from plait.cli.scores import print_evaluation

    if as_json:
        print_json(result)
        return
    spent = result["train"]
    say(f"Trained on {quantity(spent['tokens'])} tokens in {spent['seconds']:.0f} s; the model is in {folder}/model.")
    print_evaluation(result["evaluation"])


def _result(run: RunConfig, folder: Path, again: bool, init_from: str | None) -> dict[str, Any] | None:
    """The kept result of a finished run, or that of a run trained and measured now; None in all processes but one."""
    from plait.files.locks import sole_writer
    from plait.files.writing import write_json
    from plait.runs.folder import RESULT_FILE, kept_result

    first = int(os.environ.get("RANK", 0)) == 0  # set by torchrun and accelerate
    with sole_writer(folder, "plait train") if first else nullcontext():
        kept = None if again else kept_result(folder, run)
        if kept is not None:
            if first:
                steps = kept["config"]["training"]["steps"]
                typer.echo(
                    f"The run in {folder} has finished with {steps:,} steps; this is its result. "
                    "--again measures it again; a larger training.steps trains it further.",
                    err=True,
                )
            return kept if first else None

        from plait.evaluation.run import train_and_evaluate
        from plait.training.runner import train

        if not first:
            train(run, folder, progress=False, init_from=init_from)
            return None
        result = train_and_evaluate(run, folder, announce=lambda line: typer.echo(line, err=True), init_from=init_from)
        write_json(folder / RESULT_FILE, result, sealed=True)
        return result


def with_overrides(values: Any, overrides: list[str]) -> Any:
    """The content of a run file with single values replaced.

    Args:
        values: content of the file.
        overrides: each ``section.key=value``; the value is JSON, a list or mapping as YAML writes it, or plain text.

    Raises:
        OptionError: an entry of another form, or a key inside something that is not a section.
    """
    from plait.runs.config import RunConfig
    from plait.sections import check_key

    for entry in overrides:
        key, equals, text = entry.partition("=")
        if not equals or not key:
            raise OptionError(f"--set {quoted(entry)}: write KEY=VALUE, such as training.steps=100.")
        check_key(RunConfig, key, f"--set {quoted(entry)}")
        *path, last = key.split(".")
        place = values
        for part in path:
            if isinstance(place, dict) and place.get(part) is None:
                place[part] = {}
            place = place[part] if isinstance(place, dict) else place
        if not isinstance(place, dict):
            raise OptionError(f"--set {quoted(entry)}: {'.'.join(path) or 'the file'} is not a section.")
        place[last] = _value(text)
    return values


def _value(text: str) -> Any:
    import json

    from plait.sections import parse_yaml

    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # such as 3:1, or a path
        pass
    try:
        return parse_yaml(text, text) if text.startswith(("[", "{")) else text
    except OptionError:
        return text
