"""Parameters and training FLOPs of a plait model, added up over its layers.

The paper of the scaling laws counts four architectures; for any other layer plan this sum is plait's extension. Unlike
the paper's formulas it counts causal softmax attention once, over half of the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.models.configuration import PlaitConfig
from plait.models.cost import layer_costs
from plait.study.scaling.counters import TRAINING


@dataclass(frozen=True)
class PlanCount:
    """What a layer plan costs to train.

    Args:
        parameters: of all layers; without embedding, last norm and head.
        flops_per_token: of training, at one length of sequence.
    """

    parameters: int
    flops_per_token: float


def plan_count(config: PlaitConfig, length: int) -> PlanCount:
    """Parameters and training FLOPs of all layers; builds no tensor.

    A layer's parameters take 2 FLOPs a token forward and 4 backward; its token mixing, counted as in 2507.06457
    (:class:`plait.mixers.base.Cost`), three times its forward pass.

    Args:
        config: the model.
        length: tokens per sequence.
    """
    layers = layer_costs(config, length)
    mixing = sum(layer.cost.flops_prefill for layer in layers)
    parameters = sum(layer.parameters for layer in layers)
    return PlanCount(parameters, TRAINING * (2 * parameters + mixing / length))
