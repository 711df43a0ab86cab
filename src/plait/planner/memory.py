"""Peak memory of one training step and of decoding, before anything is built."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from plait.errors import OptionError
from plait.models.configuration import PlaitConfig
from plait.models.cost import count_parameters, layer_costs, plan_cost
from plait.planner.footprint import Footprint, Footprints, TrainingSetting

#: Bytes of an element of weights, gradients and residual stream; bf16 training is autocast over fp32 weights.
WIDE = 4
#: Moments that AdamW keeps of each parameter, in fp32.
ADAMW_MOMENTS = 2


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one device at the moment of a training step, from the second on, when most are held.

    Args:
        weights: in fp32.
        optimiser: first and second moments of AdamW.
        gradients: those that exist at that moment.
        activations: kept for the backward pass.
        working: what the part that runs at that moment takes beside; the logits, where it is the loss.
        gathered: weights and gradients of whole blocks, where they are sharded.
        moment: which moment that is.
    """

    weights: int
    optimiser: int
    gradients: int
    activations: int
    working: int
    gathered: int
    moment: str

    @property
    def total(self) -> int:
        """The peak."""
        held = self.weights + self.optimiser + self.gradients
        return held + self.activations + self.working + self.gathered

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class InferenceMemory:
    """Bytes of decoding one batch.

    Args:
        weights: of the model.
        cache: after ``context`` tokens, all sequences; exactly what :class:`~plait.models.PlaitCache` holds.
        working: the largest layer's keys and values once more, since appending a token writes them anew.
    """

    weights: int
    cache: int
    working: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.cache + self.working


def training_memory(
    config: PlaitConfig, setting: TrainingSetting, *, shards: int = 1, footprints: Footprints | None = None
) -> TrainingMemory:
    """Peak memory of one training step with fused AdamW; builds no tensor.

    Forward, loss, backward and optimiser are gone through part by part, with each part's own footprint
    (:mod:`plait.planner.footprint`), and the moment when most is held is returned. With ``shards`` devices (FSDP)
    weights, gradients and optimiser are divided; two blocks' weights and one block's gradients are whole at a time,
    which is how FSDP is described to work and not measured here.

    Args:
        config: the model.
        setting: batch, length and precision of one device.
        shards: devices that share weights, gradients and optimiser state.
        footprints: of earlier calls, to measure each block once.

    Raises:
        OptionError: ``shards``, batch or length below 1.
    """
    for name, value in (("shards", shards), ("batch", setting.batch), ("length", setting.length)):
        if value < 1:
            raise OptionError(f"{name} = {value}: give at least 1.")
    footprints = Footprints() if footprints is None else footprints
    blocks = [footprints.block(config, spec, setting) for spec in config.layers()]
    parameters = WIDE * footprints.parameters(config)
    moments = _moments(config, setting, parameters, blocks, footprints.head(config, setting))
    gathered = 0
    if shards > 1:
        outside = parameters - sum(block.parameters for block in blocks)
        largest = max(outside, *(block.parameters for block in blocks))
        gathered = 3 * largest  # this unit's weights and the next one's, and this one's gradients
    weights, optimiser = parameters, ADAMW_MOMENTS * parameters
    gradients, activations, working, moment = max(moments, key=lambda m: -(-m[0] // shards) + m[1] + m[2])
    return TrainingMemory(
        weights=-(-weights // shards),
        optimiser=-(-optimiser // shards),
        gradients=-(-gradients // shards),
        activations=activations,
        working=working,
        gathered=gathered,
        moment=moment,
    )


def inference_memory(
    config: PlaitConfig, batch: int, context: int, dtype: torch.dtype = torch.bfloat16
) -> InferenceMemory:
    """Memory of decoding ``batch`` sequences that each hold ``context`` tokens; builds no tensor.

    Args:
        config: the model.
        batch: sequences.
        context: tokens of each.
        dtype: of weights, keys, values and convolution inputs; recurrent states are fp32.
    """
    growing = [row.cost.state_bytes for row in layer_costs(config, context, dtype) if row.state == "grows"]
    return InferenceMemory(
        weights=dtype.itemsize * count_parameters(config),
        cache=batch * plan_cost(config, context, dtype).state_bytes,
        working=batch * max(growing, default=0),
    )


def _moments(
    config: PlaitConfig, setting: TrainingSetting, everything: int, blocks: list[Footprint], head: Footprint
) -> list[tuple[int, int, int, str]]:
    """Gradients, activations and working memory at every moment that may be the peak, with its name."""
    table = WIDE * config.vocab_size * config.hidden_size
    stream = WIDE * setting.batch * setting.length * config.hidden_size  # the residual stream; here the embeddings
    gradients = everything if setting.accumulates else 0
    moments, kept = [], stream
    for index, block in enumerate(blocks):
        moments.append((gradients, kept, block.forward, f"forward, layer {index}"))
        kept += block.kept_in_forward
    moments.append((gradients, kept, head.forward, "forward, loss"))
    kept = stream + sum(block.kept for block in blocks)
    moments.append((gradients, kept, head.backward, "backward, loss"))
    gradients += head.gradients
    for index, block in reversed(list(enumerate(blocks))):
        kept -= block.kept
        moments.append((gradients, kept, block.backward, f"backward, layer {index}"))
        gradients += block.gradients
    again = table if config.tie_word_embeddings or setting.accumulates else 0  # until it is added to what is there
    moments.append((everything, 0, stream + again, "backward, embedding"))
    moments.append((everything, 0, 0, "optimiser"))
    return moments
