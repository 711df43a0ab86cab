"""Peak memory of forward and backward, beyond inputs and outputs, of each recurrence and of its peers.

Each figure comes from a fresh process, which this module is the program of: it makes the inputs and the gradient of the
output, runs the operation once at a small shape so that libraries are loaded, and then once at the real shape.
Outputs are the operation's output and the gradients of its inputs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from plait import ops
from plait.errors import PlaitError
from plait.timing.cases import LONGEST_SCAN_LOOP, case, contender
from plait.timing.operations import chosen_operations
from plait.timing.peers import Peer
from plait.timing.ratios import ratio
from plait.timing.resident import peak_extra_bytes
from plait.timing.shapes import Shape

#: Extra memory below this is the allocator's noise, and counts as this much.
LEAST_BYTES = 1 << 20
#: Environment of a fresh process: glibc then gives freed tensors back at once, and what it keeps blurs no figure.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}
#: Tokens of the run that loads libraries.
_WARM_UP_TOKENS = 130


@dataclass(frozen=True)
class Peak:
    """Memory of one operation's forward and backward against one peer.

    Args:
        operation: plait's function, with its kind of decay.
        shape: ``B-T-H-D``.
        backend: what plait ran on.
        megabytes: plait's median, in 1e6 bytes, beyond inputs and outputs.
        peer: who it is compared with.
        peer_megabytes: the peer's median.
        ratio, ratio_low, ratio_high: the peer's over plait's, median and quartiles; above 1, plait takes less.
        repeats: fresh processes of each.
    """

    operation: str
    shape: str
    backend: str
    megabytes: float
    peer: str
    peer_megabytes: float
    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int


def measure_memory(
    shapes: Sequence[Shape],
    device: str = "cpu",
    repeats: int = 3,
    operations: Sequence[str] = (),
    announce: Callable[[str], None] = lambda line: None,
) -> list[Peak]:
    """Measure operations at every shape, each against its chunkwise peers, and a short scan against its loop too.

    Args:
        shapes: sizes.
        device: ``cpu`` or ``cuda``.
        repeats: fresh processes of each contender, which take turns; at least 2.
        operations: names or parts of names; none for all.
        announce: told in one line what is measured next.

    Raises:
        OptionError: an operation that does not exist.
        PlaitError: a process failed.
    """
    peaks = []
    for shape in shapes:
        for operation in chosen_operations(operations):
            small = case(operation, replace(shape, tokens=_WARM_UP_TOKENS), device)
            # the loop of a scan keeps a row for every token; elsewhere its graph would hold a whole state
            loops = operation == "linear_scan" and shape.tokens <= LONGEST_SCAN_LOOP
            peers = [peer.name for peer in small.peers if loops or not peer.loop]
            names = ["plait", *peers]
            found: dict[str, list[float]] = {name: [] for name in names}
            for repeat in range(repeats):
                announce(f"{operation} at {shape}, processes {repeat + 1} of {repeats}")
                for name in names:
                    found[name].append(max(_in_fresh_process(operation, shape, name, device), LEAST_BYTES))
            peaks += _compared(operation, shape, found, device)
    return peaks


def extra_bytes(operation: str, shape: Shape, name: str, device: str) -> int:
    """Peak bytes of one contender in this process, beyond inputs and outputs; exact under :data:`ALLOCATOR`.

    Args:
        operation: a name of :data:`plait.timing.cases.CASES`.
        shape: sizes.
        name: ``plait`` or the name of a peer.
        device: ``cpu`` or ``cuda``.
    """
    _forward_and_backward(operation, replace(shape, batch=1, tokens=_WARM_UP_TOKENS), name, device)[0]()
    call, outputs = _forward_and_backward(operation, shape, name, device)
    return peak_extra_bytes(call, device) - outputs


def _forward_and_backward(operation: str, shape: Shape, name: str, device: str) -> tuple[Callable[[], object], int]:
    """The call to be measured, and the bytes of what it returns."""
    found = case(operation, shape, device)
    contenders = [Peer("plait", found.function), *found.peers]
    chosen = next(contender for contender in contenders if contender.name == name)
    inputs = chosen.prepare(found.inputs)
    outputs = found.gradient.nbytes + sum(x.nbytes for x in inputs)
    return contender(chosen.function, inputs, found.gradient), outputs


def _in_fresh_process(operation: str, shape: Shape, name: str, device: str) -> int:
    command = [sys.executable, "-m", "plait.timing.memory", operation, str(shape), name, device]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **ALLOCATOR})
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise PlaitError(
            f"{operation} at {shape}: the process that measures {name} failed ({reason}). "
            "Where memory ran out, choose a smaller --shape."
        )
    return json.loads(process.stdout)["bytes"]


def _compared(operation: str, shape: Shape, found: dict[str, list[float]], device: str) -> list[Peak]:
    ours = found["plait"]
    peaks = []
    for name, theirs in found.items():
        if name == "plait":
            continue
        compared = ratio(ours, theirs)
        peaks.append(
            Peak(
                operation=operation,
                shape=str(shape),
                backend=ops.choose(device)[0],
                megabytes=statistics.median(ours) / 1e6,
                peer=name,
                peer_megabytes=statistics.median(theirs) / 1e6,
                ratio=compared.median,
                ratio_low=compared.low,
                ratio_high=compared.high,
                repeats=len(ours),
            )
        )
    return peaks


if __name__ == "__main__":
    _operation, _shape, _name, _device = sys.argv[1:]
    print(json.dumps({"bytes": extra_bytes(_operation, Shape.parse(_shape), _name, _device)}))
