"""Seconds of calls that take turns, because machines drift, and ratios round by round."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

# Seconds of calls in a row: what is short is repeated, as every algorithm repeats it.
RUN = 0.02


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, the least and the largest."""

    median: float
    low: float
    high: float


def spread(numbers: list[float]) -> Spread:
    return Spread(statistics.median(numbers), min(numbers), max(numbers))


def seconds(function: Callable[[], object], run: float = RUN) -> float:
    """Return the time of a call, one of a run of them."""
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < run:
        function()
        calls += 1
    return (time.perf_counter() - start) / calls


def interleaved(
    works: dict[str, Callable[[], object]], rounds: dict[str, int]
) -> dict[str, list[float]]:
    """Return the seconds of each work in each of its rounds; a round times every work once.

    What takes part in fewer rounds does so in the first.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(max(rounds.values())):
        for name, work in works.items():
            if turn < rounds[name]:
                times[name].append(seconds(work))
    return times
