"""Time and memory of a step, and how they grow with the number of parameters."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from hessian_lab.plots.cost import draw_ratios
from hessian_lab.plots.style import BLUE, CYCLE, ORANGE, styled

NAME = "optimizer_cost"
CAPTION = (
    "What a step costs. Above: time (median of interleaved rounds) and peak memory over Adam's; "
    "ESGD, K-FAC and Shampoo at the papers' periods, L-BFGS with 100 pairs. Below: seconds of what "
    "is dense against the number of parameters, with their fitted exponents, and the share of the "
    "two-loop recursion in an iteration of L-BFGS. float32 above, float64 below, two cores. After "
    "P1 Figs 5 and 9 and P2 Fig. 5b–c."
)
DENSE = ("hessian", "eigenvalues", "inverse", "newton", "bfgs", "lbfgs")


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    steps = rows[rows["kind"] == "step"]
    problem = steps["problem_text"].iloc[0]
    with styled():
        figure = Figure(figsize=(7.1, 5.6), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1.25, 1])
        chosen = steps[steps["problem_text"] == problem]
        left, right = top.subplots(1, 2, sharey=True)
        names = chosen["optimizer"].tolist()
        for panel, column, color, label in (
            (left, "ratio", BLUE, "time per step / Adam's"),
            (right, "peak_ratio", ORANGE, "peak memory / Adam's"),
        ):
            draw_ratios(panel, names, chosen[column].astype(float).tolist(), color, label)
        top.suptitle(problem, fontsize=9, x=0.01, ha="left")
        grown, share = bottom.subplots(1, 2)
        _growth(grown, rows[rows["kind"] == "dense"])
        _share(share, rows[rows["kind"] == "pairs"])
    return figure


def _growth(axes: Axes, rows: pd.DataFrame) -> None:
    rows = rows.sort_values("num_parameters")
    sizes = rows["num_parameters"].to_numpy(dtype=float)
    for name, color in zip(DENSE, CYCLE, strict=False):
        times = rows[f"{name}_seconds"].to_numpy(dtype=float)
        half = max(3, len(sizes) // 2 + 1)
        slope = np.polyfit(np.log(sizes[-half:]), np.log(times[-half:]), 1)[0]
        axes.plot(sizes, times, "o-", ms=3, color=color, label=f"{name}  n^{slope:.1f}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("parameters n")
    axes.set_ylabel("seconds")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _share(axes: Axes, rows: pd.DataFrame) -> None:
    rows = rows.sort_values("num_parameters")
    axes.plot(rows["num_parameters"], rows["share"].astype(float), "o-", ms=3, color=BLUE)
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("parameters n")
    axes.set_ylabel("two-loop share")
