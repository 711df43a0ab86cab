"""Run files: what has two ways to be written means the same in both."""

from __future__ import annotations

from typing import Any

import pytest

from plait.errors import OptionError
from plait.runs.config import RunConfig
from plait.sections import validated


def config(**sections: Any) -> RunConfig:
    return validated(RunConfig, {"data": {"corpus": "python-stdlib"}, **sections}, "run.yaml")


def test_samples_may_be_given_in_batches() -> None:
    assert config(evaluate={"batches": 3}, training={"batch_size": 5}) == config(
        evaluate={"limit": 15}, training={"batch_size": 5}
    )
    size = config().training.batch_size
    assert config(evaluate={"batches": 2, "ar_hits": False}).evaluate.limit == 2 * size


@pytest.mark.parametrize(
    "evaluate",
    [{"batches": 0}, {"batches": -1}, {"batches": "x"}, {"batches": 1, "limit": 2}, {"batches": True}],
    ids=str,
)
def test_batches_that_say_no_number_of_samples(evaluate: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"evaluate\.(limit|batches)|unknown key"):
        config(evaluate=evaluate)
