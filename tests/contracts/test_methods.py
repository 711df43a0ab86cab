"""What recipes, probes and claims of the catalogue say of themselves.

That they run on tiny models is held by ``test_recipes.py``, ``probes/test_probes.py`` and ``claims/test_claims.py``.
"""

from __future__ import annotations

import inspect
import re

import pytest

from plait import catalog
from plait.catalog import Method
from plait.claims.contract import Claim
from plait.conversion.recipe import Recipe
from plait.probes.contract import Probe

BASES: dict[str, type] = {"recipe": Recipe, "probe": Probe, "claim": Claim}
METHODS = [method for kind in BASES for method in catalog.methods(kind)]


def sentences(text: str | None) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", " ".join((text or "").split())) if part.strip()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.kind}-{method.name}")
def test_a_method_says_what_it_is(method: Method) -> None:
    target = method.load()
    assert issubclass(target, BASES[method.kind])
    assert not inspect.isabstract(target)
    assert sentences(target.__doc__)[0].endswith((".", ":")), "a docstring begins with a sentence"
    assert method.paper == "" or re.fullmatch(r"\d{4}\.\d{4,5}|.+ \d{4}", method.paper)
    module = inspect.getmodule(target)
    assert module is not None
    assert module.__doc__
    if method.paper and method.kind != "claim":  # a claim's paper stands in its fields
        source = (module.__doc__ or "") + (target.__doc__ or "")
        assert method.paper in source, f"{target.__module__} does not name its paper {method.paper}"


@pytest.mark.parametrize("name", catalog.names("claim"))
def test_a_claim_states_sentence_figures_experiment_and_rule_beforehand(name: str) -> None:
    claim = catalog.get(name, "claim").load()()
    for field in ("sentence", "published", "rule", "change"):
        assert sentences(getattr(claim, field)), field
    assert len(claim.experiment) == 4
    assert all(map(sentences, claim.experiment))
    assert catalog.get(name, "claim").paper in f"{inspect.getsource(inspect.getmodule(type(claim)))}"  # type: ignore[arg-type]
