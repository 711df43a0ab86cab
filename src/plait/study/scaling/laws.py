"""Power laws y = coefficient * x^exponent: fitting them, evaluating them, and those that were published.

Source: "Scaling Laws for Linear Complexity Language Models" (2406.16690). The laws have no constant term.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from plait.errors import DataError, OptionError

#: FLOPs in a PFLOP/s-day, the unit of compute of the published laws.
PFLOPS_DAY = 8.64e19


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x^exponent between two values of x.

    Args:
        coefficient: y at x = 1, in the units of x and y; x = 1 may lie far outside the range.
        exponent: slope in log-log.
        low, high: range of x that the law was fitted on.
        residual: root mean square of log(y) - log(fit); 0.01 is about 1 %. None for a published law.
        largest: the largest of these residuals, as an absolute value.
    """

    coefficient: float
    exponent: float
    low: float
    high: float
    residual: float | None = None
    largest: float | None = None

    def __call__(self, x: float) -> float:
        """y at ``x``.

        Raises:
            OptionError: ``x`` lies outside the range; a power law says nothing there.
        """
        slack = 1e-9  # ends of the range that went through a logarithm
        if not self.low * (1 - slack) <= x <= self.high * (1 + slack):
            raise OptionError(
                f"{x:.4g} lies outside the range of the fit, {self.low:.4g} to {self.high:.4g}; the law is not "
                "extrapolated. Use a value inside it, or fit on runs that reach there."
            )
        return self.coefficient * x**self.exponent

    def meets(self, other: PowerLaw) -> float | None:
        """The x at which both laws give the same y, wherever that is; None where they are parallel."""
        slope = other.exponent - self.exponent
        return None if slope == 0 else float((self.coefficient / other.coefficient) ** (1 / slope))


def fit_power_law(x: ArrayLike, y: ArrayLike) -> PowerLaw:
    """The least-squares line through log(x) and log(y).

    No constant is fitted: data that levels off shows as a larger residual.

    Args:
        x: ``(n,)``, positive, at least two different values.
        y: ``(n,)``, positive.

    Raises:
        DataError: fewer than two different x, or a value that is not positive and finite.
    """
    given, measured = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if given.ndim != 1 or given.shape != measured.shape:
        raise DataError(f"A power law needs as many y as x; here shapes {measured.shape} and {given.shape}.")
    values = np.stack([given, measured])
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise DataError("A power law needs positive, finite values; some of these are not.")
    if len(np.unique(given)) < 2:
        raise DataError(f"A power law needs at least two different x; here {len(np.unique(given))}.")
    log_x, log_y = np.log(values)
    centre_x, centre_y = log_x.mean(), log_y.mean()
    exponent = float(((log_x - centre_x) * (log_y - centre_y)).sum() / ((log_x - centre_x) ** 2).sum())
    intercept = float(centre_y - exponent * centre_x)
    residuals = log_y - (intercept + exponent * log_x)
    return PowerLaw(
        coefficient=float(np.exp(intercept)),
        exponent=exponent,
        low=float(values[0].min()),
        high=float(values[0].max()),
        residual=float(np.sqrt((residuals**2).mean())),
        largest=float(np.abs(residuals).max()),
    )


@dataclass(frozen=True)
class Laws:
    """The three laws of one architecture, against compute.

    Args:
        loss: training loss in nats per token.
        parameters: of the size with the lowest loss.
        tokens: that this size has then seen.
    """

    loss: PowerLaw
    parameters: PowerLaw
    tokens: PowerLaw


def _published(loss: tuple[float, float], parameters: tuple[float, float], tokens: tuple[float, float]) -> Laws:
    low, high = 1e-2, 1e3  # what the runs of the paper cover
    return Laws(*(PowerLaw(*law, low=low, high=high) for law in (loss, parameters, tokens)))


#: The published fits, compute in PFLOP/s-days. Size and tokens were fitted apart: their exponents add up to more than
#: 1, so neither follows from the other.
PUBLISHED: dict[str, Laws] = {
    "llama": _published((3.7087, -0.0798), (1.82e8, 0.7118), (2.56e10, 0.5102)),
    "tnl": _published((3.5391, -0.0768), (2.74e8, 0.6470), (4.43e10, 0.4684)),
    "hgrn2": _published((3.4788, -0.0753), (2.66e8, 0.6427), (4.80e10, 0.4500)),
    "cosformer2": _published((3.5877, -0.0756), (2.65e8, 0.6516), (4.23e10, 0.4529)),
}
