"""Takes heads out while a model answers: whether it needs them.

Wu et al. (2404.15574): heads are masked while the answer is decoded, the prompt is read as always. Their code sets the
head's logits to zero, so that it averages all values in sight: ``uniform`` here, over visible keys only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from plait.errors import OptionError
from plait.evaluation.intervals import bootstrap
from plait.policies.call import Call
from plait.policies.dense import Dense
from plait.policies.runtime import Applied
from plait.probes.needles import NeedleRun, greedy_answer, recall

#: Most tokens of an answer.
LONGEST = 50
Head = tuple[int, int]


class MaskedHeads(Dense):
    """Dense attention with some heads taken out.

    Args:
        heads: (layer, query head).
        mode: ``uniform`` (mean of the values in sight) or ``zero`` (no output).
        phase: ``decode`` (one new token at a time) or ``all``.
    """

    any_split = False  # heads are taken out of single tokens only

    def __init__(
        self,
        heads: Sequence[Head],
        mode: Literal["uniform", "zero"] = "uniform",
        phase: Literal["decode", "all"] = "decode",
    ) -> None:
        super().__init__()
        self.mode, self.phase = mode, phase
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
        o[:, heads] = self._instead(call, heads) if self.mode == "uniform" else 0
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
    model: nn.Module, runs: Sequence[NeedleRun], heads: Sequence[Head], mode: Literal["uniform", "zero"] = "uniform"
) -> list[float]:
    """Recall of each answer with ``heads`` masked while decoding."""
    policy = MaskedHeads(heads, mode)
    with Applied(model, policy, "masked heads"), torch.no_grad():
        return [recall(run.answer, greedy_answer(model, run, LONGEST)) for run in runs]


def masking_experiment(
    model: nn.Module,
    runs: Sequence[NeedleRun],
    ranking: Sequence[Head],
    counts: Sequence[int],
    *,
    draws: int = 5,
    exclude: int | None = None,
    seed: int = 0,
    mode: Literal["uniform", "zero"] = "uniform",
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
        mode: see :class:`MaskedHeads`.

    Raises:
        OptionError: fewer other heads than are to be drawn.
    """
    rng = np.random.default_rng([seed, 0x6D61736B])
    base = answers_without(model, runs, [], mode)
    rows = [Masked(0, "none", float(np.mean(base)), *bootstrap(base), 0)]
    for count in counts:
        top = answers_without(model, runs, ranking[:count], mode)
        rows.append(Masked(count, "top", float(np.mean(top)), *bootstrap(top), 1))
        others = list(ranking[count if exclude is None else exclude :])
        if len(others) < count:
            raise OptionError(f"Cannot draw {count} random heads: only {len(others)} are left beside the best ones.")
        means = []
        for _ in range(draws):
            drawn = [others[place] for place in rng.choice(len(others), count, replace=False)]
            means.append(float(np.mean(answers_without(model, runs, drawn, mode))))
        rows.append(Masked(count, "random", float(np.mean(means)), *bootstrap(means), draws))
    return rows
