"""One network for an image, or one for each of its tiles: L-BFGS beside Adam."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hessian_lab.plots.style import BLUE, VERMILLION, styled

NAME = "patches"
CAPTION = (
    "Sine fields on 96×96 pixels of retina, coffee and chelsea (scikit-image, CC0): PSNR of the "
    "whole picture against seconds of one core, by L-BFGS and by Adam at its best rate, one line "
    "per seed. Left one network of 4×64 for the image, right one of 2×16 for each of its 36 tiles. "
    "After P1 §5.2."
)


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    images = list(dict.fromkeys(rows["image"]))
    with styled():
        figure = Figure(figsize=(7.1, 1.7 * len(images) + 0.5), layout="constrained")
        panels = figure.subplots(len(images), 2, squeeze=False)
        for pair, image in zip(panels, images, strict=True):
            for axes, cut in zip(pair, ("whole", "tiles"), strict=True):
                some = rows[(rows["image"] == image) & (rows["cut"] == cut)]
                for _, group in some.groupby("seed"):
                    methods = {row["method"]: row for row in group.to_dict("records")}
                    adams = [row for name, row in methods.items() if name.startswith("adam")]
                    best = max(adams, key=lambda row: _end(row["psnr"][0]))
                    for row, colour, label in (
                        (methods["lbfgs"], VERMILLION, "L-BFGS"),
                        (best, BLUE, "Adam, best rate"),
                    ):
                        curve = row["psnr"][0]
                        seconds = np.linspace(0, row["wall"], len(curve))
                        axes.plot(seconds, curve, color=colour, lw=1, label=label)
                first = some.iloc[0]
                axes.set_title(f"{image}: {int(first['fields'])} × {first['shape']}")
            pair[0].set_ylabel("PSNR (dB)")
        for axes in panels[-1]:
            axes.set_xlabel("seconds")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles[:2], labels[:2], loc="outside lower center", ncols=2)
    return figure


def _end(curve: list[float]) -> float:
    return -np.inf if np.isnan(curve[-1]) else curve[-1]
