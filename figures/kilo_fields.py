"""The fields of an image's tiles: PSNR against seconds, and how long each tile takes."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from hessian_lab.plots.style import BLUE, ORANGE, SKY, VERMILLION, styled

NAME = "kilo_fields"
CAPTION = (
    "A sine field for each of 64 tiles, trained together, on retina, coffee and chelsea "
    "(scikit-image, CC0). Above: PSNR against seconds of the whole stack, median and quartiles "
    "over tiles, L-BFGS, Adam at its best rate and at 1e-4. Below: the last PSNR of each tile "
    "under L-BFGS against its contrast. After P1 Fig. 6 and P1s Figs 9–13."
)


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    rows = rows[rows["width"] == rows["width"].max()]
    images = list(dict.fromkeys(rows["image"]))
    with styled():
        figure = Figure(figsize=(7.1, 4.6), layout="constrained")
        panels = figure.subplots(2, len(images), squeeze=False, sharey="row")
        for above, below, image in zip(*panels, images, strict=True):
            methods = {
                row["method"]: row for row in rows[rows["image"] == image].to_dict("records")
            }
            draw_stack(above, methods)
            _content(below, methods["lbfgs"])
            above.set_title(image)
        panels[0][0].set_ylabel("PSNR (dB)")
        panels[1][0].set_ylabel("last PSNR (dB)")
        figure.legend(
            *panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3
        )
    return figure


def draw_stack(axes: Axes, methods: dict[str, dict[str, Any]]) -> None:
    """Draw PSNR against seconds of the stack, median and quartiles over its fields."""
    for name, color, label in (
        ("lbfgs", VERMILLION, "L-BFGS"),
        (best_rate(methods), BLUE, "Adam, best rate"),
        ("adam 1e-4", SKY, "Adam, 1e-4"),
    ):
        row = methods[name]
        curves = np.asarray(row["psnr"], dtype=float)
        seconds = np.linspace(0, row["wall"], curves.shape[1])
        low, middle, high = np.quantile(curves, [0.25, 0.5, 0.75], axis=0)
        axes.plot(seconds, middle, color=color, label=label)
        axes.fill_between(seconds, low, high, color=color, alpha=0.15, lw=0)
    axes.set_xlabel("seconds")


def best_rate(methods: dict[str, dict[str, Any]]) -> str:
    """Return Adam's name at the rate with the best median over fields at the end."""
    adams = [name for name in methods if name.startswith("adam")]
    return max(adams, key=lambda name: np.median([tile[-1] for tile in methods[name]["psnr"]]))


def _content(axes: Axes, row: dict[str, Any]) -> None:
    ends = [tile[-1] for tile in row["psnr"]]
    axes.plot(row["content"], ends, ".", ms=4, color=ORANGE, mec="none")
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("contrast (std)")
