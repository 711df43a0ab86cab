"""``plait study``: plan, run, watch and report a grid of trials."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli import study_scaling
from plait.cli.output import print_json, print_table, say, size

if TYPE_CHECKING:
    from plait.planner.devices import Device
    from plait.study.file import StudyFile
    from plait.study.store import Store
    from plait.study.summary import StudySummary
    from plait.study.trials import Trial

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

File = Annotated[Path, typer.Argument(metavar="FILE.yaml", help="Study file; see docs/study.md.")]
Target = Annotated[Path, typer.Argument(metavar="FILE.yaml|FOLDER", help="Study file, or the folder of its results.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the study; runs/NAME by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_CLUSTER_HELP = "Run on machines joined by Ray: HOST:PORT, auto (the one this machine belongs to) or local."
_STORAGE_HELP = "With --cluster, where checkpoints and results go when no file system is shared; s3://..., file://..."


@app.callback()
def _study() -> None:
    """Run, plan and report a grid of trials."""


@app.command("run")
def run(
    file: File,
    out: Out = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time; they share the cores.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials again.")] = False,
    cluster: Annotated[str | None, typer.Option(metavar="ADDRESS", help=_CLUSTER_HELP)] = None,
    storage: Annotated[str | None, typer.Option(metavar="URL", help=_STORAGE_HELP)] = None,
    autoscaling: Annotated[bool, typer.Option(help="Wait for machines that fit if there are none yet.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file, list the trials, run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run every trial that is not done, then write the report.

    Stopped or killed at any moment, the same command goes on. Exit status 1 when a trial failed.
    """
    from plait.errors import OptionError, StudyError
    from plait.study.file import load_study
    from plait.study.trials import trials

    if cluster is None and (storage is not None or autoscaling):
        raise OptionError(f"{'--storage' if storage is not None else '--autoscaling'} needs --cluster.")
    study = load_study(file)
    resolved = trials(study, str(file))

    from plait.claims.from_study import check_claims
    from plait.study.runner import check_models, run_trials
    from plait.study.store import Store

    check_models(resolved)
    check_claims(study.claims)
    store = Store(out or Path("runs") / study.name)
    if dry_run:
        _dry_run(store, study, resolved, as_json)
        return
    command = shlex.join(["plait", *sys.argv[1:]])
    store.write_study(study, str(file), command)
    try:
        if cluster is None:
            outcome = run_trials(store, resolved, workers or study.workers, retry_failed)
        else:
            from plait.study.cluster import run_on_cluster

            outcome = run_on_cluster(
                store,
                resolved,
                cluster,
                storage=storage,
                workers=workers,
                retry_failed=retry_failed,
                autoscaling=autoscaling,
            )
    except KeyboardInterrupt:
        done = sum(store.result(trial) is not None for trial in resolved)
        typer.echo(f"\nplait: Stopped with {done} of {len(resolved)} trials done. To go on: {command}", err=True)
        raise typer.Exit(130) from None
    _report(store, as_json)
    if outcome.failed:
        again = command if retry_failed else f"{command} --retry-failed"
        raise StudyError(
            f"{len(outcome.failed)} of {len(resolved)} trials did not finish; 'plait study status {store.folder}' says "
            f"why, their logs are in {store.folder}/trials. To try again: {again}"
        )


@app.command("status")
def status(target: Target, out: Out = None, as_json: Json = False) -> None:
    """Show every trial: done, running, stopped, failed or waiting."""
    store = _store(target, out)
    rows = []
    for trial in store.trials():
        state, steps = store.state(trial), trial.config.training.steps
        error = (store.error(trial) or {}).get("error", "") if state in ("failed", "stopped") else ""
        step = steps if state == "done" else store.step(trial)
        row = {"trial": trial.hash, "track": trial.track, "key": trial.key, "seed": trial.seed}
        rows.append({**row, "state": state, "step": step, "steps": steps, "error": error})
    _print_status(store, rows, as_json)


@app.command("report")
def report(target: Target, out: Out = None, as_json: Json = False) -> None:
    """Write the report of what has finished so far."""
    _report(_store(target, out), as_json)


