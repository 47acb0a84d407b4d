"""Where Hessian–vector products are zero: along the training, by octaves, as a matrix.

Run it with ``python -m figures``.
"""

import base64
import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hessian_lab.plots.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, styled

NAME = "hvp_sparsity"
CAPTION = (
    "Zeros of H v for Rademacher v; fields of five linear maps, 256 wide, on 256×256 RGB pixels of "
    "Chelsea the cat (Stefan van der Walt, CC0, from scikit-image), batches of 512. Above: share "
    "of entries that are exactly 0 (median and range over seeds), by ESGD and by Adam at the "
    "papers' rates, and by octaves. Below: the penultimate layer's H v, zeros white, by ESGD; and "
    "small ReLU fields at the start, range and quartiles over seeds. After P2 Figs 3 and 7 and "
    "P3 Fig. 4."
)
# Okabe & Ito (2008), beside the three of the style.
LOOKS = {
    "ReLU": (VERMILLION, "o"),
    "PE, L=4": (ORANGE, "s"),
    "PE, L=8": (BLUE, "^"),
    "sine": (GREEN, "v"),
    "gaussian": (PURPLE, "D"),
    "wavelet": (SKY, "P"),
}


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    paths = rows[rows["kind"] == "path"].copy()
    paths["field"] = [_label(each) for each in paths.to_dict("records")]
    with styled():
        figure = Figure(figsize=(7.1, 4.6), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1.15, 1])
        left, middle, right = top.subplots(1, 3)
        length = paths["steps"].mode().iloc[0]
        for axes, name in ((left, "esgd"), (middle, "adam")):
            chosen = paths[(paths["optimizer"] == name) & (paths["steps"] == length)]
            _draw_shares(axes, chosen, {"esgd": "ESGD", "adam": "Adam"}[name])
        left.set_ylabel("entries of H v that are 0")
        _draw_octaves(right, paths)
        handles, labels = left.get_legend_handles_labels()
        top.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        parts = bottom.subplots(1, 5, width_ratios=[1, 1, 1, 1, 2.3])
        _draw_patterns(parts[:4], paths)
        _draw_small(parts[4], rows[rows["kind"] == "small"])
    return figure


def _label(row: dict[Any, Any]) -> str:
    if row["act"] != "relu_pe":
        return {"relu": "ReLU"}.get(row["act"], row["act"])
    return f"PE, L={int(row['octaves'])}"


def _draw_shares(axes: Axes, paths: pd.DataFrame, title: str) -> None:
    for name, (colour, mark) in LOOKS.items():
        by_step = paths[paths["field"] == name].groupby("step")["zero"]
        if not len(by_step):
            continue
        middle = by_step.median()
        steps = middle.index.to_numpy()
        axes.plot(steps, middle, marker=mark, ms=3.5, color=colour, label=name, clip_on=False)
        axes.fill_between(steps, by_step.min(), by_step.max(), color=colour, alpha=0.25, lw=0)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    _in_percent(axes)


def _draw_octaves(axes: Axes, paths: pd.DataFrame) -> None:
    encoded = paths[(paths["act"] == "relu_pe") & (paths["optimizer"] == "esgd")]
    end = encoded.groupby(["octaves", "seed"])["step"].max().min()
    for step, colour, mark in ((0, "black", "o"), (int(end), BLUE, "^")):
        shares = encoded[encoded["step"] == step].groupby("octaves")["zero"]
        middle = shares.median()
        axes.plot(middle.index, middle, marker=mark, ms=3.5, color=colour, label=f"step {step}")
        places = middle.index.to_numpy()
        axes.fill_between(places, shares.min(), shares.max(), color=colour, alpha=0.2, lw=0)
    axes.set_title("ESGD, by octaves")
    axes.set_xlabel("octaves L of the encoding")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best")
    _in_percent(axes)


def _in_percent(axes: Axes) -> None:
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_patterns(panels: Any, paths: pd.DataFrame) -> None:
    for axes in panels:
        axes.set_axis_off()
    if "pattern" not in paths:
        return
    kept = paths[paths["pattern"].notna()].sort_values(["act", "step"], ascending=[False, True])
    for axes, row in zip(panels, kept.to_dict("records"), strict=False):
        bits, when = unpacked(row["pattern"]), f"step {int(row['step'])}"
        axes.set_axis_on()
        axes.imshow(bits, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for side in ("top", "right"):
            axes.spines[side].set_visible(True)
        axes.set_title(f"{row['field']}\n{when}\n{1 - bits.mean():.0%} zero", fontsize=8)


def unpacked(text: str) -> Any:
    """Return the square matrix of bits that a record holds as text."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8))
    side = math.isqrt(len(bits))
    return bits[: side * side].reshape(side, side)


def _draw_small(axes: Axes, small: pd.DataFrame) -> None:
    names = []
    for place, row in enumerate(small.to_dict("records")):
        low, first, middle, third, high = row["quantiles"]
        axes.plot([low, high], [place] * 2, color=BLUE, lw=1, clip_on=False)
        axes.plot([first, third], [place] * 2, color=BLUE, lw=4, solid_capstyle="butt")
        axes.plot(middle, place, "|", color="black", ms=7, clip_on=False)
        encoded = f", L={int(row['octaves'])}" if row["octaves"] else ""
        more = ", b > 0" if row["positive"] else ""
        names.append(f"{int(row['depth'])}×{int(row['width'])}{encoded}{more}")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    seeds = int(small["seeds"].iloc[0]) if len(small) else 0
    axes.set_title(f"small ReLU fields at\nthe start, {seeds} seeds", fontsize=8)
    axes.set_xlabel("entries that are 0")
