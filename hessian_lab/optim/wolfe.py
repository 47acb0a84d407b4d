"""Line searches on a function of one variable, by value and slope."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Sufficient decrease, as a fraction of what the slope at 0 promises.
DECREASE = 1e-4
MOST_TRIALS = 25
# How far from the last trial the next one lies where no minimum has been passed, in last lengths.
NEXT = (0.01, 10.0)
# A trial keeps this fraction of an interval away from its ends, and goes this far from its good
# end where the other is not finite.
MARGIN = 0.1


@dataclass(frozen=True)
class Trial:
    """A function of one variable at one place.

    Attributes:
        length: The place.
        value: The function there.
        slope: Its derivative there; NaN where a search does not need it.
        point: What was computed along with them, kept for whoever searches.
    """

    length: float
    value: float
    slope: float = math.nan
    point: Any = None


Evaluate = Callable[[float], Trial]


def strong_wolfe(
    evaluate: Evaluate,
    start: Trial,
    first: float,
    *,
    c1: float = DECREASE,
    c2: float = 0.9,
    trials: int = MOST_TRIALS,
) -> Trial:
    """Return a trial that fulfils the strong Wolfe conditions.

    These are ``φ(t) ≤ φ(0) + c1 t φ'(0)`` and ``|φ'(t)| ≤ c2 |φ'(0)|``. A trial that is not finite
    counts as one too far out.

    Args:
        evaluate: Returns the trial of a length.
        start: The trial of length 0; its slope is negative.
        first: The length tried first.
        c1: Sufficient decrease.
        c2: Curvature, above ``c1``.
        trials: The most evaluations.

    Returns:
        The trial; after ``trials`` evaluations the lowest so far with a sufficient decrease, which
        is ``start`` where there was none.

    References:
        Nocedal & Wright (2006), Alg. 3.5 and 3.6, eq. 3.59.
    """
    search = _Search(evaluate, start, c1, c2, trials)
    before, trial = start, search.trial(first)
    while True:
        if not search.decreases(trial) or (before is not start and trial.value >= before.value):
            return search.zoom(before, trial)
        if search.flattens(trial) or not search.left:
            return trial
        if trial.slope >= 0:
            return search.zoom(trial, before)
        ahead = trial.length - before.length
        bounds = (trial.length + NEXT[0] * ahead, NEXT[1] * trial.length)
        before, trial = trial, search.trial(cubic_minimum(before, trial, bounds))


def armijo(
    evaluate: Evaluate,
    start: Trial,
    first: float,
    *,
    c1: float = DECREASE,
    trials: int = MOST_TRIALS,
) -> Trial:
    """Return the first trial, shortening, with ``φ(t) ≤ φ(0) + c1 t φ'(0)``; it needs no slopes.

    Each length is the minimum of the parabola through the last trial, between a tenth and a half
    of its length (Nocedal & Wright, eq. 3.58). ``start`` where no trial decreases.
    """
    search = _Search(evaluate, start, c1, math.inf, trials)
    length = first
    while search.left:
        trial = search.trial(length)
        if math.isfinite(trial.value) and search.lowers(trial):
            return trial
        excess = trial.value - start.value - start.slope * length
        shorter = -0.5 * start.slope * length**2 / excess if math.isfinite(excess) else 0.0
        length = min(max(shorter, MARGIN * length), 0.5 * length)
    return start


def cubic_minimum(one: Trial, other: Trial, bounds: tuple[float, float]) -> float:
    """Return where the cubic through two trials is least, within bounds; their middle if none."""
    if one.length > other.length:
        one, other = other, one
    width = other.length - one.length
    bend = one.slope + other.slope - 3 * (other.value - one.value) / width
    square = bend**2 - one.slope * other.slope
    if square >= 0:
        root = math.sqrt(square)
        below = other.slope - one.slope + 2 * root
        if below:
            place = other.length - width * (other.slope + root - bend) / below
            return min(max(place, bounds[0]), bounds[1])
    return 0.5 * (bounds[0] + bounds[1])


class _Search:
    """The state of one search: what it compares with, and how many trials it has left."""

    def __init__(self, evaluate: Evaluate, start: Trial, c1: float, c2: float, trials: int) -> None:
        self.evaluate, self.start = evaluate, start
        self.c1, self.c2, self.left = c1, c2, trials

    def trial(self, length: float) -> Trial:
        self.left -= 1
        return self.evaluate(length)

    def lowers(self, trial: Trial) -> bool:
        return trial.value <= self.start.value + self.c1 * trial.length * self.start.slope

    def decreases(self, trial: Trial) -> bool:
        return _finite(trial) and self.lowers(trial)

    def flattens(self, trial: Trial) -> bool:
        return abs(trial.slope) <= -self.c2 * self.start.slope

    def zoom(self, low: Trial, high: Trial) -> Trial:
        """Return a trial between two lengths; ``low`` decreases and slopes towards ``high``."""
        near_end = False
        while self.left and abs(high.length - low.length) > 1e-16 * max(high.length, low.length):
            length, near_end = _inside(low, high, near_end)
            trial = self.trial(length)
            if not self.decreases(trial) or trial.value >= low.value:
                high = trial
                continue
            if self.flattens(trial):
                return trial
            if trial.slope * (high.length - low.length) >= 0:
                high = low
            low = trial
        return low


def _finite(trial: Trial) -> bool:
    return math.isfinite(trial.value) and math.isfinite(trial.slope)


def _inside(low: Trial, high: Trial, near_end: bool) -> tuple[float, bool]:
    """Return a length between two, and whether it is near an end: not twice in a row."""
    if not _finite(high):
        return low.length + MARGIN * (high.length - low.length), False
    left, right = sorted((low.length, high.length))
    length, margin = cubic_minimum(low, high, (left, right)), MARGIN * (right - left)
    if min(length - left, right - length) >= margin:
        return length, False
    if near_end or length in (left, right):
        return (left + margin if length - left <= right - length else right - margin), False
    return length, True
