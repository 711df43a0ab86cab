"""Checkpoints with weights in fp16 and bf16: through fla's layout and twins of transformers, and by the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoints.layouts import FULL, LINEAR, OPTIONS
from models.checkpoints.test_llama import plait as attention_model
from models.checkpoints.test_twins import IDS, OURS, THEIRS, ours, theirs
from numerics import assert_same_outputs, assert_same_weights
from plait.cli.app import main
from plait.data.tokenizers import byte_tokenizer
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.models.checkpoints import from_transformers, load_fla, load_transformers, save_fla, to_transformers

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
#: Relative error of logits with weights and sums of this type.
ERROR = {torch.float16: 0.01, torch.bfloat16: 0.06}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).norm() / expected.norm())


@HALVES
@pytest.mark.parametrize("mixer", [*LINEAR, "attention"])
def test_layout_of_fla(build: Callable[..., Any], tokens: Any, tmp_path: Path, mixer: str, dtype: torch.dtype) -> None:
    mixers = {mixer: OPTIONS[mixer]} | ({} if mixer == "attention" else {"attention": FULL})
    exact = build(mixer, "attention", mixer, mixers=mixers, dtype=torch.float32)
    model = build(mixer, "attention", mixer, mixers=mixers, dtype=torch.float32).to(dtype)
    save_fla(model, tmp_path)
    again = load_fla(tmp_path)
    assert_same_weights(again.state_dict(), model.state_dict())
    ids = tokens(2, 9)
    assert_same_outputs(again(ids).logits, model(ids).logits)
    assert error(again(ids).logits, exact(ids).logits) < ERROR[dtype]
    assert again.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (2, 12)


@HALVES
@pytest.mark.parametrize("kind", OURS)
@torch.no_grad()
def test_twins_of_hybrids(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    exact, model = ours(kind), ours(kind).to(dtype)
    to_transformers(model, kind).save_pretrained(tmp_path)
    again = load_transformers(tmp_path)
    assert_same_weights(again.state_dict(), model.state_dict())
    assert error(again(IDS).logits, exact(IDS).logits) < ERROR[dtype]
    their = theirs(kind).to(dtype)
    assert error(from_transformers(their)(IDS).logits, theirs(kind)(IDS).logits) < ERROR[dtype]


@HALVES
@pytest.mark.parametrize(("kind", "options"), [("llama", {}), ("qwen3", {"qk_norm": True})])
@torch.no_grad()
def test_twins_of_attention(tmp_path: Path, kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    exact, model = attention_model(**options), attention_model(**options).to(dtype)
    to_transformers(model, kind).save_pretrained(tmp_path)
    again = load_transformers(tmp_path)
    assert_same_weights(again.state_dict(), model.state_dict())
    assert error(again(IDS).logits, exact(IDS).logits) < ERROR[dtype]


@HALVES
def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: torch.dtype) -> None:
    """Generate, eval, export to fla's layout, import, and generate from what came back: the same text."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 258, "eos_token_id": 256}
    model = PlaitForCausalLM(PlaitConfig(layer_types=["gated_deltanet", "attention"], **sizes, initializer_range=0.3))
    model.to(dtype).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("the quick brown fox " * 200)
    generate = ["--prompt", "import os", "--max-new-tokens", "3", "--greedy"]
    said = []
    for arguments in (
        ["generate", str(tmp_path / "model"), *generate],
        ["eval", str(tmp_path / "model"), "--corpus", f"text:{tmp_path}/text.txt", "--lengths", "64", "--limit", "1"],
        ["export", str(tmp_path / "model"), str(tmp_path / "fla"), "--to", "fla"],
        ["import", str(tmp_path / "fla"), str(tmp_path / "again")],
        ["generate", str(tmp_path / "again"), *generate],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as end:
            main(arguments)
        printed = capsys.readouterr()
        assert end.value.code in (0, None), printed.err
        said.append(printed.out)
    assert said[0] == said[-1]
    assert len(said[0]) > 1


def test_every_kind_of_checkpoint_is_here() -> None:
    assert set(THEIRS) == set(OURS)
