"""Fields of videos: PSNR against steps of one for a clip, against seconds of one per box."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from figures.kilo_fields import draw_stack
from figures.optimizer_convergence import draw_curve
from hessian_lab.plots.style import BLUE, SKY, VERMILLION, styled

NAME = "video_fields"
CAPTION = (
    "PSNR of sine fields on videos. Left: one 4×64 field for the clip, L-BFGS, Adam at "
    "its best rate (chosen on another seed) and at 1e-4, median and range over seeds. Right: a "
    "3×64 field for each of 16 boxes of the clip, trained together, median and quartiles over "
    "boxes. kenburns: a camera moved over Chelsea the cat by Stefan van der Walt (CC0, from "
    "scikit-image); Big Buck Bunny, © Blender Foundation, CC BY 3.0. After P1s Fig. 7 and §4.5."
)
LOOKS = {
    "lbfgs": (VERMILLION, "L-BFGS"),
    "adam": (BLUE, "Adam, best rate"),
    "adam 1e-4": (SKY, "Adam, 1e-4"),
}
TITLES = {"kenburns": "kenburns", "bigbuckbunny": "Big Buck Bunny"}


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    videos = list(dict.fromkeys(rows["image"]))
    with styled():
        figure = Figure(figsize=(7.1, 1.9 * len(videos) + 0.6), layout="constrained")
        grid = figure.subplots(len(videos), 2, squeeze=False)
        for panels, video in zip(grid, videos, strict=True):
            chosen = rows[rows["image"] == video]
            whole, boxes = (chosen[chosen["part"] == part] for part in ("clip", "boxes"))
            for method, (color, label) in LOOKS.items():
                draw_curve(panels[0], whole[whole["method"] == method], "step", color, label)
            draw_stack(panels[1], {row["method"]: row for row in boxes.to_dict("records")})
            panels[0].set_title(f"{TITLES.get(video, video)}, one field")
            panels[1].set_title("a field per box")
            panels[0].set_ylabel("PSNR (dB)")
        for panel, label in zip(grid[-1], ("step", "seconds of one core"), strict=True):
            panel.set_xlabel(label)
        for row in grid[:-1]:
            row[1].set_xlabel("")
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
