"""All eigenvalues along a training, by activation: how large, of which sign, how many zero."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from hessian_lab.plots.style import BLUE, ORANGE, VERMILLION, styled

NAME = "activation_spectra"
CAPTION = (
    "Eigenvalues of the full-batch Hessian along 50 steps of L-BFGS on 50×50 photographs (camera, "
    "chelsea, astronaut from scikit-image; public domain or CC0), pooled over iterates, images and "
    "seeds. Above: shares per half decade below max|λ| for 4×16 fields; zero is what lies at or "
    "below the rounding floor n·eps·max|λ|. Below: the share of zeros of every run against what is "
    "varied; dotted lines are the printed numbers. After P1 Fig. 2 and P1s Figs 1–4."
)
FIELDS = (("relu", None), ("relu_pe", 8), ("sine", 30.0), ("gaussian", 0.05))
TITLES = {
    "relu": "ReLU",
    "relu_pe": "ReLU-PE, L=8",
    "sine": "sine, ω=30",
    "gaussian": "Gaussian, σ=0.05",
}
OPTION = {"relu_pe": "octaves", "sine": "omega", "gaussian": "sigma"}
PRINTED = {"relu": (0.28, 0.45), "relu_pe": (0.28, 0.45)}
LOWEST = -14.0


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    begun = rows["init"] if "init" in rows else pd.Series(index=rows.index, dtype=object)
    small = rows[(rows["depth"] == 4) & (rows["width"] == 16) & begun.isna()]
    with styled():
        figure = Figure(figsize=(7.1, 4.6), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1.1, 1])
        axes = top.subplots(1, 4, sharey=True)
        for place, (panel, (act, value)) in enumerate(zip(axes, FIELDS, strict=True)):
            chosen = _chosen(small, act, value)
            draw_histogram(panel, chosen, legend=place == 0)
            panel.set_title(TITLES[act])
        axes[0].set_ylabel("share of eigenvalues")
        top.supxlabel("log₁₀ |λ| / max|λ|", fontsize=9)
        panels = bottom.subplots(1, 4, sharey=True)
        _by_group(panels[0], small, "relu", None, "4×16")
        _by_group(panels[1], small, "relu_pe", "octaves", "octaves L")
        _by_group(panels[2], small, "sine", "omega", "ω")
        _by_group(panels[3], small, "gaussian", "sigma", "σ")
        panels[0].set_ylabel("zero")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def _chosen(rows: pd.DataFrame, act: str, value: float | None) -> pd.DataFrame:
    chosen = rows[rows["act"] == act]
    return chosen if value is None else chosen[chosen[OPTION[act]] == value]


def draw_histogram(axes: Axes, rows: pd.DataFrame, *, legend: bool) -> None:
    """Draw the mean shares of rows by half decades below max|λ|, and of zeros at the left."""
    if not len(rows):
        return
    shares = np.mean(np.array(rows["histogram"].tolist()), axis=0)
    bins = shares.shape[1]
    edges = np.linspace(-bins / 2, 0, bins + 1)
    centers, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    axes.bar(centers, shares[0], width, color=BLUE, label="positive")
    axes.bar(centers, shares[1], width, bottom=shares[0], color=VERMILLION, label="negative")
    axes.bar([LOWEST - 1], [rows["zero"].mean()], 1, color="0.6", label="zero")
    axes.set_xlim(LOWEST - 2, 0.2)
    axes.set_xticks([LOWEST - 1, -12, -8, -4, 0], ["0", "−12", "−8", "−4", "0"])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if legend:
        axes.legend(loc="upper right", handlelength=1)


def _by_group(axes: Axes, rows: pd.DataFrame, act: str, option: str | None, label: str) -> None:
    chosen = rows[rows["act"] == act]
    values = [None] if option is None else sorted(set(chosen[option]))
    spread = np.random.default_rng(0)
    for place, value in enumerate(values):
        group = chosen if value is None else chosen[chosen[option] == value]
        x = place + spread.uniform(-0.18, 0.18, len(group))
        axes.plot(x, group["zero"], ".", ms=4, color=ORANGE, mec="none")
        axes.plot(place, group["zero"].median(), "_", ms=12, mew=1.5, color=BLUE)
    for printed in PRINTED.get(act, (0.0,)):
        axes.axhline(printed, color="black", lw=0.6, ls=":")
    axes.set_xticks(
        range(len(values)), ["" if value is None else f"{value:g}" for value in values], fontsize=7
    )
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.set_ylim(-0.03, None)
    axes.set_xlabel(label)
    axes.set_title(TITLES[act].split(",")[0])
