"""Charts as inline SVG: crisp at every width, coloured by the page, without a script."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from hessian_lab.plots.report_text import escape, power, written

# A tick this near to an end of its axis, in parts of it, is inside.
SLACK = 1e-9
# Points of a curve.
MOST_POINTS = 400

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Axis:
    """Where values lie in a chart.

    Attributes:
        low: Value at ``start``; for a log axis its log10.
        high: Value at ``end``, likewise.
        start: Place of ``low``, in units of the view box.
        end: Place of ``high``.
        log: Whether values are magnitudes on a log scale.
        most_ticks: Labels at most.
        whole: Whether only whole numbers are ticked.
        mirrored: Whether labels leave signs away: what points down is no negative number.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    most_ticks: int = 6
    whole: bool = False
    mirrored: bool = False

    def places(self, values: Iterable[float]) -> Array:
        """Return where values lie; NaN for what a log axis does not hold."""
        numbers = np.asarray(list(values), dtype=float)
        if self.log:
            numbers = np.log10(np.where(numbers > 0, numbers, np.nan))
        share = (numbers - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)

    def place(self, value: float) -> float:
        """Return where one value lies."""
        return float(self.places([value])[0])

    def ticks(self) -> list[tuple[float, str]]:
        """Return the places that are labelled, and the labels."""
        if not self.log:
            shown = [(value, abs(value) if self.mirrored else value) for value in self._nice()]
            return [(self.place(value), _label(label)) for value, label in shown]
        first, last = math.ceil(self.low - SLACK), math.floor(self.high + SLACK)
        if last > first:
            stride = -(-(last - first + 1) // self.most_ticks)
            decades = [k for k in range(first, last + 1) if k % stride == 0]
            return [(self.place(10.0**k), power(k)) for k in decades]
        fine = [
            digit * 10.0**k
            for k in range(math.floor(self.low), math.ceil(self.high) + 1)
            for digit in (1, 2, 5)
        ]
        inside = [value for value in fine if self._holds(math.log10(value))]
        if len(inside) < 2:
            inside = replace(self, low=10**self.low, high=10**self.high, log=False)._nice()
        return [(self.place(value), _label(value)) for value in inside]

    def _nice(self) -> list[float]:
        """Return round numbers inside a linear axis."""
        steps = MaxNLocator(self.most_ticks, steps=[1, 2, 5, 10], integer=self.whole)
        found = [float(value) for value in steps.tick_values(self.low, self.high)]
        return [value for value in found if self._holds(value)]

    def _holds(self, value: float) -> bool:
        slack = SLACK * (abs(self.high - self.low) or 1.0)
        return self.low - slack <= value <= self.high + slack


def _label(value: float) -> str:
    if value and not 1e-2 <= abs(value) < 1e5:
        return written(value, 1) if float(f"{value:.0e}") == value else written(value)
    return f"{value:.6g}".replace("-", "−")


def span(
    values: Iterable[float], *, log: bool = False, margin: float = 0.05
) -> tuple[float, float]:
    """Return the ends of an axis around some values, their log10 for a log axis."""
    numbers = np.asarray(list(values), dtype=float)
    numbers = numbers[np.isfinite(numbers)]
    if log:
        numbers = np.log10(numbers[numbers > 0])
    if not len(numbers):
        return (0.0, 1.0)
    low, high = float(numbers.min()), float(numbers.max())
    room = (high - low) * margin
    if low == high:
        room = 0.5 if log else 0.5 * abs(high) or 0.5
    return low - room, high + room


@dataclass(frozen=True)
class Box:
    """A chart: its size and margins, in units of the view box; a phone shows about as many pixels.

    Attributes:
        width: Of the whole.
        height: Of the whole.
        left: What labels take there, and so on.
        right: Likewise.
        top: Likewise.
        bottom: Likewise.
        most_ticks: Of an axis.
        clear: No tick of the horizontal axis is this near to the left, but at its very end: what
            stands beside an inset axis has its own label there.
    """

    width: int = 360
    height: int = 220
    left: int = 46
    right: int = 10
    top: int = 18
    bottom: int = 36
    most_ticks: int = 6
    clear: int = 34

    def across(self, low: float, high: float, *, inset: float = 0.0, **options: bool) -> Axis:
        """Return an axis along the bottom, ``inset`` away from the left."""
        ends = self.left + inset, self.width - self.right
        return Axis(low, high, *ends, most_ticks=self.most_ticks, **options)

    def up(self, low: float, high: float, **options: bool) -> Axis:
        """Return an axis up the left side."""
        ends = self.height - self.bottom, self.top
        return Axis(low, high, *ends, most_ticks=self.most_ticks, **options)

    def steps(self, steps: Sequence[int]) -> Axis:
        """Return the axis of optimizer steps."""
        return self.across(steps[0], max(steps[-1], steps[0] + 1), whole=True)

    def frame(self, x: Axis, y: Axis, *, xlabel: str, ylabel: str) -> str:
        """Return axes with ticks, fine lines and labels."""
        floor, right = self.height - self.bottom, self.width - self.right
        parts = []
        for place, label in y.ticks():
            parts.append(f'<path class="grid" d="M{self.left} {place:.1f}H{right}"/>')
            parts.append(text(self.left - 6, place + 3.5, label, "end"))
        for place, label in x.ticks():
            if self.left < place < self.left + self.clear:
                continue
            parts.append(f'<path class="axis" d="M{place:.1f} {floor}v4"/>')
            parts.append(text(place, floor + 15, label, "middle"))
        parts.append(f'<path class="axis" d="M{self.left} {floor}H{right}"/>')
        middle = (self.left + right) / 2
        if xlabel:
            parts.append(text(middle, self.height - 4, xlabel, "middle", "label"))
        if ylabel:
            parts.append(text(2, 10, ylabel, "start", "label"))
        return "".join(parts)

    def chart(self, inside: str, *, label: str) -> str:
        """Return the SVG around what is drawn, with what it shows in words."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(label)}">{inside}</svg>'
        )


LARGE = Box()
# Without a label on its vertical axis.
BARE = Box(height=212, top=10)
SMALL = Box(180, 128, left=30, right=6, top=16, bottom=20, most_ticks=4, clear=30)


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """Return words at a place."""
    look = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{look}>{escape(words)}</text>'


def line(x: Array, y: Array) -> str:
    """Return the path through places, with gaps where there is none."""
    parts, drawing = [], False
    for here, there in zip(x, y, strict=True):
        if not (math.isfinite(here) and math.isfinite(there)):
            drawing = False
            continue
        parts.append(f"{'L' if drawing else 'M'}{here:.1f} {there:.1f}")
        drawing = True
    return "".join(parts)


def band(x: Array, low: Array, high: Array) -> str:
    """Return the path around an area between two curves; pieces without one are left out."""
    known = np.isfinite(x) & np.isfinite(low) & np.isfinite(high)
    parts = []
    for piece in np.split(np.arange(len(x)), np.flatnonzero(np.diff(known)) + 1):
        if len(piece) < 2 or not known[piece[0]]:
            continue
        there = [f"{x[i]:.1f} {high[i]:.1f}" for i in piece]
        back = [f"{x[i]:.1f} {low[i]:.1f}" for i in piece[::-1]]
        parts.append(f"M{'L'.join(there + back)}Z")
    return "".join(parts)


def path(data: str, kind: str, *, key: str = "", style: str = "") -> str:
    """Return a path; a slider may exchange one that has a key."""
    held = f' data-path="{key}"' if key else ""
    look = f' style="{style}"' if style else ""
    return f'<path class="{kind}" d="{data}"{held}{look}/>'


def dots(x: Array, y: Array, kind: str) -> str:
    """Return a small disk at every place that is known."""
    return "".join(
        f'<circle class="{kind}" cx="{here:.1f}" cy="{there:.1f}" r="2.2"/>'
        for here, there in zip(x, y, strict=True)
        if math.isfinite(here) and math.isfinite(there)
    )


def thinned(
    x: Sequence[float] | Array, y: Sequence[float] | Array, most: int = MOST_POINTS
) -> tuple[Array, Array]:
    """Return a long curve by the extremes of its pieces, which draw the same picture."""
    places, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(places) <= most:
        return places, values
    kept = {0, len(places) - 1}
    for piece in np.array_split(np.arange(len(places)), max(most // 2, 1)):
        known = piece[np.isfinite(values[piece])]
        if len(known):
            kept |= {int(known[values[known].argmin()]), int(known[values[known].argmax()])}
        if len(known) < len(piece):
            kept.add(int(piece[~np.isfinite(values[piece])][0]))
    order = sorted(kept)
    return places[order], values[order]


def figure(picture: str, caption: str, *, title: str = "", kind: str = "") -> str:
    """Return a picture with its title and caption."""
    head = f"<h4>{escape(title)}</h4>" if title else ""
    look = f' class="{kind}"' if kind else ""
    words = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure{look}>{head}{picture}{words}</figure>"
