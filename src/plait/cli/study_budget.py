"""How ``plait study plan`` and ``plait study run --dry-run`` print what a study costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plait.cli.output import print_table, quantity, say, size

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

    header = ["configuration", "track", "seeds", "layers", "parameters", "tokens", "FLOPs", "memory"]
    header += ["devices", "time"] + ([] if machine.price is None else ["price"])
    rows = []
    for budget in budgets:
        row = [
            budget.key,
            budget.track,
            str(budget.trials),
            f"{budget.n_linear}+{budget.n_full}",
            quantity(budget.parameters),
        ]
        row += [quantity(budget.tokens), quantity(budget.flops), size(budget.memory.total)]
        row += ["none" if budget.devices is None else str(budget.devices), duration(budget.device_hours)]
        row += [] if budget.price is None else [f"{budget.price:,.2f}"]
        rows.append(row)
    print_table(header, rows, right=range(2, len(header)))
    total, device = totals(budgets), machine.device
    price = "" if total["price"] is None else f", price {total['price']:,.2f} at {machine.price:g} an hour"
    if machine.utilisation == 1:
        basis = f"at {quantity(device.peak, 'FLOP/s')}"
    else:
        basis = f"at {machine.utilisation:.0%} of {quantity(device.peak, 'FLOP/s')}"
    shares = [budget.mixing_flops / budget.flops for budget in budgets]
    say(
        f"\n{total['trials']} trials, {quantity(total['tokens'])} tokens, {quantity(total['flops'], 'FLOP')}: "
        f"{duration(total['device_hours'])} on {device.name} {basis}{price}.\n"
        f"Speed: {device.source}.\n"
        "Layers: linear + full. FLOPs of one trial: 6 x parameters (without the input embedding) per token, plus "
        f"three times the forward token mixing ({min(shares):.1%} to {max(shares):.1%} of all).\n"
        f"Memory: peak of a training step on one device, of {device.memory / 1e9:.4g} GB. Devices: the fewest (1, 2, "
        "4, ...) on which it fits when they share weights, gradients, AdamW's moments and the sequences of the batch.\n"
        f"Time: of one trial on one device. Cache of one sequence at {max(study.contexts):,} tokens: "
        f"{size(min(budget.cache_bytes for budget in budgets))} to "
        f"{size(max(budget.cache_bytes for budget in budgets))}."
    )


def duration(hours: float) -> str:
    """Hours, minutes below one tenth of an hour, seconds below one minute."""
    if hours * 3600 < 1:
        return "< 1 s"
    if hours * 60 < 1:
        return f"{3600 * hours:.2g} s"
    if hours < 0.1:
        return f"{60 * hours:.2g} min"
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.2g} h"
