"""Optimizers on batches of points of solids: curves, where they end, and how far the surfaces."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hessian_lab.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, styled

NAME = "occupancy_convergence"
CAPTION = (
    "Each optimizer at its best rate (chosen on another seed of the terrain, by the cross-entropy; "
    "for the lower right panel by the IoU), batches of 2,048 of 30,000 points, five linear maps of "
    "64. Above: cross-entropy against epochs on the terrain (elevations from matplotlib's sample "
    "data), median and range over seeds. Middle: the last cross-entropy "
    "over Adam's on the same solid and seed, terrain and Spot (Keenan Crane, public domain); what "
    "is on the rim lies beyond. Below: Chamfer distance between the field's surface and the "
    "solid's, in half the box, against epochs; the dotted line is that of the terrain from itself. "
    "The ε of ESGD and AdaHessian is 1e-4 unless told. After P2 Figs 4, 6, 15–19 and P3 Figs 3, 6."
)
TITLES = {
    "gaussian": "Gaussian, σ=0.09",
    "sine": "sine, ω=30",
    "relu_pe 4": "ReLU-PE, L=4",
    "relu_pe 8": "ReLU-PE, L=8",
    "relu": "ReLU",
}
COLORS = {
    "adam": BLUE,
    "sgd": BLACK,
    "sgd momentum": "0.6",
    "esgd": VERMILLION,
    "esgd ε=1": ORANGE,
    "kfac": GREEN,
    "shampoo": PURPLE,
    "adahessian E": SKY,
}
MARKS = ("o", "^", "s")
DASHES = ("-", "--", ":")
# How far from Adam's the lower panels show.
REACH = (0.5, 4.0)


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    if "skipped" in rows:
        rows = rows[rows["skipped"].isna()]
    short, long = (rows[rows["part"] == part] for part in ("short", "long"))
    with styled():
        figure = Figure(figsize=(7.1, 7.4), layout="constrained")
        blocks = figure.subfigures(3, 1, height_ratios=[1, 1.15, 0.95])
        _curves(blocks[0], short)
        _ends(blocks[1], short)
        if len(long):
            _surfaces(blocks[2], long)
    return figure


def _epochs(row: dict[str, Any]) -> np.ndarray[Any, np.dtype[Any]]:
    return np.asarray(row["step"]) / np.ceil(row["points"] / row["batch_size"])


def _curves(block: FigureBase, rows: pd.DataFrame) -> None:
    fields = list(dict.fromkeys(rows["field"]))
    first = rows[rows["solid"] == rows.iloc[0]["solid"]]
    panels = block.subplots(1, len(fields), squeeze=False, sharey=True)[0]
    for panel, field in zip(panels, fields, strict=True):
        for method, color in COLORS.items():
            chosen = first[(first["field"] == field) & (first["method"] == method)]
            _band(panel, chosen, "bce", color=color, label=method)
        panel.set_title(TITLES[field])
        panel.set_xlabel("epoch")
    panels[0].set_ylabel("cross-entropy")
    panels[0].set_ylim(0, 0.75)
    block.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(COLORS),
        handlelength=1.2,
        columnspacing=1.2,
    )


def _band(axes: Axes, rows: pd.DataFrame, quantity: str, *, first: int = 0, **look: Any) -> None:
    """Draw the median of some curves and their range."""
    curves = [row for row in rows.to_dict("records") if row[quantity]]
    if not curves:
        return
    values = np.array([row[quantity][first:] for row in curves], dtype=float)
    places = _epochs(curves[0])[first:]
    axes.plot(places, np.median(values, axis=0), lw=1, **look)
    color = look["color"]
    axes.fill_between(places, values.min(axis=0), values.max(axis=0), color=color, alpha=0.12, lw=0)


def _ends(block: FigureBase, rows: pd.DataFrame) -> None:
    fields = [field for field in dict.fromkeys(rows["field"]) if field in ("gaussian", "sine")]
    solids = list(dict.fromkeys(rows["solid"]))
    methods = [name for name in dict.fromkeys(rows["method"]) if name != "adam"]
    panels = block.subplots(1, len(fields), squeeze=False, sharey=True)[0]
    for panel, field in zip(panels, fields, strict=True):
        for solid, mark in zip(solids, MARKS, strict=False):
            chosen = rows[(rows["field"] == field) & (rows["solid"] == solid)]
            adam = _last(chosen, "adam")
            for place, method in enumerate(methods):
                found = _last(chosen, method)
                ratios = [found[seed] / adam[seed] for seed in found if seed in adam]
                if not ratios:
                    continue
                x = np.clip(np.nan_to_num(ratios, posinf=1e3), *REACH)
                y = np.full(len(x), place - 0.15 if mark == MARKS[0] else place + 0.15)
                color = COLORS.get(method, "0.4")
                look = {"ms": 3.5, "mec": "none", "color": color, "clip_on": False}
                panel.plot(x, y, mark, **look)
        panel.axvline(1, color=BLUE, lw=0.8)
        panel.set_xscale("log")
        panel.set_xlim(*REACH)
        panel.xaxis.set_major_locator(FixedLocator([0.7, 1, 1.5, 2, 3]))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.set_title(TITLES[field])
    panels[0].set_yticks(range(len(methods)), methods, fontsize=7)
    panels[0].set_ylim(len(methods) - 0.4, -0.6)
    _legend(block, panels, [(solid, mark, "") for solid, mark in zip(solids, MARKS, strict=False)])
    block.supxlabel("last cross-entropy over Adam's", fontsize=9)


def _legend(block: FigureBase, panels: Any, looks: list[tuple[str, str, str]]) -> None:
    """Say beside the panels which mark or dash is which solid."""
    for solid, mark, dashes in looks:
        panels[0].plot([], [], mark + dashes, ms=3.5, color="0.4", lw=1, label=solid)
    block.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")


def _last(rows: pd.DataFrame, method: str) -> dict[int, float]:
    chosen = rows[rows["method"] == method].to_dict("records")
    return {row["seed"]: row["bce"][-1] if row["bce"] else np.inf for row in chosen}


def _surfaces(block: FigureBase, rows: pd.DataFrame) -> None:
    fields, solids = (list(dict.fromkeys(rows[name])) for name in ("field", "solid"))
    panels = block.subplots(1, len(fields), squeeze=False, sharey=True)[0]
    for panel, field in zip(panels, fields, strict=True):
        for solid, dashes in zip(solids, DASHES, strict=False):
            for method in dict.fromkeys(rows["method"]):
                chosen = rows[
                    (rows["field"] == field) & (rows["solid"] == solid) & (rows["method"] == method)
                ]
                # The start has the surface of noise.
                _band(panel, chosen, "chamfer", first=1, color=COLORS[method], ls=dashes)
        panel.axhline(rows.iloc[0]["floor"], color="0.5", ls=":", lw=0.8)
        panel.set_yscale("log")
        panel.set_title(TITLES[field])
        panel.set_xlabel("epoch")
    panels[0].set_ylabel("Chamfer distance")
    _legend(block, panels, [(solid, "", mark) for solid, mark in zip(solids, DASHES, strict=False)])
