"""Where policies meet a model: one attachment a model, shared by every policy on it, in any thread.

Which policy a call runs under is a matter of the thread (or asyncio task) that makes it: the policy that it entered
last. A thread that entered none finds the model as it is.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from plait.errors import OptionError
from plait.runtime.call import ModelInfo
from plait.runtime.dense import Dense
from plait.runtime.running import Running, entered

#: Held while a model is changed.
_lock = threading.RLock()


class Attachment(ABC):
    """A model whose attention asks for the policy of the calling thread.

    Args:
        model: the model.
    """

    #: What the model is like; set by :meth:`attach`.
    info: ModelInfo
    #: Whether recurrent states stand beside the keys, so that no token can be taken back.
    hybrid: bool = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.users: list[Running] = []
        #: Passes that ran under no policy while one was in force.
        self.passes_without = 0

    @staticmethod
    @abstractmethod
    def of(model: nn.Module) -> Attachment | None:
        """The attachment that a model has already."""

    @abstractmethod
    def attach(self) -> None:
        """Route the model's attention here, and learn what the model is like.

        Raises:
            OptionError: the model is not supported.
        """

    @abstractmethod
    def detach(self) -> None:
        """Undo :meth:`attach`."""

    def current(self) -> Running | None:
        """The policy that the calling thread runs under."""
        for applied, attachment in reversed(entered.get()):
            if attachment is self:
                return applied
        if self.users and _on_a_device_thread():
            raise OptionError(
                "Gradient checkpointing recomputes layers on a device's own thread, which has entered no policy: run "
                "backward() inside `with torch.autograd.set_multithreading_enabled(False)`."
            )
        return None

    def drafts_refusal(self, applied: Running) -> OptionError:
        """Why generation from drafts does not begin."""
        return OptionError(
            f"Policy {applied.name!r} on {type(self.model).__name__} does not generate from drafts (prompt lookup, "
            "assistant model, multi-token prediction): tokens that are checked several at a time would be chosen "
            "otherwise than one by one. Leave out the drafts, or the policy."
        )

    def guard_generation(self, restore: list[Callable[[], None]]) -> None:
        """Let ``generate`` refuse, before it begins, what a policy cannot follow.

        Args:
            restore: receives what takes the guards off again.
        """
        model: Any = self.model

        def guard(name: str, refusal: Callable[[Running], OptionError | None]) -> None:
            method = getattr(model, name, None)
            if method is None:
                return
            before = model.__dict__.get(name)

            def guarded(*args: Any, **kwargs: Any) -> Any:
                applied = self.current()
                error = None if applied is None else refusal(applied)
                if error is not None:
                    raise error
                return method(*args, **kwargs)

            def undo() -> None:
                del model.__dict__[name]
                if before is not None:
                    model.__dict__[name] = before

            model.__dict__[name] = guarded
            restore.append(undo)

        guard(
            "_get_candidate_generator",
            lambda applied: None if applied.takes_drafts and not self.hybrid else self.drafts_refusal(applied),
        )
        for name in ("generate_batch", "init_continuous_batching"):
            guard(
                name,
                lambda applied: OptionError(
                    f"Policy {applied.name!r} does not run under continuous batching, which has paged attention and a "
                    "cache of its own: call generate on a padded batch."
                ),
            )


def enter(applied: Running, kind: type[Attachment]) -> Attachment:
    """Put a policy in force in this thread.

    Args:
        applied: the policy.
        kind: of the model.

    Raises:
        OptionError: the model is not supported.
    """
    with _lock:
        attachment = kind.of(applied.model)
        if attachment is None:
            attachment = kind(applied.model)
            attachment.attach()
        attachment.users.append(applied)
    entered.set((*entered.get(), (applied, attachment)))
    return attachment


def leave(applied: Running, attachment: Attachment) -> None:
    """Take a policy out of force; with its last policy the model is as before."""
    with _lock:
        attachment.users.remove(applied)
        if not attachment.users:
            attachment.detach()
    entered.set(tuple(pair for pair in entered.get() if pair[0] is not applied))


@contextmanager
def trial(attachment: Attachment) -> Iterator[None]:
    """Dense attention as the calling thread's policy, while a model is looked at."""
    applied = Running(attachment.model, Dense(), "dense")
    applied.tries = True
    token = entered.set((*entered.get(), (applied, attachment)))
    try:
        yield
    finally:
        entered.reset(token)


def _on_a_device_thread() -> bool:
    """Whether PyTorch's autograd engine made this thread."""
    return torch._C._current_graph_task_id() >= 0 and isinstance(threading.current_thread(), threading._DummyThread)
