"""Optimizers on radiance fields: on fixed rays against seconds, on batches against steps."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from hessian_lab.plots.style import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILLION, styled

NAME = "radiance_fields"
CAPTION = (
    "Gaussian (σ=0.2), ReLU and ReLU-PE (L=4) radiance fields without direction of view, each "
    "optimizer at its best rate (chosen on another seed). Above: Gaussian, full batch, fixed rays "
    "of the torus that is rendered here; PSNR of these rays against seconds of steps, every seed "
    "and in bold their median. Middle: 4×32, batches of 256 rays of 8,000; PSNR of these against "
    "steps on the torus, median and range over seeds. Below: the last PSNR of three views held out "
    "minus Adam's on the same scene and seed; a point is a seed, hollow points lie beyond the "
    "axis. Spot is by Keenan Crane, the scan of Nefertiti's bust from Oded Stein's meshes (both "
    "public domain). The ε of ESGD is 1e-4 unless told. After P1 Fig. 7, P2 Figs 2, 4 and P3 Figs "
    "1, 3."
)
TITLES = {"gaussian": "Gaussian, σ=0.2", "relu": "ReLU", "relu_pe": "ReLU-PE, L=4"}
COLORS = {
    "adam": BLUE,
    "esgd": VERMILLION,
    "esgd ε=1": ORANGE,
    "sgd": BLACK,
    "sgd momentum": "0.6",
    "lbfgs": GREEN,
    "adam 1e-4": SKY,
}
LABELS = {"lbfgs": "L-BFGS", "adam": "Adam", "adam 1e-4": "Adam, 1e-4", "sgd": "SGD"} | {
    "esgd": "ESGD",
    "esgd ε=1": "ESGD, ε=1",
    "sgd momentum": "SGD, momentum",
}
MARKS = ("o", "^", "s")
# Decibels that the lower panels show.
REACH = 4.0


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    if "skipped" in rows:
        rows = rows[rows["skipped"].isna()]
    fixed, batch = (rows[rows["part"] == part] for part in ("fixed", "batch"))
    with styled():
        figure = Figure(figsize=(7.1, 6.9), layout="constrained")
        blocks = figure.subfigures(3, 1, height_ratios=[1, 1.05, 0.95])
        _fixed(blocks[0], fixed)
        _batches(blocks[1], batch)
        _ends(blocks[2], batch)
    return figure


def _fixed(block: FigureBase, rows: pd.DataFrame) -> None:
    groups = list(rows.groupby(["depth", "width", "points"], sort=False))
    panels = block.subplots(1, len(groups), squeeze=False)[0]
    for panel, ((depth, width, points), group) in zip(panels, groups, strict=True):
        for method in dict.fromkeys(group["method"]):
            _seeds(panel, group[group["method"] == method], COLORS[method], LABELS[method])
        panel.set_title(f"{depth:g}×{width:g}, {points:g} rays")
        panel.set_xlabel("seconds")
    panels[0].set_ylabel("PSNR (dB)")
    _legend(block, panels)


def _seeds(axes: Axes, rows: pd.DataFrame, color: str, label: str) -> None:
    curves = [row for row in rows.to_dict("records") if row["psnr"]]
    for row in curves:
        axes.plot(row["cpu"], row["psnr"], color=color, lw=0.5, alpha=0.4)
    if curves:
        seconds = np.median([row["cpu"] for row in curves], axis=0)
        middle = np.median([row["psnr"] for row in curves], axis=0)
        axes.plot(seconds, middle, color=color, label=label)


def _batches(block: FigureBase, rows: pd.DataFrame) -> None:
    fields = list(dict.fromkeys(rows["field"]))
    first = rows[rows["scene"] == rows.iloc[0]["scene"]]
    panels = block.subplots(1, len(fields), squeeze=False, sharey=True)[0]
    for panel, field in zip(panels, fields, strict=True):
        for method, color in COLORS.items():
            chosen = first[(first["field"] == field) & (first["method"] == method)]
            _band(panel, chosen, color, LABELS[method])
        panel.set_title(TITLES[field])
        panel.set_xlabel("step")
    panels[0].set_ylabel("PSNR (dB)")
    _legend(block, panels)


def _band(axes: Axes, rows: pd.DataFrame, color: str, label: str) -> None:
    """Draw the median of some curves and their range."""
    curves = [row for row in rows.to_dict("records") if row["psnr"]]
    if not curves:
        return
    values = np.array([row["psnr"] for row in curves])
    places = curves[0]["step"]
    axes.plot(places, np.median(values, axis=0), color=color, label=label)
    axes.fill_between(places, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, lw=0)


def _ends(block: FigureBase, rows: pd.DataFrame) -> None:
    fields, scenes = (list(dict.fromkeys(rows[name])) for name in ("field", "scene"))
    methods = [name for name in COLORS if name in set(rows["method"]) - {"adam"}]
    panels = block.subplots(1, len(fields), squeeze=False, sharey=True)[0]
    for panel, field in zip(panels, fields, strict=True):
        for number, (scene, mark) in enumerate(zip(scenes, MARKS, strict=False)):
            chosen = rows[(rows["field"] == field) & (rows["scene"] == scene)]
            adam = _last(chosen, "adam")
            for place, method in enumerate(methods):
                found = _last(chosen, method)
                gaps = [found[seed] - adam[seed] for seed in found if seed in adam]
                _points(panel, place + 0.22 * (number - 1), gaps, mark, COLORS[method])
        panel.axvline(0, color=BLUE, lw=0.8)
        panel.set_xlim(-REACH, REACH)
        panel.set_title(TITLES[field])
    panels[0].set_yticks(range(len(methods)), [LABELS[name] for name in methods], fontsize=8)
    panels[0].set_ylim(len(methods) - 0.4, -0.6)
    for scene, mark in zip(scenes, MARKS, strict=False):
        panels[0].plot([], [], mark, ms=3.5, color="0.4", mec="none", label=scene)
    panels[len(panels) // 2].set_xlabel("last PSNR held out minus Adam's (dB)")
    _legend(block, panels)


def _last(rows: pd.DataFrame, method: str) -> dict[int, float]:
    chosen = rows[rows["method"] == method].to_dict("records")
    return {row["seed"]: row["held"][-1] if row["held"] else -1e3 for row in chosen}


def _points(axes: Axes, place: float, gaps: list[float], mark: str, color: str) -> None:
    for gap in gaps:
        inside = abs(gap) <= REACH
        axes.plot(
            np.clip(gap, -REACH, REACH),
            place,
            mark,
            ms=3.5,
            color=color,
            mfc=color if inside else "white",
            clip_on=False,
        )


def _legend(block: FigureBase, panels: Any) -> None:
    looks: dict[str, Any] = {}
    for panel in panels:
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True):
            looks.setdefault(label, line)
    block.legend(
        list(looks.values()),
        list(looks),
        loc="outside lower center",
        ncols=len(looks),
        handlelength=1.2,
        columnspacing=1.2,
    )
