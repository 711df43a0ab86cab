"""``plait study scaling``: loss against compute by architecture, from one file to a report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from plait.cli.output import print_json, print_table, say


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="Scaling study; see docs/scaling.md.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the study; runs/NAME by default.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time; they share the cores.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed runs again.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Train nothing; report the runs that are done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train every size, then fit loss, best size and best number of tokens against FLOPs.

    Stopped or killed at any moment, the same command goes on. Exit status 1 when a run failed.
    """
    from plait.errors import StudyError
    from plait.report.scaling_page import write_page
    from plait.study.runner import check_models, run_trials
    from plait.study.scaling import table
    from plait.study.scaling.file import grid_study, load_scaling
    from plait.study.scaling.summarise import summarise_scaling
    from plait.study.store import Store
    from plait.study.trials import trials

    scaling = load_scaling(file)
    study = grid_study(scaling, str(file))
    store = Store(out or Path("runs") / scaling.name)
    failed = 0
    if not report:
        resolved = trials(study, str(file))
        check_models(resolved)
        shown = shlex.join(["plait", *sys.argv[1:]])
        store.write_study(study, str(file), shown)
        try:
            failed = len(run_trials(store, resolved, workers or scaling.workers, retry_failed).failed)
        except KeyboardInterrupt:
            done = sum(store.result(trial) is not None for trial in resolved)
            typer.echo(f"\nplait: Stopped with {done} of {len(resolved)} runs done. To go on: {shown}", err=True)
            raise typer.Exit(130) from None
    summary = summarise_scaling(scaling, store)
    page = write_page(summary, store.folder)
    if as_json:
        print_json(summary.model_dump(mode="json"))
    else:
        print_table(table.HEADER, table.rows(summary), right=(6,))
        say("\n" + "\n".join(table.notes(summary)))
        say(f"Report: {page}")
    if failed:
        raise StudyError(
            f"{failed} of {summary.runs} runs did not finish; their logs are in {store.folder}/trials. To try again, "
            "add --retry-failed to the same command."
        )
