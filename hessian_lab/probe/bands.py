"""Confidence bands for integrals over a spectrum that a few random probes see."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincc
from torch import Tensor

Array = NDArray[np.float64]
# Mass at known eigenpairs is known to this share of 1/n.
SLACK = 5e-3
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class Band:
    """Estimates, each with its confidence interval; float64, on the CPU.

    Attributes:
        estimate: The estimates [g], or a single one [].
        lower: Where their intervals begin.
        upper: Where they end.
        level: How often an interval holds the truth. Each does so by itself, not all together.
    """

    estimate: Tensor
    lower: Tensor
    upper: Tensor
    level: float

    def __str__(self) -> str:
        if self.estimate.ndim:
            return f"{len(self.estimate)} estimates with {self.level:.0%} intervals"
        return f"{self.estimate:.4f} ({self.lower:.4f} to {self.upper:.4f}, {self.level:.0%})"


@dataclass(frozen=True, eq=False)
class Integrals:
    """What quadratures say of the integral of a function ``0 ≤ f ≤ peak``.

    Attributes:
        estimate: The integral over the whole spectrum [g].
        at_known: The function at the eigenvalues that are known [d, g].
        lowest: The least that the integral over each probe's own measure can be [m, g].
        highest: The most that it can be [m, g].
        square: The integral of ``f²`` over what is not known [g]; None for ``f² = f``.
        peak: What the function does not exceed [g]; None for 1.
    """

    estimate: Tensor
    at_known: Tensor
    lowest: Tensor
    highest: Tensor
    square: Tensor | None = None
    peak: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Known:
    """What is known one by one of the spectrum of an ``A`` [n, n]: ``d`` eigenvalues.

    Attributes:
        shares: The mass that each has in each probe's own measure [m, d].
        size: The number of rows ``n``.
    """

    shares: Tensor
    size: int

    @property
    def num(self) -> int:
        """The number of known eigenvalues ``d``."""
        return self.shares.shape[1]

    def band(self, integrals: Integrals, *, level: float) -> Band:
        """Return the band of an integral over the spectrum."""
        require_level(level)
        base = integrals.at_known.sum(dim=0) / self.size
        peak = torch.ones_like(base) if integrals.peak is None else integrals.peak
        unit = ((1 - self.num / self.size) * peak).clamp(min=TINY)
        mean = (integrals.estimate - base) / unit
        square = mean
        if integrals.square is not None:
            square = integrals.square / (unit * peak).clamp(min=TINY)
        lower, upper = mean_interval(
            self._mean_of_rest(integrals.lowest, integrals.at_known, -SLACK * peak) / unit,
            self._mean_of_rest(integrals.highest, integrals.at_known, SLACK * peak) / unit,
            mean=mean,
            square=square,
            count=len(self.shares) * (self.size - self.num + 2) / 2 - 1,
            level=level,
        )
        return Band(
            integrals.estimate,
            (base + unit * lower).minimum(integrals.estimate),
            (base + unit * upper).maximum(integrals.estimate),
            level,
        )

    def _mean_of_rest(self, masses: Tensor, at_known: Tensor, slack: Tensor) -> Tensor:
        """Return integrals over the probes' measures [m, g] as means over what is not known."""
        there = (1 - self.shares.sum(dim=1, keepdim=True)).clamp(min=TINY)
        room = slack * self.shares.any(dim=1, keepdim=True) / self.size
        rest = (masses - self.shares @ at_known + room).clamp(min=0) / there
        return (1 - self.num / self.size) * rest.mean(dim=0)


def require_level(level: float) -> None:
    """Check that a confidence level is one.

    Raises:
        ValueError: If it is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}.")


def mean_interval(
    lowest: Tensor, highest: Tensor, *, mean: Tensor, square: Tensor, count: float, level: float
) -> tuple[Tensor, Tensor]:
    """Return the interval of the mean of a function ``0 ≤ f ≤ 1`` over a spectrum.

    A random direction in ``n`` dimensions has a mass ``Beta(r/2, (n - r)/2)`` in ``r`` of them, and
    the mean over ``m`` probes is ``Beta(c p, c (1 - p))`` up to third moments, with ``p = r / n``
    and ``c = m (n + 2) / 2 - 1``. The interval holds every ``p`` whose quantiles enclose what is
    seen (Clopper & Pearson's construction), so that it stays in [0, 1]. As its width follows from
    ``p``, one probe is enough. Random signs vary no more, but for a factor ``1 + 2 / n``.

    A function that is neither 0 nor 1 is replaced by two functions of two values, with its mean
    and its mean square: 0 and ``a`` are the most skewed downwards, ``1 - b`` and 1 upwards.

    Args:
        lowest: The least that the mean over the probes can be [g].
        highest: The most that it can be [g].
        mean: The mean of ``f`` itself [g].
        square: The mean of ``f²`` [g].
        count: ``c``.
        level: The confidence level.

    References:
        Clopper & Pearson (1934), https://doi.org/10.1093/biomet/26.4.404.
    """
    mean = mean.clamp(0, 1)
    square = square.minimum(mean).maximum(mean**2)
    a, b = _height(square, mean), _height(1 - 2 * mean + square, 1 - mean)
    lower = a * _smallest(lowest / a, count, level)
    return lower, 1 - b * _smallest((1 - highest) / b, count, level)


def _height(square: Tensor, mean: Tensor) -> Tensor:
    """Return the ``a`` of a function that is 0 or ``a``, from its mean square and its mean."""
    return torch.where(mean > TINY, square / mean, 1).clamp(TINY, 1)


def _smallest(shares: Tensor, count: float, level: float) -> Tensor:
    """Return the smallest ``p`` with ``P(Beta(c p, c (1 - p)) ≥ share) ≥ (1 - level) / 2``."""
    seen: Array = shares.clamp(0, 1).numpy()
    low, high = np.zeros_like(seen), seen
    for _ in range(40):
        middle = (low + high) / 2
        inside = betaincc(count * middle, count * (1 - middle), seen) >= (1 - level) / 2
        low, high = np.where(inside, low, middle), np.where(inside, middle, high)
    return torch.from_numpy(low)
