"""What linear mixers share: heads, short convolutions, and running a recurrence on padded, packed or cached input.

A mixer's own file says how queries, keys, values and gates come from ``x`` and what happens to the result.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plait.mixers.base import Cost, Dims
from plait.mixers.context import Context
from plait.mixers.convolved import ConvolvedMixer
from plait.mixers.state import LayerState, States
from plait.ops import attention_piece, delta_piece, delta_rule, linear_attention
from plait.options import Options


@dataclass(frozen=True)
class Heads:
    """Shape of a matrix state: ``values`` heads of ``K`` key and ``V`` value channels, read by ``keys`` heads.

    Args:
        keys: number of query and key heads H.
        values: number of value heads HV, a multiple of H.
        K: key channels of a head.
        V: value channels of a head.
    """

    keys: int
    values: int
    K: int
    V: int

    @property
    def key_width(self) -> int:
        """Width of the query projection."""
        return self.keys * self.K

    @property
    def value_width(self) -> int:
        """Width of the value projection."""
        return self.values * self.V

    @property
    def state_size(self) -> int:
        """Elements of the state of one sequence."""
        return self.values * self.K * self.V


def default_heads(hidden_size: int, largest: int) -> int:
    """The fewest heads, two at least, that divide ``hidden_size`` into heads of at most ``largest`` channels."""
    fewest = max(2, -(-hidden_size // largest))
    return next((n for n in range(fewest, hidden_size + 1) if hidden_size % n == 0), 1)


@dataclass(frozen=True)
class LinearOptions(Options):
    """Options of every linear mixer.

    Args:
        use_short_conv: put a short causal convolution in front of the recurrence.
        conv_size: its number of taps.
    """

    use_short_conv: bool = False
    conv_size: int = 4

    def __post_init__(self) -> None:
        self.require_positive("conv_size")

    @abstractmethod
    def heads(self, dims: Dims) -> Heads:
        """Sizes of the state in a model of these ``dims``.

        Raises:
            OptionError: the options do not fit ``hidden_size``.
        """

    def convolved(self, dims: Dims) -> int:
        """Channels that pass through short convolutions when ``use_short_conv`` is on: q, k and v."""
        heads = self.heads(dims)
        return 2 * heads.key_width + heads.value_width

    def expanded(self, field: str, dims: Dims, heads: int) -> int:
        """Channels of each of ``heads`` heads whose joint width is ``hidden_size`` times the option ``field``."""
        width = dims.hidden_size * getattr(self, field)
        self.require(
            width >= 1 and width % heads == 0,
            field,
            f"hidden_size {dims.hidden_size} times {field} is {width:g}, which {heads} heads cannot share evenly; "
            f"change num_heads, {field} or hidden_size",
        )
        return int(width) // heads


@dataclass(frozen=True)
class GroupedOptions(LinearOptions):
    """Options of RetNet and GLA, whose keys and values may have fewer heads than the queries.

    Args:
        num_heads: heads H.
        num_kv_heads: heads of k and v, a divisor of ``num_heads``; None: as many.
        expand_k: width of q and k over ``hidden_size``.
        expand_v: width of v over ``hidden_size``.
        use_output_gate: gate the output.
    """

    num_heads: int = 4
    num_kv_heads: int | None = None
    expand_k: float = 1.0
    expand_v: float = 1.0
    use_output_gate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("num_heads", "num_kv_heads", "expand_k", "expand_v")
        kv_heads = self.num_kv_heads or self.num_heads
        self.require(self.num_heads % kv_heads == 0, "num_kv_heads", f"must divide num_heads {self.num_heads}")

    @property
    def groups(self) -> int:
        """Heads that share one head of keys and values; the state has them all."""
        return self.num_heads // (self.num_kv_heads or self.num_heads)

    def heads(self, dims: Dims) -> Heads:
        H = self.num_heads
        return Heads(H, H, self.expanded("expand_k", dims, H), self.expanded("expand_v", dims, H))

    def convolved(self, dims: Dims) -> int:
        heads = self.heads(dims)
        return heads.key_width + (heads.key_width + heads.value_width) // self.groups


@dataclass
class Recurrence:
    """Inputs of one recurrence; with ``beta`` it is the delta rule, without it plain linear attention.

    Args:
        q, k: ``(B, T, H, K)``.
        v: ``(B, T, HV, V)``.
        log_decay: None, ``(HV,)``, ``(B, T, HV)`` or ``(B, T, HV, K)``, at most 0.
        beta: ``(B, T, HV)`` writing strength, or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None = None
    beta: Tensor | None = None


