"""Times of others over ours with the targets, and how our times grow."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from hessian_lab.plots.style import BLACK, BLUE, CYCLE, styled

NAME = "benchmarks"
CAPTION = (
    "Left: others' seconds over ours for the same work in the same run, checked before it was "
    "timed (median and range over rounds; bars are targets; crosses at the left are wrong answers, "
    "errors, or not installed). "
    "Right: our seconds, and the exponents fitted to them with 95 % intervals, beside those of "
    "theory."
)
# Other ways to the same answer, in the order of their colours.
LIBRARIES = (
    "curvlinops",
    "kept double backward",
    "hessian-eigenthings",
    "PyHessian",
    "BackPACK",
    "torch.func.hessian",
    "torch.optim.LBFGS",
    "pytorch_optimizer",
)
TITLES = {
    "dense-n": "dense Hessian",
    "dense-points": "dense Hessian",
    "product-n": "product",
    "product-points": "product",
    "density-probes": "density",
    "ranks": "density by torchrun",
}


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    with styled():
        figure = Figure(figsize=(7.1, 5.4), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=[1.5, 1])
        _draw_ratios(left.subplots(), record["rows"])
        handles, labels = left.axes[0].get_legend_handles_labels()
        left.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7)
        curves = [curve for curve in record["curves"] if "skipped" not in curve]
        axes = right.subplots(-(-max(1, len(curves)) // 2), 2, squeeze=False).flatten()
        for place, panel in enumerate(axes):
            if place < len(curves):
                _draw_curve(panel, curves[place])
            else:
                panel.set_axis_off()
    return figure


def _draw_ratios(axes: Axes, rows: list[dict[str, Any]]) -> None:
    colors = dict(zip(LIBRARIES, CYCLE, strict=True))
    for place, row in enumerate(rows):
        fastest: dict[str, dict[str, Any]] = {}
        for each in row["others"]:
            known = fastest.get(each["library"], {})
            if each.get("ratio", np.inf) <= known.get("ratio", np.inf):
                fastest[each["library"]] = each
        shifts = np.linspace(-0.3, 0.3, len(fastest)) if len(fastest) > 1 else [0.0]
        for shift, (name, each) in zip(shifts, fastest.items(), strict=True):
            color, height = colors[name], place + shift
            if "ratio" not in each:
                edge = axes.get_yaxis_transform()
                axes.plot(0.02, height, "x", ms=3.5, color=color, transform=edge)
                continue
            axes.plot([each["low"], each["high"]], [height] * 2, color=color, lw=1)
            axes.plot(each["ratio"], height, "o", ms=3.5, color=color)
        for target in row["targets"]:
            if target["sign"] == "≥":
                axes.plot([target["bound"]] * 2, [place - 0.42, place + 0.42], color=BLACK, lw=1.5)
    for name, color in colors.items():
        axes.plot([], [], "o", ms=3.5, color=color, label=name)
    axes.axvline(1, color="black", lw=0.6)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("times as long as ours")


def _draw_curve(axes: Axes, curve: dict[str, Any]) -> None:
    places, seconds = np.array(curve["places"], float), np.array(curve["seconds"], float)
    axes.plot(places, seconds, "o", ms=3, color=BLUE)
    middle = np.exp([np.log(places).mean(), np.log(seconds).mean()])
    for exponent, style, color in (
        (curve["exponent"], "-", BLUE),
        (curve["theory"], ":", "black"),
    ):
        axes.plot(places, middle[1] * (places / middle[0]) ** exponent, style, color=color, lw=1)
    margin = "" if curve["margin"] is None else f" ± {curve['margin']:.2f}"
    title = f"{TITLES[curve['name']]}\n{curve['exponent']:.2f}{margin} ({curve['theory']:g})"
    axes.set_title(title, fontsize=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=6)
    axes.set_xlabel(curve["variable"], fontsize=7)