@app.command("plan")
def plan(
    file: File,
    device: Annotated[
        str, typer.Option(help="here: this machine, measured by a few training steps; or a100, h100, h200.")
    ] = "here",
    utilisation: Annotated[
        float | None,
        typer.Option(
            "--mfu",
            "--utilisation",
            help="Share of the peak that training reaches; 0.4 by default, 1 of a measured peak.",
        ),
    ] = None,
    peak: Annotated[
        float | None, typer.Option(help="Peak of one device in FLOP/s, in place of the data sheet's.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory of one device, such as 40GB, in place of the data sheet's.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of one device for an hour; adds a column.")] = None,
    as_json: Json = False,
) -> None:
    """Show trials, parameters, tokens, FLOPs, memory, devices and hours, without building a tensor."""
    from plait.cli import study_budget
    from plait.planner import devices
    from plait.study.file import load_study
    from plait.study.plan import Machine
    from plait.study.plan import plan as budgets
    from plait.study.trials import trials

    study = load_study(file)
    resolved = trials(study, str(file))
    target = _device(device).with_figures(peak, None, None if memory is None else devices.parse_bytes(memory))
    reached = (1.0 if device == "here" else 0.4) if utilisation is None else utilisation
    machine = Machine(target, reached, price)
    rows = budgets(study, resolved, machine)
    if as_json:
        print_json(study_budget.record(rows, machine))
    else:
        study_budget.show(study, rows, machine)


app.command("scaling")(study_scaling.command)


def _store(target: Path, out: Path | None) -> Store:
    """The folder of a study that is named by its file or by itself."""
    from plait.study.file import load_study
    from plait.study.store import Store

    if target.is_dir():
        return Store(target)
    return Store(out or Path("runs") / load_study(target).name)


def _device(name: str) -> Device:
    """The named device; ``here`` is this machine as it trains."""
    if name != "here":
        from plait.planner import devices

        return devices.device(name)
    from plait.study.rate import this_machine

    return this_machine()


def _dry_run(store: Store, study: StudyFile, resolved: list[Trial], as_json: bool) -> None:
    """List the trials, and what they cost on this machine."""
    from plait.cli import study_budget
    from plait.errors import OptionError
    from plait.study.plan import Machine
    from plait.study.plan import plan as budgets

    rows = [{"trial": t.hash, "track": t.track, "key": t.key, "seed": t.seed} for t in resolved]
    machine = Machine(_device("here"), 1.0)
    try:
        planned = budgets(study, resolved, machine)
    except OptionError as error:  # the study can run; only its cost is not known yet
        planned, unknown = None, str(error)
    if as_json:
        cost = {"unknown": unknown} if planned is None else study_budget.record(planned, machine)
        print_json({"folder": str(store.folder), "trials": rows, "plan": cost})
        return
    _print_status(store, rows, as_json)
    say()
    if planned is None:
        say(f"What it costs is not known: {unknown}")
    else:
        study_budget.show(study, planned, machine)


def _print_status(store: Store, rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"folder": str(store.folder), "trials": rows})
        return
    header = ["trial", "track", "configuration", "seed"] + (["state", "step", "error"] if "state" in rows[0] else [])
    cells = []
    for row in rows:
        cell = [row["trial"], row["track"], row["key"], str(row["seed"])]
        if "state" in row:
            first = row["error"].splitlines()[0] if row["error"] else ""
            cell += [row["state"], f"{row['step']}/{row['steps']}", first]
        cells.append(cell)
    print_table(header, cells, right=(3,))
    states = [row.get("state", "to run") for row in rows]
    say("\n" + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) + f"; {store.folder}")


def _report(store: Store, as_json: bool) -> None:
    from plait.claims.from_study import judged
    from plait.report import write_report
    from plait.study.summarise import summarise

    summary = judged(summarise(store.folder))
    page = write_report(summary, store.folder)
    if as_json:
        print_json(summary.model_dump(mode="json"))
        return
    _print_configurations(summary)
    _print_answer(summary)
    say(f"Report: {page}")


def _print_configurations(summary: StudySummary) -> None:
    """A row for each configuration: the means that it is compared by, and its cache."""
    from plait.report import labels
    from plait.report.figures import longest_context
    from plait.report.metrics import answer_metrics

    context = longest_context(summary)
    if context is None:
        return
    metrics = answer_metrics(summary)
    header = ["configuration", *map(labels.short_name, metrics), f"cache at {context:,}"]
    rows = [
        [
            configuration.key,
            *(
                labels.number(m, configuration.metrics[m].mean) if m in configuration.metrics else labels.MISSING
                for m in metrics
            ),
            size(configuration.cache_bytes[context]),
        ]
        for configuration in summary.configurations
    ]
    print_table(header, rows, right=range(1, len(header)))
    say()


def _print_answer(summary: StudySummary) -> None:
    from plait.report import labels
    from plait.report.baselines import standings, verdict

    for text in summary.baselines:
        figures = [f"{row.name} {labels.number('bits_per_byte', row.bits)}" for row in standings(summary, text)]
        say(f"Bits per byte of the same text: {', '.join(figures)}. {verdict(summary, text)}")
    say(" ".join(summary.recommendation.sentences))
    for guard in summary.guards:
        if not guard.learnt and guard.metric != "recall":  # that of recall is the recommendation's sentence
            say(f"  void: {guard.message}")
    for claim in summary.claims:
        say(f"  {claim.verdict}: {claim.sentence}")
