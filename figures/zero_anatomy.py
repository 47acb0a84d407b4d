"""What the zero eigenvalues are made of: dead units, pairs never active together, units alike."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from hessian_lab.plots.style import BLUE, GREEN, ORANGE, SKY, VERMILLION, styled

NAME = "zero_anatomy"
CAPTION = (
    "Zeros of the Hessian of ReLU fields on 50×50 photographs (camera, chelsea, astronaut from "
    "scikit-image; public domain or CC0). (a) What the eigenvalues at or below the rounding floor "
    "n·eps·max|λ| of 4×16 fields are made of: rows of units that are dead on every point, rows of "
    "weights between units that are never active together, and the null spaces of single layers, "
    "which units have that are active on the same points; means over images and seeds, dots single "
    "runs. (b) Share of initialisations in which a layer has a dead unit, by layer and width. "
    "(c) Smooth 4×16 fields at the start and after 50 steps: the least over the hidden units of "
    "the largest |φ′| that a unit takes on the points, and of the norm of its rows of the Hessian, "
    "each relative to the largest over the units; a mark per run. After P1s §2.1.3."
)
FIELDS = (("relu", None), ("relu_pe", 4), ("relu_pe", 8))
TITLES = ("ReLU", "ReLU-PE, L=4", "ReLU-PE, L=8")
REASONS = (
    ("dead", "dead unit", BLUE),
    ("apart", "never active together", ORANGE),
    ("alike", "null space of a layer", GREEN),
    ("left", "unexplained", "0.6"),
)
# Of smooth fields: the column, its label, how far beside the tick, colour and mark.
LEAST = (
    ("least_slope", "max |φ′| over points", -0.16, BLUE, "o"),
    ("least_row", "norm of the unit's rows", 0.16, VERMILLION, "s"),
)
# What is less is drawn at.
LOWEST = -30.0


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    parts = {str(name): part for name, part in rows.groupby("part")}
    with styled():
        figure = Figure(figsize=(7.1, 4.9), layout="constrained")
        subfigures: Any = figure.subfigures(2, 1)
        top, bottom = subfigures
        left, right = top.subplots(1, 2, width_ratios=[1.35, 1])
        _reasons(left, parts["zeros"])
        _bells(right, parts["bells"])
        panels = bottom.subplots(1, 3, sharey=True)
        for panel, (act, octaves), title in zip(panels, FIELDS, TITLES, strict=True):
            _units(panel, _of(parts["units"], act, octaves))
            panel.set_title(f"(b) {title}" if act == "relu" else title)
        panels[0].set_ylabel("some unit dead")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels[-1].legend(title="width", loc="upper left", handlelength=1.2, title_fontsize=8)
    return figure


def _of(rows: pd.DataFrame, act: str, octaves: int | None) -> pd.DataFrame:
    chosen = rows[rows["act"] == act]
    return chosen if octaves is None else chosen[chosen["octaves"] == octaves]


def _reasons(axes: Axes, rows: pd.DataFrame) -> None:
    steps = sorted(set(rows["step"]))
    steps = [step for step in steps if (rows["step"] == step).sum() >= (rows["step"] == 0).sum()]
    places: list[float] = []
    labels: list[str] = []
    for number, (act, octaves) in enumerate(FIELDS):
        for count, step in enumerate(steps):
            group = _of(rows[rows["step"] == step], act, octaves)
            place = number * (len(steps) + 0.7) + count
            _bar(axes, place, group, legend=not places)
            places.append(place)
            labels.append(f"{int(step)}")
    axes.set_xticks(places, labels)
    for number, title in enumerate(TITLES):
        center = number * (len(steps) + 0.7) + (len(steps) - 1) / 2
        axes.annotate(
            title,
            (center, 0),
            xytext=(0, -15),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
        )
    axes.set_xlabel("L-BFGS steps", labelpad=13)
    axes.set_ylabel("share of eigenvalues")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="upper right", handlelength=1)
    axes.set_title("(a) zeros by cause, 4×16")


def _bar(axes: Axes, place: float, rows: pd.DataFrame, *, legend: bool) -> None:
    size = rows["num_parameters"]
    shares = {
        "dead": rows["dead"] / size,
        "apart": (rows["apart"] + rows["cut"]) / size,
        "alike": rows["alike"] / size,
        "left": (rows["others"] - rows["alike"] + rows["unforeseen"]) / size,
    }
    below = 0.0
    for name, label, color in REASONS:
        height = float(shares[name].mean())
        axes.bar(place, height, 0.75, below, color=color, label=label if legend else None)
        below += height
    jitter = np.linspace(-0.25, 0.25, len(rows))
    total = (rows["structural"] + rows["others"]) / size
    axes.plot(place + jitter, total, ".", ms=3, color="black", mec="none")


def _units(axes: Axes, rows: pd.DataFrame) -> None:
    colors = (BLUE, SKY, GREEN, ORANGE, VERMILLION)
    marks = "osD^v"
    chosen = rows.sort_values("width")
    for (_, row), color, mark in zip(chosen.iterrows(), colors, marks, strict=False):
        layers = np.arange(1, len(row["any_dead"]) + 1)
        axes.plot(layers, row["any_dead"], color=color, marker=mark, ms=4, label=row["width"])
    axes.axhline(0.5, color="black", lw=0.6, ls=":")
    axes.set_ylim(-0.04, 1.04)
    axes.set_xticks(range(1, 5))
    axes.set_xlabel("hidden layer")


def _bells(axes: Axes, rows: pd.DataFrame) -> None:
    gaussian = rows[rows["act"] == "gaussian"]
    sigmas = sorted(set(gaussian["sigma"]))
    groups = [(f"{sigma:g}", gaussian[gaussian["sigma"] == sigma]) for sigma in sigmas]
    groups.append(("sine", rows[rows["act"] == "sine"]))
    for place, (_, group) in enumerate(groups):
        for name, label, shift, color, mark in LEAST:
            values = np.maximum(group[name], LOWEST)
            jitter = np.linspace(-0.1, 0.1, len(group))
            axes.plot(
                place + shift + jitter,
                values,
                mark,
                ms=3.5,
                color=color,
                mec="none",
                label=label if place == 0 else None,
            )
    axes.set_xticks(range(len(groups)), [name for name, _ in groups])
    axes.set_yticks([0, -10, -20, LOWEST], ["1", "1e−10", "1e−20", "≤1e−30"])
    axes.set_xlabel("σ of Gaussian fields, and sine ω=30")
    axes.legend(loc="lower right", handlelength=0.8, markerscale=1.3)
    axes.set_title("(c) least over units, relative")
