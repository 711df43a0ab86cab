"""``plait bench``: plait's operations against named peers, in the same run, beside the machine's ceilings."""

from __future__ import annotations

import platform
from typing import Annotated, Literal

import typer

from plait.cli.output import print_json, print_table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _bench() -> None:
    """Time plait's operations against named peers."""


@app.command("ops")
def operations(
    sizes: Annotated[Literal["small", "full"], typer.Option(help="small: about a minute; full: long contexts.")] = (
        "small"
    ),
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to run.")] = "cpu",
    repeats: Annotated[int, typer.Option(min=7, help="Alternated repeats of each timing.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time the recurrences against a Python loop, transformers and softmax attention."""
    import torch

    from plait.benchmarks import operations as timed
    from plait.benchmarks.machine import ceilings

    timed.require_device(device)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    ceiling = ceilings(device, dtype)
    timings = timed.time_operations(timed.SIZES[sizes], device, repeats, lambda line: typer.echo(line, err=True))
    if as_json:
        machine = {
            "platform": platform.platform(),
            "device": device,
            "dtype": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
        print_json({"machine": machine, "ceilings": ceiling, "timings": timed.as_rows(timings)})
        return
    typer.echo(
        f"{device}, {dtype}, torch {torch.__version__}, {torch.get_num_threads()} threads; "
        + ", ".join(f"{name} {value:.1f}" for name, value in ceiling.items())
    )
    typer.echo(
        "ratio: the peer's time over plait's (median and quartiles of alternated repeats); above 1, plait is faster"
    )
    typer.echo("softmax (SDPA) computes another function: it is what the recurrence would replace\n")
    header = ["operation", "shape", "direction", "backend", "plait ms", "GFLOP/s", "peer", "peer ms", "ratio", "spread"]
    rows = [
        [t.operation, t.shape, t.direction, t.backend, f"{t.milliseconds:.2f}", f"{t.gflops:.1f}" if t.gflops else "-"]
        + [t.peer, f"{t.peer_milliseconds:.2f}", f"{t.ratio:.2f}", f"{t.ratio_low:.2f} to {t.ratio_high:.2f}"]
        for t in timings
    ]
    print_table(header, rows, right=(4, 5, 7, 8))
