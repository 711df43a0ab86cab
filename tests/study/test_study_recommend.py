"""The recommendation's rule, case by case."""

from __future__ import annotations

import pytest

from plait.statistics.interval import Interval
from plait.study.file import StudyFile, parse_study
from plait.study.recommend import recommend
from plait.study.summary import Configuration, Guard

GUARD = Guard(track="recall", baseline="transformer", accuracy=0.98, threshold=0.9, learnt=True, message="It learnt.")


def study(*tracks: str) -> StudyFile:
    data = {"lm": {"corpus": "python-stdlib"}, "recall": {"task": "mqar"}}
    sections = {kind: {"kind": kind, "data": data[kind]} for kind in tracks or ("lm", "recall")}
    return parse_study({"name": "s", "tracks": sections, "grid": {"mixers": ["gla"]}, "contexts": [64, 1024]}, "s.yaml")


def one(
    key: str, cache: int, recall: float | None, loss: float | None, over: str = "seeds", half: float = 0.01
) -> Configuration:
    values = {name: value for name, value in (("recall", recall), ("loss", loss)) if value is not None}
    return Configuration(
        key=key,
        mixer="attention" if key == "transformer" else key.split()[0],
        ratio="full" if key == "transformer" else key.split()[1],
        placement="block_r_plus_1",
        n_linear=3,
        n_full=1,
        full_layers=[3],
        parameters={},
        cache_bytes={64: 10_000 - cache, 1024: cache},  # the short context orders them the other way round
        metrics={
            name: Interval(mean=value, low=value - half, high=value + half, n=3, over=over)
            for name, value in values.items()
        },
        seeds={},
    )


TRANSFORMER = one("transformer", 4000, 0.98, 1.50)


def chosen(*configurations: Configuration) -> str | None:
    return recommend(study(), [TRANSFORMER, *configurations], [GUARD]).key


def test_fewest_bytes_among_those_that_qualify() -> None:
    assert (
        chosen(one("gla pure", 100, 0.5, 1.5), one("gla 3:1", 1000, 0.97, 1.5), one("gla 1:1", 2000, 0.98, 1.5))
        == "gla 3:1"
    )


def test_recall_below_the_transformer_does_not_qualify() -> None:
    assert chosen(one("gla 3:1", 1000, 0.955, 1.5)) == "transformer"  # close, but its interval lies below
    assert chosen(one("gla 3:1", 1000, 0.955, 1.5, half=0.02)) == "gla 3:1"  # overlaps


def test_wide_interval_is_no_licence() -> None:
    assert chosen(one("gla 3:1", 1000, 0.60, 1.5, half=0.6)) == "transformer"


def test_loss_must_be_close_to_the_lowest() -> None:
    assert chosen(one("gla 3:1", 1000, 0.98, 1.529)) == "gla 3:1"  # 1.9 % above
    assert chosen(one("gla 3:1", 1000, 0.98, 1.531)) == "transformer"  # 2.1 % above
    assert chosen(one("gla 3:1", 1000, 0.98, 1.50), one("gla 1:1", 2000, 0.98, 1.45)) == "gla 1:1"


def test_ties_go_to_recall_then_loss() -> None:
    assert chosen(one("gla 3:1", 1000, 0.97, 1.5), one("hgrn2 3:1", 1000, 0.98, 1.51)) == "hgrn2 3:1"
    assert chosen(one("gla 3:1", 1000, 0.98, 1.51), one("hgrn2 3:1", 1000, 0.98, 1.50)) == "hgrn2 3:1"


def test_sentences_hold_the_figures() -> None:
    found = recommend(study(), [TRANSFORMER, one("gla 3:1", 1024, 0.97, 1.515)], [GUARD])
    assert found.sentences == [
        "Take gla 3:1 (3 linear and 1 full layers): it holds 1 KiB at 1,024 tokens, "
        "3.9 times less than the transformer.",
        "Recall is 0.970 (0.960 to 0.980) against 0.980 (0.970 to 0.990) of the transformer and "
        "loss is 1.515 (1.505 to 1.525), 1.0% above the lowest.",
    ]


def test_single_seed_and_unfinished_study_are_said() -> None:
    alone = [one("transformer", 4000, 0.98, 1.5, over="samples")]
    found = recommend(study(), alone, [GUARD], complete=False)
    assert found.key == "transformer"
    assert "no hybrid keeps its quality in less" in found.sentences[0]
    assert "one seed" in found.sentences[1]
    assert "has not finished" in found.sentences[1]
    assert "one seed" not in recommend(study(), [TRANSFORMER], [GUARD]).sentences[1]


def test_failed_guard_gives_no_recommendation() -> None:
    guard = GUARD.model_copy(update={"learnt": False, "message": "The transformer did not learn track 'recall'."})
    found = recommend(study(), [TRANSFORMER], [guard])
    assert found.key is None
    assert found.sentences == ["No recommendation: the transformer did not learn track 'recall'."]


def test_nothing_qualifies() -> None:
    worse = one("transformer", 4000, 0.98, 1.6)
    found = recommend(study(), [worse, one("gla pure", 100, 0.5, 1.5)], [GUARD])
    assert found.key is None
    assert found.sentences[0].startswith("No recommendation: no configuration keeps recall within 0.05")


@pytest.mark.parametrize(
    ("track", "configurations", "key"),
    [
        ("lm", [one("transformer", 4000, None, 1.5), one("gla pure", 100, None, 1.51)], "gla pure"),
        ("recall", [one("transformer", 4000, 0.98, None), one("gla pure", 100, 0.98, None)], "gla pure"),
        ("recall", [one("gla pure", 100, 0.98, None)], None),
        ("lm", [], None),
    ],
)
def test_one_track(track: str, configurations: list[Configuration], key: str | None) -> None:
    assert recommend(study(track), configurations, []).key == key
