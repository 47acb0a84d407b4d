"""Maps over the tiles of pictures: how well each is fitted, and how its Hessian is conditioned."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessian_lab.plots.style import set_title, styled

Array = np.ndarray[Any, np.dtype[Any]]
# Rows and columns of pixels of the picture beside the maps.
THUMBNAIL = 600
MAPS = ("viridis", "magma_r", "cividis")
# Slabs of a video that are drawn.
MOST_SLABS = 6

# What a map is called, its rows, their values, and which of them are only bounds.
Panel = tuple[str, pd.DataFrame, Array, Array | None]


def plot_tiles(
    picture: Array | None,
    table: pd.DataFrame,
    spectra: pd.DataFrame | None,
    *,
    shape: tuple[int, int],
    tile: int,
    title: str | None = None,
) -> Figure:
    """Return the picture beside maps of PSNR and, where measured, of κ and the share of zeros.

    A dot marks a tile whose κ is only a lower bound; tiles that were not measured are white.

    Args:
        picture: Pixels [rows, columns, channels], 8 bits; or None.
        table: Rows, columns and PSNR of the tiles.
        spectra: Rows, columns, ``kappa``, ``resolved`` and ``zero_share``.
        shape: Rows and columns of the picture.
        tile: Pixels per side of a tile.
        title: Of the figure.
    """
    panels = _panels(table, spectra)
    count = len(panels) + (picture is not None)
    height = 2.2 * min(2.0, max(0.5, shape[0] / shape[1])) + 0.6
    with styled():
        figure = Figure(figsize=(min(2.6 * count, 10.4), height), layout="constrained")
        axes = list(figure.subplots(1, count, squeeze=False)[0])
        if picture is not None:
            _picture(axes.pop(0), picture)
        for panel, colours, (label, rows, values, marks) in zip(axes, MAPS, panels, strict=False):
            _map(figure, panel, rows, np.asarray(values, dtype=float), marks, colours, shape, tile)
            panel.set_title(label)
        set_title(figure, title)
    return figure


def plot_clip_tiles(
    frames: Array | None,
    table: pd.DataFrame,
    spectra: pd.DataFrame | None,
    *,
    shape: tuple[int, int],
    tile: int,
    title: str | None = None,
) -> Figure:
    """Return a row for every slab of a video: its middle frame beside the maps of its tiles.

    Slabs are tiles that begin with one frame; of many, some from first to last are drawn. A map has
    one scale in all of them.

    Args:
        frames: Of the fields [frames, rows, columns, 3], 8 bits; or None.
        table: First frames, rows, columns and PSNR of the tiles.
        spectra: First frames, rows, columns, ``kappa``, ``resolved`` and ``zero_share``.
        shape: Rows and columns of a frame.
        tile: Pixels per side of a tile.
        title: Of the figure.
    """
    slabs = np.unique(table["frame"].to_numpy(dtype=int))
    ends = np.append(slabs[1:], slabs[-1] + 1 if frames is None else len(frames))
    chosen = np.unique(np.linspace(0, len(slabs) - 1, MOST_SLABS).round().astype(int))
    panels = _panels(table, spectra)
    count = len(panels) + (frames is not None)
    height = 2.2 * min(2.0, max(0.4, shape[0] / shape[1])) + 0.15
    with styled():
        figure = Figure(
            figsize=(min(2.6 * count, 10.4), height * len(chosen) + 0.4), layout="constrained"
        )
        grid = figure.subplots(len(chosen), count, squeeze=False)
        for axes, place in zip(grid, chosen, strict=True):
            row = list(axes)
            if frames is not None:
                panel = row.pop(0)
                middle = (slabs[place] + ends[place]) // 2
                _picture(panel, frames[middle])
                panel.set_title(f"fitted, frame {middle}")
            maps = zip(row, MAPS, panels, strict=False)
            for panel, colours, (label, rows, values, marks) in maps:
                inside = rows["frame"].to_numpy(dtype=int) == slabs[place]
                marked = None if marks is None else marks[inside]
                numbers = np.asarray(values, dtype=float)
                _map(
                    figure,
                    panel,
                    rows[inside],
                    numbers[inside],
                    marked,
                    colours,
                    shape,
                    tile,
                    scale=numbers,
                    there=table[table["frame"] == slabs[place]],
                )
                panel.set_title(label if place == 0 else "")
        set_title(figure, title)
    return figure


def plot_cells(
    table: pd.DataFrame,
    spectra: pd.DataFrame | None,
    *,
    side: int,
    title: str | None = None,
) -> Figure:
    """Return maps through a grid of cells, seen from above, at some heights.

    Empty cells are white, and cells that were not measured grey.

    Args:
        table: Places ``x``, ``y``, ``z`` and ``psnr`` of the occupied cells.
        spectra: Places, ``kappa``, ``resolved`` and ``zero_share``.
        side: Cells along each axis of the box [-1, 1]³.
        title: Of the figure.
    """
    rows = [
        None if each is None else each.assign(row=side - 1 - each["y"], column=each["x"])
        for each in (table, spectra)
    ]
    assert rows[0] is not None
    panels = _panels(rows[0], rows[1])
    levels = np.unique(table["z"].to_numpy(dtype=int))
    chosen = levels[np.unique(np.linspace(0, len(levels) - 1, MOST_SLABS).round().astype(int))]
    with styled():
        figure = Figure(figsize=(2.6 * len(panels), 2.1 * len(chosen) + 0.4), layout="constrained")
        grid = figure.subplots(len(chosen), len(panels), squeeze=False)
        for axes, level in zip(grid, chosen[::-1], strict=True):
            for panel, colours, (label, places, values, marks) in zip(
                axes, MAPS, panels, strict=False
            ):
                inside = places["z"].to_numpy(dtype=int) == level
                marked = None if marks is None else marks[inside]
                numbers = np.asarray(values, dtype=float)
                shown = places[inside], numbers[inside], marked, colours, (side, side), 1
                _map(figure, panel, *shown, scale=numbers, there=rows[0][rows[0]["z"] == level])
                height = 2 * (level + 0.5) / side - 1
                panel.set_title(f"{label}, z = {height:+.2f}")
        set_title(figure, title)
    return figure


def _panels(table: pd.DataFrame, spectra: pd.DataFrame | None) -> list[Panel]:
    panels: list[Panel] = [("PSNR (dB)", table, table["psnr"].to_numpy(), None)]
    if spectra is None:
        return panels
    some = "" if len(spectra) == len(table) else f", {len(spectra)} of {len(table)}"
    kappas = np.log10(spectra["kappa"].to_numpy(dtype=float))
    bounds = spectra["resolved"].to_numpy() == False  # noqa: E712 (NaN is neither)
    label = "log₁₀ κ (dot: lower bound)" if bounds.any() else "log₁₀ κ"
    panels.append((label + some, spectra, kappas, bounds))
    zeros = 100 * spectra["zero_share"].to_numpy(dtype=float)
    panels.append(("zero eigenvalues (%)", spectra, zeros, None))
    return panels


def _picture(axes: Axes, picture: Array) -> None:
    stride = max(1, -(-max(picture.shape[:2]) // THUMBNAIL))
    small = picture[::stride, ::stride]
    axes.imshow(small.squeeze(-1) if small.shape[2] == 1 else small, cmap="gray", vmin=0, vmax=255)
    axes.set_title("fitted")
    axes.set_axis_off()


def _map(
    figure: Figure,
    axes: Axes,
    rows: pd.DataFrame,
    values: Array,
    marks: Array | None,
    colours: str,
    shape: tuple[int, int],
    tile: int,
    *,
    scale: Array | None = None,
    there: pd.DataFrame | None = None,
) -> None:
    """Draw a map, on the scale of its own values or of others; grey where only ``there`` is one."""
    grid = np.full((-(-shape[0] // tile), -(-shape[1] // tile)), np.nan)
    if there is not None:
        ground = grid.copy()
        ground[tuple(-(-there[name].to_numpy(dtype=int) // tile) for name in ("row", "column"))] = 1
        axes.imshow(ground, cmap="gray", vmin=0, vmax=1 / 0.85, interpolation="nearest")
    # The last tiles of a row and column are moved inwards to fit.
    places = [-(-rows[name].to_numpy(dtype=int) // tile) for name in ("row", "column")]
    # A perfect fit has an infinite PSNR: it is drawn as the best of the others.
    given = values if scale is None else scale
    finite = given[np.isfinite(given)]
    best = finite.max() if len(finite) else 0.0
    grid[places[0], places[1]] = np.where(values == np.inf, best, values)
    image = axes.imshow(grid, cmap=colours, interpolation="nearest")
    if not len(finite) or finite.min() == finite.max():
        # One colour for one number, and a scale that names it alone.
        image.set_clim(best - 1e-9, best + 1)
    elif scale is not None:
        image.set_clim(finite.min(), best)
    if marks is not None and marks.any():
        size = max(0.2, min(1.5, 96 / grid.shape[1]))
        axes.plot(places[1][marks], places[0][marks], ".", ms=size, color="black")
    one = not len(finite) or finite.min() == finite.max()
    figure.colorbar(image, ax=axes, shrink=0.8, ticks=[best] if one else None)
    axes.set_axis_off()
