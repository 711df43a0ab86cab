"""How fast this machine trains, measured once by a few steps of a tiny trial and kept for later plans."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from plait import provenance
from plait.data.order import stable_hash
from plait.devices import default_device, memory_bytes
from plait.files.writing import read_back, write_json
from plait.models import PlaitForCausalLM
from plait.models.architecture import Architecture
from plait.planner.devices import Device
from plait.runs.config import DataSection, ModelSection, RunConfig

#: The tiny trial: sequences and tokens of a step, and steps that are timed after the first two.
BATCH, LENGTH, STEPS = 8, 128, 6
VOCABULARY = 256
_VERSION = 1


@dataclass(frozen=True)
class Rate:
    """What a few training steps reached.

    Args:
        flops: FLOP/s, counted as a plan counts them.
        parameters: of the tiny model.
        machine: on what.
        measured: when, as ``2026-01-31``.
    """

    flops: float
    parameters: int
    machine: str
    measured: str


def this_machine(folder: Path | None = None) -> Device:
    """This machine as a device whose peak is what training reached on it.

    Args:
        folder: where measured rates are kept; None: ``plait`` in the user's cache folder.
    """
    folder = folder or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plait"
    where = default_device()
    machine = fingerprint()
    path = folder / f"rate-{stable_hash(machine, _VERSION):016x}.json"
    if path.exists():
        rate = Rate(**read_back(path))
    else:
        rate = measure(where, machine)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, rate.__dict__)
    source = (
        f"measured on {rate.measured} by {STEPS} training steps of {rate.parameters:,} parameters, {BATCH} x {LENGTH} "
        "tokens; larger models usually come nearer to the machine's peak, and several trials at a time share it"
    )
    memory = memory_bytes() if where.type == "cpu" else torch.cuda.get_device_properties(where).total_memory
    return Device("this machine", rate.flops, 0.0, memory, source)


def measure(where: torch.device, machine: str) -> Rate:
    """Train a tiny hybrid for a few steps; the median step counts.

    Args:
        where: the device.
        machine: its fingerprint.
    """
    run = RunConfig(model=ModelSection(), data=DataSection(task="mqar"))
    architecture = Architecture.of(run, VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=generator).to(where)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PlaitForCausalLM(architecture.config).to(where).train()  # type: ignore[arg-type]
    optimiser = torch.optim.AdamW(model.parameters())
    seconds = []
    for _ in range(STEPS + 2):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return Rate(step_flops(architecture) / statistics.median(seconds[2:]), architecture.parameters(), machine, _today())


def step_flops(architecture: Architecture) -> int:
    """Of one training step of the tiny trial, by the accounting of :class:`plait.study.plan.Budget`."""
    embedding = VOCABULARY * architecture.config.hidden_size
    per_token = 6 * (architecture.parameters() - embedding) * BATCH * LENGTH
    return per_token + 3 * architecture.mixing_flops(LENGTH) * BATCH


def fingerprint() -> str:
    """What the rate depends on: processor, cores, threads, accelerator, version of torch."""
    return f"{provenance.machine()}, torch {torch.__version__}"


def _today() -> str:
    return time.strftime("%Y-%m-%d")
