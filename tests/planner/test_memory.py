"""Estimated peaks of training against torch's own allocator in real steps, and decoding against a real cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from plait.errors import OptionError
from plait.models import PlaitCache, PlaitConfig, PlaitForCausalLM, layer_plan
from plait.ops import backend
from plait.planner import TrainingSetting, inference_memory, training_memory
from plait.planner.footprint import Footprints, _block, _head
from plait.runs.config import TrainingSection
from plait.timing.memory import ALLOCATOR
from plait.training.optimiser import build_optimiser


@dataclass(frozen=True)
class Case:
    mixer: str
    ratio: str = "3:1"
    batch: int = 2
    length: int = 512
    precision: str = "fp32"
    checkpointing: bool = False
    backend: str = "native"
    layers: int = 4
    vocab_size: int = 1024
    hidden_size: int = 256
    tied: bool = False

    @property
    def config(self) -> PlaitConfig:
        return PlaitConfig(
            layer_types=layer_plan(self.mixer, self.ratio, self.layers),
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            tie_word_embeddings=self.tied,
        )

    @property
    def setting(self) -> TrainingSetting:
        return TrainingSetting(
            self.batch, self.length, self.precision, self.checkpointing, accumulates=False, backend=self.backend
        )


def train(case: Case, steps: int = 2) -> None:
    """Whole steps of training, from nothing."""
    model = PlaitForCausalLM(case.config).train()
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimiser = build_optimiser(model, TrainingSection())
    ids = torch.randint(case.vocab_size, (case.batch, case.length), generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
            loss = model(ids, shift_labels=ids, use_cache=False)["loss"]
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def allocated_peak(case: Case) -> int:
    """Most bytes that torch's CPU allocator had given out at one moment."""
    with backend(case.backend), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        train(case)
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


MORE = [
    Case("attention", "full", precision="bf16"),
    Case("attention", "full", batch=4, checkpointing=True),
    Case("gated_deltanet", backend="torch", batch=1),
    Case("gated_deltanet", checkpointing=True),
    Case("gated_deltanet", batch=4, precision="bf16"),
    Case("gla", "pure", batch=4),
    Case("gla", backend="torch", checkpointing=True),
    Case("hgrn", "pure", length=1024),
    Case("hgrn", backend="torch", checkpointing=True, precision="bf16"),
    Case("hgrn2", tied=True, vocab_size=8000),
    Case("retnet", "pure", batch=1, vocab_size=40_000, layers=2, length=1024),  # the loss is made in pieces
]


@pytest.mark.parametrize(
    "case",
    [
        Case("attention", "full", batch=1),
        Case("gated_deltanet", batch=1),
        *(pytest.param(case, marks=pytest.mark.slow) for case in MORE),
    ],
    ids=str,
)
def test_estimate_is_within_a_tenth_of_the_peak(case: Case) -> None:
    estimate = training_memory(case.config, case.setting).total
    assert estimate == pytest.approx(allocated_peak(case), rel=0.1)


@pytest.mark.slow
def test_estimate_is_within_a_tenth_of_resident_memory() -> None:
    """The same against the system's account, of a fresh process."""
    case = Case("gla", length=1024, hidden_size=384)
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "from dataclasses import replace\n"
        "from plait.timing.resident import peak_extra_bytes\n"
        "from test_memory import Case, train\n"
        "case = Case(**json.loads(sys.argv[2]))\n"
        "train(replace(case, hidden_size=64, length=130, batch=1))\n"
        "print(peak_extra_bytes(lambda: train(case)))\n"
    )
    command = [sys.executable, "-c", code, os.path.dirname(__file__), json.dumps(case.__dict__)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **ALLOCATOR})
    assert training_memory(case.config, case.setting).total == pytest.approx(int(run.stdout), rel=0.1)


def test_parts_of_a_transformer_by_hand() -> None:
    config = Case("attention", "full", layers=2).config
    parameters = 2 * 1024 * 256 + 256 + 2 * (4 * 256**2 + 3 * 256 * 768 + 2 * 256)
    found = training_memory(config, TrainingSetting(2, 512, "fp32"))
    assert (found.weights, found.optimiser) == (4 * parameters, 8 * parameters)
    assert found.gradients == 0  # the peak is where the loss is made, before there are any
    assert found.moment == "backward, loss"
    assert found.total == found.weights + found.optimiser + found.activations + found.working
    accumulating = training_memory(config, TrainingSetting(2, 512, "fp32", accumulates=True))
    assert accumulating.gradients == 4 * parameters


