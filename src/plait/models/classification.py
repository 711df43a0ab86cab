"""Heads that classify a sequence or each of its tokens, as transformers' Auto classes ask for them."""

from __future__ import annotations

from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

from plait.models.pretrained import PlaitPreTrainedModel


class PlaitForSequenceClassification(GenericForSequenceClassification, PlaitPreTrainedModel):
    """A decoder whose last real token's hidden state gives the logits of the classes.

    The last real token is the last one that is not ``config.pad_token_id``, so padding may be on either side.

    Args:
        config: of the decoder; ``num_labels`` and ``problem_type`` are those of transformers.

    Example:
        >>> import torch
        >>> from plait.models import PlaitConfig, PlaitForSequenceClassification
        >>> config = PlaitConfig(layer_types=["gated_deltanet"], hidden_size=64, num_labels=3, pad_token_id=0)
        >>> PlaitForSequenceClassification(config)(torch.tensor([[1, 2, 3], [4, 0, 0]])).logits.shape
        torch.Size([2, 3])
    """

    accepts_loss_kwargs = False  # the loss is a mean, which the Trainer divides when it accumulates


class PlaitForTokenClassification(GenericForTokenClassification, PlaitPreTrainedModel):
    """A decoder with the logits of the classes at every token.

    Args:
        config: of the decoder; ``num_labels`` is that of transformers.

    Example:
        >>> import torch
        >>> from plait.models import PlaitConfig, PlaitForTokenClassification
        >>> config = PlaitConfig(layer_types=["gated_deltanet"], hidden_size=64, num_labels=3)
        >>> PlaitForTokenClassification(config)(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 3])
    """

    accepts_loss_kwargs = False  # the loss is a mean, which the Trainer divides when it accumulates


__all__ = ["PlaitForSequenceClassification", "PlaitForTokenClassification"]
