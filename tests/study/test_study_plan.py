"""What a study costs: against counts by hand and the published parameter counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait.errors import OptionError
from plait.study.file import load_study, parse_study
from plait.study.plan import plan
from plait.study.trials import trials

STUDIES = Path(__file__).parents[2] / "studies"


def budgets(values: dict, peak: float = 1e12, utilisation: float = 0.5) -> list:
    study = parse_study({"name": "s", "grid": {"mixers": ["hgrn"], "ratios": ["pure"]}, **values}, "s.yaml")
    return plan(study, trials(study), peak, utilisation)


TINY = {
    "base": {"model": {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}},
    "tracks": {
        "lm": {
            "kind": "lm",
            "data": {"corpus": "python-stdlib", "length": 10},
            "training": {"steps": 3, "batch_size": 2, "accumulate": 5},
        }
    },
    "seeds": [0, 1],
    "contexts": [100],
}


def test_budget_by_hand() -> None:
    transformer, hgrn = budgets(TINY)
    embedding, d, inner = 258 * 16, 16, 32
    block = 3 * d * inner + 2 * d  # feed-forward and two norms
    assert transformer.parameters == 2 * embedding + d + 2 * (block + 4 * d * d)
    assert hgrn.parameters == 2 * embedding + d + 2 * (block + 4 * d * d + d) + 2 * d  # output norm, lower bounds
    assert hgrn.tokens == 3 * 2 * 5 * 10
    assert hgrn.matmul_flops == 6 * (hgrn.parameters - embedding) * 300
    assert hgrn.mixing_flops == 3 * 30 * 2 * (5 * d) * 10  # 5 d per token and layer, 30 sequences
    assert transformer.mixing_flops == 3 * 30 * 2 * (2 * 10**2 * d)  # 2 T^2 d
    assert transformer.cache_bytes == 2 * (2 * 100 * d * 2)  # layers, keys and values in bf16
    assert hgrn.cache_bytes == 2 * 4 * d
    assert hgrn.gpu_hours == pytest.approx(hgrn.flops / 0.5e12 / 3600)
    assert hgrn.memory == 16 * hgrn.parameters + 2 * 10 * d * 34 * 2  # weights to moments; activations in bf16
    assert (hgrn.trials, hgrn.n_linear, hgrn.n_full) == (2, 2, 0)


def test_checkpointing_and_precision_change_the_activations() -> None:
    def activations(**training: object) -> int:
        tracks = {"lm": {**TINY["tracks"]["lm"], "training": {"batch_size": 2, **training}}}
        return budgets({**TINY, "tracks": tracks})[0].activation_bytes

    assert activations(precision="fp32") == 2 * activations(precision="bf16")
    assert activations(gradient_checkpointing=True) == 2 * 10 * 16 * (34 + 2 * 2)


def test_task_sizes_come_from_its_options() -> None:
    tracks = {"recall": {"kind": "recall", "data": {"task": "mqar", "options": {"vocab_size": 32, "length": 24}}}}
    row = budgets({**TINY, "tracks": tracks})[1]
    assert row.tokens == 1000 * 16 * 24
    assert row.parameters == 2 * 32 * 16 + 16 + 2 * (3 * 16 * 32 + 2 * 16 + 4 * 16 * 16 + 16) + 2 * 16


def test_unknown_vocabulary_is_an_error() -> None:
    tracks = {"lm": {"kind": "lm", "data": {"corpus": "python-stdlib", "tokenizer": "hf:some/model"}}}
    with pytest.raises(OptionError, match="set 'vocab_size' in the study file"):
        budgets({**TINY, "tracks": tracks})
    assert budgets({**TINY, "tracks": tracks, "vocab_size": 500})[0].parameters > 2 * 500 * 16


@pytest.mark.parametrize(("peak", "utilisation"), [(0.0, 0.5), (1e12, 0.0), (1e12, 1.1)])
def test_impossible_machine_is_an_error(peak: float, utilisation: float) -> None:
    with pytest.raises(OptionError, match="utilisation"):
        budgets(TINY, peak, utilisation)


@pytest.mark.parametrize(
    ("name", "tokens", "parameters", "full"),
    [
        ("hybrid-linear-340m", 20e9, [399_531_200, 398_461_880, 397_392_560, 395_253_920, 390_976_640], "transformer"),
        ("hybrid-linear-1.3b", 100e9, [1_466_343_808, 1_462_091_888, 1_457_839_968, 1_449_336_128, 1_432_328_448], ""),
    ],
)
def test_plan_of_the_papers_grid(name: str, tokens: float, parameters: list[int], full: str) -> None:
    study = load_study(STUDIES / f"{name}.yaml")
    rows = {row.key: row for row in plan(study, trials(study), 989e12, 0.4)}
    ratios = ["pure", "24:1", "12:1", "6:1", "3:1"]
    assert [rows[f"gated_deltanet {ratio}"].parameters for ratio in ratios] == parameters
    for mixer in ("hgrn", "retnet", "gla", "hgrn2", "deltanet", "gated_deltanet"):
        assert [rows[f"{mixer} {ratio}"].n_full for ratio in ratios] == [0, 1, 2, 4, 8]
    assert rows["transformer"].n_full == 24
    assert rows["transformer"].tokens == pytest.approx(tokens, rel=1e-5)
