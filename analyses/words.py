"""Numbers in the words of a verdict."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def spread(numbers: Iterable[float], *, percent: bool = False, digits: int = 3) -> str:
    """Return the median with the least and the largest: ``26 % [18, 40]``."""
    values = np.asarray(list(numbers), dtype=float)
    low, middle, high = values.min(), float(np.median(values)), values.max()
    if percent:
        low, middle, high = 100 * low, 100 * middle, 100 * high
        return f"{middle:.3g} % [{low:.3g}, {high:.3g}]"
    return f"{middle:.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]"


def bootstrap_mean(
    values: Iterable[float], *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean of a sample and the ends of its percentile bootstrap interval."""
    return _bootstrap(np.mean, values, level, draws, seed)


def bootstrap_median(
    values: Iterable[float], *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the median of a sample and the ends of its percentile bootstrap interval."""
    return _bootstrap(np.median, values, level, draws, seed)


def _bootstrap(
    statistic: Callable[..., Any], values: Iterable[float], level: float, draws: int, seed: int
) -> tuple[float, float, float]:
    sample = np.asarray(list(values), dtype=float)
    generator = np.random.default_rng(seed)
    found = statistic(generator.choice(sample, size=(draws, len(sample))), axis=1)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(statistic(sample)), float(low), float(high)
