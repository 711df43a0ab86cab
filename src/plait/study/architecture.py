"""What a run's model looks like and costs, without building it."""

from __future__ import annotations

from dataclasses import dataclass

from plait.models.configuration import PlaitConfig
from plait.models.cost import count_parameters, plan_cost
from plait.runs.config import RunConfig
from plait.training.architecture import build_model_config


@dataclass(frozen=True)
class Architecture:
    """The model of a run.

    Args:
        config: of the model.
    """

    config: PlaitConfig

    @classmethod
    def of(cls, run: RunConfig, vocab_size: int = 256) -> Architecture:
        """The architecture that a run file describes; the vocabulary matters for parameters only."""
        return cls(build_model_config(run, vocab_size))

    @property
    def layers(self) -> int:
        """Depth."""
        return len(self.config.layers())

    @property
    def full_layers(self) -> list[int]:
        """Indices of the full layers: those in which each token sees every earlier one exactly."""
        return [index for index, spec in enumerate(self.config.layers()) if spec.full]

    def cache_bytes(self, context: int) -> int:
        """Bytes that one sequence of ``context`` tokens holds while decoding, keys and values in bf16."""
        return plan_cost(self.config, context).state_bytes

    def mixing_flops(self, length: int) -> int:
        """Forward FLOPs of token mixing over one sequence, by the accounting of :class:`plait.mixers.base.Cost`."""
        return plan_cost(self.config, length).flops_prefill

    def parameters(self) -> int:
        """Of the whole model."""
        return count_parameters(self.config)
