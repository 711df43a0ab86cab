"""Scores, texts and metrics are those of lm-eval's own model of transformers models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from evaluation.harness.samples import (
    MODELS,
    ROWS,
    bos_tokenizer,
    instances,
    lm_eval_model,
    lm_eval_results,
    write_rows,
)
from plait.data.corpora import open_corpus
from plait.data.tokenizers import build_tokenizer, byte_tokenizer
from plait.evaluation.harness import run_harness
from plait.evaluation.harness.model import HarnessModel

PAIRS = [
    ("The cat sat on", " the mat"),
    ("The cat sat on", " a chair, purring"),
    ("The cat sat on", " a"),
    ("The cat sat on", " b"),  # differs from the one before in its last token alone
    ("The cat sat on ", "the mat"),  # the blank moves to the continuation
    ("The dog sat on", " the mat"),
    ("", "No context"),
    ("", "N"),
    ("<|endoftext|>Begins with a special token", " and goes on"),
    ("<|bos|>Begins with the one that is added otherwise", " and goes on"),
    ("far too long " * 20, "for the model"),
    ("far too long " * 20, "for the model, and longer"),
    ("The cat sat on", " the mat"),  # the first again
]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The cat sat on the mat, and the dog sat on the cat.\n" * 200, encoding="utf-8")
    return build_tokenizer("bpe:270", open_corpus(f"text:{path}"))


@pytest.fixture(params=["bytes", "bos", "bpe"])
def tokenizer(request: pytest.FixtureRequest, bpe: Any) -> Any:
    return {"bytes": byte_tokenizer, "bos": bos_tokenizer, "bpe": lambda: bpe}[request.param]()


@pytest.mark.parametrize("name", MODELS)
def test_loglikelihoods(name: str, tokenizer: Any) -> None:
    model = MODELS[name]()
    wanted = lm_eval_model(model, tokenizer).loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True)
    for batch_size in ("auto", 1):
        ours = HarnessModel(model, tokenizer, batch_size=batch_size, max_length=128)  # type: ignore[arg-type]
        assert ours.scorer.shares_state
        found = ours.loglikelihood(instances("loglikelihood", *PAIRS))
        assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
        assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-5, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_whole_texts(name: str, tokenizer: Any) -> None:
    model = MODELS[name]()
    texts = [("",), ("short",), ("just as long as the mod" * 2,), ("longer than the model reads. " * 9,)]
    requests = instances("loglikelihood_rolling", *texts)
    wanted = lm_eval_model(model, tokenizer, 46).loglikelihood_rolling(requests, disable_tqdm=True)
    found = HarnessModel(model, tokenizer, max_length=46).loglikelihood_rolling(requests)
    assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_texts(name: str, tokenizer: Any) -> None:
    model = MODELS[name]()
    short = {"until": ["\n", "e"], "max_gen_toks": 12}
    arguments = [
        ("The cat sat on", short),
        ("A dog", {"until": "a", "max_gen_toks": 5, "do_sample": False, "temperature": 0.0}),
        ("The cow sat on", short),
        ("No stop sequence", {"max_gen_toks": 9}),
        ("Too long for the model. " * 9, short),
    ]
    requests = instances("generate_until", *arguments)
    wanted = lm_eval_model(model, tokenizer, 64).generate_until(requests, disable_tqdm=True)
    assert HarnessModel(model, tokenizer, max_length=64).generate_until(requests) == wanted
    assert any(wanted)


@pytest.mark.parametrize("name", MODELS)
def test_metrics(name: str, tmp_path: Path) -> None:
    model, tokenizer, folder = MODELS[name](), byte_tokenizer(), write_rows(tmp_path)
    reference = lm_eval_results(lm_eval_model(model, tokenizer), list(ROWS), folder)
    found = run_harness(model, tokenizer, list(ROWS), data_dir=folder, max_length=128)
    assert set(found["tasks"]) == set(ROWS)
    for task, result in found["tasks"].items():
        wanted = reference["results"][task]
        assert result["n"] == len(ROWS[task])
        for metric, numbers in result["metrics"].items():
            same = numbers["value"], numbers["stderr"]
            if metric == "perplexity":  # an exponential: the last digits of the sums show
                assert same == pytest.approx((wanted["perplexity,none"], wanted["perplexity_stderr,none"]), rel=1e-5)
            else:
                assert same == (wanted[f"{metric},none"], wanted[f"{metric}_stderr,none"])
        assert result["correct"] == [int(sample["acc"]) for sample in reference["samples"][task]]
