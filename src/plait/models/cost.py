"""What a layer plan costs: parameters, FLOPs of token mixing, memory for decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from plait.mixers.base import Cost
from plait.models.configuration import PlaitConfig
from plait.models.decoder import PlaitForCausalLM


@dataclass(frozen=True)
class LayerCost:
    """One row of the table that ``plait explain`` prints.

    Args:
        index: depth, from 0.
        name: entry of ``layer_types``.
        mixer: the mixer that it stands for.
        full: whether each token sees every earlier one exactly.
        state: ``grows`` with the context, is ``bounded`` by a window of tokens, or is ``constant``.
        parameters: of the whole block.
        cost: token mixing for one sequence.
    """

    index: int
    name: str
    mixer: str
    full: bool
    state: str
    parameters: int
    cost: Cost


def plan_cost(config: PlaitConfig, T: int, cache_dtype: torch.dtype = torch.bfloat16) -> Cost:
    """Token-mixing cost of all layers for one sequence of ``T`` tokens; builds no tensor.

    Args:
        config: the model.
        T: tokens in the context.
        cache_dtype: dtype of cached keys, values and convolution inputs; recurrent states are fp32.
    """
    total = Cost(0, 0, 0)
    for spec in config.layers():
        total = total + spec.type.cost(config.dims, T, spec.options, cache_dtype=cache_dtype)
    return total


def count_parameters(config: PlaitConfig) -> int:
    """Parameters of the whole model, tied ones once; needs no memory."""
    return sum(parameter.numel() for parameter in _skeleton(config).parameters())


def layer_costs(config: PlaitConfig, T: int, cache_dtype: torch.dtype = torch.bfloat16) -> list[LayerCost]:
    """The layers one by one.

    Args:
        config: the model.
        T: tokens in the context.
        cache_dtype: as in :func:`plan_cost`.
    """
    blocks = _skeleton(config).model.layers
    return [
        LayerCost(
            index=index,
            name=spec.name,
            mixer=spec.mixer,
            full=spec.full,
            state=spec.state,
            parameters=sum(parameter.numel() for parameter in block.parameters()),
            cost=spec.type.cost(config.dims, T, spec.options, cache_dtype=cache_dtype),
        )
        for index, (spec, block) in enumerate(zip(config.layers(), blocks, strict=True))
    ]


def _skeleton(config: PlaitConfig) -> PlaitForCausalLM:
    with torch.device("meta"):
        return PlaitForCausalLM(config)
