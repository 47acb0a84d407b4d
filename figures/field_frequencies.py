"""Which frequencies are fitted, how smooth the fit is, and what ω, σ and initialisation do."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from hessian_lab.plots.style import BLUE, CYCLE, ORANGE, styled

NAME = "field_frequencies"
CAPTION = (
    "Fields of 4×64 on 50×50 pixels of camera (scikit-image, CC0). Share of "
    "the image's energy still missing after training with Adam, by band of spatial frequency; "
    "correlation of the fitted field's gradient norm and Laplacian with those of the image after "
    "L-BFGS; mean frequency of fields at initialisation against ω and σ; PSNR by initialisation. "
    "Medians, ranges over seeds. After P1 Fig. 3."
)
BANDS = ("≤ ⅛", "≤ ¼", "≤ ½", "≤ 1")
INITS = ("siren", "kaiming", "xavier_normal")


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    with styled():
        figure = Figure(figsize=(7.1, 5.0), layout="constrained")
        (bands, smooth), (drawn, begun) = figure.subplots(2, 2)
        _bands(bands, rows[rows["kind"] == "bands"])
        _smooth(smooth, rows[rows["kind"] == "derivatives"])
        _drawn(drawn, rows[rows["kind"] == "drawn"])
        _begun(begun, rows[rows["kind"] == "init"])
    return figure


def _bands(axes: Axes, rows: pd.DataFrame) -> None:
    for act, color in zip(dict.fromkeys(rows["act"]), CYCLE, strict=False):
        left = np.array(rows[rows["act"] == act]["left"].tolist())
        middle = np.median(left, axis=0)
        axes.plot(range(len(middle)), middle, "o-", ms=3, color=color, label=act)
        axes.fill_between(
            range(len(middle)), left.min(axis=0), left.max(axis=0), color=color, alpha=0.12, lw=0
        )
    axes.set_xticks(range(len(BANDS)), BANDS)
    axes.set_xlabel("frequency / the grid's highest")
    axes.set_ylabel("energy missing")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(0, None)
    axes.legend(fontsize=7)


def _smooth(axes: Axes, rows: pd.DataFrame) -> None:
    acts = list(dict.fromkeys(rows["act"]))
    for shift, name, color, label in (
        (-0.18, "gradient_correlation", BLUE, "gradient norm"),
        (0.18, "laplacian_correlation", ORANGE, "Laplacian"),
    ):
        groups = [rows[rows["act"] == act][name] for act in acts]
        middle = np.array([group.median() for group in groups])
        ends = np.array([[group.min(), group.max()] for group in groups]).T
        error = np.abs(ends - middle)
        places = np.arange(len(acts)) + shift
        axes.bar(places, middle, 0.34, yerr=error, color=color, label=label, ecolor="0.3")
    axes.set_xticks(range(len(acts)), acts)
    axes.set_ylabel("correlation with the image's")
    axes.axhline(0, color="black", lw=0.6)
    axes.legend(fontsize=7)


def _drawn(axes: Axes, rows: pd.DataFrame) -> None:
    for act, name, symbol, color in (
        ("sine", "omega", "ω / 188.5", BLUE),
        ("gaussian", "sigma", "0.05 / σ", ORANGE),
    ):
        group = rows[rows["act"] == act].sort_values(name)
        scale = group[name] / 188.5 if act == "sine" else 0.05 / group[name]
        values = np.array(group["frequency"].tolist())
        axes.plot(
            scale, np.median(values, axis=1), "o", ms=3, color=color, label=f"{act}: {symbol}"
        )
        axes.vlines(scale, values.min(axis=1), values.max(axis=1), color=color, lw=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("relative frequency parameter")
    axes.set_ylabel("mean frequency at the start")
    axes.legend(fontsize=7)


def _begun(axes: Axes, rows: pd.DataFrame) -> None:
    for shift, act, color in ((-0.12, "sine", BLUE), (0.12, "gaussian", ORANGE)):
        for place, init in enumerate(INITS):
            group = rows[(rows["act"] == act) & (rows["init"] == init)]["psnr"]
            axes.plot(
                [place + shift] * len(group),
                group,
                ".",
                color=color,
                label=act if place == 0 else None,
            )
    axes.set_xticks(range(len(INITS)), INITS)
    axes.set_ylabel("PSNR (dB)")
    axes.legend(fontsize=7)
