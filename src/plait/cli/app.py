"""``plait``: finds the command, imports that one module, and turns errors into one sentence.

Exit status: 0 done; 1 failed, with one sentence on stderr; 2 wrong arguments; 130 interrupted by Ctrl-C. The traceback
of an error that plait did not foresee goes to a file, which the sentence names; ``--debug`` or ``PLAIT_DEBUG=1`` shows
it at once, of every error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from plait.cli.arguments import check_all, checked
from plait.cli.interruption import termination_interrupts
from plait.errors import PlaitError

#: Command name -> (module, one line of help). A module holds a function ``command`` or a typer app ``app``.
COMMANDS: dict[str, tuple[str, str]] = {
    "list": ("plait.cli.list_methods", "List mixers, tasks and all other methods."),
    "show": ("plait.cli.show", "Show a method: paper, options with defaults, cost, state."),
    "doctor": ("plait.cli.doctor", "Show versions, devices and backends, with fixes."),
    "explain": ("plait.cli.explain", "Show a model layer by layer: code path, parameters, state, cost."),
    "train": ("plait.cli.train", "Train a model from a run file; resumes where it stopped."),
    "runs": ("plait.cli.runs", "List the runs of a folder, or compare some of them."),
    "eval": ("plait.cli.evaluate", "Measure a model: loss, in-context recall, decoding speed."),
    "compare": ("plait.cli.compare", "Compare two measured models on the same samples."),
    "generate": ("plait.cli.generate", "Continue a prompt with a model."),
    "run": ("plait.cli.run", "Generate under a policy that saves attention work or cache."),
    "calibrate": ("plait.cli.calibrate", "Learn what a policy needs to know of a model."),
    "frontier": ("plait.cli.frontier", "Draw quality against budget for several policies."),
    "fixture": ("plait.cli.fixture", "Train a small model that solves recall tasks."),
    "convert": ("plait.cli.convert", "Convert a pretrained transformer into a hybrid."),
    "import": ("plait.cli.import_model", "Import a model from another library."),
    "export": ("plait.cli.export_model", "Export a model to another library's format."),
    "plan": ("plait.cli.plan", "Show layer plans that fit in a memory: cache, speed and recall."),
    "study": ("plait.cli.study", "Run, plan and report a grid of trials."),
    "probe": ("plait.cli.probe", "Look inside a model: retrieval heads, sinks, logit growth."),
    "claim": ("plait.cli.claim", "Test what papers claim in small experiments."),
    "bench": ("plait.cli.bench", "Time plait's operations against named peers."),
}


def _version(wanted: bool) -> None:
    if wanted:
        from plait import __version__

        typer.echo(f"plait {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    trust: bool = typer.Option(False, "--trust-remote-code", help="Allow Python code from a model's folder to run."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; so does PLAIT_DEBUG=1."),
) -> None:
    """Hybrid attention models: build, train, measure, compare."""


def _not_loaded() -> None:
    """Stands in the help for a command that this call does not use."""


def build(arguments: Sequence[str]) -> typer.Typer:
    """The application for one call, with only the command that ``arguments`` names imported."""
    app = typer.Typer(
        name="plait",
        no_args_is_help=True,
        rich_markup_mode=None,  # importing rich for the help page would double its time
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback()(_root)
    invoked = next((word for word in arguments if not word.startswith("-")), None)
    for name, (module, summary) in COMMANDS.items():
        if name != invoked:
            app.command(name, help=summary)(_not_loaded)
            continue
        loaded = import_module(module)
        if hasattr(loaded, "app"):
            check_all(loaded.app)
            app.add_typer(loaded.app, name=name, help=summary)
        else:
            app.command(name)(checked(loaded.command))
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; always ends in :class:`SystemExit` with the status of this module's first lines."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments or os.environ.get("PLAIT_DEBUG", "") not in ("", "0")
    trusts = "--trust-remote-code" in arguments
    arguments = [word for word in arguments if word not in ("--debug", "--trust-remote-code")]  # they stand anywhere
    if trusts:
        from plait.hub import trust_remote_code

        trust_remote_code.set(True)
    try:
        try:
            with termination_interrupts():
                build(arguments)(args=arguments, prog_name="plait")
        finally:
            _flush()
    except KeyboardInterrupt:  # before or outside a command; inside, typer makes it exit status 130
        sys.exit(130)
    except BrokenPipeError:  # who reads the output has read enough
        _discard_output()
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        sys.exit(_failed(error, arguments))


def _failed(error: Exception, arguments: Sequence[str]) -> int:
    """Print one sentence on an error; returns the exit status."""
    from plait.cli.failures import sentence, write_log

    text = sentence(error)
    if not isinstance(error, PlaitError):
        log = write_log(error, arguments)
        text += f" The traceback is in {log}." if log else " PLAIT_DEBUG=1 shows the traceback."
    typer.echo(f"plait: {text}", err=True)
    return 1


def _flush() -> None:
    """Write what is buffered now, where an error can still be told."""
    if sys.stdout is None:  # closed by the caller
        return
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()
        raise


def _discard_output() -> None:
    """Let the interpreter's last flush, which nobody could be told about, go nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # not a real file, such as a test's
        return


if __name__ == "__main__":
    main()
