"""Forget gates bounded from below, higher in deeper layers (HGRN, 2311.04823, section 3.2).

One parameter of the model, ``(layers, width)``, holds the increments: their softmax over the layers, summed up
to a layer, is that layer's bound. The first layer has bound 0, the last always less than 1, and no value of the
parameter can make a deeper layer's bound the smaller one. Attention layers of a hybrid own a row as well.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.errors import OptionError
from plait.mixers.context import Context
from plait.nn import widen


def log_bound(increments: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """``log lb`` and ``log(1 - lb)`` of a layer, each ``(width,)``.

    ``lb = sum_{1 <= l <= layer} softmax(increments)_l``. Both are taken in log space, since a bound that rounds
    to 0 or 1 would have no finite gradient.

    Args:
        increments: ``(layers, width)``.
        layer: index of the layer, from 1.
    """
    shares = F.log_softmax(widen(increments), dim=0)
    rest = torch.cat([shares[:1], shares[layer + 1 :]])
    return shares[1 : layer + 1].logsumexp(0), rest.logsumexp(0)


def log_forget_gate(logits: Tensor, context: Context, key: str | None, layer: int) -> Tensor:
    """``log f`` with ``f = lb + (1 - lb) sigmoid(logits)``, fp32 at least.

    Args:
        logits: ``(B, T, width)``.
        context: holds the model's parameter in ``parameters[key]``.
        key: name of the parameter, or None for gates without bounds.
        layer: index of the layer.

    Raises:
        OptionError: the model's parameter is not there.
    """
    gate = F.logsigmoid(widen(logits))
    if key is None or layer == 0:
        return gate
    if key not in context.parameters:
        raise OptionError(
            f"Layer {layer} needs the model's parameter context.parameters[{key!r}] for its lower bound, which only a "
            "model holds; pass it (see the mixer's shared_parameters) or set the option use_lower_bound=False."
        )
    # computed anew in each layer: a graph shared by layers would break recomputation under checkpointing
    log_lb, log_rest = log_bound(context.parameters[key], layer)
    return torch.logaddexp(log_lb, log_rest + gate)
