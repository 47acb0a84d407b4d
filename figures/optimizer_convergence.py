"""Curves of every optimizer at its best rate, full batch, against seconds."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from hessian_lab.plots.style import CYCLE, styled

NAME = "optimizer_convergence"
CAPTION = (
    "PSNR of L-BFGS, of Adam at its best rate (chosen on another seed) and at 1e-4, full batch, "
    "4×64 fields on 50×50 photographs (chelsea, camera from scikit-image), against seconds; median "
    "and range over images and seeds. After P1 Figs 1 and 3."
)
TITLES = {
    "sine": "sine, ω=30",
    "gaussian": "Gaussian, σ=0.05",
    "relu": "ReLU",
    "relu_pe": "ReLU-PE, L=8",
    "tanh": "tanh",
    "wavelet": "wavelet",
}


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    with styled():
        figure = Figure(figsize=(7.1, 3.0), layout="constrained")
        draw_curves(figure, rows, "wall")
    return figure


def draw_curves(
    block: FigureBase, rows: pd.DataFrame, name: str, colors: dict[str, str] | None = None
) -> list[Axes]:
    """Draw PSNR against ``wall`` or ``step``, a panel for each activation; return the panels."""
    acts, methods = list(dict.fromkeys(rows["act"])), list(dict.fromkeys(rows["method"]))
    looks = colors or dict(zip(methods, CYCLE, strict=False))
    panels = list(block.subplots(1, len(acts), squeeze=False, sharey=name == "step")[0])
    for panel, act in zip(panels, acts, strict=True):
        for method, color in looks.items():
            chosen = rows[(rows["act"] == act) & (rows["method"] == method)]
            draw_curve(panel, chosen, name, color, method)
        panel.set_title(TITLES[act])
        panel.set_xlabel("seconds" if name == "wall" else "step")
    panels[0].set_ylabel("PSNR (dB)")
    handles, labels = panels[0].get_legend_handles_labels()
    block.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels),
        handlelength=1.2,
        columnspacing=1.2,
    )
    return panels


def draw_curve(axes: Axes, rows: pd.DataFrame, name: str, color: str, label: str) -> None:
    """Draw PSNR against ``wall`` or ``step``, median and range over rows."""
    curves = [row for row in rows.to_dict("records") if row["psnr"]]
    if not curves:
        return
    length = min(len(row["psnr"]) for row in curves)
    values = np.array([row["psnr"][:length] for row in curves])
    places = np.median([row[name][:length] for row in curves], axis=0)
    axes.plot(places, np.median(values, axis=0), label=label, lw=1, color=color)
    axes.fill_between(places, values.min(axis=0), values.max(axis=0), color=color, alpha=0.12, lw=0)
