"""The envelope over sizes, what is fitted to it, and the intervals."""

import math

import numpy as np
import pytest

from plait.errors import DataError
from plait.study.scaling.allocation import exponent_intervals, optimal_allocation
from plait.study.scaling.envelope import Point, Run, changes, compute_envelope, smoothed

BINS = 10


def point(flops: float, loss: float, size: str = "a", parameters: int = 1000) -> Point:
    return Point(flops, loss, parameters, tokens=flops / (6 * parameters), size=size)


def law_runs(seeds: int = 1, noise: float = 0.0) -> list[Run]:
    """Sizes whose losses touch 10 C^-0.1 where N = C^0.5, so that the laws of their envelope are known.

    Each lies above that line by 0.02 times the square of its distance in ln C.
    """
    generator = np.random.default_rng(1)
    runs = []
    for seed in range(seeds):
        for touch in np.geomspace(1e6, 1e10, 9):
            parameters = round(touch**0.5)
            points = []
            for flops in np.geomspace(touch / 100, touch * 100, 200):
                above = 0.02 * math.log(flops / touch) ** 2 + noise * generator.standard_normal()
                loss = 10 * flops**-0.1 * math.exp(above)
                points.append(Point(flops, loss, parameters, flops / (6 * parameters), str(parameters)))
            runs.append(Run(str(parameters), seed, tuple(points)))
    return runs


def test_envelope_worked_by_hand() -> None:
    """Two bins of a decade each; the third bin's best is no better than the second's."""
    good, better = point(2.0, 3.0, "small"), point(30.0, 2.0, "large")
    points = [point(3.0, 3.5, "large"), better, point(20.0, 2.5, "small"), good, point(200.0, 2.0, "small")]
    assert compute_envelope(points, per_decade=1) == [good, better]


def test_envelope_of_many_runs() -> None:
    points = [point for run in law_runs(noise=0.01) for point in run.points]
    points += [point(flops, 50.0, "never") for flops in np.geomspace(1e4, 1e12, 100)]
    envelope = compute_envelope(points, BINS)
    assert set(envelope) <= set(points)
    losses = [one.loss for one in envelope]
    assert losses == sorted(losses, reverse=True)
    assert [one.flops for one in envelope] == sorted(one.flops for one in envelope)
    bins = [math.floor(math.log10(one.flops) * BINS) for one in envelope]
    assert len(set(bins)) == len(bins)
    assert "never" not in {one.size for one in envelope}
    assert len({one.size for one in envelope}) > 5


def test_changes_of_the_best_size() -> None:
    """a goes on above b, so b is better; b ends where c takes over."""
    a, above = point(1.0, 3.0, "a"), point(20.0, 2.9, "a")
    b, c = point(30.0, 2.5, "b"), point(300.0, 2.0, "c")
    assert changes([a, b, c], [a, above, b, c]) == (2, 1)
    assert changes([a, b, c], [a, b, c]) == (2, 2)
    assert changes([a, above], [a, above]) == (0, 0)


def test_smoothing_takes_the_mean_over_a_bin_and_over_seeds() -> None:
    first = Run("a", 0, (point(1.0, 4.0), point(2.0, 2.0), point(11.0, 1.0), point(12.0, 1.0)))
    second = Run("a", 1, (point(3.0, 3.0), point(12.0, 2.0)))
    found = smoothed([first, second], per_decade=1)
    assert [(one.flops, one.loss) for one in found] == [
        (2.0, 3.0),
        (pytest.approx(35 / 3), pytest.approx(4 / 3)),
    ]


def test_smoothing_leaves_out_the_bin_that_a_run_ends_in() -> None:
    records = tuple(point(flops, 2.0) for flops in (1.0, 2.0, 3.0, 11.0))
    assert [one.flops for one in smoothed([Run("a", 0, records)], per_decade=1)] == [2.0]


def test_smoothing_skips_the_first_tokens_as_whole_bins() -> None:
    """A bin counts by the mean of its tokens: half a bin would be noisier than the others."""
    records = tuple(Point(flops, 2.0, 1, flops, "a") for flops in (2.0, 4.0, 20.0, 40.0, 200.0, 400.0))
    assert [one.tokens for one in smoothed([Run("a", 0, records)], 1, skip_tokens=3.0)] == [30.0, 300.0]
    assert [one.tokens for one in smoothed([Run("a", 0, records)], 1, skip_tokens=2.9)] == [3.0, 30.0, 300.0]


def test_laws_of_an_envelope_that_is_known() -> None:
    envelope = compute_envelope(smoothed(law_runs(), BINS), BINS)
    inner = [one for one in envelope if 1e6 <= one.flops <= 1e10]  # beyond, the outermost sizes are all there is
    laws = optimal_allocation(inner)
    assert laws.loss.exponent == pytest.approx(-0.1, abs=2e-3)
    assert laws.parameters.exponent == pytest.approx(0.5, abs=0.02)
    assert laws.tokens.exponent == pytest.approx(0.5, abs=0.02)
    assert laws.loss.residual is not None
    assert laws.loss.residual < 0.02


def test_what_has_no_allocation() -> None:
    with pytest.raises(DataError, match="2 points"):
        optimal_allocation([point(1.0, 3.0), point(2.0, 2.0, "b")])
    with pytest.raises(DataError, match="Size 'a' has the lowest loss at every"):
        optimal_allocation([point(1.0, 3.0), point(2.0, 2.0), point(3.0, 1.0)])


def test_intervals_hold_the_exponent_and_come_from_the_seed() -> None:
    runs = law_runs(seeds=2, noise=0.02)
    laws = optimal_allocation(compute_envelope(smoothed(runs, BINS), BINS))
    spread = exponent_intervals(runs, BINS, resamples=40, seed=3)
    assert spread is not None
    assert spread.resamples == 40
    for name in ("loss", "parameters", "tokens"):
        low, high = getattr(spread, name)
        assert low < getattr(laws, name).exponent < high, name
    assert exponent_intervals(runs, BINS, resamples=40, seed=3) == spread
    assert exponent_intervals(runs, BINS, resamples=40, seed=4) != spread


def test_no_intervals_from_few_runs_or_one_size() -> None:
    runs = law_runs()
    assert exponent_intervals(runs[:3], BINS, resamples=10, seed=0) is None
    assert exponent_intervals(runs[:1] * 4, BINS, resamples=10, seed=0) is None
