"""A policy at work on a model: what it does to a layer's attention, and what that cost."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from plait.errors import OptionError
from plait.mixers.state import LayerState
from plait.runtime.call import Call, Forward, LayerInfo, ModelInfo, Scoring
from plait.runtime.dense import Dense
from plait.runtime.meter import Meter, Report
from plait.runtime.policy import Policy
from plait.runtime.rope import Rope

#: Policies that this thread or task has entered, the outermost first, each with where it meets its model.
entered: ContextVar[tuple[tuple[Running, object], ...]] = ContextVar("plait_policies", default=())


class Running:
    """A policy for a model, without the hooks that bring the model's calls to it.

    Args:
        model: a decoder of transformers or a :class:`~plait.models.PlaitForCausalLM`.
        policy: the policy.
        name: what reports call it.
        reference: compute the policy's selections with dense masks (see :func:`~plait.policies.masked_reference`).
    """

    def __init__(self, model: nn.Module, policy: Policy, name: str, *, reference: bool = False) -> None:
        self.model = model
        self.policy = policy
        self.name = name
        self.reference = reference
        self.meter = Meter()
        self.info: ModelInfo | None = None
        #: Passes that ran under it.
        self.passes = 0
        #: Whether the model is only being looked at.
        self.tries = False
        self._dense = Dense()
        self._marked: dict[str, Tensor] = {}

    @property
    def applied(self) -> bool:
        """Whether the policy is in force in the calling thread."""
        return any(policy is self for policy, _ in entered.get())

    @property
    def takes_drafts(self) -> bool:
        """Whether tokens that are checked several at a time and taken back change nothing."""
        layers = () if self.info is None else self.info.layers
        return self.policy.any_split and all(layer.window is None for layer in layers)

    def report(self) -> Report:
        """What the policy has done so far."""
        layers = () if self.info is None else self.info.layers
        served = tuple(layer.index for layer in layers if self.policy.serves(layer))
        return Report.of(self.meter, self.name, served)

    def reset_report(self) -> None:
        """Count from zero again."""
        self.meter = Meter()

    def policy_of(self, layer: LayerInfo) -> Policy:
        """The policy that serves a layer."""
        return self.policy if self.policy.serves(layer) else self._dense

    def new_state(self, layer: LayerInfo) -> LayerState:
        """Empty memory of a layer."""
        return self.policy_of(layer).new_state(layer)

    def attend(
        self,
        layer: LayerInfo,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        forward: Forward,
        scoring: Scoring,
        state: LayerState | None,
        hidden: Tensor | None = None,
        rope: Rope | None = None,
    ) -> Tensor:
        """One layer's attention under the policy.

        Args:
            layer: which one.
            q, k, v: ``(B, heads, T, D)`` of the new tokens, as the caller has them.
            forward: where real tokens stand.
            scoring: how logits are made.
            state: the layer's memory; None where nothing is cached.
            hidden: ``(B, T, d)`` the layer's input.
            rope: turns keys to other positions.

        Returns:
            ``(B, H, T, Dv)``, zero at padding.
        """
        length = q.shape[2]
        own_q, own_k, own_v = (forward.inward(x) for x in (q, k, v))
        new = own_q.shape[2]
        if new == 0:  # padding only
            return v.new_zeros(*q.shape[:3], v.shape[-1])
        forward.spans = self._spans_of(q.shape[0], q.device)
        if forward.order is not None:
            hidden = None if hidden is None else forward.inward(hidden[:, None])[:, 0]
            rope = None if rope is None else rope.arranged(forward.inward, q.shape[0])
        cached = state is not None
        call = Call(
            layer=layer,
            q=own_q,
            k=own_k,
            v=own_v,
            positions=forward.positions(new),
            scoring=scoring,
            state=self.new_state(layer) if state is None else state,
            forward=forward,
            meter=self.meter,
            reference=self.reference,
            hidden=hidden,
            rope=rope,
        )
        o = self.policy_of(layer).attend(call)
        self._count_dense(call)
        if cached:
            self._count_bytes(call)
        return forward.outward(o, length)

    def mark(self, **spans: Any) -> None:
        """Name parts of the prompts to come, for policies that treat them apart, such as a question and its context.

        Args:
            spans: by name, ``(first, last)`` positions among a row's real tokens, ``last`` left out; a list of such
                pairs where rows differ. They hold until they are named anew.

        Raises:
            OptionError: what is no such pair.
        """
        for name, span in spans.items():
            pairs = torch.as_tensor(span)
            if (
                pairs.dim() not in (1, 2)
                or pairs.shape[-1] != 2
                or pairs.is_floating_point()
                or bool((pairs < 0).any())
            ):
                raise OptionError(
                    f"mark({name}={span!r}): give (first, last), or a list of such pairs, one for each row."
                )
            self._marked[name] = pairs.view(-1, 2).to(torch.int64)

    def _spans_of(self, rows: int, device: torch.device) -> dict[str, Tensor]:
        """The named parts for so many rows; beams of a row have the row's."""
        spans = {}
        for name, pairs in self._marked.items():
            if rows % len(pairs):
                raise OptionError(f"mark({name}=...) names a part in {len(pairs)} rows, and the batch has {rows}.")
            spans[name] = pairs.to(device).repeat_interleave(rows // len(pairs), dim=0)
        return spans

    def _count_dense(self, call: Call) -> None:
        """What dense attention would have scored."""
        pairs = call.forward.dense_pairs(call.q.shape[2], call.layer.window)
        call.count(dense_pairs=pairs * call.layer.query_heads)

    def _count_bytes(self, call: Call) -> None:
        layer = call.layer
        held = call.forward.last(call.q.shape[2]) + 1
        held = call.q.shape[0] * (held if layer.window is None else min(held, layer.window - 1))
        width = layer.kv_heads * (layer.key_dim + layer.value_dim) * call.k.element_size()
        self.meter.bytes_held[layer.index] = call.state.bytes()
        self.meter.bytes_held_dense[layer.index] = held * width
