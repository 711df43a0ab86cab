"""Low-rank adapters of the query, key and value projections, through PEFT (2106.09685)."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plait.conversion.recipe import Recipe
from plait.errors import BackendUnavailable
from plait.extras import install_command
from plait.models import PlaitForCausalLM

#: Folder beside a model with its adapters.
ADAPTERS = "adapter"


def check_installed() -> None:
    """Raise :class:`BackendUnavailable` unless PEFT is there."""
    if find_spec("peft") is None:
        raise BackendUnavailable(
            f"Tuning low-rank adapters needs the package peft: {install_command('finetune')}, or set lora_rank=0."
        )


def add(student: PlaitForCausalLM, recipe: Recipe, seed: int) -> Any:
    """The student wrapped by PEFT; its q, k and v projections get adapters that change nothing at first.

    Args:
        student: changed in place.
        recipe: gives rank and scale.
        seed: of the adapters' first factor; the second is zero.
    """
    check_installed()
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, target_modules=["q_proj", "k_proj", "v_proj"], bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(student, config)


def save(wrapped: Any, folder: Path) -> None:
    """Write the student in ``folder`` without its adapters, and those in the folder ``adapter`` below."""
    wrapped.save_pretrained(folder / ADAPTERS)
    student = wrapped.unload()
    student.save_pretrained(folder)


def merge(student: PlaitForCausalLM, folder: Path) -> PlaitForCausalLM:
    """The student with the adapters in ``folder`` added to its weights; itself where there are none."""
    if not (folder / ADAPTERS).exists():
        return student
    check_installed()
    from peft import PeftModel

    merged: PlaitForCausalLM = PeftModel.from_pretrained(student, folder / ADAPTERS).merge_and_unload()
    return merged


def copy(source: Path, target: Path) -> None:
    """Take adapters along, where there are some."""
    if (source / ADAPTERS).exists():
        shutil.copytree(source / ADAPTERS, target / ADAPTERS)
