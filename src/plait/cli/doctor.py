"""``plait doctor``: what this machine has, what is off, and the one command that turns it on."""

from __future__ import annotations

import platform
import sys
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from plait.cli.output import print_json, print_table, say
from plait.extras import EXTRAS, install_command, installed

TRACKERS = ("tensorboard", "wandb")


def command(
    measure: Annotated[bool, typer.Option("--measure", help="Also measure matrix products and copies.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, devices and backends, with fixes."""
    findings = examine()
    if measure:
        from plait.timing.machine import ceilings

        findings["ceilings"] = ceilings(device="cuda" if findings["devices"]["cuda"] else "cpu")
    if as_json:
        print_json(findings)
    else:
        _print(findings)


def examine() -> dict[str, Any]:
    """Versions, devices, threads, backends, extras, trackers and warnings, as plain data."""
    import torch

    from plait import ops, provenance
    from plait.devices import unusable_accelerator

    cuda = torch.cuda.is_available()
    return {
        "versions": {"python": platform.python_version(), **provenance.versions()},
        "python": sys.executable,
        "devices": {
            "cpu": provenance.processor(),
            "cuda": provenance.accelerators(),
            "mps": torch.backends.mps.is_available(),
        },
        "threads": provenance.threads(),
        "backends": [
            {"name": status.name, "available": status.available, "reason": status.reason, "fix": status.fix}
            for status in ops.backends()
        ],
        "chosen": {device: list(ops.choose(device)) for device in (["cpu", "cuda"] if cuda else ["cpu"])},
        "extras": [
            {"name": extra, "package": package, "version": installed(package), "fix": install_command(extra)}
            for extra, package in EXTRAS.items()
        ],
        "trackers": [{"name": name, "version": installed(name), "fix": f"pip install {name}"} for name in TRACKERS],
        "warnings": warnings(fla=find_spec("fla") is not None, cuda=cuda, unusable=unusable_accelerator()),
    }


def warnings(*, fla: bool, cuda: bool, unusable: str | None) -> list[str]:
    """What would break or surprise on this machine.

    Args:
        fla: whether flash-linear-attention can be imported.
        cuda: whether torch sees a CUDA device.
        unusable: the accelerator that torch was built for and that this machine does not offer, or None.
    """
    lines = []
    if unusable:
        lines.append(
            f"this torch is built for {unusable}, and there is no such device or driver here. plait computes on the "
            "CPU, with the same numbers; a CPU build of torch takes a sixth of the space: "
            "pip install torch --index-url https://download.pytorch.org/whl/cpu"
        )
    if fla and not cuda:
        lines.append(
            "flash-linear-attention is installed but there is no CUDA device. plait's models are not affected; "
            "transformers' own models with Gated DeltaNet layers (Qwen3-Next, OLMo-Hybrid, Kimi Linear) bind its GPU "
            "kernels on import and fail on CPU. To fix it: pip uninstall flash-linear-attention fla-core"
        )
    return lines


def _print(findings: dict[str, Any]) -> None:
    for name, number in findings["versions"].items():
        say(f"{name:<13} {number or 'not installed'}")
    devices = findings["devices"]
    say(f"{'cpu':<13} {devices['cpu']}, {findings['threads']} threads for torch")
    say(f"{'cuda':<13} {', '.join(devices['cuda']) or 'none'}")
    say(f"{'mps':<13} {'yes' if devices['mps'] else 'none'}")

    say("\nBackends of the recurrences")
    print_table(
        ["name", "state", "reason", "to turn it on"],
        [
            [entry["name"], "on" if entry["available"] else "off", entry["reason"]]
            + ["" if entry["available"] else entry["fix"]]
            for entry in findings["backends"]
        ],
    )
    for device, (name, reason) in findings["chosen"].items():
        say(f"on {device} plait uses {name}: {reason}")

    say("\nExtras and trackers")
    print_table(
        ["name", "version", "to install it"],
        [
            [entry["name"], entry["version"] or "off", "" if entry["version"] else entry["fix"]]
            for entry in [*findings["extras"], *findings["trackers"]]
        ],
    )
    if "ceilings" in findings:
        say("\nCeilings of this machine")
        for name, value in findings["ceilings"].items():
            say(f"{name:<20} {value:.1f}")
    for warning in findings["warnings"]:
        say(f"\nWarning: {warning}")
