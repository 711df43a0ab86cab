"""Oracle 10 of 2507.06457's card: how the paper's recall scores are averaged, and what the claims quote from them."""

from __future__ import annotations

import re
from statistics import mean

import pytest

from plait.claims.hybrid_study import GatesReachTheTransformer, RecallGrowsWithFullLayers

#: Tasks behind each column: multikey, multiquery, multivalue, single, CWE and FWE, QA, VT.
TASKS = (3, 1, 1, 3, 2, 2, 1)
#: The columns, and the average that the paper prints.
RULER = {
    "DeltaNet 3:1": ((0.349, 0.471, 0.361, 0.791, 0.155, 0.391, 0.191), 0.426),
    "GLA 3:1": ((0.313, 0.220, 0.196, 0.784, 0.063, 0.342, 0.234), 0.365),
    "Gated DeltaNet 3:1": ((0.293, 0.542, 0.502, 0.875, 0.271, 0.300, 0.024), 0.440),
    "HGRN2 6:1": ((0.358, 0.509, 0.507, 0.660, 0.412, 0.364, 0.014), 0.434),
    "Transformer": ((0.332, 0.464, 0.472, 0.559, 0.284, 0.412, 0.066), 0.423),
}
#: DeltaNet, Gated DeltaNet, GLA, HGRN2.
BY_RATIO = {
    "24:1": (0.417, 0.341, 0.293, 0.303),
    "12:1": (0.352, 0.352, 0.288, 0.368),
    "6:1": (0.371, 0.425, 0.330, 0.434),
    "3:1": (0.426, 0.436, 0.332, 0.395),
    "pure": (0.320, 0.356, 0.144, 0.203),
}


@pytest.mark.parametrize("name", RULER)
def test_the_average_is_over_thirteen_tasks(name: str) -> None:
    columns, printed = RULER[name]
    average = sum(tasks * score for tasks, score in zip(TASKS, columns, strict=True)) / 13
    if name == "Transformer":  # the printed .423 does not follow from its own row
        assert average == pytest.approx(0.390, abs=5e-4)
    else:
        assert average == pytest.approx(printed, abs=5e-4)


def test_claims_quote_the_means_of_the_table() -> None:
    quoted = dict(re.findall(r"(pure|\d+:1) (\.\d{3})", RecallGrowsWithFullLayers.published))
    assert set(quoted) == set(BY_RATIO)
    for ratio, scores in BY_RATIO.items():
        assert float(quoted[ratio]) == pytest.approx(mean(scores), abs=5.1e-4)
    quoted = dict(re.findall(r"(Gated DeltaNet|DeltaNet|HGRN2|GLA) (\.\d{3})", GatesReachTheTransformer.published))
    order = ("DeltaNet", "Gated DeltaNet", "GLA", "HGRN2")
    assert [float(quoted[mixer]) for mixer in order] == list(BY_RATIO["3:1"])