class RecurrentMixer(ConvolvedMixer):
    """A mixer that remembers one state of constant size and the inputs of its short convolutions."""

    #: FLOPs per state element and token, by the accounting of :class:`~plait.mixers.base.Cost`.
    flops_per_element: ClassVar[int]
    options: Any  # its own type in each subclass

    def __init__(self, dims: Dims, options: LinearOptions, layer: int) -> None:
        super().__init__(dims, options, layer)
        self.heads = options.heads(dims)

    def new_state(self) -> LayerState:
        return LayerState({"recurrent": States(), **self.tails()})

    def carried(self, context: Context) -> Tensor | None:
        """The recurrent state before this call, or None."""
        return None if context.state is None else context.state["recurrent"].value  # type: ignore[attr-defined]

    def carry(self, context: Context, state: Tensor) -> None:
        """Keep the recurrent state for the next call, if one is wanted."""
        if context.state is not None:
            context.state["recurrent"].value = state  # type: ignore[attr-defined]

    @classmethod
    def cost(cls, dims: Dims, T: int, options: Any, *, cache_dtype: torch.dtype = torch.bfloat16) -> Cost:
        """See :meth:`Mixer.cost`. With S state elements and c FLOPs for each (``flops_per_element``): prefill
        ``c S T``, one more token ``c S``; memory ``4 S`` bytes, and ``conv_size - 1`` cached inputs per convolved
        channel.
        """
        elements = options.heads(dims).state_size
        flops = cls.flops_per_element * elements
        tails = (options.conv_size - 1) * options.convolved(dims) if options.use_short_conv else 0
        return Cost(flops * T, flops, 4 * elements + cache_dtype.itemsize * tails)


class LinearMixer(RecurrentMixer):
    """A mixer whose recurrence is :func:`~plait.ops.linear_attention` or :func:`~plait.ops.delta_rule`."""

    @abstractmethod
    def recurrence(self, x: Tensor, context: Context) -> Recurrence:
        """Queries, keys, values and gates for ``x`` ``(B, T, d)``."""

    def run(self, r: Recurrence, context: Context) -> Tensor:
        """Run the recurrence from this layer's state and keep the new one; padding neither writes (its
        keys are 0) nor decays.

        Returns:
            what the queries read, ``(B, T, HV, V)``.
        """
        if context.sequence is not None:
            piece = (
                attention_piece(r.q, r.k, r.v, r.log_decay)
                if r.beta is None
                else delta_piece(r.q, r.k, r.v, r.beta, r.log_decay)
            )
            return context.sequence.continued(piece)
        k, v, log_decay = context.zero_padding(r.k), r.v, r.log_decay
        if log_decay is not None and context.padding is not None:
            if log_decay.dim() == 1:
                log_decay = log_decay.expand(*v.shape[:2], -1)
            log_decay = context.zero_padding(log_decay)
        options: dict[str, Any] = {
            "state": self.carried(context),  # held by the cache alone, which gets the new one
            "cu_seqlens": context.cu_seqlens,
            "overwrite_state": context.overwrite_state,
        }
        if r.beta is None:
            o, state = linear_attention(r.q, k, v, log_decay, **options)
        else:
            o, state = delta_rule(r.q, k, v, r.beta, log_decay, **options)
        self.carry(context, state)
        return o

    def effective_weights(self, x: Tensor, context: Context | None = None) -> Tensor:
        context = replace(context or Context.plain(x), state=None)
        r = self.recurrence(x, context)
        # with the value of token j a unit vector along j, the outputs are the rows of the matrix
        heads, length = r.v.shape[2], x.shape[1]
        unit = torch.eye(length, dtype=x.dtype, device=x.device)[None, :, None].expand(x.shape[0], -1, heads, -1)
        return self.run(replace(r, v=unit), context).transpose(1, 2)


def split_heads(x: Tensor, size: int) -> Tensor:
    """``(B, T, H * size)`` to ``(B, T, H, size)``."""
    return x.unflatten(-1, (-1, size))


def repeat_heads(x: Tensor, groups: int) -> Tensor:
    """Give each of ``groups`` neighbouring query heads its head of ``x`` ``(B, T, N, D)``."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=2)


def linear(size_in: int, size_out: int) -> nn.Linear:
    """A projection without bias, as nearly all of theirs are."""
    return nn.Linear(size_in, size_out, bias=False)
