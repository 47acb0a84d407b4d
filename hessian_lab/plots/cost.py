"""The picture of what steps cost."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from hessian_lab.plots.style import BLUE, ORANGE, set_title, styled

MEGABYTE = 1e6


def plot_cost(
    names: Sequence[str],
    ratios: Sequence[float],
    state_bytes: Sequence[int],
    *,
    title: str | None = None,
) -> Figure:
    """Draw time per step in units of Adam's, and what each optimizer keeps, as bars.

    Args:
        names: Of the optimizers.
        ratios: Time per step over Adam's; NaN where it was not measured.
        state_bytes: Bytes between steps.
        title: Of the figure.

    Raises:
        ValueError: If there is nothing to draw, or the lengths differ.
    """
    if not len(names) == len(ratios) == len(state_bytes) > 0:
        raise ValueError("names, ratios and state_bytes must have one length above 0.")
    places = np.arange(len(names))
    with styled():
        figure = Figure(figsize=(6.4, 0.9 + 0.24 * len(names)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        finite = [ratio for ratio in ratios if np.isfinite(ratio)]
        left.set_xscale("log")
        left.set_xlim(min([0.5, *(0.5 * ratio for ratio in finite)]), 4 * max([1.0, *finite]))
        left.barh(places, np.nan_to_num(ratios), color=BLUE, height=0.7)
        left.axvline(1, color="black", lw=0.6)
        for place, ratio in zip(places, ratios, strict=True):
            known = np.isfinite(ratio)
            text = f" {ratio:.2f}" if known else " too large"
            left.text(max(ratio, 1.0) if known else 1.0, place, text, va="center", fontsize=7)
        left.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
        left.set_yticks(places, names)
        left.set_ylim(len(names) - 0.4, -0.6)
        left.set_xlabel("time per step / Adam's (log)")
        right.barh(places, np.asarray(state_bytes) / MEGABYTE, color=ORANGE, height=0.7)
        right.set_xlabel("state (MB)")
        set_title(figure, title)
    return figure
