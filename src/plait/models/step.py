"""The decode step as a function of tensors alone, which ``torch.export`` and ``torch.compile`` can take whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plait.errors import CacheError
from plait.mixers.context import Context
from plait.mixers.shard import active_shards
from plait.mixers.state import LayerState, Segment
from plait.models.cache import PlaitCache
from plait.models.decoder import PlaitForCausalLM


class DecodeStep(nn.Module):
    """One token of every row: logits and the new states from the token, its position and the states before it.

    Rows have no padding. A prompt is read by the model itself, whose cache :meth:`states` then takes apart.

    Args:
        model: the model that decodes.

    Example:
        >>> import torch
        >>> from plait.models import DecodeStep, PlaitConfig, PlaitForCausalLM
        >>> model = PlaitForCausalLM(PlaitConfig(layer_types=["gated_deltanet"], hidden_size=64)).eval()
        >>> cache = model.model.new_cache()
        >>> _ = model(torch.tensor([[1, 2, 3]]), past_key_values=cache)
        >>> step = DecodeStep(model)
        >>> logits, states = step(torch.tensor([[4]]), torch.tensor([[3]]), step.states(cache))
        >>> logits.shape
        torch.Size([1, 256])
    """

    def __init__(self, model: PlaitForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, token: Tensor, position: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode one token.

        Args:
            token: ``(B, 1)`` ids.
            position: ``(B, 1)``, how many tokens stand before it.
            states: what :meth:`states` or the last call returned.

        Returns:
            Logits ``(B, vocab)`` and the states for the next call.

        Raises:
            CacheError: under ``sequence_parallel``.
        """
        if active_shards() is not None:
            raise CacheError("A decode step knows nothing of other processes: call it outside sequence_parallel.")
        decoder = self.model.model
        layers = [layer.state for layer in decoder.new_cache().layers]
        given = iter(states)
        for segment, field in _fields(layers):
            setattr(segment, field, next(given))
        context = Context(position, seen=position[:, 0], phase="decode", update_running_state=False)
        x = decoder.embeddings(token)
        for block, state in zip(decoder.layers, layers, strict=True):
            x = block(x, context.for_layer(state), decoder.shared_by(block))
        logits = self.model.lm_head(decoder.norm(x))[:, -1]
        return logits, [getattr(segment, field) for segment, field in _fields(layers)]

    @staticmethod
    def states(cache: PlaitCache) -> list[Tensor]:
        """The tensors of a filled cache, layer by layer.

        Raises:
            CacheError: the cache is empty, or its rows are padded.
        """
        if cache.slots == 0 or cache.padding is not None:
            what = "is empty" if cache.slots == 0 else "has padded rows"
            raise CacheError(f"The cache {what}: a decode step needs one that has read prompts of one length.")
        return [getattr(segment, field) for segment, field in _fields([layer.state for layer in cache.layers])]

    def export(self, cache: PlaitCache) -> torch.export.ExportedProgram:
        """The step for states like those of ``cache``; the keys of full attention may be any number, two at least.

        Raises:
            CacheError: a layer's memory has not reached its bound in ``cache``, such as a window that is not full.
        """
        states = self.states(cache)
        missing = max(segment.missing for layer in cache.layers for segment in layer.state.segments.values())
        if missing:
            raise CacheError(
                f"The windows of this cache are not full, and an exported step has fixed sizes. Tokens to read before "
                f"exporting: {missing}."
            )
        device, rows = states[0].device, states[0].shape[0]
        token = torch.zeros(rows, 1, dtype=torch.long, device=device)
        grows: list[dict[int, Any] | None] = [
            {segment.axis: torch.export.Dim.DYNAMIC} if segment.grows(field) else None
            for segment, field in _fields([layer.state for layer in cache.layers])
        ]
        with torch.no_grad():
            shapes = {"token": None, "position": None, "states": grows}
            return torch.export.export(self, (token, token + cache.slots, states), dynamic_shapes=shapes)


def _fields(layers: list[LayerState]) -> list[tuple[Segment, str]]:
    """Where the tensors of unpadded rows stand: segment and attribute."""
    segments = [segment for layer in layers for segment in layer.segments.values()]
    return [(segment, field) for segment in segments for field in segment.carried()]


__all__ = ["DecodeStep"]
