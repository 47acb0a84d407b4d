"""The parts of the Hessian along a training and by layers, and how smooth the loss is."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, PercentFormatter

from hessian_lab.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    styled,
)

NAME = "hessian_terms"
CAPTION = (
    "The Hessian of 4×16 fields along L-BFGS on 50×50 photographs (camera, chelsea, astronaut from "
    "scikit-image; public domain or CC0), taken apart into Gauss–Newton matrix G, activation "
    "curvature (φ″) and cross-layer part. (a) ‖H−G‖_F / ‖H‖_F: medians and ranges over images and "
    "seeds, at 400 steps of camera alone. (b) The parts at the start and after 50 steps, in units "
    "of ‖H‖_F; as they may cancel, their squares need not sum to 1. (c) Norms of the "
    "blocks of two maps at the start, in units of ‖H‖_F: G below the diagonal and on it, "
    "H−G above it and, as the small square, on it. "
    "(d) What the Hessian misses of the gradient's change over ±εv, for random unit vectors v, "
    "camera 32×32, at the start. (e) How far H moves over εv. (f) The share missed at ε = 0.01 "
    "against the number of points, solid at the start and dashed after 50 steps. After P1 §4.1 "
    "and P1s §2.1.3."
)
FIELDS = {
    ("relu", None): ("ReLU", BLUE, "o"),
    ("relu_pe", 4): ("ReLU-PE, L=4", SKY, "s"),
    ("relu_pe", 8): ("ReLU-PE, L=8", GREEN, "D"),
    ("sine", 30): ("sine, ω=30", VERMILLION, "^"),
    ("gaussian", 0.1): ("Gaussian, σ=0.1", ORANGE, "v"),
    ("gaussian", 0.05): ("Gaussian, σ=0.05", PURPLE, "<"),
    ("tanh", None): ("tanh", BLACK, "x"),
}
OPTION = {"relu_pe": "octaves", "sine": "omega", "gaussian": "sigma"}
PARTS = {
    "ggn": ("G", BLUE),
    "activation": ("φ″", VERMILLION),
    "cross": ("cross-layer", YELLOW),
}
MAPPED = (("relu", None), ("relu_pe", 8), ("sine", 30), ("gaussian", 0.1))
LENGTHS = tuple(10.0**-power for power in range(1, 8))
# What less is drawn as, in the maps.
LEAST = 1e-3


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    parts = {str(name): part for name, part in rows.groupby("part")}
    terms = parts["terms"]
    terms = terms[(terms["loss"] == "mse") & (terms["width"] == terms["width"].min())]
    with styled():
        figure = Figure(figsize=(7.1, 7.2), layout="constrained")
        subfigures: Any = figure.subfigures(3, 1, height_ratios=[1.15, 0.95, 1.15])
        top, middle, bottom = subfigures
        left, right = top.subplots(1, 2, width_ratios=[1, 1.15])
        _along(left, terms)
        _sizes(right, terms)
        _maps(middle, terms)
        panels: list[Axes] = list(bottom.subplots(1, 3))
        smooth = parts["smooth"]
        _lengths(panels[0], smooth, "missed", "(d) missed by Hv")
        _lengths(panels[1], smooth, "moved", "(e) H moves by")
        _points(panels[2], parts["points"])
    return figure


def _of(rows: pd.DataFrame, act: str, value: float | None) -> pd.DataFrame:
    chosen = rows[rows["act"] == act]
    if value is None or not len(chosen):
        return chosen
    return chosen[chosen[OPTION[act]] == value]


def _along(axes: Axes, rows: pd.DataFrame) -> None:
    steps = sorted(set(rows["step"]))
    for number, ((act, value), (label, color, mark)) in enumerate(FIELDS.items()):
        chosen = _of(rows, act, value)
        if not len(chosen):
            continue
        group = chosen.groupby("step")["residual"]
        places = np.arange(len(steps)) + 0.07 * (number - 3)
        middle = group.median().reindex(steps)
        low, high = middle - group.min().reindex(steps), group.max().reindex(steps) - middle
        axes.errorbar(
            places,
            middle,
            [low, high],
            color=color,
            marker=mark,
            ms=3.5,
            elinewidth=0.6,
            label=label,
        )
    axes.set_yscale("log")
    axes.set_xticks(range(len(steps)), [f"{int(step)}" for step in steps])
    axes.set_xlabel("L-BFGS steps")
    axes.set_title("(a) ‖H − G‖ / ‖H‖")
    axes.set_ylim(min(axes.get_ylim()[0] / 100, 1e-4), None)
    axes.legend(loc="lower left", handlelength=1.2, labelspacing=0.2, fontsize=7, ncols=2)


def _sizes(axes: Axes, rows: pd.DataFrame) -> None:
    last = 50 if (rows["step"] == 50).any() else max(rows["step"])
    tallest = 1.0
    for number, (act, value) in enumerate(FIELDS):
        for count, step in enumerate((0, last)):
            group = _of(rows[rows["step"] == step], act, value)
            if not len(group):
                continue
            for place, (name, (label, color)) in enumerate(PARTS.items()):
                x = number + 0.42 * count + 0.13 * place - 0.3
                height = group[name].median()
                tallest = max(tallest, height)
                axes.bar(
                    x,
                    height,
                    0.12,
                    color=color,
                    alpha=1 if step == 0 else 0.55,
                    edgecolor="black",
                    linewidth=0.4,
                    label=label if number == count == 0 else None,
                )
    names = [label.replace(", ", "\n") for label, *_ in FIELDS.values()]
    axes.set_xticks(range(len(names)), names, fontsize=6.5)
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title(f"(b) parts of H: step 0, and {int(last)} (pale)")
    axes.legend(loc="upper left", handlelength=1, ncols=3, columnspacing=1)
    axes.set_ylim(0, 1.25 * tallest)


def _maps(figure: Any, rows: pd.DataFrame) -> None:
    panels = figure.subplots(1, len(MAPPED))
    start = rows[rows["step"] == 0]
    for panel, (act, value) in zip(panels, MAPPED, strict=True):
        group = _of(start, act, value)
        if not len(group):
            continue
        ggn, residual = (_table(group, names) for names in (("ggn",), ("activation", "cross")))
        size = len(ggn)
        shown = np.tril(ggn) + np.triu(residual.T, 1)
        norm = LogNorm(LEAST, 1)
        image = panel.imshow(np.maximum(shown, LEAST), norm=norm, cmap="viridis")
        panel.scatter(
            range(size),
            range(size),
            s=22,
            c=np.maximum(np.diag(residual), LEAST),
            norm=norm,
            cmap="viridis",
            marker="s",
            edgecolors="white",
            linewidths=0.5,
        )
        panel.set_xticks(range(size), range(1, size + 1))
        panel.set_yticks(range(size), range(1, size + 1))
        panel.spines[:].set_visible(False)
        panel.set_title(("(c) " if act == "relu" else "") + FIELDS[(act, value)][0])
        panel.set_xlabel("map")
    panels[0].set_ylabel("map")
    bar = figure.colorbar(image, ax=list(panels), shrink=0.85, pad=0.01)
    bar.ax.set_ylabel("share of ‖H‖")


def _table(rows: pd.DataFrame, names: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the median over runs of the norms of blocks; parts that stand together add up."""
    squares = [
        np.sum([np.square(entry[name]) for name in names], axis=0) for entry in rows["pairs"]
    ]
    flat = np.sqrt(np.median(squares, axis=0))
    size = int((np.sqrt(8 * len(flat) + 1) - 1) / 2)
    table = np.zeros((size, size))
    table[np.tril_indices(size)] = flat
    return table


