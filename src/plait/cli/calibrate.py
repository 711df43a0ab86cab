"""``plait calibrate``: learn what a policy needs to know of a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli.options import key_values
from plait.cli.output import print_json, say
from plait.errors import OptionError

if TYPE_CHECKING:
    from plait.evaluation.subject import Subject
    from plait.runtime.policy import CalibrationRow, Policy


def command(
    model: Annotated[str, typer.Argument(help="Folder of a run or of a saved model, fixture:NAME, or a hub name.")],
    policy: Annotated[str, typer.Argument(help="Policy, as plait list --kind policy prints it.")],
    data: Annotated[
        str, typer.Option(help="task:NAME, such as task:niah, or a text file with a book's length of text.")
    ],
    out: Annotated[Path | None, typer.Option(help="File to write; runs/calibrate/POLICY.json by default.")] = None,
    length: Annotated[int, typer.Option(min=16, help="Tokens of a row; of a text's, the most.")] = 1024,
    preset: Annotated[str | None, typer.Option(help="Published settings by name, such as small.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the calibration; repeatable.")] = None,
    data_option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the task; repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the rows.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Calibrate a policy on a model and write what it learned to a file, which the policy takes as an option."""
    from plait import catalog

    kind = _kind(policy)
    given = key_values(option or [])
    settings = kind.Calibration.parse(policy, given if preset is None else {"preset": preset, **given})  # type: ignore[union-attr]
    file = out or Path("runs") / "calibrate" / f"{policy}.json"
    if file.exists():
        raise OptionError(f"{file} exists: name another file with --out, or remove it.")

    import time

    from plait.evaluation.subject import open_subject

    subject = open_subject(model)
    rows = _rows(subject, data, length, key_values(data_option or [], "data-option"), seed)
    started = time.monotonic()
    artefact = kind.calibrate(subject.model, rows, settings, lambda line: typer.echo(line, err=True))
    artefact.save(file)
    record = {
        "model": model,
        "policy": catalog.get(policy, "policy").name,
        "kind": artefact.kind,
        "fingerprint": artefact.fingerprint,
        "weights": artefact.weights,
        "values": artefact.values,
        "tensors": {name: list(tensor.shape) for name, tensor in artefact.tensors.items()},
        "seconds": round(time.monotonic() - started, 1),
        "file": str(file),
    }
    if as_json:
        print_json(record)
        return
    say(f"{file} holds the {artefact.kind.replace('_', ' ')} of {model} for {policy}. Use it with")
    say(f"  plait run {model} --policy {policy} --option {kind.calibrated}={file} --prompt ...")


def _kind(name: str) -> type[Policy]:
    """The policy's class.

    Raises:
        OptionError: it has nothing to calibrate; names those that have.
    """
    from plait import catalog

    kind: type[Policy] = catalog.get(name, "policy").load()
    if kind.Calibration is None:
        able = [
            other for other in catalog.names("policy") if catalog.get(other, "policy").load().Calibration is not None
        ]
        raise OptionError(
            f"Policy {name!r} needs no calibration: it chooses keys from the text alone. Those that are calibrated: "
            f"{', '.join(able)}."
        )
    return kind


def _rows(subject: Subject, data: str, length: int, options: dict[str, Any], seed: int) -> Iterator[CalibrationRow]:
    """Rows of a task, or with passkeys in a text."""
    from plait.data.tasks import build_task
    from plait.policies import passkey_rows, task_rows

    if data.startswith("task:"):
        return task_rows(build_task(data.removeprefix("task:"), {"length": length, **options}), seed)
    if options:
        raise OptionError("--data-option belongs to a task: write --data task:NAME.")
    if subject.tokenizer is None:
        raise OptionError(f"{subject.name} has no tokenizer, so it cannot read a text: give --data task:NAME.")
    return passkey_rows(subject.tokenizer, data, shortest=min(1000, length), longest=length, seed=seed)
