"""What mixers are told during training, and what they tell: for plait's trainer and for any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from plait.mixers.base import Mixer


@torch.no_grad()
def after_step(model: nn.Module) -> None:
    """Tell every mixer of a model that the optimiser has taken a step; see :meth:`plait.mixers.Mixer.after_step`."""
    for module in model.modules():
        if isinstance(module, Mixer):
            module.after_step()


class LossMeter:
    """Means of the auxiliary losses between two records of a log."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, losses: Mapping[str, Tensor] | None) -> None:
        """Those of one forward pass in training, before their weights; None for none."""
        for name, value in (losses or {}).items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float()
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means since the last call, as ``loss/NAME``."""
        means = {f"loss/{name}": float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class MixerCallback(TrainerCallback):
    """Makes any Trainer of transformers serve plait's mixers: calls ``after_step``, logs their auxiliary losses.

    Example:
        >>> from transformers import Trainer
        >>> from plait.training import MixerCallback
        >>> trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[MixerCallback()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.losses = LossMeter()
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        def read(module: nn.Module, arguments: Any, output: Any) -> None:
            if module.training:
                self.losses.add(getattr(output, "losses", None))

        self._hook = model.register_forward_hook(read)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        after_step(model)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs is not None and "loss" in logs:
            means = self.losses.take()
            logs.update(means)
            if state.log_history:  # where the trainer has put a copy of the record already
                state.log_history[-1].update(means)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._hook.remove()


__all__ = ["LossMeter", "MixerCallback", "after_step"]
