"""A tiny teacher with its data, saved as a folder, for the tests of conversions."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import yaml

from plait.data.tokenizers import byte_tokenizer
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.models.checkpoints import to_transformers

LAYERS = 3


def teacher(kind: str = "llama", layers: int = LAYERS, dtype: torch.dtype = torch.float32) -> PlaitForCausalLM:
    """Random weights, large enough for every path to matter: 4 query heads, 2 key-value heads of 8 channels."""
    attention = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "qk_norm": kind == "qwen3"}
    config = PlaitConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        layer_types=["attention"] * layers,
        mixers={"attention": attention},
    )
    torch.manual_seed(0)
    model = PlaitForCausalLM(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return model.requires_grad_(False)


def save_teacher(folder: Path, kind: str = "llama") -> Path:
    """The teacher as transformers' Llama or Qwen3, with a tokenizer of bytes."""
    to_transformers(teacher(kind), kind).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def save_data(folder: Path) -> Path:
    """A recall task and a text, as a YAML file."""
    words = ("alpha", "beta", "gamma", "delta", "epsilon")
    lines = [f"{a} {b} {c}\n" for a, b, c in itertools.product(words, repeat=3)]
    text = folder / "text.txt"
    text.write_text("".join(lines * 8), encoding="utf-8")
    mqar = {"task": "mqar", "length": 16, "options": {"vocab_size": 32, "pairs": 2}}
    early = {"task": "lag", "length": 16, "end": 0.5}
    values = {"data": {"length": 16, "mixture": [early, mqar, {"corpus": f"text:{text}", "start": 0.3}]}}
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random ids ``(batch, length)``."""
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(seed))
