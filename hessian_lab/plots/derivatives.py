"""A fitted signal, its gradient and its Laplacian, beside those of the target."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessian_lab.plots.style import BLUE, ORANGE, set_title, styled

Array = np.ndarray[Any, np.dtype[Any]]
KINDS = ("values", "gradient", "laplacian")
# Derivatives are drawn up to this quantile of the target's magnitudes: edges are rare and steep.
QUANTILE = 0.99


def plot_derivatives(
    field: Mapping[str, Array], target: Mapping[str, Array], *, title: str | None = None
) -> Figure:
    """Return the picture of an image, or of a signal on a line.

    Of an image: the fit above the target, each with |∇f| and Δf on the target's scale. On a line:
    both in one panel each.

    Args:
        field: ``values`` [rows, columns] or [points], ``gradient`` […, d], ``laplacian`` […].
        target: Likewise.
        title: Of the figure.

    Raises:
        ValueError: If the shapes differ, or are of neither kind.
    """
    dims = np.ndim(field["values"])
    if dims not in (1, 2) or any(np.shape(field[key]) != np.shape(target[key]) for key in KINDS):
        raise ValueError("field and target must have one shape, [points] or [rows, columns].")
    with styled():
        figure = _draw_line(field, target) if dims == 1 else _draw_images(field, target)
        set_title(figure, title)
    return figure


def _draw_images(field: Mapping[str, Array], target: Mapping[str, Array]) -> Figure:
    figure = Figure(figsize=(6.4, 4.3), layout="constrained")
    panels = figure.subplots(2, 3)
    slope = _largest(_norm(target["gradient"]))
    bend = _largest(np.abs(target["laplacian"]))
    looks: list[tuple[str, dict[str, Any]]] = [
        ("f", {"cmap": "gray", "vmin": 0, "vmax": 1}),
        ("|∇f|", {"cmap": "cividis", "vmin": 0, "vmax": slope}),
        ("Δf", {"cmap": "PuOr", "vmin": -bend, "vmax": bend}),
    ]
    values = target["values"]
    if values.min() < 0 or values.max() > 1:
        looks[0][1].update(vmin=float(values.min()), vmax=float(values.max()))
    for row, (name, part) in enumerate((("field", field), ("target", target))):
        shown = (part["values"], _norm(part["gradient"]), part["laplacian"])
        images = []
        for axes, picture, (symbol, look) in zip(panels[row], shown, looks, strict=True):
            images.append(axes.imshow(picture, interpolation="nearest", **look))
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"{name}: {symbol}")
    for column, image in enumerate(images):
        bar = figure.colorbar(image, ax=panels[:, column], location="bottom", aspect=25, pad=0.02)
        bar.ax.tick_params(labelsize=7)
        bar.ax.locator_params(nbins=4)
        bar.outline.set_linewidth(0.4)  # type: ignore[operator]
    return figure


def _draw_line(field: Mapping[str, Array], target: Mapping[str, Array]) -> Figure:
    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, kind, symbol in zip(panels, KINDS, ("f", "f′", "f″"), strict=True):
        _draw_curves(axes, field[kind].reshape(-1), target[kind].reshape(-1))
        axes.set_title(symbol)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _draw_curves(axes: Axes, field: Array, target: Array) -> None:
    places = np.linspace(-1, 1, len(target))
    axes.plot(places, target, color=ORANGE, lw=3, label="target")
    axes.plot(places, field, color=BLUE, lw=1, label="field")
    axes.set_xlabel("coordinate")
    low, high = target.min(), target.max()
    room = 0.5 * max(high - low, 1e-12)
    # A field may be far off at a few points: the target stays legible.
    axes.set_ylim(low - room, high + room)


def _norm(gradient: Array) -> Array:
    lengths: Array = np.linalg.norm(gradient, axis=-1)
    return lengths


def _largest(magnitudes: Array) -> float:
    return float(np.quantile(magnitudes, QUANTILE)) or 1.0
