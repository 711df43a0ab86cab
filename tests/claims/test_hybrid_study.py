"""Each claim of the paper on made-up measurements: it must be able to hold, to fail, and to stay open."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from plait import catalog
from plait.claims.from_study import check_claims, judged
from plait.errors import OptionError
from plait.statistics.interval import Interval
from plait.study.summary import Configuration, Guard, Recommendation, StudySummary, Verdict

FULL_LAYERS = {"pure": 0, "7:1": 1, "3:1": 2, "1:1": 4, "full": 8}
LEARNT = Guard(track="recall", baseline="transformer", accuracy=0.99, threshold=0.9, learnt=True, message="learnt")
NOT_LEARNT = LEARNT.model_copy(update={"accuracy": 0.2, "learnt": False, "message": "The transformer did not learn."})


def configuration(mixer: str, ratio: str, over: str = "seeds", half: float = 0.005, **values: float) -> Configuration:
    """A configuration whose metrics have intervals of +- ``half``."""
    n_full = FULL_LAYERS[ratio]
    return Configuration(
        key="transformer" if ratio == "full" else f"{mixer} {ratio}",
        mixer=mixer,
        ratio=ratio,
        placement="block_r_plus_1",
        n_linear=8 - n_full,
        n_full=n_full,
        full_layers=list(range(n_full)),
        parameters={},
        cache_bytes={},
        metrics={
            name: Interval(mean=value, low=value - half, high=value + half, n=3, over=over)
            for name, value in values.items()
        },
        seeds={},
    )


class Judged(NamedTuple):
    verdict: Verdict
    seen: str


def verdicts(configurations: list[Configuration], guard: Guard = LEARNT) -> dict[str, Judged]:
    """Of the paper's four claims, by name."""
    methods = [method for method in catalog.methods("claim") if method.paper == "2507.06457"]
    assert len(methods) == 4
    return {method.name: Judged(*method.load()().judge(configurations, [guard])) for method in methods}


def losses(table: dict[str, dict[str, float]], **options: object) -> list[Configuration]:
    return [configuration(m, ratio, loss=loss, **options) for m, row in table.items() for ratio, loss in row.items()]


def recalls(table: dict[str, dict[str, float]], **options: object) -> list[Configuration]:
    return [
        configuration(m, ratio, recall=value, **options) for m, row in table.items() for ratio, value in row.items()
    ]


@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        ({"gla": {"pure": 1.50, "3:1": 1.40}, "hgrn2": {"pure": 1.55, "3:1": 1.30}}, "holds"),
        ({"gla": {"pure": 1.50, "3:1": 1.30}, "hgrn2": {"pure": 1.55, "3:1": 1.40}}, "does not hold"),
        ({"gla": {"pure": 1.50, "3:1": 1.301}, "hgrn2": {"pure": 1.55, "3:1": 1.300}}, "inconclusive"),
        ({"gla": {"pure": 1.50, "3:1": 1.300}, "hgrn2": {"pure": 1.55, "3:1": 1.301}}, "inconclusive"),
        ({"gla": {"pure": 1.50, "3:1": 1.40}, "hgrn2": {"pure": 1.501, "3:1": 1.30}}, "inconclusive"),
        ({"gla": {"pure": 1.50, "3:1": 1.30}, "hgrn2": {"pure": 1.55}}, "inconclusive"),
        ({"gla": {"3:1": 1.30}, "hgrn2": {"3:1": 1.55}}, "inconclusive"),
    ],
)
def test_best_pure_is_not_best_hybrid(table: dict, verdict: str) -> None:
    assert verdicts(losses(table))["best_pure_is_not_best_hybrid"].verdict == verdict


def test_best_hybrid_is_sought_over_all_ratios() -> None:
    table = {"gla": {"pure": 1.5, "7:1": 1.45, "3:1": 1.40}, "hgrn2": {"pure": 1.55, "7:1": 1.30, "3:1": 1.42}}
    claim = verdicts(losses(table))["best_pure_is_not_best_hybrid"]
    assert claim.verdict == "holds"
    assert "hgrn2 7:1, loss 1.300 (1.295 to 1.305)" in claim.seen


