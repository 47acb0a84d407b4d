"""Fields of sounds under L-BFGS, the ω of their first two layers, and solids against seconds."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Rectangle

from hessian_lab.plots.style import BLACK, BLUE, GREEN, SKY, VERMILLION, styled

NAME = "sound_fields"
CAPTION = (
    "Above: SNR against iterations of L-BFGS, fields of 4×128 on a second at 8 kHz, median and "
    "range over seeds: the cello suite BWV 1007 as synthesised here, and Brahms's Hungarian Dance "
    "no. 5 (US Army Strings, from librosa's data, Public Domain Mark). Middle: SNR by the ω of the "
    "first two layers; the papers' pair is framed. Below: IoU against the processor's seconds, "
    "sine 4×64 on 30,000 points at once of the terrain (elevations from matplotlib's sample data) "
    "and of Spot (Keenan Crane, public domain). After P1s Figs 5, 6 and 8."
)
LOOKS = {
    "sine 3000, 3000": (VERMILLION, "-", "sine, ω = 3000, 3000, 30, 30"),
    "sine 3000, 30": (VERMILLION, "--", "sine, ω = 3000, 30, 30, 30"),
    "gaussian 0.01": (BLUE, "-", "Gaussian, σ = 0.01"),
    "gaussian 0.03": (BLUE, "--", "Gaussian, σ = 0.03"),
    "relu_pe": (GREEN, "-", "ReLU-PE, L = 8"),
    "relu": (BLACK, "-", "ReLU"),
}
METHODS = {
    "lbfgs": (VERMILLION, "L-BFGS"),
    "adam": (BLUE, "Adam, best by entropy"),
    "adam by IoU": (GREEN, "Adam, best by IoU"),
    "adam 1e-4": (SKY, "Adam, 1e-4"),
}
PRINTED = (3000.0, 3000.0)
LIGHT = "white"


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    if "skipped" in rows:
        rows = rows[rows["skipped"].isna()]
    parts = [rows[rows["part"] == part] for part in ("sound", "grid", "solid")]
    with styled():
        figure = Figure(figsize=(7.1, 7.2), layout="constrained")
        blocks = figure.subfigures(3, 1, height_ratios=[1.25, 1, 1.1])
        for block, part, fill in zip(blocks, parts, (_sounds, _grids, _solids), strict=True):
            if len(part):
                fill(block, part)
    return figure


def _panels(block: FigureBase, groups: dict[Any, pd.DataFrame]) -> list[Axes]:
    panels = block.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for panel, name in zip(panels, groups, strict=True):
        panel.set_title(str(name))
    return list(panels)


def _groups(rows: pd.DataFrame, name: str) -> dict[Any, pd.DataFrame]:
    return dict(list(rows.groupby(name, sort=False)))


def _sounds(block: FigureBase, rows: pd.DataFrame) -> None:
    groups = _groups(rows, "clip")
    panels = _panels(block, groups)
    for panel, group in zip(panels, groups.values(), strict=True):
        for field, (color, dashes, label) in LOOKS.items():
            curves = [row for row in group[group["field"] == field].to_dict("records")]
            _band(panel, curves, "step", "snr", color, dashes, label)
        panel.set_xlabel("iteration")
    panels[0].set_ylabel("SNR (dB)")
    block.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _band(
    axes: Axes,
    curves: list[dict[str, Any]],
    along: str,
    quantity: str,
    color: str,
    dashes: str,
    label: str,
) -> None:
    """Draw the median of some curves and their range."""
    curves = [row for row in curves if row[quantity]]
    if not curves:
        return
    length = min(len(row[quantity]) for row in curves)
    values = np.array([row[quantity][:length] for row in curves])
    places = np.median([row[along][:length] for row in curves], axis=0)
    axes.plot(places, np.median(values, axis=0), dashes, color=color, lw=1, label=label)
    axes.fill_between(places, values.min(axis=0), values.max(axis=0), color=color, alpha=0.12, lw=0)


def _grids(block: FigureBase, rows: pd.DataFrame) -> None:
    groups = _groups(rows, "clip")
    panels = _panels(block, groups)
    first, second = (sorted(set(rows[name])) for name in ("first", "second"))
    for panel, (clip, group) in zip(panels, groups.items(), strict=True):
        ends = group.assign(end=[row[-1] if row else np.nan for row in group["snr"]])
        table = ends.pivot_table(index="first", columns="second", values="end", aggfunc="median")
        values = table.reindex(index=first, columns=second).to_numpy()
        panel.imshow(values, cmap="cividis", aspect="auto", origin="lower")
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (i, j), value in np.ndenumerate(values):
            color = LIGHT if value < middle else BLACK
            panel.text(j, i, f"{value:.1f}", ha="center", va="center", color=color, fontsize=8)
        if PRINTED[0] in first and PRINTED[1] in second:
            corner = second.index(PRINTED[1]) - 0.5, first.index(PRINTED[0]) - 0.5
            frame = {"fill": False, "ec": VERMILLION, "lw": 2, "clip_on": False}
            panel.add_patch(Rectangle(corner, 1, 1, **frame))
        panel.set_xticks(range(len(second)), [f"{value:g}" for value in second])
        panel.set_yticks(range(len(first)), [f"{value:g}" for value in first])
        panel.set_xlabel("ω of the second layer")
        panel.set_title(f"{clip}: SNR (dB) after {group.iloc[0]['step'][-1]} iterations")
    panels[0].set_ylabel("ω of the first")


def _solids(block: FigureBase, rows: pd.DataFrame) -> None:
    groups = _groups(rows, "solid")
    panels = _panels(block, groups)
    for panel, group in zip(panels, groups.values(), strict=True):
        for method, (color, label) in METHODS.items():
            curves = group[group["method"] == method].to_dict("records")
            _band(panel, curves, "cpu", "iou", color, "-", label)
        panel.set_xlabel("seconds of one core")
    panels[0].set_ylabel("IoU")
    block.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
