"""The density of a spectrum over magnitudes with its confidence band, and the extreme values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hessian_lab.plots.style import BLUE, ORANGE, VERMILLION, set_title, styled
from hessian_lab.probe.log_density import LogDensity

# How far below its highest point a density is drawn.
DEPTH = 1e-4
# Checkpoints that are marked one by one.
MOST_MARKS = 12
UPRIGHT: dict[str, Any] = {
    "ha": "center",
    "va": "bottom",
    "rotation": 90,
    "fontsize": 8,
    "color": VERMILLION,
}


def plot_density(
    densities: Sequence[LogDensity],
    *,
    extremes: Sequence[tuple[float, float]],
    steps: Sequence[int],
    title: str | None = None,
) -> Figure:
    """Return the last density with its band, and the extreme eigenvalues over training.

    Left, mass per decade of |λ| above what Lanczos steps resolve, and the share below it, whose
    place is not known, as a bar; right, the largest eigenvalue and the magnitude of the smallest.

    Args:
        densities: Of the checkpoints; none for extreme values alone.
        extremes: The smallest and the largest eigenvalue of every checkpoint.
        steps: The optimizer steps of the checkpoints.
        title: Of the figure.
    """
    if len(extremes) != len(steps) or not steps:
        raise ValueError(f"steps must hold one step per pair of extremes, got {len(steps)}.")
    with styled():
        width = 6.4 if densities else 3.6
        figure = Figure(figsize=(width, 2.9), layout="constrained")
        panels = figure.subplots(1, 2 if densities else 1, squeeze=False)[0]
        if densities:
            _draw_density(panels[0], densities[-1], steps[-1])
        _draw_extremes(panels[-1], np.asarray(extremes, dtype=float), np.asarray(steps))
        set_title(figure, title)
    return figure


def _draw_density(axes: Axes, one: LogDensity, step: int) -> None:
    magnitudes = 10.0 ** one.grid.numpy()
    shares = [100 * part.numpy() for part in (one.density.estimate, one.density.lower)]
    upper = 100 * one.density.upper.numpy()
    axes.fill_between(
        magnitudes,
        shares[1],
        upper,
        color=BLUE,
        alpha=0.25,
        lw=0,
        label=f"{one.density.level:.0%} band",
    )
    axes.plot(magnitudes, shares[0], color=BLUE, label="density")
    lump = [100 * float(part) for part in (one.lump.estimate, one.lump.lower, one.lump.upper)]
    place = one.floor * 10**-0.5
    axes.errorbar(
        place,
        lump[0],
        yerr=[[lump[0] - lump[1]], [lump[2] - lump[0]]],
        fmt="o",
        ms=4,
        capsize=3,
        color=VERMILLION,
        label=f"{lump[0]:.0f}% lie below {one.floor:.1e}",
    )
    axes.axvspan(one.floor / 10, one.floor, color=VERMILLION, alpha=0.08, lw=0)
    axes.text(place, 0.03, "not resolved", transform=axes.get_xaxis_transform(), **UPRIGHT)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(one.floor / 10, magnitudes[-1])
    top = max(upper.max(), lump[2])
    axes.set_ylim(top * DEPTH, top * 50)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}"))
    axes.set_xlabel("magnitude |λ|")
    axes.set_ylabel("share per decade (%)")
    axes.set_title(f"step {step}")
    axes.legend(loc="upper right")


def _draw_extremes(axes: Axes, extremes: np.ndarray, steps: np.ndarray) -> None:  # type: ignore[type-arg]
    largest, smallest = extremes[:, 1], extremes[:, 0]
    mark = "o-" if len(steps) <= MOST_MARKS else "-"
    for values, color, label in ((largest, BLUE, "λmax"), (-smallest, ORANGE, "−λmin")):
        if (values > 0).any():
            shown = np.where(values > 0, values, np.nan)
            axes.plot(steps, shown, mark, ms=3, color=color, label=label)
            axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("eigenvalue")
    axes.set_title("ends of the spectrum")
    if axes.lines:
        axes.legend(loc="best")
