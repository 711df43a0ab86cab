"""The three recurrences against a Python loop, transformers' chunked delta rule, and causal softmax attention.

Shapes are ``(B, T, H, D)``. Peers that compute the same function must agree with plait's result before they are
timed; softmax attention computes another function of the same inputs and stands for what it would replace.
"""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plait import ops
from plait.benchmarks.timing import ratio, take_turns
from plait.errors import BackendUnavailable, PlaitError


@dataclass(frozen=True)
class Shape:
    """Sizes of one timing: batch, tokens, heads, key and value width."""

    batch: int
    tokens: int
    heads: int
    width: int

    def __str__(self) -> str:
        return f"B{self.batch}-T{self.tokens}-H{self.heads}-D{self.width}"


SIZES = {
    "small": [Shape(1, 512, 4, 64), Shape(1, 2048, 4, 64)],
    "full": [Shape(4, 512, 4, 64), Shape(1, 2048, 8, 128), Shape(1, 8192, 8, 64), Shape(1, 16384, 4, 64)],
}

#: A loop over tokens is timed up to this length; beyond it the ratio says nothing new.
LONGEST_LOOP = 512


@dataclass(frozen=True)
class Timing:
    """One operation, in one direction, against one peer.

    Args:
        operation: plait's function, with its kind of decay.
        shape: ``B-T-H-D``.
        direction: ``forward`` or ``forward+backward``.
        backend: what plait ran on.
        milliseconds: plait's median.
        gflops: plait's forward rate by the accounting of 2507.06457 (0 where the direction is not forward).
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
    gflops: float
    peer: str
    peer_milliseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int


Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One operation with its inputs and its peers."""

    operation: str
    inputs: tuple[Tensor, ...]
    function: Function
    same: dict[str, Function]
    other: dict[str, Function]
    flops: int


def time_operations(
    shapes: list[Shape], device: str = "cpu", repeats: int = 7, announce: Callable[[str], None] | None = None
) -> list[Timing]:
    """Time every operation at every shape, forward and forward with backward.

    Args:
        shapes: sizes.
        device: ``cpu`` or ``cuda``.
        repeats: alternated turns of each timing.
        announce: told in one line what is timed next.

    Raises:
        PlaitError: a peer's result differs from plait's, so that their times must not be compared.
    """
    timings = []
    for shape in shapes:
        for case in cases(shape, device):
            if announce is not None:
                announce(f"{case.operation} at {shape}")
            _agree(case)
            for direction in ("forward", "forward+backward"):
                timings += _time(case, shape, direction, device, repeats)
    return timings


def cases(shape: Shape, device: str) -> list[Case]:
    """The operations with their peers at one shape; fp32 on CPU, bf16 on CUDA."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)
    B, T, H, D = shape.batch, shape.tokens, shape.heads, shape.width

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=device)

    q, k, v = (normal(B, T, H, D) for _ in range(3))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    beta = normal(B, T, H).sigmoid()
    per_head = F.logsigmoid(normal(B, T, H) + 3)
    per_channel = F.logsigmoid(normal(B, T, H, D) + 3)
    q, k, v, beta = (x.to(dtype) for x in (q, k, v, beta))
    log_a, u = F.logsigmoid(normal(B, T, H * D)), normal(B, T, H * D).to(dtype)

    def delta_rule(*inputs: Tensor) -> Tensor:
        return ops.delta_rule(*inputs)[0]

    def linear_attention(*inputs: Tensor) -> Tensor:
        return ops.linear_attention(*inputs)[0]

    def linear_scan(*inputs: Tensor) -> Tensor:
        return ops.linear_scan(*inputs)[0]

    state = B * T * H * D * D
    softmax = {"softmax (SDPA)": _softmax}
    return [
        Case(
            "delta_rule, decay per head",
            (q, k, v, beta, per_head),
            delta_rule,
            {**_loop(delta_rule, shape), "transformers": _transformers_delta_rule},
            softmax,
            8 * state,
        ),
        Case(
            "linear_attention, decay per head",
            (q, k, v, per_head),
            linear_attention,
            _loop(linear_attention, shape),
            softmax,
            5 * state,
        ),
        Case(
            "linear_attention, decay per channel",
            (q, k, v, per_channel),
            linear_attention,
            _loop(linear_attention, shape),
            softmax,
            7 * state,
        ),
        Case("linear_scan", (log_a, u), linear_scan, _loop(linear_scan, shape), {}, 2 * B * T * H * D),
    ]


def _loop(function: Function, shape: Shape) -> dict[str, Function]:
    def looped(*inputs: Tensor) -> Tensor:
        with ops.backend("reference"):
            return function(*inputs)

    return {"Python loop": looped} if shape.tokens <= LONGEST_LOOP else {}


def _softmax(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def _transformers_delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    # Where a kernel package is installed transformers wraps the function; the torch code is inside.
    return inspect.unwrap(torch_chunk_gated_delta_rule)(q, k, v, g=log_decay, beta=beta)[0]


def _agree(case: Case) -> None:
    ours = case.function(*case.inputs).float()
    tolerance = 1e-4 if case.inputs[0].dtype == torch.float32 else 5e-2
    for peer, function in case.same.items():
        error = ((function(*case.inputs).float() - ours).norm() / ours.norm()).item()
        if not error <= tolerance:
            raise PlaitError(
                f"{case.operation}: plait and {peer} differ by {error:.1e} (relative, allowed {tolerance:.0e}); "
                "their times are not comparable. Run the tests of plait.ops on this machine."
            )


def _time(case: Case, shape: Shape, direction: str, device: str, repeats: int) -> list[Timing]:
    def contender(function: Function) -> Callable[[], object]:
        if direction == "forward":
            inputs = case.inputs

            def forward() -> object:
                with torch.no_grad():
                    return function(*inputs)

            return forward
        leaves = tuple(x.detach().clone().requires_grad_() for x in case.inputs)

        def forward_and_backward() -> object:
            output = function(*leaves)
            used = leaves[:3] if function is _softmax else leaves
            return torch.autograd.grad(output.float().sum(), used)

        return forward_and_backward

    peers = {**case.same, **case.other}
    seconds = take_turns(
        {"plait": contender(case.function), **{name: contender(function) for name, function in peers.items()}},
        repeats,
        device,
    )
    ours = statistics.median(seconds["plait"])
    timings = []
    for peer in peers:
        found = ratio(seconds["plait"], seconds[peer])
        timings.append(
            Timing(
                operation=case.operation,
                shape=str(shape),
                direction=direction,
                backend=ops.choose(device)[0],
                milliseconds=1e3 * ours,
                gflops=case.flops / ours / 1e9 if direction == "forward" else 0.0,
                peer=peer,
                peer_milliseconds=1e3 * statistics.median(seconds[peer]),
                ratio=found.median,
                ratio_low=found.low,
                ratio_high=found.high,
                repeats=repeats,
            )
        )
    return timings


def require_device(device: str) -> None:
    """Raise :class:`~plait.errors.BackendUnavailable` if torch cannot run on ``device``."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            f"torch {torch.__version__} sees no CUDA device. Run plait bench ops --device cpu, "
            "or install a torch built for CUDA on a machine that has a GPU."
        )


def as_rows(timings: list[Timing]) -> list[dict[str, object]]:
    """Timings as plain data."""
    return [asdict(timing) for timing in timings]
