"""``plait study``: plan, run, watch and report a grid of trials."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli.output import print_json, print_table, quantity, size

if TYPE_CHECKING:
    from plait.study.store import Store
    from plait.study.summary import StudySummary

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

File = Annotated[Path, typer.Argument(metavar="FILE.yaml", help="Study file; see docs/study.md.")]
Target = Annotated[Path, typer.Argument(metavar="FILE.yaml|FOLDER", help="Study file, or the folder of its results.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the study; runs/NAME by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def _study() -> None:
    """Run, plan and report a grid of trials."""


@app.command("run")
def run(
    file: File,
    out: Out = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time; the cores are divided.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file, list the trials, run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run every trial that is not done, then write the report.

    Stopped or killed at any moment, the same command goes on. Exit status 1 when a trial failed.
    """
    from plait.errors import StudyError
    from plait.study.file import load_study
    from plait.study.runner import check_models, run_trials
    from plait.study.store import Store
    from plait.study.trials import trials

    study = load_study(file)
    found = trials(study, str(file))
    check_models(found)
    store = Store(out or Path("runs") / study.name)
    if dry_run:
        _print_status(
            store, [{"trial": t.hash, "track": t.track, "key": t.key, "seed": t.seed} for t in found], as_json
        )
        return
    command = shlex.join(["plait", *sys.argv[1:]])
    store.write_study(study, str(file), command)
    try:
        outcome = run_trials(store, found, workers or study.workers, retry_failed)
    except KeyboardInterrupt:
        done = sum(store.result(trial) is not None for trial in found)
        typer.echo(f"\nplait: Stopped with {done} of {len(found)} trials done. To go on: {command}", err=True)
        raise typer.Exit(130) from None
    _report(store, as_json)
    if outcome.failed:
        again = command if retry_failed else f"{command} --retry-failed"
        raise StudyError(
            f"{len(outcome.failed)} of {len(found)} trials did not finish; 'plait study status {store.folder}' says "
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
    peak_tflops: Annotated[float, typer.Option(help="Peak of one GPU; 989 is H100 in bf16, 312 is A100.")] = 989.0,
    utilisation: Annotated[float, typer.Option(help="Model FLOPs utilisation, the share of the peak reached.")] = 0.4,
    as_json: Json = False,
) -> None:
    """Show trials, parameters, tokens, FLOPs, memory and GPU-hours, without building a tensor."""
    from plait.study.file import load_study
    from plait.study.plan import plan as budgets
    from plait.study.trials import trials

    study = load_study(file)
    rows = budgets(study, trials(study, str(file)), peak_tflops * 1e12, utilisation)
    total = {
        "trials": sum(row.trials for row in rows),
        "tokens": sum(row.trials * row.tokens for row in rows),
        "flops": sum(row.trials * row.flops for row in rows),
        "gpu_hours": sum(row.trials * row.gpu_hours for row in rows),
    }
    if as_json:
        print_json({"configurations": [row.record() for row in rows], "total": total})
        return
    header = ["configuration", "track", "seeds", "linear+full", "parameters", "tokens", "FLOPs", "mixing"]
    header += ["GPU memory", f"cache at {max(study.contexts):,}", "GPU-hours"]
    cells = [
        [r.key, r.track, str(r.trials), f"{r.n_linear}+{r.n_full}", f"{r.parameters:,}", quantity(r.tokens)]
        + [
            quantity(r.flops),
            f"{r.mixing_flops / r.flops:.1%}",
            size(r.memory),
            size(r.cache_bytes),
            _hours(r.gpu_hours),
        ]
        for r in rows
    ]
    print_table(header, cells, right=range(2, len(header)))
    typer.echo(
        f"\n{total['trials']} trials, {quantity(total['tokens'])} tokens, {quantity(total['flops'], 'FLOP')}: "
        f"{_hours(total['gpu_hours'])} GPU-hours at {utilisation:.0%} of {peak_tflops:g} TFLOP/s.\n"
        "FLOPs: 6 x parameters (without the input embedding) per token, plus three times the forward token mixing.\n"
        "Memory: fp32 weights and gradients, two AdamW moments, and an estimate of the activations of one batch, "
        "on one GPU without sharding."
    )


def _store(target: Path, out: Path | None) -> Store:
    """The folder of a study that is named by its file or by itself."""
    from plait.study.file import load_study
    from plait.study.store import Store

    if target.is_dir():
        return Store(target)
    return Store(out or Path("runs") / load_study(target).name)


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
    typer.echo(
        "\n" + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) + f"; {store.folder}"
    )


def _report(store: Store, as_json: bool) -> None:
    from plait.report import write_report
    from plait.study.summarise import summarise

    summary = summarise(store.folder)
    page = write_report(summary, store.folder)
    if as_json:
        print_json(summary.model_dump(mode="json"))
        return
    _print_configurations(summary)
    _print_answer(summary)
    typer.echo(f"Report: {page}")


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
            one.key,
            *(labels.number(m, one.metrics[m].mean) if m in one.metrics else labels.MISSING for m in metrics),
            size(one.cache_bytes[context]),
        ]
        for one in summary.configurations
    ]
    print_table(header, rows, right=range(1, len(header)))
    typer.echo()


def _print_answer(summary: StudySummary) -> None:
    typer.echo(" ".join(summary.recommendation.sentences))
    for guard in summary.guards:
        if not guard.learnt and guard.metric != "recall":  # that of recall is the recommendation's sentence
            typer.echo(f"  void: {guard.message}")
    for claim in summary.claims:
        typer.echo(f"  {claim.verdict}: {claim.sentence}")


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
