"""Whole models: the two differ in their plan alone, both train, and decoding goes on after the prompt."""

from __future__ import annotations

import json

import pytest
import torch

from plait.cli import app as front
from plait.timing import whole_model
from plait.timing.whole_model import Size, time_generation, time_training

TINY = Size(layers=4, hidden_size=16, vocab_size=32)


def test_the_models_differ_in_their_plan_alone() -> None:
    models = TINY.models("cpu")
    plans = {name: model.config.layer_types for name, model in models.items()}
    assert plans == {"hybrid": ["gated_deltanet"] * 3 + ["attention"], "all-attention": ["attention"] * 4}
    assert len({(model.config.hidden_size, model.config.mlp_size) for model in models.values()}) == 1


def test_a_training_step_trains() -> None:
    model = TINY.models("cpu")["hybrid"].train()
    ids = whole_model._ids(TINY, 2, 12, "cpu")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = model(input_ids=ids, labels=ids).loss.item()
    for _ in range(5):
        whole_model._training_step(model, optimiser, "cpu", ids)
    assert model(input_ids=ids, labels=ids).loss.item() < before - 0.1


def test_training_is_timed_at_every_length() -> None:
    timings = time_training(TINY, [8, 12], batch=2, checkpointing=True, repeats=2)
    assert [(timing.what, timing.tokens) for timing in timings] == [("training step", 16), ("training step", 24)]
    for timing in timings:
        assert timing.ratio_low <= timing.ratio <= timing.ratio_high
        assert min(timing.tokens_per_second, timing.attention_tokens_per_second) > 0


def test_decoding_goes_on_after_the_prompt() -> None:
    model = TINY.models("cpu")["hybrid"].eval()
    with torch.no_grad():
        prompt = whole_model._Prompt(model, whole_model._ids(TINY, 1, 9, "cpu"))
        prompt()
        decoding = whole_model._Decoding(prompt)
        decoding()
        decoding()
    assert decoding.cache.get_seq_length() == 9 + 2 * whole_model._DECODED


def test_a_generation_is_a_prompt_and_its_tokens() -> None:
    prefill, decode, generation = time_generation(TINY, context=20, new_tokens=3, repeats=3)
    assert [timing.what for timing in (prefill, decode, generation)] == ["prefill", "decode", "generation"]
    assert (prefill.repeats, decode.repeats, generation.repeats) == (2, 3, 3)
    seconds = 20 / prefill.tokens_per_second + 3 / decode.tokens_per_second
    assert 3 / generation.tokens_per_second == pytest.approx(seconds, rel=0.3)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--layers", "4", "--hidden-size", "16", "--vocab-size", "32", "--tokens", "8", "--context", "0"]
    with pytest.raises(SystemExit) as end:
        front.main(["bench", "train", *arguments, "--repeats", "2", "--json"])
    assert end.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"]["ratio"] == "3:1"
    assert [row["what"] for row in result["timings"]] == ["training step"]


def test_the_table_says_what_the_ratio_means(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--layers", "4", "--hidden-size", "16", "--vocab-size", "32", "--tokens", "0", "--context", "12"]
    with pytest.raises(SystemExit):
        front.main(["bench", "train", *arguments, "--repeats", "2"])
    text = capsys.readouterr().out
    assert "above 1, the hybrid is faster" in text
    assert [line.split()[0] for line in text.splitlines()[-3:]] == ["prefill", "decode", "generation"]
