"""Curves of several optimizers against steps and seconds, with their ranges over seeds."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessian_lab.plots.style import CYCLE, set_title, styled

LABELS = {"psnr": "PSNR (dB)", "loss": "loss"}
STYLES = ("-", "--", ":", "-.")
LEGEND_ROW = 0.2
MOST_COLUMNS = 6


def plot_comparison(
    bands: pd.DataFrame,
    *,
    groups: Sequence[str],
    quantity: str = "psnr",
    title: str | None = None,
) -> Figure:
    """Draw medians with their ranges against steps (left) and median seconds (right).

    Args:
        bands: Columns ``groups``, ``step``, ``seconds``, ``median``, ``low`` and ``high``.
        groups: What tells curves apart; the first has the colour, the rest the line.
        quantity: ``psnr`` or ``loss``, the latter on a log scale.
        title: Of the figure.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if not len(bands):
        raise ValueError("bands must hold a curve, got none.")
    keys = list(dict.fromkeys(map(tuple, bands[list(groups)].to_numpy().tolist())))
    rows = -(-len(keys) // MOST_COLUMNS)
    with styled():
        figure = Figure(figsize=(6.8, 2.9 + LEGEND_ROW * rows), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        looks = _looks(keys)
        for key, (_, band) in zip(
            keys, bands.groupby(list(groups), sort=False, dropna=False), strict=True
        ):
            label = ", ".join(str(value) for value in key)
            _curve(left, "step", band, looks[key], label)
            _curve(right, "seconds", band, looks[key], None)
        left.set_xlabel("step")
        right.set_xlabel("seconds (median)")
        left.set_ylabel(LABELS[quantity])
        if quantity == "loss":
            left.set_yscale("log")
        figure.legend(loc="outside lower center", ncols=min(MOST_COLUMNS, len(keys)))
        set_title(figure, title)
    return figure


def _looks(keys: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return colour and line of every curve: the same colour for the same first entry."""
    colours = dict(zip(dict.fromkeys(key[0] for key in keys), cycle(CYCLE), strict=False))
    lines = dict(zip(dict.fromkeys(key[1:] for key in keys), cycle(STYLES), strict=False))
    return {key: {"color": colours[key[0]], "ls": lines[key[1:]]} for key in keys}


def _curve(
    axes: Axes, name: str, band: pd.DataFrame, look: dict[str, Any], label: str | None
) -> None:
    places, middle, low, high = (band[each].to_numpy() for each in (name, "median", "low", "high"))
    axes.plot(places, middle, label=label, **look)
    axes.fill_between(places, low, high, color=look["color"], alpha=0.2, lw=0)
