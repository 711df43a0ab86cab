"""The common suite that transformers runs over its own models, run over plait's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unittest
from pathlib import Path

import pytest
import torch

from models.common_suite import common_tests, require
from plait.models import PlaitConfig, PlaitForCausalLM, PlaitModel

#: Five plans, with small options.
PLANS: dict[str, dict] = {
    "attention": {"layer_types": ["attention", "attention"]},
    "gated_deltanet-3-1": {"layer_types": ["gated_deltanet"] * 3 + ["attention"]},
    "hgrn-hgrn2": {"layer_types": ["hgrn", "hgrn2", "hgrn", "hgrn2"]},
    "mla-kda": {"layer_types": ["kda", "mla"]},
    "lightning-lizard-retnet-attention": {"layer_types": ["lightning", "lizard", "retnet", "attention"]},
}

#: What the suite must know: plait's own names are in none of its tables, and other tests here cover ``generate``.
SETTINGS = {
    "has_attentions": False,  # the suite wants one for every layer; see test_attentions.py
    "all_generative_model_classes": (),  # the tests of ``generate`` are not in the source distribution
}
#: Tests that cannot hold, with the reason.
EXEMPT = {
    "test_num_layers_is_small": "the plans need one layer of each mixer",
    "test_training": "the suite asks a bare model that its tables do not name for a loss",
    "test_training_gradient_checkpointing": "the same",
    "test_training_gradient_checkpointing_use_reentrant_false": "the same",
    "test_training_gradient_checkpointing_use_reentrant_true": "the same",
}


class Sizes:
    """What the suite asks of a model's tester: a small configuration and inputs."""

    batch_size, seq_length, is_training = 3, 7, True

    def __init__(self, plan: str) -> None:
        self.plan = PLANS[plan]
        depth = len(self.plan["layer_types"])
        self.num_hidden_layers, self.hidden_size, self.vocab_size, self.num_attention_heads = depth, 32, 61, 2
        self.encoder_seq_length = self.key_length = self.seq_length

    def get_config(self) -> PlaitConfig:
        sizes = {"vocab_size": self.vocab_size, "hidden_size": self.hidden_size, "intermediate_size": 48}
        return PlaitConfig(**sizes, **self.plan, pad_token_id=0, bos_token_id=1, eos_token_id=2)

    def prepare_config_and_inputs_for_common(self) -> tuple[PlaitConfig, dict[str, torch.Tensor]]:
        shape = (self.batch_size, self.seq_length)
        ids = torch.randint(3, self.vocab_size, shape)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.long)}


def suite(plan: str) -> type[unittest.TestCase]:
    """The suite as a class for one plan."""

    def set_up(self: unittest.TestCase) -> None:
        self.model_tester = Sizes(plan)  # type: ignore[attr-defined]

    body = {"setUp": set_up, "all_model_classes": (PlaitModel, PlaitForCausalLM), **SETTINGS}
    return type("Suite", (common_tests().ModelTesterMixin, unittest.TestCase), body)


def run(plan: str) -> dict[str, str]:
    """What failed, by the name of the test, with the end of its trace; `` skipped`` and `` run`` are numbers."""
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(suite(plan)).run(result)
    failures: dict[str, str] = {}
    for test, trace in [*result.failures, *result.errors]:
        failures[re.split(r"[. ]", test.id().split("Suite.", 1)[-1])[0]] = trace[-600:]
    return {**failures, " run": str(result.testsRun), " skipped": str(len(result.skipped))}


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_common_suite_of_transformers(plan: str) -> None:
    """In a process of its own: the suite's marks are not those of this project, whose pytest is strict."""
    require()
    command = [sys.executable, "-m", "models.test_common_suite", plan]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    failures = json.loads(done.stdout.splitlines()[-1])
    ran = int(failures.pop(" run")) - int(failures.pop(" skipped"))
    assert ran >= 60
    small = {"test_num_layers_is_small"} if len(PLANS[plan]["layer_types"]) <= 2 else set()
    assert set(failures) == set(EXEMPT) - small, failures


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1])))
