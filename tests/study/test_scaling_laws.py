"""Fitting power laws, and evaluating those that 2406.16690 published."""

import numpy as np
import pytest

from plait.errors import DataError, OptionError
from plait.study.scaling.laws import PUBLISHED, PowerLaw, fit_power_law

COMPUTE = np.geomspace(1e-2, 1e3, 200)
LOSS = 3.7 * COMPUTE**-0.08


def test_exact_points_give_the_law_back() -> None:
    law = fit_power_law(COMPUTE, LOSS)
    assert law.coefficient == pytest.approx(3.7, abs=1e-6)
    assert law.exponent == pytest.approx(-0.08, abs=1e-6)
    assert (law.low, law.high) == pytest.approx((1e-2, 1e3))
    assert law.residual == pytest.approx(0, abs=1e-9)


def test_one_per_cent_of_noise() -> None:
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(len(COMPUTE)))
    law = fit_power_law(COMPUTE, LOSS * noise)
    assert law.exponent == pytest.approx(-0.08, abs=1e-3)
    assert law.residual == pytest.approx(0.01, rel=0.2)


def test_a_constant_shows_as_residual_and_is_not_fitted() -> None:
    """1.5 + 2 C^-0.2 falls from 6.5 to 2.0; a line through its logarithms misses it by several per cent."""
    law = fit_power_law(COMPUTE, 1.5 + 2 * COMPUTE**-0.2)
    assert law.residual is not None
    assert law.largest is not None
    assert law.residual > 0.03
    assert law.largest > law.residual
    assert abs(law.exponent) < 0.15


@pytest.mark.parametrize("sign", [1, -1])
def test_residual_worked_by_hand(sign: int) -> None:
    """Logarithms 0, 1, 0 at x = 1, e, e^2: the line is level at 1/3, off by 1/3, 2/3 and 1/3; and the same below."""
    law = fit_power_law(np.exp([0.0, 1.0, 2.0]), np.exp([0.0, sign * 1.0, 0.0]))
    assert law.exponent == pytest.approx(0, abs=1e-12)
    assert law.coefficient == pytest.approx(np.exp(sign / 3))
    assert law.residual == pytest.approx(np.sqrt((1 + 4 + 1) / 27))
    assert law.largest == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0, 1.0], [1.0, 2.0], "two different x"),
        ([1.0, 0.0], [1.0, 2.0], "positive"),
        ([1.0, 2.0], [1.0, float("nan")], "positive, finite"),
        ([1.0, 2.0], [1.0], "as many"),
    ],
)
def test_what_has_no_power_law(x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_power_law(x, y)


def test_published_laws_at_points_of_the_paper() -> None:
    llama, hgrn2 = PUBLISHED["llama"], PUBLISHED["hgrn2"]
    assert llama.loss(1.0) == pytest.approx(3.7087)
    assert llama.loss(100.0) == pytest.approx(2.568, abs=5e-4)
    assert hgrn2.loss(100.0) == pytest.approx(2.459, abs=5e-4)
    assert llama.parameters(100.0) == pytest.approx(4.83e9, rel=1e-3)
    assert llama.tokens(100.0) == pytest.approx(2.68e11, rel=2e-3)


def test_linear_models_have_the_lower_loss_inside_the_range_alone() -> None:
    llama, hgrn2 = PUBLISHED["llama"].loss, PUBLISHED["hgrn2"].loss
    assert llama(1e3) > hgrn2(1e3)
    meeting = llama.meets(hgrn2)
    assert meeting is not None
    assert meeting == pytest.approx(1.5e6, rel=0.05)
    with pytest.raises(OptionError, match=r"outside the range of the fit, 0\.01 to 1000"):
        llama(meeting)
    assert llama.meets(llama) is None


def test_size_and_tokens_were_fitted_apart() -> None:
    sums = [one.parameters.exponent + one.tokens.exponent for one in PUBLISHED.values()]
    assert min(sums) == pytest.approx(1.09, abs=0.01)
    assert max(sums) == pytest.approx(1.22, abs=0.01)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_fit_finds_the_published_laws_from_their_points(name: str) -> None:
    """At the compute of the six LLaMA sizes after 300B tokens, 1.4 to 179 PFLOP/s-days."""
    steps = 300e9 / (480 * 8192)
    compute = [pflops * steps / 86_400 for pflops in (1.6, 5.6, 18.0, 40.4, 99.6, 202.7)]
    for law in (PUBLISHED[name].loss, PUBLISHED[name].parameters, PUBLISHED[name].tokens):
        found = fit_power_law(compute, [law(c) for c in compute])
        assert found.coefficient == pytest.approx(law.coefficient, rel=1e-9)
        assert found.exponent == pytest.approx(law.exponent, abs=1e-9)


def test_the_ends_of_a_range_belong_to_it() -> None:
    law = PowerLaw(2.0, 1.0, low=3.0, high=5.0)
    assert [law(3.0), law(5.0)] == [6.0, 10.0]
    for outside in (2.99, 5.01):
        with pytest.raises(OptionError, match="outside"):
            law(outside)
