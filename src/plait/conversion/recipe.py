"""The contract of a recipe: which mixer replaces attention, where its weights come from, what each stage trains."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from plait.errors import OptionError
from plait.mixers.attention import Attention, AttentionOptions
from plait.mixers.base import Mixer
from plait.options import Options
from plait.runs.config import TrainingSection

#: Stages in their usual order; ``select`` comes after ``align`` where it measures the aligned layers.
STAGES = ("select", "transfer", "align", "distil", "tune", "merge")
TRAINED = ("align", "distil", "tune")

#: Options of attention that every recipe can carry over.
CARRIED = frozenset({"num_heads", "num_kv_heads", "head_dim", "rope_base", "qk_norm", "qk_norm_eps"})


@dataclass(frozen=True)
class Recipe(Options):
    """A way to turn softmax attention into something else. Rates fall on a cosine from the first to the last of a pair.

    Args:
        align_steps, distil_steps, tune_steps: optimiser steps of each stage; 0 leaves it out.
        align_rates, distil_rates, tune_rates: its highest and its last learning rate.
        align_relative: divide each layer's error by the mean square of what it should be, so that layers with large
            outputs do not outweigh the others; the papers do not.
        lora_rank: rank of low-rank adapters of q, k and v that ``tune`` trains; 0 trains weights themselves.
        lora_alpha: their scale times the rank.
        batch_size: rows of a step.
        warmup_steps: steps over which the rate rises linearly.
        betas: of AdamW.
        clip: largest global gradient norm; 0 turns clipping off.
        precision: ``fp32``, ``bf16`` (autocast, weights stay fp32) or ``auto`` (bf16 where the device has it).
        save_every: steps between checkpoints.
        log_every: steps between logged losses.
    """

    #: Share of layers that become linear where the user gives none, as ``ratio`` of ``plait.layer_plan``.
    default_ratio: ClassVar[str] = "3:1"
    #: How layers are chosen where the user does not say.
    default_selection: ClassVar[str] = "every"
    #: Where outputs are compared: after the output projection, or before it.
    align_after_projection: ClassVar[bool] = True

    align_steps: int = 300
    align_rates: tuple[float, float] = (3e-3, 3e-4)
    align_relative: bool = True
    distil_steps: int = 300
    distil_rates: tuple[float, float] = (1e-3, 1e-4)
    tune_steps: int = 0
    tune_rates: tuple[float, float] = (3e-4, 3e-5)
    lora_rank: int = 0
    lora_alpha: int = 16
    batch_size: int = 32
    warmup_steps: int = 20
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    save_every: int = 50
    log_every: int = 10

    def __post_init__(self) -> None:
        for stage in TRAINED:
            steps, rates = getattr(self, f"{stage}_steps"), getattr(self, f"{stage}_rates")
            if steps < 0:
                raise OptionError(f"{stage}_steps={steps} must be 0 or more.")
            if not rates[0] >= rates[1] >= 0 or rates[0] == 0:
                raise OptionError(
                    f"{stage}_rates={rates}: give the highest rate, then the last one, such as 1e-3, 1e-4."
                )
        for name, least in {"batch_size": 1, "save_every": 1, "log_every": 1, "lora_alpha": 1, "lora_rank": 0}.items():
            if getattr(self, name) < least:
                raise OptionError(f"{name}={getattr(self, name)} must be at least {least}.")

    def training(self, stage: str) -> TrainingSection:
        """The budget of ``align``, ``distil`` or ``tune``; its steps must not be 0."""
        highest, last = getattr(self, f"{stage}_rates")
        return TrainingSection(
            steps=getattr(self, f"{stage}_steps"),
            batch_size=self.batch_size,
            learning_rate=highest,
            final_fraction=last / highest,
            warmup_steps=self.warmup_steps,
            weight_decay=0.0,
            betas=self.betas,
            clip=self.clip,
            precision=self.precision,
            save_every=self.save_every,
            log_every=self.log_every,
        )

    @abstractmethod
    def twin(self, attention: AttentionOptions, sizes: tuple[int, int, int]) -> tuple[str, dict[str, Any]]:
        """The mixer that replaces attention, and its options.

        What replaces it may be attention of another kind: under a name of its own, with ``mixer="attention"`` among the
        options.

        Args:
            attention: options of the teacher's layers.
            sizes: query heads, key-value heads and head dim.

        Raises:
            OptionError: the teacher's attention has something that the mixer cannot express.
        """

    @abstractmethod
    def twin_weights(self, attention: Attention, twin: Mixer) -> dict[str, Tensor]:
        """Weights of ``twin`` by name that follow from the teacher's layer; the others keep their initial values."""

    def kept(self, attention: AttentionOptions) -> dict[str, Any]:
        """Options of the layers that stay attention, as changes to the teacher's."""
        return {}

    def kept_weights(self, attention: Attention, kept: Mixer) -> dict[str, Tensor]:
        """Weights of a layer that stays attention where they are not simply the teacher's."""
        return {}

    @abstractmethod
    def trains(self, stage: str, name: str, converted: bool) -> bool:
        """Whether ``stage`` trains a parameter.

        Args:
            stage: ``align``, ``distil`` or ``tune``.
            name: of the parameter in the student.
            converted: whether it belongs to a mixer that replaces attention.
        """

    def require_carried(self, attention: AttentionOptions) -> None:
        """Raise :class:`OptionError` where the teacher's attention has something that no recipe carries over."""
        for field in dataclasses.fields(attention):
            value = getattr(attention, field.name)
            if field.name not in CARRIED and value != field.default and field.name != "conv_size":
                raise OptionError(
                    f"The model's attention has {field.name}={value!r}, which the recipe cannot carry over: "
                    "convert a model without it."
                )


def repeated(weight: Tensor, groups: int, head_dim: int) -> Tensor:
    """Rows of a key or value projection ``(N D, d)`` with every head repeated ``groups`` times, side by side."""
    heads = weight.unflatten(0, (-1, head_dim))
    return heads.repeat_interleave(groups, dim=0).flatten(0, 1)


def plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe's options, ready for JSON."""
    values: Mapping[str, Any] = dataclasses.asdict(recipe)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