@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        ({"gla": {"pure": 1.51, "3:1": 1.50}, "hgrn2": {"pure": 1.50, "3:1": 1.51}}, "holds"),
        ({"gla": {"pure": 1.51, "3:1": 1.50}, "hgrn2": {"pure": 1.60, "3:1": 1.50}}, "does not hold"),
        ({"gla": {"pure": 1.51, "3:1": 1.50}, "hgrn2": {"pure": 1.540, "3:1": 1.50}}, "inconclusive"),
        ({"gla": {"pure": 1.51, "3:1": 1.50}, "hgrn2": {"pure": 1.549, "3:1": 1.50}}, "inconclusive"),
        ({"gla": {"pure": 1.51}}, "inconclusive"),
    ],
)
def test_loss_hardly_depends_on_ratio(table: dict, verdict: str) -> None:
    assert verdicts(losses(table))["loss_hardly_depends_on_ratio"].verdict == verdict


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ({"pure": 0.2, "7:1": 0.5, "3:1": 0.8, "1:1": 0.9}, "holds"),
        ({"pure": 0.2, "3:1": 0.8}, "holds"),
        ({"pure": 0.2, "3:1": 0.3, "1:1": 0.9}, "does not hold"),  # the gain comes after 3:1
        ({"pure": 0.2, "3:1": 0.2, "1:1": 0.9}, "does not hold"),
        ({"pure": 0.8, "3:1": 0.5}, "does not hold"),  # recall falls
        ({"pure": 0.2, "3:1": 0.205}, "inconclusive"),
        ({"pure": 0.985, "3:1": 1.0}, "inconclusive"),  # nothing to gain
        ({"pure": 0.2, "1:1": 0.9}, "inconclusive"),
    ],
)
def test_recall_grows_with_full_layers(row: dict, verdict: str) -> None:
    assert verdicts(recalls({"gla": row, "hgrn2": row}))["recall_grows_with_full_layers"].verdict == verdict


@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        ({"gla": 0.97, "gated_deltanet": 0.98, "retnet": 0.5, "hgrn": 0.3}, "holds"),
        ({"gla": 0.97, "retnet": 0.98}, "does not hold"),
        ({"gla": 0.50, "retnet": 0.3}, "does not hold"),
        ({"gla": 0.97, "retnet": 0.932}, "inconclusive"),
        ({"gla": 0.97}, "inconclusive"),
        ({"retnet": 0.3}, "inconclusive"),
    ],
)
def test_gates_reach_the_transformer(table: dict, verdict: str) -> None:
    grid = {mixer: {"3:1": value} for mixer, value in table.items()} | {"attention": {"full": 0.98}}
    assert verdicts(recalls(grid))["gates_reach_the_transformer"].verdict == verdict


def test_nothing_follows_without_a_transformer_that_learnt() -> None:
    grid = {"gla": {"pure": 0.2, "3:1": 0.97}, "retnet": {"3:1": 0.5}, "attention": {"full": 0.98}}
    found = verdicts(recalls(grid), NOT_LEARNT)
    assert {claim.verdict for claim in found.values()} == {"inconclusive"}
    assert found["gates_reach_the_transformer"].seen.startswith("The transformer did not learn.")


def test_single_values_decide_nothing() -> None:
    grid = {"gla": {"pure": 0.2, "3:1": 0.97}, "retnet": {"3:1": 0.5}, "attention": {"full": 0.98}}
    table = {"gla": {"pure": 1.50, "3:1": 1.40}, "hgrn2": {"pure": 1.55, "3:1": 1.30}}
    found = verdicts(recalls(grid, over="none", half=0.0)) | verdicts(losses(table, over="none", half=0.0))
    for name, configurations in (
        ("recall", recalls(grid, over="none", half=0)),
        ("loss", losses(table, over="none", half=0)),
    ):
        assert {claim.verdict for claim in verdicts(configurations).values()} == {"inconclusive"}, name
    assert len(found) == 4


def test_one_seed_is_said() -> None:
    table = {"gla": {"pure": 1.51, "3:1": 1.50}}
    assert "One seed" in verdicts(losses(table, over="samples"))["loss_hardly_depends_on_ratio"].seen
    assert "One seed" not in verdicts(losses(table))["loss_hardly_depends_on_ratio"].seen


def test_a_study_is_judged_by_the_claims_that_its_file_asks_for(full_study: StudySummary) -> None:
    assert judged(full_study).claims == []
    asks = full_study.model_copy(update={"study": {"claims": ["loss_hardly_depends_on_ratio"]}})
    claims = judged(asks).claims
    assert [(claim.name, claim.verdict, claim.paper) for claim in claims] == [
        ("loss_hardly_depends_on_ratio", "holds", "2507.06457")
    ]
    assert claims[0].seen.startswith("Spread of the loss over ratios: gla ")


def test_a_claim_with_its_own_experiment_judges_no_study() -> None:
    check_claims(["recall_grows_with_the_state", "gates_reach_the_transformer"])
    with pytest.raises(OptionError, match=r"'retrieval_heads_are_causal' has an experiment of its own.*can name best_"):
        check_claims(["retrieval_heads_are_causal"])


@pytest.fixture
def full_study() -> StudySummary:
    """A study of one mixer whose loss does not depend on the ratio."""
    return StudySummary(
        name="toy",
        description="",
        created="2026-01-01T00:00:00+00:00",
        command="plait study run toy.yaml",
        seconds=1.0,
        versions={},
        machine="",
        tracks={"lm": "lm"},
        configurations=losses({"gla": {"pure": 1.400, "3:1": 1.401}}),
        pareto=[],
        curves=[],
        guards=[],
        recommendation=Recommendation(key=None, sentences=[]),
        failed=[],
        trials=2,
        finished=2,
        study={},
    )
