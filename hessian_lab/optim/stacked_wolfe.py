"""Strong Wolfe line searches of many functions at once, each with its own state."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hessian_lab.optim.wolfe import DECREASE, MARGIN, MOST_TRIALS, NEXT

# Maps the places of functions [k] and a length for each [k] to values [k], slopes [k] (float64)
# and gradients [k, n].
Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
# What a search keeps of a trial: its length, its value and its slope.
LENGTH, VALUE, SLOPE = range(3)


@dataclass(frozen=True, eq=False)
class Found:
    """Where the searches have ended.

    Attributes:
        lengths: [k], float64; 0 where no trial decreased.
        values: [k] there.
        gradients: [k, n] there.
        trials: Evaluations that each took [k].
    """

    lengths: Tensor
    values: Tensor
    gradients: Tensor
    trials: Tensor


def stacked_strong_wolfe(
    evaluate: Evaluate,
    start: tuple[Tensor, Tensor, Tensor],
    first: Tensor,
    *,
    c1: float = DECREASE,
    c2: float = 0.9,
    trials: int = MOST_TRIALS,
) -> Found:
    """Search along ``k`` lines: each as ``strong_wolfe`` does alone, only those open evaluated.

    Args:
        evaluate: Values, slopes and gradients of some functions at some lengths.
        start: Values [k], slopes [k] and gradients [k, n] at length 0; where a slope is not
            negative there is no search.
        first: The lengths tried first [k].
        c1: Sufficient decrease.
        c2: Curvature, above ``c1``.
        trials: The most evaluations of each.
    """
    search = _Searches(start, c1, c2, trials)
    lengths = first.double()
    places = search.open.nonzero().squeeze(1)
    while len(places):
        found = evaluate(places, lengths[places])
        search.take(places, lengths[places], *found)
        places = search.open.nonzero().squeeze(1)
        lengths[places] = search.next_lengths(places)
    return Found(search.low[:, LENGTH], search.low[:, VALUE], search.gradients, search.used)


class _Searches:
    """The states of all searches.

    ``low`` is the best trial so far: in a bracket the one before, in a zoom its good end.
    """

    def __init__(
        self, start: tuple[Tensor, Tensor, Tensor], c1: float, c2: float, trials: int
    ) -> None:
        values, slopes, gradients = start
        count = len(values)
        self.start = torch.stack([torch.zeros_like(slopes), values.double(), slopes], dim=1)
        self.low, self.high = self.start.clone(), self.start.clone()
        self.gradients = gradients.clone()
        self.c1, self.c2, self.most = c1, c2, trials
        self.used = torch.zeros(count, dtype=torch.long, device=values.device)
        self.zooming = torch.zeros(count, dtype=torch.bool, device=values.device)
        self.near_end = self.zooming.clone()
        self.ahead: Tensor = torch.zeros_like(slopes)
        self.open = slopes < 0

    def take(
        self, places: Tensor, lengths: Tensor, values: Tensor, slopes: Tensor, gradients: Tensor
    ) -> None:
        """Move every open search on by its trial."""
        trial = torch.stack([lengths, values.double(), slopes.double()], dim=1)
        self.used[places] += 1
        start, low, zooming = self.start[places], self.low[places], self.zooming[places]
        high = self.high[places]
        finite = trial.isfinite().all(dim=1)
        bound = start[:, VALUE] + self.c1 * lengths * start[:, SLOPE]
        first = ~zooming & (low[:, LENGTH] == 0)
        rises = ~(finite & (trial[:, VALUE] <= bound))
        rises |= ~first & (trial[:, VALUE] >= low[:, VALUE])
        flat = ~rises & (trial[:, SLOPE].abs() <= -self.c2 * start[:, SLOPE])
        spent = self.used[places] >= self.most
        flat |= ~rises & ~zooming & spent

        better = ~rises
        turns = better & ~flat & ~zooming & (trial[:, SLOPE] >= 0)
        back = trial[:, SLOPE] * (high[:, LENGTH] - low[:, LENGTH]) >= 0
        swaps = turns | (better & ~flat & zooming & back)
        # Not by masks as indices: a GPU's host would wait for each to learn how many it names.
        high = torch.where(rises.unsqueeze(1), trial, torch.where(swaps.unsqueeze(1), low, high))
        self.high[places] = high
        self.ahead[places] = lengths - low[:, LENGTH]
        self.before = low
        self.previous = places
        best = torch.where(better.unsqueeze(1), trial, low)
        self.low[places] = best
        kept = torch.where(better.unsqueeze(1), gradients, self.gradients[places])
        self.gradients[places] = kept
        zooming = zooming | rises | turns
        self.zooming[places] = zooming
        width = (high[:, LENGTH] - best[:, LENGTH]).abs()
        largest = torch.maximum(high[:, LENGTH], best[:, LENGTH])
        narrow = zooming & (width <= 1e-16 * largest)
        self.open[places] = ~(flat | spent | narrow)

    def next_lengths(self, places: Tensor) -> Tensor:
        """Return the next trial of every open search [k]."""
        low, high = self.low[places], self.high[places]
        # Open searches are among those that have just been moved on, in the same order.
        where = torch.searchsorted(self.previous, places)
        before = self.before[where]
        inside, near_end = _inside(low, high, self.near_end[places])
        self.near_end[places] = near_end & self.zooming[places]
        ends = low[:, LENGTH] + NEXT[0] * self.ahead[places], NEXT[1] * low[:, LENGTH]
        outside = _cubic_minimum(before, low, ends)
        return torch.where(self.zooming[places], inside, outside)


def _inside(low: Tensor, high: Tensor, near_end: Tensor) -> tuple[Tensor, Tensor]:
    """Return a length between two trials, and whether it is near an end: not twice in a row."""
    left = torch.minimum(low[:, LENGTH], high[:, LENGTH])
    right = torch.maximum(low[:, LENGTH], high[:, LENGTH])
    margin = MARGIN * (right - left)
    length = _cubic_minimum(low, high, (left, right))
    near = torch.minimum(length - left, right - length) < margin
    pushed = near & (near_end | (length == left) | (length == right))
    inner = torch.where(length - left <= right - length, left + margin, right - margin)
    length = torch.where(pushed, inner, length)
    known = high.isfinite().all(dim=1)
    cautious = low[:, LENGTH] + MARGIN * (high[:, LENGTH] - low[:, LENGTH])
    return torch.where(known, length, cautious), known & near & ~pushed


def _cubic_minimum(one: Tensor, other: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """Return where the cubics through two trials are least, within bounds; else their middle."""
    swap = (one[:, LENGTH] > other[:, LENGTH]).unsqueeze(1)
    one, other = torch.where(swap, other, one), torch.where(swap, one, other)
    width = other[:, LENGTH] - one[:, LENGTH]
    bend = one[:, SLOPE] + other[:, SLOPE] - 3 * (other[:, VALUE] - one[:, VALUE]) / width
    square = bend.square() - one[:, SLOPE] * other[:, SLOPE]
    root = square.sqrt()
    below = other[:, SLOPE] - one[:, SLOPE] + 2 * root
    place = other[:, LENGTH] - width * (other[:, SLOPE] + root - bend) / below
    place = torch.minimum(torch.maximum(place, bounds[0]), bounds[1])
    middle = 0.5 * (bounds[0] + bounds[1])
    return torch.where((square >= 0) & (below != 0) & place.isfinite(), place, middle)
