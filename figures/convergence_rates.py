"""Iterations per decade of the error, and what line searches do."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessian_lab.plots.style import CYCLE, styled

NAME = "convergence_rates"
CAPTION = (
    "Iterations per window of decades, median over seeds (no mark where most runs did not get "
    "there). Left: two decades of the error on a strongly convex function, condition number 100: "
    "level is linear convergence, falling is superlinear; a window passed in one leap is drawn at "
    "½. Right: four decades of the loss of 1-D "
    "fields that can interpolate their 20 points, L-BFGS. After P1 §3.2 and Thms 4.3–4.5."
)
CONVEX = ("gradient descent", "lbfgs m=5", "lbfgs m=10", "lbfgs m=100", "bfgs", "newton")
WINDOWS = ("1e-1 … 1e-3", "1e-3 … 1e-5", "1e-5 … 1e-7")
LOSSES = ("1e-4 … 1e-8", "… 1e-12", "… 1e-16", "… 1e-20")


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    with styled():
        figure = Figure(figsize=(7.1, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        convex = rows[rows["kind"] == "convex"]
        for method, color in zip(CONVEX, CYCLE, strict=False):
            _line(left, convex[convex["method"] == method], {"color": color}, method)
        fields = rows[rows["kind"] == "field"]
        for act, color in zip(dict.fromkeys(fields["act"]), CYCLE, strict=False):
            for history, style in zip(sorted(set(fields["history"])), ("--", "-"), strict=False):
                chosen = fields[(fields["act"] == act) & (fields["history"] == history)]
                _line(right, chosen, {"color": color, "ls": style}, f"{act}, m={history:g}")
        left.set_xticks(range(len(WINDOWS)), WINDOWS)
        right.set_xticks(range(len(LOSSES)), LOSSES)
        left.set_xlabel("error")
        right.set_xlabel("loss")
        left.set_ylabel("iterations")
        for axes in (left, right):
            axes.set_yscale("log")
            axes.set_ylim(0.35, 20 * axes.get_ylim()[1])
            axes.legend(fontsize=7, ncols=2, loc="upper left")
    return figure


def _line(axes: Axes, rows: pd.DataFrame, look: dict[str, str], label: str) -> None:
    medians = []
    for column in zip(*rows["counts"], strict=True):
        reached = [each for each in column if each is not None]
        medians.append(np.median(reached) if 2 * len(reached) > len(column) else np.nan)
    if np.isfinite(medians).any():
        axes.plot(
            range(len(medians)), np.maximum(medians, 0.5), marker="o", ms=3, label=label, **look
        )
