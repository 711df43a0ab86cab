"""Takes heads out while a model answers: whether it needs them.

Wu et al. (2404.15574): heads are masked while the answer is decoded, the prompt is read as always. Their code sets the
head's logits to zero, so that it averages all values in sight: ``uniform`` here, over visible keys only. ``zero`` and
``mean`` are the other usual ablations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from plait.errors import OptionError
from plait.probes.needles import NeedleRun, greedy_answer, recall
from plait.runtime.applied import Applied
from plait.runtime.call import Call
from plait.runtime.dense import Dense
from plait.statistics.intervals import bootstrap

#: Most tokens of an answer.
LONGEST = 50
Head = tuple[int, int]
#: What stands in a masked head's place.
Mode = Literal["uniform", "zero", "mean"]


class MaskedHeads(Dense):
    """Dense attention with some heads taken out.

    Args:
        heads: (layer, query head).
        mode: ``uniform`` (mean of the values in sight), ``zero`` (no output) or ``mean`` (the head's mean output over
            questions).
        phase: ``decode`` (one new token at a time) or ``all``.
        means: for ``mean``, ``(H, Dv)`` by layer; see :func:`mean_outputs`.

    Raises:
        OptionError: ``mean`` without means.
    """

    any_split = False  # heads are taken out of single tokens only

    def __init__(
        self,
        heads: Sequence[Head],
        mode: Mode = "uniform",
        phase: Literal["decode", "all"] = "decode",
        means: Mapping[int, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if mode == "mean" and means is None:
            raise OptionError("Masking with mode='mean' needs the heads' mean outputs: pass means=mean_outputs(...).")
        self.mode, self.phase, self.means = mode, phase, means or {}
        self._heads: dict[int, list[int]] = {}
        for layer, head in heads:
            self._heads.setdefault(layer, []).append(head)

    def attend(self, call: Call) -> Tensor:
        heads = self._heads.get(call.layer.index, [])
        if any(head >= call.layer.query_heads for head in heads):
            raise OptionError(f"Layer {call.layer.index} has {call.layer.query_heads} heads, not {max(heads) + 1}.")
        if not heads or (self.phase == "decode" and call.phase != "decode"):
            return super().attend(call)
        o = super().attend(call)
        if self.mode == "uniform":
            o[:, heads] = self._instead(call, heads)
        elif self.mode == "mean":
            o[:, heads] = self.means[call.layer.index][heads].to(o)[None, :, None]
        else:
            o[:, heads] = 0
        return o

    def _instead(self, call: Call, heads: list[int]) -> Tensor:
        """``(B, heads, T, Dv)``: the mean of the values that each query sees."""
        keys = self.keys(call)
        places = keys.places()[..., None, :]
        sight = places <= call.positions[:, None, :, None]
        if call.layer.window is not None:
            sight &= places > call.positions[:, None, :, None] - call.layer.window
        weights = sight / sight.sum(-1, keepdim=True)
        means = weights.to(keys.values.dtype) @ keys.values
        return means[:, [head // call.layer.group for head in heads]]


@dataclass(frozen=True)
class Masked:
    """Recall with some heads masked.

    Args:
        heads: how many.
        chosen: ``top`` (by score), ``random`` or ``none``.
        recall: share of the answers' tokens that were said, mean over questions (and draws).
        low, high: 95 % interval, bootstrap over draws, or over questions where there is one.
        draws: of random heads.
    """

    heads: int
    chosen: Literal["none", "top", "random"]
    recall: float
    low: float
    high: float
    draws: int


def answers_without(
    model: nn.Module,
    runs: Sequence[NeedleRun],
    heads: Sequence[Head],
    mode: Mode = "uniform",
    means: Mapping[int, Tensor] | None = None,
) -> list[float]:
    """Recall of each answer with ``heads`` masked while decoding."""
    policy = MaskedHeads(heads, mode, means=means)
    with Applied(model, policy, "masked heads"), torch.no_grad():
        return [recall(run.answer, greedy_answer(model, run, LONGEST)) for run in runs]


class Averaged(Dense):
    """Dense attention that sums each head's outputs while decoding."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[int, Tensor] = {}
        self.steps: dict[int, int] = {}

    def decode(self, call: Call) -> Tensor:
        o, index = super().decode(call), call.layer.index
        self.sums[index] = self.sums.get(index, 0) + o.detach().double().sum((0, 2))
        self.steps[index] = self.steps.get(index, 0) + o.shape[0] * o.shape[2]
        return o


def mean_outputs(model: nn.Module, runs: Sequence[NeedleRun]) -> dict[int, Tensor]:
    """Each head's mean output while the model answers, ``(H, Dv)`` by layer."""
    policy = Averaged()
    with Applied(model, policy, "mean outputs"), torch.no_grad():
        for run in runs:
            greedy_answer(model, run, LONGEST)
    return {index: total / policy.steps[index] for index, total in policy.sums.items()}


def masking_experiment(
    model: nn.Module,
    runs: Sequence[NeedleRun],
    ranking: Sequence[Head],
    counts: Sequence[int],
    *,
    draws: int = 5,
    exclude: int | None = None,
    seed: int = 0,
    mode: Mode = "uniform",
) -> list[Masked]:
    """Recall with the highest-ranked heads masked, and with as many random others.

    Args:
        model: the model.
        runs: questions; better not those that the ranking was made with.
        ranking: all heads, the best first.
        counts: numbers of heads to mask.
        draws: of random heads for each number.
        exclude: best heads that are never drawn; the paper's code leaves out 100. None: as many as are masked.
        seed: of the draws.
        mode: see :class:`MaskedHeads`; the means of ``mean`` are taken over ``runs``.

    Raises:
        OptionError: fewer other heads than are to be drawn.
    """
    rng = np.random.default_rng([seed, 0x6D61736B])
    means = mean_outputs(model, runs) if mode == "mean" else None
    base = answers_without(model, runs, [], mode, means)
    rows = [Masked(0, "none", float(np.mean(base)), *bootstrap(base), 0)]
    for count in counts:
        top = answers_without(model, runs, ranking[:count], mode, means)
        rows.append(Masked(count, "top", float(np.mean(top)), *bootstrap(top), 1))
        others = list(ranking[count if exclude is None else exclude :])
        if len(others) < count:
            raise OptionError(f"Cannot draw {count} random heads: only {len(others)} are left beside the best ones.")
        recalls = []
        for _ in range(draws):
            drawn = [others[place] for place in rng.choice(len(others), count, replace=False)]
            recalls.append(float(np.mean(answers_without(model, runs, drawn, mode, means))))
        rows.append(Masked(count, "random", float(np.mean(recalls)), *bootstrap(recalls), draws))
    return rows
