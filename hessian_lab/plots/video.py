"""A fitted video: frames beside what a field made of them, and PSNR over time."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hessian_lab.plots.style import BLUE, VERMILLION, set_title, styled

Array = np.ndarray[Any, np.dtype[Any]]
# Frames that are shown, and the width of each in inches.
MOST_FRAMES, INCHES = 4, 1.7
# Share of the errors that the scale of colours does without: single pixels.
OUTSIDE = 0.001


def plot_video(
    original: Array, fitted: Array, error: Array, table: pd.DataFrame, *, title: str | None = None
) -> Figure:
    """Return some frames of a video over those of a field and over the error, and PSNR over time.

    Dots on the curve are the frames that are shown.

    Args:
        original: [frames, rows, columns, 3] in 8 bits.
        fitted: Likewise.
        error: Magnitude of the error, in shares of the largest value [frames, rows, columns].
        table: ``second`` and ``psnr`` of every frame.
        title: Of the figure.

    Raises:
        ValueError: If there are not as many rows, errors and fitted frames as frames.
    """
    if not len(original) == len(fitted) == len(error) == len(table) > 0:
        raise ValueError(
            f"original, fitted, error and table must be of the same frames, got {len(original)}, "
            f"{len(fitted)}, {len(error)} and {len(table)}."
        )
    count = min(MOST_FRAMES, len(original))
    chosen = np.linspace(0, len(original) - 1, count).round().astype(int)
    height = 3 * (INCHES * original.shape[1] / original.shape[2] + 0.08) + 0.3
    with styled():
        figure = Figure(figsize=(INCHES * count + 1.0, height + 1.7), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[height, 1.7])
        _draw_frames(parts[0], original, fitted, error, table, chosen)
        _draw_curve(parts[1], table, chosen)
        set_title(figure, title)
    return figure


def _draw_frames(
    figure: Any, original: Array, fitted: Array, error: Array, table: pd.DataFrame, chosen: Array
) -> None:
    axes = figure.subplots(3, len(chosen), squeeze=False)
    finite = error[np.isfinite(error)]
    top = float(np.quantile(finite, 1 - OUTSIDE)) if len(finite) else 0.0
    image = None
    for column, place in enumerate(chosen):
        axes[0][column].imshow(original[place])
        axes[1][column].imshow(fitted[place])
        image = axes[2][column].imshow(error[place], cmap="magma", vmin=0, vmax=top or 1.0)
        axes[0][column].set_title(f"{table['second'].iloc[place]:.3g} s", loc="center")
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    for row, label in enumerate(("original", "fitted", "|error|")):
        axes[row][0].set_ylabel(label)
    # Beside all rows, so that the columns stay one below the other.
    figure.colorbar(image, ax=list(axes.flat), shrink=0.3, anchor=(0, 0), aspect=10, pad=0.01)


def _draw_curve(figure: Any, table: pd.DataFrame, chosen: Array) -> None:
    axes = figure.subplots()
    seconds, decibels = (table[name].to_numpy(dtype=float) for name in ("second", "psnr"))
    # A perfect frame has an infinite PSNR, which is off every scale.
    decibels = np.where(np.isfinite(decibels), decibels, np.nan)
    axes.plot(seconds, decibels, color=BLUE, marker=".", ms=3)
    axes.plot(seconds[chosen], decibels[chosen], "o", ms=5, color=VERMILLION)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("PSNR (dB)")
