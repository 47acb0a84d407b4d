"""What each preconditioner of Adam's ablation reaches, with and without momentum."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessian_lab.plots.style import BLUE, VERMILLION, styled

NAME = "adam_ablation"
CAPTION = (
    "PSNR after 400 batches of 512 by preconditioner, each at its best rate (chosen on another "
    "seed): 4×64 fields on 64×64 pixels of chelsea (scikit-image, CC0). Moment is Adam's average "
    "of squared gradients; frozen, the same of the first 50 batches; ggn, the exact diagonal of "
    "the Gauss–Newton matrix to the power ½ or 1, averaged alike. Points are seeds, lines medians. "
    "On P3 §4.3."
)
TITLES = {"relu_pe": "ReLU-PE, L=8", "sine": "sine, ω=30", "gaussian": "Gaussian, σ=0.1"}
LABELS = {"none": "none (SGD)", "moment": "moment (Adam)", "frozen moment": "moment, frozen"}


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    acts = list(dict.fromkeys(rows["act"]))
    with styled():
        figure = Figure(figsize=(7.1, 2.8), layout="constrained")
        panels = figure.subplots(1, len(acts), squeeze=False, sharey=True)[0]
        for panel, act in zip(panels, acts, strict=True):
            _panel(panel, rows[rows["act"] == act])
            panel.set_title(TITLES[act])
            panel.set_xlabel("PSNR (dB)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame) -> None:
    names = list(dict.fromkeys(rows["preconditioner"]))
    for shift, momentum, color, label in (
        (-0.17, True, VERMILLION, "momentum 0.9"),
        (0.17, False, BLUE, "no momentum"),
    ):
        chosen = rows[(rows["momentum"] > 0) == momentum]
        for place, name in enumerate(names):
            ends = chosen[chosen["preconditioner"] == name]["psnr"]
            heights = [place + shift] * len(ends)
            axes.plot(ends, heights, ".", ms=5, color=color, label="" if place else label)
            axes.plot(ends.median(), place + shift, "|", ms=9, mew=1.5, color=color)
    axes.set_yticks(range(len(names)), [LABELS.get(name, name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
