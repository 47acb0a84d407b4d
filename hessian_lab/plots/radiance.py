"""Views of a scene that were held out, and what a field shows there: colours, error, depth."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hessian_lab.plots.style import set_title, styled

Array = np.ndarray[Any, np.dtype[Any]]

INCHES = 1.7
# Views that are drawn at most.
MOST = 4
LABELS = ("held out", "the field's", "|error|, × {scale:g}", "depth")


def plot_views(
    true: Array,
    shown: Array,
    depths: Array,
    table: pd.DataFrame,
    *,
    title: str | None = None,
) -> Figure:
    """Return one row for each of some views: the picture, the field's, the error, and the depth.

    Args:
        true: Pictures [v, rows, columns, 3] in [0, 1].
        shown: What the field shows, likewise.
        depths: Mean depths [v, rows, columns]; NaN, drawn white, where nothing is met.
        table: ``view``, ``psnr`` and ``ssim`` of each view.
        title: Of the figure.

    Raises:
        ValueError: If there is no view.
    """
    if not len(true):
        raise ValueError("there must be a view to draw, got none.")
    chosen = np.unique(np.linspace(0, len(true) - 1, MOST).round().astype(int))
    errors = np.abs(shown - true).mean(axis=3)
    scale = _round_scale(float(np.quantile(errors[chosen], 0.995)))
    met = depths[chosen][np.isfinite(depths[chosen])]
    low, high = (float(met.min()), float(met.max())) if len(met) else (0.0, 1.0)
    with styled():
        height = INCHES * true.shape[1] / true.shape[2] + 0.18
        figure = Figure(
            figsize=(INCHES * len(LABELS) + 0.5, height * len(chosen) + 0.3), layout="constrained"
        )
        grid = figure.subplots(len(chosen), len(LABELS), squeeze=False)
        for axes, place in zip(grid, chosen, strict=True):
            axes[0].imshow(true[place])
            axes[1].imshow(np.clip(shown[place], 0, 1))
            axes[2].imshow(errors[place] * scale, vmin=0, vmax=1, cmap="magma")
            depth = axes[3].imshow(depths[place], vmin=low, vmax=high, cmap="viridis_r")
            row = table.iloc[place]
            axes[1].set_xlabel(f"{row['psnr']:.1f} dB, SSIM {row['ssim']:.2f}", fontsize=8)
            axes[0].set_xlabel(f"view {int(row['view'])}", fontsize=8)
            for panel in axes:
                panel.set(xticks=[], yticks=[])
                panel.spines[:].set_visible(False)
        figure.colorbar(
            depth, ax=grid[:, 3], aspect=16 * len(chosen), label="from where the ray starts"
        )
        for panel, label in zip(grid[0], LABELS, strict=True):
            panel.set_title(label.format(scale=scale), loc="center")
        set_title(figure, title)
    return figure


def _round_scale(largest: float) -> float:
    """Return 1, 2, 5, 10, … by which errors are multiplied to be seen."""
    steps = [float(f"{digit}e{power}") for power in range(4) for digit in (1, 2, 5)]
    return max((step for step in steps if step * largest <= 1), default=1.0)
