"""``plait plan``: which layer plans fit in a memory, what they cost, and which of them no other plan beats."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli.output import print_json, print_table, quantity, say, size
from plait.errors import OptionError

if TYPE_CHECKING:
    from plait.planner.candidates import Candidate
    from plait.planner.request import Plan


def command(
    params: Annotated[str, typer.Option(help="Parameters, such as 340M or 1.3B; gives depth and width.")] = "1.3B",
    context: Annotated[int, typer.Option(min=1, help="Tokens that each sequence holds.")] = 32768,
    batch: Annotated[int, typer.Option(min=1, help="Sequences decoded at a time.")] = 1,
    memory: Annotated[
        str | None, typer.Option(help="Memory of the device, such as 24GiB, in place of the data sheet's.")
    ] = None,
    device: Annotated[str, typer.Option(help="a100, h100, h200, or cpu, which is measured now.")] = "h100",
    bandwidth: Annotated[
        float | None, typer.Option(help="Memory bandwidth in bytes/s, in place of the data sheet's.")
    ] = None,
    peak: Annotated[float | None, typer.Option(help="Peak in FLOP/s, in place of the data sheet's.")] = None,
    study: Annotated[
        Path | None, typer.Option(help="A study's report.json to take recall from, in place of the paper.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Number of layers; needs --hidden-size and replaces --params.")
    ] = None,
    hidden_size: Annotated[int | None, typer.Option(min=1, help="Width; needs --layers and replaces --params.")] = None,
    vocab_size: Annotated[int, typer.Option(min=1, help="Size of the vocabulary.")] = 32000,
    mixer: Annotated[list[str] | None, typer.Option(help="Linear mixer to consider; repeatable.")] = None,
    full: Annotated[list[str] | None, typer.Option(help="Mixer of the full layers; repeatable.")] = None,
    ratio: Annotated[list[str] | None, typer.Option(help="pure or R:1; repeatable.")] = None,
    placement: Annotated[list[str] | None, typer.Option(help="block_r_plus_1 or period_r; both by default.")] = None,
    kv_heads: Annotated[list[int] | None, typer.Option(min=1, help="Key and value heads of the full layers.")] = None,
    window: Annotated[list[int] | None, typer.Option(min=0, help="Window of the full layers; 0 for none.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also show plans that another plan beats.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write a page with figures, such as plan.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every plan that fits.")] = False,
) -> None:
    """Show layer plans that fit in a memory: cache, speed and recall."""
    from plait.planner import devices
    from plait.planner.candidates import Grid, Load
    from plait.planner.request import make_plan

    if (layers is None) != (hidden_size is None):
        raise OptionError("--layers and --hidden-size go together: give both, or --params alone.")
    sizes = None if layers is None or hidden_size is None else (layers, hidden_size)
    chosen: dict[str, Any] = {"mixers": mixer, "full": full, "ratios": ratio, "placements": placement}
    chosen["kv_heads"] = kv_heads
    if window:
        chosen["windows"] = [tokens or None for tokens in window]
    own = None if memory is None else devices.parse_bytes(memory)
    plan = make_plan(
        devices.parse_count(params) if sizes is None else sizes,
        Load(context, batch),
        devices.device(device).with_figures(peak, bandwidth, own),
        study=study,
        vocab_size=vocab_size,
        grid=Grid(**{name: values for name, values in chosen.items() if values}),
    )
    if out is not None:
        from plait.report.plan_page import write_page

        write_page(plan, out, shlex.join(["plait", *sys.argv[1:]]), everything)
        typer.echo(f"Page: {out}", err=True)
    if as_json:
        print_json(plan.record())
    else:
        _show(plan, everything)


def _show(plan: Plan, everything: bool) -> None:
    shape, load, device, choice = plan.shape, plan.load, plan.device, plan.choice
    say(
        f"{shape.layers} layers of width {shape.hidden_size}, vocabulary {shape.vocab_size:,}: {shape.rule}.\n"
        f"{load.batch} x {load.context:,} tokens in bf16 on {device.name}: {size(device.memory)}, "
        f"{quantity(device.bandwidth, 'B/s')}, {quantity(device.peak, 'FLOP/s')} ({device.source}).\n"
    )
    best = {candidate.key for candidate in choice.front}
    shown = choice.fits if everything else choice.front
    header = ["plan", "full", "weights", "grows", "bounded", "constant", "working", "memory", "tokens/s", "recall"]
    header += ["front"] if everything else []
    rows = [_row(candidate) + (["yes" if candidate.key in best else ""] if everything else []) for candidate in shown]
    if rows:
        print_table(header, rows, right=range(1, 10))
    say("\n" + "\n".join(plan.sentences(everything)))


def _row(candidate: Candidate) -> list[str]:
    parts = (
        candidate.weight_bytes,
        candidate.cache_bytes,
        candidate.window_bytes,
        candidate.state_bytes,
        candidate.working_bytes,
        candidate.memory,
    )
    row = [candidate.key, str(candidate.n_full), *(size(part) if part else "-" for part in parts)]
    return [
        *row,
        f"{candidate.tokens_per_second:,.0f}",
        "unknown" if candidate.recall is None else f"{candidate.recall.value:.3f}",
    ]
