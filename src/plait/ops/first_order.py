"""Backwards written by hand: their results have no derivative of their own, and say so, not pass for constants.

PyTorch's ``once_differentiable`` looks at the incoming gradients alone. A gradient that depends on a saved tensor then
passes for a constant, and a second derivative is wrong without a word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plait.errors import BackendUnavailable

_REFERENCE = 'ask for backend="reference", or run inside `with plait.ops.backend("reference")`'


def first_order(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates ``backward(ctx, *gradients)`` of an autograd function: its results serve, but not their derivatives.

    With ``create_graph=True`` they hang on the saved tensors and the incoming gradients; a backward that passes
    through them raises :class:`~plait.errors.BackendUnavailable`. Save every input that the gradients depend on.

    Args:
        what: the function, for the message.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def guarded(ctx: Any, *gradients: Tensor | None) -> Any:
            if torch.compiler.is_compiling():  # a compiled graph refuses second derivatives itself
                return backward(ctx, *gradients)
            with torch.no_grad():
                found = backward(ctx, *gradients)
            if not torch.is_grad_enabled():
                return found
            causes = [x for x in (*ctx.saved_tensors, *gradients) if x is not None and x.requires_grad]
            return _hang(what, found, causes) if causes else found

        return guarded

    return decorate


def refuse_second_order(what: str, instead: str = _REFERENCE) -> None:
    """Called in a backward (or a hook of one): raises if the graph of its gradients is asked for.

    Raises:
        BackendUnavailable: ``create_graph=True``.
    """
    if torch.is_grad_enabled():
        raise BackendUnavailable(_message(what, instead))


def _message(what: str, instead: str) -> str:
    return f"{what} has a first derivative only: gradients of its gradients are not available. Fix: {instead}."


def _hang(what: str, found: Any, causes: list[Tensor]) -> Any:
    single = isinstance(found, Tensor)
    results = [found] if single else list(found)
    places = [i for i, x in enumerate(results) if x is not None]
    hung = _Refusal.apply(_message(what, _REFERENCE), len(places), *(results[i] for i in places), *causes)
    for i, x in zip(places, hung, strict=True):
        results[i] = x
    return results[0] if single else tuple(results)


class _Refusal(torch.autograd.Function):
    """The first ``count`` tensors as they are, with a backward that raises."""

    @staticmethod
    def forward(ctx: Any, message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.message = message
        return tuple(x.clone() for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise BackendUnavailable(ctx.message)
