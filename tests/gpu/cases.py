"""Recurrences on a GPU: inputs that every precision holds exactly, and what fp64 makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ops.cases import inputs
from plait import ops

DEVICE = "cuda"
#: Key and value width of a head: one width, so that a kernel is compiled once.
WIDTH = 64
#: Tokens -> rows. The longest has one, since the reference keeps a state per token for its gradients.
LENGTHS = {64: 2, 333: 2, 2048: 2, 16384: 1}
#: Borders of documents packed into one row: a single token, a whole chunk, and parts of chunks.
BORDERS = (0, 1, 65, 200, 333)

Named = dict[str, Tensor]
Result = dict[str, Tensor]


@dataclass(frozen=True)
class Operation:
    """A recurrence and its arguments.

    Args:
        make: from tokens and rows (or packed documents, each with a state) to the arguments in fp64, by name.
        call: the recurrence with arguments, borders and backend.
        wide: arguments that stay in fp32 where the others are bf16.
        fixed: arguments whose gradient nobody asks for.
    """

    make: Callable[[int, int, int], Named]
    call: Callable[..., tuple[Tensor, Tensor]]
    wide: tuple[str, ...] = ("log_decay", "state")
    fixed: tuple[str, ...] = ()

    def arguments(self, length: int, packed: bool) -> Named:
        """In fp64 on the GPU, with values that bf16 holds (fp32 for ``wide``)."""
        rows = 1 if packed else LENGTHS[length]
        made = self.make(length, rows, len(BORDERS) - 1 if packed else rows)
        low = {name: x.float() if name in self.wide else x.bfloat16() for name, x in made.items()}
        return {name: x.double().to(DEVICE) for name, x in low.items()}

    def in_dtype(self, arguments: Named, dtype: torch.dtype) -> Named:
        """The same values in a narrower type."""
        return {name: x.float() if name in self.wide else x.to(dtype) for name, x in arguments.items()}

    def results(self, arguments: Named, packed: bool, backend: str) -> Result:
        """Output, state, and the gradient of every argument for a random cotangent of both."""
        leaves = {n: x.detach().clone().requires_grad_(n not in self.fixed) for n, x in arguments.items()}
        borders = torch.tensor(BORDERS, device=DEVICE) if packed else None
        o, state = self.call(**leaves, cu_seqlens=borders, backend=backend)
        generator = torch.Generator().manual_seed(7)
        cotangents = [torch.randn(y.shape, generator=generator).bfloat16().to(DEVICE).to(y.dtype) for y in (o, state)]
        wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        gradients = torch.autograd.grad([o, state], list(wanted.values()), cotangents)
        return {"output": o.detach(), "final state": state.detach()} | {
            f"gradient of {name}": g for name, g in zip(wanted, gradients, strict=True)
        }


def _attention(decay: str, delta: bool) -> Callable[[int, int, int], Named]:
    def make(length: int, rows: int, states: int) -> Named:
        sizes = {"B": rows, "H": 1, "HV": 2, "K": WIDTH, "V": WIDTH}
        given = inputs(length, **sizes, decay=decay, delta=delta, states=states)
        if given.log_decay is not None:
            given.log_decay *= 0.1  # memories of some thirty tokens
        return {name: x for name, x in vars(given).items() if x is not None}

    return make


def _scan(length: int, rows: int, states: int) -> Named:
    generator = torch.Generator().manual_seed(0)
    log_a, u = torch.randn(2, rows, length, WIDTH, generator=generator, dtype=torch.float64)
    return {
        "log_a": 0.1 * torch.nn.functional.logsigmoid(log_a + 1),
        "u": u,
        "state": torch.randn(states, WIDTH, generator=generator, dtype=torch.float64),
    }


OPERATIONS = {
    "linear_attention, no decay": Operation(_attention("none", False), ops.linear_attention),
    "linear_attention, constant decay": Operation(_attention("constant", False), ops.linear_attention),
    "linear_attention, fixed decay": Operation(
        _attention("constant", False), ops.linear_attention, fixed=("log_decay",)
    ),
    "linear_attention, decay per head": Operation(_attention("head", False), ops.linear_attention),
    "linear_attention, decay per channel": Operation(_attention("channel", False), ops.linear_attention),
    "delta_rule, no decay": Operation(_attention("none", True), ops.delta_rule),
    "delta_rule, constant decay": Operation(_attention("constant", True), ops.delta_rule),
    "delta_rule, decay per head": Operation(_attention("head", True), ops.delta_rule),
    "delta_rule, decay per channel": Operation(_attention("channel", True), ops.delta_rule),
    "linear_scan": Operation(_scan, ops.linear_scan, wide=("log_a", "state")),
}


@cache
def reference(operation: str, length: int, packed: bool) -> Result:
    """The recurrence token by token in fp64, on the GPU."""
    found = OPERATIONS[operation]
    return found.results(found.arguments(length, packed), packed, "reference")


def error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; NaN where an entry is."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())
