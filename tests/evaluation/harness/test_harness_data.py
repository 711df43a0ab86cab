"""The real task files beside this project, where they are: the same metrics as lm-eval's own model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from evaluation.harness.samples import MODELS, lm_eval_model, lm_eval_results
from plait.data.tokenizers import byte_tokenizer
from plait.evaluation.harness import run_harness

SHARED = Path(os.environ.get("PLAIT_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data")) / "harness"
NAMES = ["lambada_openai", "piqa", "arc_easy", "arc_challenge", "openbookqa", "winogrande", "copa"]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="no task files here; test_equal_to_lm_eval does the same with its own")
@pytest.mark.parametrize("name", MODELS)
def test_real_files(name: str) -> None:
    model, tokenizer = MODELS[name](), byte_tokenizer()
    limit = 8
    reference = lm_eval_results(lm_eval_model(model, tokenizer, 256), NAMES, SHARED, limit)
    found = run_harness(model, tokenizer, NAMES, data_dir=SHARED, limit=limit, max_length=256)
    for task in NAMES:
        assert found["tasks"][task]["n"] == limit
        for metric, numbers in found["tasks"][task]["metrics"].items():
            wanted = reference["results"][task][f"{metric},none"]
            assert numbers["value"] == pytest.approx(wanted, rel=1e-4 if metric == "perplexity" else 0)
        correct = [int(sample["acc"]) for sample in reference["samples"][task]]
        assert found["tasks"][task]["correct"] == correct