def test_checkpointing_keeps_one_row_of_channels_a_token_and_block() -> None:
    stream = 4 * 2 * 512 * 256
    config = Case("gla", "pure").config
    block = Footprints().block(config, config.layers()[0], TrainingSetting(2, 512, "fp32", checkpointing=True))
    assert block.kept == stream
    plain = Footprints().block(config, config.layers()[0], TrainingSetting(2, 512, "fp32"))
    # at least norms, projections, gates and the three inner rows of the feed-forward, each three channels wide
    assert plain.kept > (9 + 8) * stream


def test_bf16_keeps_copies_of_weights_and_half_the_channels() -> None:
    config = Case("attention", "full").config
    spec = config.layers()[0]
    wide, narrow = (Footprints().block(config, spec, TrainingSetting(4, 512, p)) for p in ("fp32", "bf16"))
    assert 0.5 * wide.kept < narrow.kept < 0.85 * wide.kept
    few, more = (Footprints().block(config, spec, TrainingSetting(b, 512, "bf16")).kept for b in (1, 2))
    matrices = 4 * 256**2 + 3 * 256 * 768
    assert 2 * few - more == pytest.approx(2 * matrices, rel=0.01)  # what does not grow with the batch


@pytest.mark.parametrize("mixer", ["attention", "gla"])
def test_longer_and_larger_batches_lie_on_a_line(mixer: str) -> None:
    config = PlaitConfig(layer_types=[mixer], hidden_size=64)
    setting = TrainingSetting(6, 4096, "bf16", backend="native")
    found = Footprints().block(config, config.layers()[0], setting)
    exact = _block(config, config.layers()[0], setting)
    # the lists of pages of the native softmax hold one number for 16 x 64 pairs, which no line follows
    assert asdict(found) == pytest.approx(asdict(exact), rel=0.005 if mixer == "attention" else 1e-12)


def test_loss_in_pieces_lies_on_a_line() -> None:
    config = PlaitConfig(layer_types=["attention"], hidden_size=64, vocab_size=64_000)
    setting = TrainingSetting(3, 1024, "bf16")
    found, exact = Footprints().head(config, setting), _head(config, setting)
    assert found.backward == pytest.approx(exact.backward, rel=0.01)
    assert found.forward == pytest.approx(exact.forward, rel=0.01)


def test_shards_divide_what_is_not_activations() -> None:
    config, setting = Case("gla").config, TrainingSetting(2, 512, "fp32")
    one, four = training_memory(config, setting), training_memory(config, setting, shards=4)
    assert four.weights == one.weights // 4
    assert four.optimiser == one.optimiser // 4
    assert four.activations == one.activations
    largest = 4 * max(2 * 1024 * 256 + 256, 4 * 256**2 + 3 * 256 * 768 + 2 * 256)
    assert four.gathered >= 3 * largest


@pytest.mark.parametrize("mixer", ["attention", "gated_deltanet", "gla", "hgrn"])
def test_cache_is_what_the_real_one_holds(mixer: str) -> None:
    config = Case(mixer, "3:1" if mixer != "attention" else "full", hidden_size=64).config
    model = PlaitForCausalLM(config).eval()
    cache = PlaitCache(config)
    with torch.no_grad():
        model(torch.zeros(3, 40, dtype=torch.long), past_key_values=cache)
    found = inference_memory(config, 3, 40, torch.float32)
    assert found.cache == cache.bytes()
    assert found.weights == sum(p.nbytes for p in model.parameters())
    assert found.working == max(layer.state.bytes() for layer in cache.layers if layer.is_croppable)


@pytest.mark.parametrize("name", ["batch", "length", "shards"])
def test_nothing_to_train_on_is_an_error(name: str) -> None:
    sizes = {"batch": 1, "length": 8, "shards": 1, name: 0}
    shards = sizes.pop("shards")
    with pytest.raises(OptionError, match=f"{name} = 0"):
        training_memory(Case("hgrn").config, TrainingSetting(**sizes), shards=shards)
