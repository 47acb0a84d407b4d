"""The picture of what steps cost."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from hessian_lab.plots.style import BLUE, ORANGE, set_title, styled


def plot_cost(
    names: Sequence[str],
    times: Sequence[float],
    memory: Sequence[float],
    *,
    title: str | None = None,
) -> Figure:
    """Draw time and memory per step in units of Adam's, as bars on log scales.

    Args:
        names: Of the optimizers.
        times: Time per step over Adam's; NaN where it was not measured.
        memory: Likewise, the most bytes alive in a step.
        title: Of the figure.

    Raises:
        ValueError: If there is nothing to draw, or the lengths differ.
    """
    if not len(names) == len(times) == len(memory) > 0:
        raise ValueError("names, times and memory must have one length above 0.")
    with styled():
        figure = Figure(figsize=(6.4, 0.9 + 0.24 * len(names)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        draw_ratios(left, names, times, BLUE, "time per step / Adam's (log)")
        draw_ratios(right, names, memory, ORANGE, "peak memory / Adam's (log)")
        set_title(figure, title)
    return figure


def draw_ratios(
    axes: Axes, names: Sequence[str], ratios: Sequence[float], color: str, label: str
) -> None:
    """Draw ratios as bars on a log scale, the first on top; NaN is told as too large."""
    finite = [ratio for ratio in ratios if np.isfinite(ratio)]
    places = np.arange(len(ratios))
    axes.set_xscale("log")
    axes.set_xlim(min([0.5, *(0.5 * ratio for ratio in finite)]), 4 * max([1.0, *finite]))
    axes.barh(places, np.nan_to_num(ratios), color=color, height=0.7)
    axes.axvline(1, color="black", lw=0.6)
    for place, ratio in zip(places, ratios, strict=True):
        known = np.isfinite(ratio)
        text = f" {ratio:.2f}" if known else " too large"
        axes.text(max(ratio, 1.0) if known else 1.0, float(place), text, va="center", fontsize=7)
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
