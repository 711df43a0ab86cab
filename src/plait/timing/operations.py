"""The recurrences and softmax attention against their peers: ratios of time, and shares of the machine's ceilings.

Peers that compute the same function must agree with plait's result before they are timed; softmax attention computes
another function of the same inputs and stands for what it would replace.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from plait import ops
from plait.errors import OptionError, PlaitError
from plait.timing import machine
from plait.timing.cases import CASES, Case, case, contender
from plait.timing.machine import Ceiling
from plait.timing.ratios import ratio, take_turns
from plait.timing.shapes import Shape

DIRECTIONS = ("forward", "forward+backward")


@dataclass(frozen=True)
class Timing:
    """One operation, in one direction, against one peer.

    Args:
        operation: plait's function, with its kind of decay.
        shape: ``B-T-H-D``.
        direction: ``forward`` or ``forward+backward``.
        backend: what plait ran on.
        milliseconds: plait's median.
        rate: plait's, in the unit of ``ceiling``, counting what :mod:`plait.timing.work` counts.
        share: of the ceiling, measured in the same turns.
        ceiling: ``matmul GFLOP/s`` or ``copy GB/s``.
        peer: who it is compared with.
        peer_milliseconds: the peer's median.
        ratio, ratio_low, ratio_high: the peer's time over plait's, median and quartiles; above 1, plait is faster.
        repeats: alternated turns.
    """

    operation: str
    shape: str
    direction: str
    backend: str
    milliseconds: float
    rate: float
    share: float
    ceiling: str
    peer: str
    peer_milliseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int


def chosen_operations(named: Sequence[str]) -> list[str]:
    """The operations whose names contain one of ``named``, such as ``linear_attention`` or ``per channel``; or all.

    Raises:
        OptionError: one of ``named`` is in no operation's name.
    """
    for part in named:
        if not any(part in operation for operation in CASES):
            known = ", ".join(map(repr, CASES))
            raise OptionError(f"operation {part!r} is part of no operation's name. Known: {known}.")
    return [operation for operation in CASES if not named or any(part in operation for part in named)]


def time_operations(
    shapes: Sequence[Shape],
    device: str = "cpu",
    repeats: int = 7,
    operations: Sequence[str] = (),
    directions: Sequence[str] = DIRECTIONS,
    announce: Callable[[str], None] = lambda line: None,
) -> list[Timing]:
    """Time operations at every shape.

    Args:
        shapes: sizes.
        device: ``cpu`` or ``cuda``.
        repeats: alternated turns of each timing.
        operations: names or parts of names; none for all.
        directions: ``forward``, ``forward+backward`` or both.
        announce: told in one line what is timed next.

    Raises:
        OptionError: as :func:`chosen_operations`.
        PlaitError: a peer's result differs from plait's, so that their times must not be compared.
    """
    dtype = machine.timed_dtype(device)
    bounds = {bound.name: bound for bound in (machine.matrix_product(device, dtype), machine.copy(device, dtype))}
    timings = []
    for shape in shapes:
        for operation in chosen_operations(operations):
            announce(f"{operation} at {shape}")
            found = case(operation, shape, device)
            agree(found)
            for direction in directions:
                timings += _time(found, shape, direction, device, repeats, bounds[found.ceiling])
    return timings


def agree(found: Case) -> None:
    """Check that every peer of the same function has plait's result.

    Raises:
        PlaitError: names the peer and the difference.
    """
    with torch.no_grad():
        ours = found.function(*found.inputs).float()
        tolerance = 1e-4 if all(x.dtype == torch.float32 for x in found.inputs) else 5e-2
        for peer in found.peers:
            if not peer.same:
                continue
            theirs = peer.function(*peer.prepare(found.inputs)).float()
            error = ((theirs - ours).norm() / ours.norm()).item()
            if not error <= tolerance:
                raise PlaitError(
                    f"{found.operation}: plait and {peer.name} differ by {error:.1e} (relative, allowed "
                    f"{tolerance:.0e}); their times are not comparable. Run the tests of plait.ops on this machine."
                )


def _time(found: Case, shape: Shape, direction: str, device: str, repeats: int, bound: Ceiling) -> list[Timing]:
    gradient = None if direction == "forward" else found.gradient
    contenders = {"plait": contender(found.function, found.inputs, gradient), bound.name: bound.call}
    for peer in found.peers:
        contenders[peer.name] = contender(peer.function, peer.prepare(found.inputs), gradient)
    seconds = take_turns(contenders, repeats, device)
    ours = seconds["plait"]
    work = found.work(direction) / 1e9
    timings = []
    for peer in found.peers:
        compared = ratio(ours, seconds[peer.name])
        timings.append(
            Timing(
                operation=found.operation,
                shape=str(shape),
                direction=direction,
                backend=found.backend or ops.choose(device)[0],
                milliseconds=1e3 * statistics.median(ours),
                rate=work / statistics.median(ours),
                share=work / bound.amount * ratio(ours, seconds[bound.name]).median,
                ceiling=bound.name,
                peer=peer.name,
                peer_milliseconds=1e3 * statistics.median(seconds[peer.name]),
                ratio=compared.median,
                ratio_low=compared.low,
                ratio_high=compared.high,
                repeats=repeats,
            )
        )
    return timings