def _lengths(axes: Axes, rows: pd.DataFrame, name: str, title: str) -> None:
    rows = rows[(rows["step"] == 0) & (rows["direction"] == "random")]
    for (act, value), (_, color, mark) in FIELDS.items():
        group = _of(rows, act, value)
        if not len(group):
            continue
        values = np.median(np.array(group[name].tolist(), dtype=float), axis=0)
        axes.plot(LENGTHS, values, color=color, marker=mark, ms=3.5)
    axes.set(xscale="log", yscale="log", xlabel="ε", title=title)
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(LogLocator(numticks=4))


def _points(axes: Axes, rows: pd.DataFrame) -> None:
    sizes = sorted(set(rows["size"]))
    for (act, value), (_, color, mark) in FIELDS.items():
        for step, style in zip(sorted(set(rows["step"])), ("-", "--"), strict=False):
            group = _of(rows[rows["step"] == step], act, value)
            if not len(group):
                continue
            missed = [
                np.median([entry[0] for entry in group[group["size"] == size]["missed"]])
                for size in sizes
            ]
            points = [size**2 for size in sizes]
            axes.plot(points, missed, color=color, marker=mark, ms=3.5, ls=style)
    axes.set(xscale="log", yscale="log", xlabel="points", title="(f) missed at ε = 0.01")
    axes.xaxis.set_major_locator(FixedLocator([float(size**2) for size in sizes]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value**0.5)}²"))
