"""Heads besides that of the next token: an auto-encoder, which tells a whole row from its last state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from plait.errors import OptionError
from plait.models.configuration import PlaitConfig
from plait.models.decoder import PlaitModel
from plait.models.loss import IGNORED, auxiliary_loss, cross_entropy
from plait.models.pretrained import PlaitPreTrainedModel
from plait.nn import RMSNorm

_LONGEST_PERIOD = 10_000.0


class AutoencoderHead(nn.Module):
    """Logits at every position from one vector: an MLP on the vector plus the sine and cosine code of the position.

    Poli et al. (2403.17844), the compression task of MAD and its code: two layers of the model's width, each after a
    norm and before a GELU, then a norm and the output layer.

    Args:
        hidden_size: width d.
        vocab_size: width of the logits V.
        norm_eps: epsilon of the norms.
    """

    def __init__(self, hidden_size: int, vocab_size: int, norm_eps: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [RMSNorm(hidden_size, norm_eps), nn.Linear(hidden_size, hidden_size), nn.GELU()]
        self.mlp = nn.Sequential(*layers, RMSNorm(hidden_size, norm_eps), nn.Linear(hidden_size, vocab_size))

    def forward(self, encoding: Tensor, length: int) -> Tensor:
        """``encoding`` ``(B, d)``; returns ``(B, length, V)``."""
        return self.mlp(encoding[:, None] + position_code(length, encoding.shape[-1], encoding))


def position_code(length: int, size: int, like: Tensor) -> Tensor:
    """Sines, then cosines, of the position at frequencies from 1 to 1/10,000: ``(length, size)``, as ``like``."""
    half = (size + 1) // 2
    place = torch.arange(half, device=like.device, dtype=torch.float32)
    angles = torch.arange(length, device=like.device)[:, None] * _LONGEST_PERIOD ** (-place / max(1, half - 1))
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :size].to(like.dtype)


class AutoencoderForCompression(PlaitPreTrainedModel):
    """A decoder that reads a row, and a head that tells the row from the hidden state of its last token.

    Args:
        config: of the decoder.

    Example:
        >>> import torch
        >>> from plait.models import PlaitConfig
        >>> from plait.models.heads import AutoencoderForCompression
        >>> model = AutoencoderForCompression(PlaitConfig(layer_types=["gated_deltanet"], hidden_size=64))
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 256])
    """

    accepts_loss_kwargs = True

    def __init__(self, config: PlaitConfig) -> None:
        super().__init__(config)
        self.model = PlaitModel(config)
        self.head = AutoencoderHead(config.hidden_size, config.vocab_size, config.norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        use_cache: bool | None = None,
        skip_logits: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits of the whole row, and the loss if there are targets.

        Args:
            input_ids: ``(B, T)``, without padding and with one document a row: the last token ends it.
            shift_labels: ``(B, T)`` targets aligned with the inputs; -100 is not counted.
            num_items_in_batch: divide the summed loss by this instead of by the targets in this call.
            use_cache, skip_logits: for callers of language models; there is never a cache, and always logits.

        Returns:
            ``loss``, and ``logits`` ``(B, T, vocab)``.

        Raises:
            OptionError: any other argument, or targets of another shape.
        """
        for name, value in kwargs.items():
            if value is not None:
                raise OptionError(f"The forward of an auto-encoder has no argument {name!r}.")
        output = self.model(input_ids=input_ids, use_cache=False, return_dict=True)
        encoding = output.last_hidden_state[:, -1]
        logits = self.head(encoding, input_ids.shape[1])
        loss = None
        if shift_labels is not None:
            if shift_labels.shape != input_ids.shape:
                raise OptionError(
                    f"shift_labels has shape {tuple(shift_labels.shape)} but the inputs are {tuple(input_ids.shape)}: "
                    f"give one target per token, {IGNORED} where none counts."
                )
            loss = cross_entropy(
                nn.Identity(),
                logits,
                shift_labels.to(logits.device),
                vocab_size=self.config.vocab_size,
                count=num_items_in_batch,
                logits=logits,
            )
            auxiliary = auxiliary_loss(output.weighted, shift_labels, num_items_in_batch)
            loss = loss if auxiliary is None else loss + auxiliary
        return CausalLMOutput(loss=loss, logits=logits)


__all__ = ["AutoencoderForCompression", "AutoencoderHead", "position_code"]
