"""Where Hessian–vector products are zero: matrices by layer, and shares over training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hessian_lab.plots.style import BLUE, ORANGE, VERMILLION, set_title, styled

Array = np.ndarray[Any, np.dtype[Any]]
# Decades of magnitude that are told apart by colour.
DECADES = 6
# A largest magnitude whose decades floating point still holds.
LEAST_TOP = 1e-200
# Matrices in one row.
MOST_COLUMNS = 5
MARKS = "os^vDP*X"
# Checkpoints that are marked one by one.
MOST_MARKS = 20


def plot_sparsity(
    matrices: Mapping[str, Array],
    *,
    steps: Sequence[int],
    layers: Mapping[str, Sequence[float]],
    whole: Mapping[str, Sequence[float]],
    step: int,
    title: str | None = None,
) -> Figure:
    """Return H v of every weight as a matrix with zeros in white, and shares against the step.

    Args:
        matrices: H v of one vector v, [out, in] of each layer, by name.
        steps: The optimizer steps of the checkpoints.
        layers: Share of exactly-zero entries in [0, 1] at each checkpoint, by layer.
        whole: Shares over all parameters, by what is counted.
        step: That of the matrices.
        title: Of the figure.

    Raises:
        ValueError: If there is nothing to draw, or a curve has another number of checkpoints.
    """
    curves = [*layers.values(), *whole.values()]
    if not steps or not matrices or any(len(curve) != len(steps) for curve in curves):
        raise ValueError(f"every curve must have one share per step, {len(steps)}, above 0.")
    columns = min(len(matrices), MOST_COLUMNS)
    rows = -(-len(matrices) // columns)
    with styled():
        figure = Figure(figsize=(6.8, 1.75 * rows + 2.9), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.75 * rows, 2.9])
        above, below = parts
        _draw_matrices(above, matrices, rows, columns, step)
        left, right = below.subplots(1, 2, sharey=True)
        _draw_curves(left, steps, layers, _shades(len(layers)))
        _draw_curves(right, steps, whole, [VERMILLION, ORANGE, BLUE, "black"])
        left.set_title("exactly zero, by layer")
        left.set_ylabel("share of entries")
        right.set_title("all parameters")
        set_title(figure, title)
    return figure


def _draw_matrices(
    figure: Any, matrices: Mapping[str, Array], rows: int, columns: int, step: int
) -> None:
    axes = np.asarray(figure.subplots(rows, columns, squeeze=False))
    for panel in axes.flat:
        panel.set_axis_off()
    top = max((float(np.abs(matrix).max()) for matrix in matrices.values()), default=0.0)
    norm = _norm(top)
    image = None
    for panel, (name, matrix) in zip(axes.flat, matrices.items(), strict=False):
        image = draw_zeros(panel, matrix, norm=norm)
        share = float((matrix == 0).mean())
        panel.set_title(f"{name}\n{'×'.join(map(str, matrix.shape))}, {share:.0%} zero", fontsize=8)
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=14)
    bar.set_label(f"|H v|, step {step}\n(white: exactly 0)", fontsize=8)
    bar.outline.set_linewidth(0.4)


def draw_zeros(axes: Axes, matrix: Array, *, norm: LogNorm | None = None) -> Any:
    """Draw magnitudes of a matrix [out, in], exact zeros in white, and return the image.

    Stretched to the panel, one pixel an entry at most: nothing is averaged, which would hide zeros.
    """
    magnitudes = np.abs(np.asarray(matrix, dtype=float))
    norm = norm or _norm(float(magnitudes.max()))
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(True)
    return axes.imshow(
        np.ma.masked_where(~(magnitudes > 0), magnitudes),
        norm=norm,
        cmap=_colours(),
        aspect="auto",
        interpolation="nearest",
    )


def _norm(top: float) -> LogNorm:
    """Return the scale of magnitudes up to ``top``; smaller ones take its lowest colour."""
    top = min(max(top, LEAST_TOP), 1 / LEAST_TOP)
    return LogNorm(top / 10**DECADES, top, clip=True)


def _colours() -> Colormap:
    """Return colours none of which is near the white of zeros."""
    return colormaps["cividis_r"].with_extremes(bad="white")


def _shades(count: int) -> list[Any]:
    """Return colours from dark to light, first layer to last."""
    return [colormaps["cividis"](place) for place in np.linspace(0, 0.9, count)]


def _draw_curves(
    axes: Axes, steps: Sequence[int], curves: Mapping[str, Sequence[float]], colours: Sequence[Any]
) -> None:
    few = len(steps) <= MOST_MARKS
    for place, (name, shares) in enumerate(curves.items()):
        # Curves that coincide are seen through each other: the later, the thinner.
        late = place / max(1, len(curves) - 1)
        axes.plot(
            steps,
            shares,
            marker=MARKS[place % len(MARKS)] if few else "",
            ms=7 - 4 * late,
            lw=3 - 2 * late,
            color=colours[place % len(colours)],
            label=name,
            clip_on=False,
        )
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_xlabel("optimizer step")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3 if len(curves) > 4 else 2)
