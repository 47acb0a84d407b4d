"""Optimizers on batches, each at its best rate: curves against steps, and where they end."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.optimizer_convergence import TITLES, draw_curves
from hessian_lab.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILLION, styled

NAME = "stochastic_convergence"
CAPTION = (
    "Each optimizer at its best rate (chosen on another seed), batches of 512, five linear maps of "
    "256 on 256×256 pixels of chelsea (scikit-image, CC0). Above: PSNR against steps, median and "
    "range over seeds. Below: the last PSNR minus Adam's on the same seed; a bar ends at the "
    "median, a point is a seed, hollow points lie beyond the axis. The ε of ESGD and AdaHessian is "
    "1e-4 unless told. After P2 Figs 5, 8, 9 and P3 Figs 3, 5."
)
COLORS = {
    "adam": BLUE,
    "sgd": BLACK,
    "esgd": VERMILLION,
    "adahessian E": ORANGE,
    "kfac": GREEN,
    "shampoo": PURPLE,
}
# Decibels that the lower panels show.
REACH = 10.0


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    rows = rows[rows["part"] == "batch"]
    if "init" in rows:
        rows = rows[rows["init"].isna()]
    with styled():
        figure = Figure(figsize=(7.1, 6.4), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.25])
        draw_curves(top, rows, "step", COLORS)
        _ends(bottom, rows)
    return figure


def _ends(block: Any, rows: pd.DataFrame) -> None:
    acts = list(dict.fromkeys(rows["act"]))
    methods = [name for name in dict.fromkeys(rows["method"]) if name != "adam"]
    panels = block.subplots(1, len(acts), squeeze=False, sharey=True)[0]
    for panel, act in zip(panels, acts, strict=True):
        chosen = rows[rows["act"] == act]
        adam = _last(chosen, "adam")
        for place, method in enumerate(methods):
            found = _last(chosen, method)
            gaps = [found[seed] - adam[seed] for seed in found if seed in adam]
            if gaps:
                _bar(panel, place, np.nan_to_num(gaps, neginf=-1e3), COLORS.get(method, "0.6"))
        panel.axvline(0, color=BLUE, lw=0.8)
        panel.set_xlim(-REACH, REACH)
        panel.set_title(TITLES[act])
    block.supxlabel("last PSNR minus Adam's (dB)", fontsize=9)
    panels[0].set_yticks(range(len(methods)), methods, fontsize=7)
    panels[0].set_ylim(len(methods) - 0.4, -0.6)


def _last(rows: pd.DataFrame, method: str) -> dict[int, float]:
    chosen = rows[rows["method"] == method].to_dict("records")
    return {row["seed"]: row["psnr"][-1] if row["psnr"] else -np.inf for row in chosen}


def _bar(axes: Axes, place: int, gaps: Any, color: str) -> None:
    axes.barh(place, np.clip(np.median(gaps), -REACH, REACH), 0.7, color=color, alpha=0.6)
    inside = np.abs(gaps) <= REACH
    axes.plot(gaps[inside], np.full(inside.sum(), place), ".", ms=4, color="black", mec="none")
    beyond = REACH * np.sign(gaps[~inside])
    if len(beyond):
        y = np.full(len(beyond), place)
        axes.plot(beyond, y, "o", ms=4, mfc="white", mec="black", clip_on=False)
