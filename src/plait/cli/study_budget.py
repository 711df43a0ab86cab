"""How ``plait study plan`` and ``plait study run --dry-run`` print what a study costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from plait.cli.output import print_table, quantity, size

if TYPE_CHECKING:
    from plait.study.file import StudyFile
    from plait.study.plan import Budget, Machine


def record(budgets: list[Budget], machine: Machine) -> dict[str, Any]:
    """The plan as JSON holds it."""
    import dataclasses

    from plait.study.plan import totals

    return {
        "device": dataclasses.asdict(machine.device),
        "utilisation": machine.utilisation,
        "price_of_a_device_hour": machine.price,
        "configurations": [budget.record() for budget in budgets],
        "total": totals(budgets),
    }


def show(study: StudyFile, budgets: list[Budget], machine: Machine) -> None:
    """Print a row for each configuration, the totals, and what the figures rest on."""
    from plait.study.plan import totals

    header = ["configuration", "track", "seeds", "linear+full", "parameters", "tokens", "FLOPs", "mixing"]
    header += ["memory", "devices", f"cache at {max(study.contexts):,}", "hours"]
    header += [] if machine.price is None else ["price"]
    rows = []
    for one in budgets:
        row = [one.key, one.track, str(one.trials), f"{one.n_linear}+{one.n_full}", f"{one.parameters:,}"]
        row += [quantity(one.tokens), quantity(one.flops), f"{one.mixing_flops / one.flops:.1%}"]
        row += [size(one.memory.total), "none" if one.devices is None else str(one.devices), size(one.cache_bytes)]
        row += [hours(one.device_hours)] + ([] if one.price is None else [f"{one.price:,.2f}"])
        rows.append(row)
    print_table(header, rows, right=range(2, len(header)))
    total, device = totals(budgets), machine.device
    price = "" if total["price"] is None else f", price {total['price']:,.2f} at {machine.price:g} an hour"
    typer.echo(
        f"\n{total['trials']} trials, {quantity(total['tokens'])} tokens, {quantity(total['flops'], 'FLOP')}: "
        f"{hours(total['device_hours'])} {device.name} hours at {machine.utilisation:.0%} of "
        f"{quantity(device.peak, 'FLOP/s')}{price}.\n"
        f"Device: {device.memory / 1e9:.4g} GB; {device.source}.\n"
        "FLOPs: 6 x parameters (without the input embedding) per token, plus three times the forward token mixing, "
        "which the column 'mixing' is the share of.\n"
        "Memory: peak of a training step on one device as the file sets it up. Devices: the fewest (1, 2, 4, ...) on "
        "which it fits when they share weights, gradients, AdamW's moments and the sequences of the batch.\n"
        "Hours are those of one device; more devices share them."
    )


def hours(value: float) -> str:
    """Hours with the digits that they deserve."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
