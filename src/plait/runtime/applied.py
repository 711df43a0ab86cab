"""Runs a policy inside a model: ``with policy(model, "name") as applied``."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Self

from torch import nn

from plait.errors import OptionError
from plait.models import PlaitForCausalLM, PlaitModel
from plait.runtime.attachment import Attachment, enter, leave
from plait.runtime.call import ModelInfo
from plait.runtime.plait_hooks import PlaitAttachment
from plait.runtime.policy import Policy
from plait.runtime.running import Running
from plait.runtime.transformers_hooks import TransformersAttachment


class Applied(Running):
    """A policy on a model, in force inside a ``with`` block.

    Args:
        model: a decoder of transformers or a :class:`~plait.models.PlaitForCausalLM`.
        policy: the policy.
        name: what reports call it.
        reference: compute the policy's selections with dense masks (see :func:`~plait.policies.masked_reference`).
    """

    def __init__(self, model: nn.Module, policy: Policy, name: str, *, reference: bool = False) -> None:
        super().__init__(model, policy, name, reference=reference)
        #: Where it meets the model, while it is in force.
        self.attachment: Attachment | None = None
        self._without = 0

    def __enter__(self) -> Self:
        """Apply the policy.

        Raises:
            OptionError: the model is not supported (the message says why), or the policy does not fit it.
        """
        if self.attachment is not None:
            raise OptionError(f"Policy {self.name!r} is already applied: make another one to nest it.")
        attachment = enter(self, _kind(self.model))
        try:
            self._check(attachment.info)
            self.policy.bind(attachment.info)
        except BaseException:
            leave(self, attachment)
            raise
        self.attachment, self.info, self.passes = attachment, attachment.info, 0
        self._without = attachment.passes_without
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the policy off; the model is as before."""
        attachment, self.attachment = self.attachment, None
        if attachment is None:
            return
        leave(self, attachment)
        if kind is None and self.passes == 0 and attachment.passes_without > self._without:
            warnings.warn(
                f"Nothing ran under policy {self.name!r}: the model was called in another thread, which had not "
                "entered it. Enter it there, or start the thread with contextvars.copy_context().run.",
                stacklevel=2,
            )

    def _check(self, info: ModelInfo) -> None:
        """Refuse a model in which the policy would serve no layer."""
        if not any(self.policy.serves(layer) for layer in info.layers):
            windows = sorted({layer.window for layer in info.layers if layer.window is not None})
            free = [layer.index for layer in info.layers if layer.window is None]
            reason = f"the policy's options leave out layers {free}" if free else "they all attend within a window"
            reason += f", and the others within a window of {windows} tokens" if free and windows else ""
            reason += f" of their own, {windows} tokens" if not free else ""
            raise OptionError(
                f"Policy {self.name!r} would do nothing in the {len(info.layers)} layers of this {info.name}: {reason}."
            )


def _kind(model: nn.Module) -> type[Attachment]:
    """What ties policies to such a model."""
    if isinstance(model, (PlaitForCausalLM, PlaitModel)):
        return PlaitAttachment
    return TransformersAttachment
