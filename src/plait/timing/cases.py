"""The operations that are timed, each with inputs of one shape and with its peers.

Queries and keys have length one, as the mixers hand them over; decays are those of a sigmoid around 0.95. Everything
is fp32 on a CPU; on a GPU it is bf16 but for the decays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from plait import ops
from plait.timing import peers, softmax_cases
from plait.timing.machine import timed_dtype
from plait.timing.peers import Function, Inputs, Peer
from plait.timing.shapes import Shape
from plait.timing.work import chunkwise_operations, scan_bytes

#: A loop over tokens is timed up to this length; beyond it the ratio says nothing new.
LONGEST_LOOP = 512
#: The loop of a scan has little to do in a step, so it is timed up to a greater length.
LONGEST_SCAN_LOOP = 2048


@dataclass(frozen=True)
class Case:
    """One operation with its inputs and its peers.

    Args:
        operation: plait's function, with its kind of decay.
        inputs: its arguments.
        function: plait's function, without the state that it returns beside the output.
        gradient: what backward starts from, as large as the output.
        peers: whom it is compared with.
        ceiling: ``matmul GFLOP/s`` or ``copy GB/s``: what bounds it.
        work: by direction, what it has to do at least, in operations or bytes.
        backend: what plait runs on; empty: what it chooses for recurrences.
    """

    operation: str
    inputs: Inputs
    function: Function
    gradient: Tensor
    peers: list[Peer]
    ceiling: str
    work: Callable[[str], float]
    backend: str = ""


def contender(function: Function, inputs: Inputs, gradient: Tensor | None = None) -> Callable[[], object]:
    """A call to be timed.

    Args:
        function: from the inputs to the output.
        inputs: shared with every other contender; only their gradients are this one's own.
        gradient: of the output, for forward and backward; None for forward alone.
    """
    if gradient is None:

        def forward() -> object:
            with torch.no_grad():
                return function(*inputs)

        return forward
    leaves = tuple(x.detach().requires_grad_() for x in inputs)

    def forward_and_backward() -> object:
        output = function(*leaves)
        return output, torch.autograd.grad(output, leaves, gradient)

    return forward_and_backward


def _delta_rule(name: str, shape: Shape, device: str) -> Case:
    x = Tokens(shape, device)
    same = [peers.chunked_delta_rule(), *peers.fla("delta_rule", device)]
    if shape.tokens <= LONGEST_LOOP:
        same.append(peers.recurrent_delta_rule())
    inputs = (x.q, x.k, x.v, x.beta, x.per_head)
    return _attention_case(name, x, delta_rule, inputs, same)


def _constant_decay(name: str, shape: Shape, device: str) -> Case:
    """The decay is a constant of the layer, so nobody computes its gradient."""
    x = Tokens(shape, device)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention(q, k, v, x.constant)

    same = [peers.lightning(x.constant, shape.width, x.dtype)]
    return _attention_case(name, x, function, (x.q, x.k, x.v), same)


def _decay_per_head(name: str, shape: Shape, device: str) -> Case:
    x = Tokens(shape, device)
    same = [peers.mamba2(), *peers.fla("decay per head", device)]
    inputs = (x.q, x.k, x.v, x.per_head)
    return _attention_case(name, x, linear_attention, inputs, same)


def _decay_per_channel(name: str, shape: Shape, device: str) -> Case:
    x = Tokens(shape, device)
    same = [peers.chunked_channel_decay(), *peers.fla("decay per channel", device)]
    inputs = (x.q, x.k, x.v, x.per_channel)
    return _attention_case(name, x, linear_attention, inputs, same)


def _attention_case(name: str, x: Tokens, function: Function, inputs: Inputs, same: list[Peer]) -> Case:
    loop = [peers.python_loop(function)] if x.shape.tokens <= LONGEST_LOOP else []
    work = partial(chunkwise_operations, name.split(",")[0], x.shape)
    return Case(name, inputs, function, x.gradient, [*same, *loop, peers.softmax_attention()], "matmul GFLOP/s", work)


def _linear_scan(name: str, shape: Shape, device: str) -> Case:
    """The scan runs over all H D channels of the shape at once."""
    x = Tokens(shape, device)
    same = [peers.chunked_scan(), *peers.fla("linear_scan", device)]
    if shape.tokens <= LONGEST_SCAN_LOOP:
        same.append(peers.python_loop(linear_scan))
    work = partial(scan_bytes, x.log_a.nbytes, x.u.nbytes)
    return Case(name, (x.log_a, x.u), linear_scan, x.gradient.flatten(2), same, "copy GB/s", work)


def _softmax(name: str, shape: Shape, device: str) -> Case:
    x = Tokens(shape, device)
    inputs: Inputs = (x.q, x.k, x.v)
    causal = name == "softmax attention, causal"
    peer = softmax_cases.dense_peer(causal)
    if "a query" in name:
        inputs = (x.q, x.k[:, :, :1], x.v[:, :, :1])
        peer = softmax_cases.wide(peer, shape.heads)
    function, pairs = softmax_cases.function_of(name, shape, device)
    work = partial(softmax_cases.operations, pairs, shape)
    backend = "flex" if device == "cuda" else "torch's fused" if causal else ""
    return Case(name, inputs, function, x.gradient, [peer], "matmul GFLOP/s", work, backend)  # type: ignore[arg-type]


#: Operation -> builder of its case from that name, a shape and a device.
CASES: dict[str, Callable[[str, Shape, str], Case]] = {
    "delta_rule, decay per head": _delta_rule,
    "linear_attention, constant decay": _constant_decay,
    "linear_attention, decay per head": _decay_per_head,
    "linear_attention, decay per channel": _decay_per_channel,
    "linear_scan": _linear_scan,
    **dict.fromkeys([*softmax_cases.PLAIN, *softmax_cases.LISTED], _softmax),
}


def case(operation: str, shape: Shape, device: str = "cpu") -> Case:
    """An operation of :data:`CASES` at one shape."""
    return CASES[operation](operation, shape, device)


def delta_rule(*inputs: Tensor) -> Tensor:
    """:func:`plait.ops.delta_rule` without its state."""
    return ops.delta_rule(*inputs)[0]


def linear_attention(*inputs: Tensor) -> Tensor:
    """:func:`plait.ops.linear_attention` without its state."""
    return ops.linear_attention(*inputs)[0]


def linear_scan(*inputs: Tensor) -> Tensor:
    """:func:`plait.ops.linear_scan` without its state."""
    return ops.linear_scan(*inputs)[0]


class Tokens:
    """Random arguments of every recurrence at one shape, with a fixed seed; each is drawn when it is first asked for.

    Args:
        shape: B, T, H, D.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, shape: Shape, device: str) -> None:
        self.shape, self.device, self.dtype = shape, device, timed_dtype(device)
        self._generator = torch.Generator(device).manual_seed(0)

    @cached_property
    def q(self) -> Tensor:
        """Queries ``(B, T, H, D)`` of length one."""
        return F.normalize(self._channels(), dim=-1).to(self.dtype)

    @cached_property
    def k(self) -> Tensor:
        """Keys ``(B, T, H, D)`` of length one."""
        return F.normalize(self._channels(), dim=-1).to(self.dtype)

    @cached_property
    def v(self) -> Tensor:
        """Values ``(B, T, H, D)``."""
        return self._channels().to(self.dtype)

    @cached_property
    def gradient(self) -> Tensor:
        """Gradient of an output ``(B, T, H, D)``."""
        return self._channels().to(self.dtype)

    @cached_property
    def beta(self) -> Tensor:
        """Strength of the delta rule's writes ``(B, T, H)``."""
        return self._normal(self.shape.heads).sigmoid().to(self.dtype)

    @cached_property
    def per_head(self) -> Tensor:
        """Log decay ``(B, T, H)``."""
        return F.logsigmoid(self._normal(self.shape.heads) + 3)

    @cached_property
    def per_channel(self) -> Tensor:
        """Log decay ``(B, T, H, D)``."""
        return F.logsigmoid(self._channels() + 3)

    @cached_property
    def constant(self) -> Tensor:
        """Log decay ``(H,)``, the slopes of Lightning attention (2401.04658): ``2^(-8 h / H)`` for h from 1 to H."""
        heads = self.shape.heads
        return -(2.0 ** (-8 * torch.arange(1, heads + 1, device=self.device) / heads))

    @cached_property
    def log_a(self) -> Tensor:
        """Log decay of a scan ``(B, T, H D)``."""
        return self.per_channel.flatten(2)

    @cached_property
    def u(self) -> Tensor:
        """Inputs of a scan ``(B, T, H D)``."""
        return self.v.flatten(2)

    def shorter(self, tokens: int) -> Tokens:
        """As many tokens as asked for."""
        return self if tokens == self.shape.tokens else Tokens(replace(self.shape, tokens=tokens), self.device)

    def _channels(self) -> Tensor:
        return self._normal(self.shape.heads, self.shape.width)

    def _normal(self, *sizes: int) -> Tensor:
        return torch.randn(self.shape.batch, self.shape.tokens, *sizes, generator=self._generator, device=self.device)
