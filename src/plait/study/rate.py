"""How fast this machine trains, measured once by a few steps of a tiny trial and kept for later plans."""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from plait.data.order import stable_hash
from plait.models import PlaitForCausalLM
from plait.planner.devices import Device
from plait.runs.checkpoint import read_json, write_json
from plait.runs.config import DataSection, ModelSection, RunConfig
from plait.study.architecture import Architecture

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
    where = _accelerator()
    machine = fingerprint(where)
    path = folder / f"rate-{stable_hash(machine, _VERSION):016x}.json"
    if path.exists():
        rate = Rate(**read_json(path))
    else:
        rate = measure(where, machine)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, rate.__dict__)
    source = (
        f"measured on {rate.measured} by {STEPS} training steps of {rate.parameters:,} parameters, {BATCH} x {LENGTH} "
        "tokens; larger models usually come nearer to the machine's peak, and several trials at a time share it"
    )
    if where.type == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        memory = torch.cuda.get_device_properties(where).total_memory
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


def fingerprint(where: torch.device) -> str:
    """What the rate depends on: processor, cores, threads, accelerator, version of torch."""
    parts = [platform.system(), platform.machine(), _processor(), f"{os.cpu_count()} cores"]
    parts += [f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"]
    if where.type == "cuda":
        parts.append(torch.cuda.get_device_name(where))
    return ", ".join(parts)


def _processor() -> str:
    """The processor's name, which :mod:`platform` does not know on Linux."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def _accelerator() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _today() -> str:
    return time.strftime("%Y-%m-%d")
