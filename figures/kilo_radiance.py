"""A radiance field distilled into many small ones: views held out, against seconds."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from figures.kilo_fields import best_rate, draw_stack
from hessian_lab.plots.style import BLACK, BLUE, SKY, VERMILLION, styled

NAME = "kilo_radiance"
CAPTION = (
    "A trained Gaussian radiance field distilled into sine fields of 2×32, one for each cell of a "
    "6³ grid that is not empty. Left: how well the fields of a scene know their cells, median and "
    "quartiles over cells, against seconds of one core. Right: PSNR of views that were held out, "
    "one line per seed; dotted, the trained field itself. Chequered torus, and Spot by Keenan "
    "Crane (CC0), rendered by hessian-lab. After P1 Fig. 8 and Table 1."
)
COLOURS = (("lbfgs", VERMILLION), ("adam 1e-4", SKY))


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    rows = rows[rows["method"] != "none"]
    scenes = list(dict.fromkeys(rows["scene"]))
    with styled():
        figure = Figure(figsize=(7.1, 2.1 * len(scenes) + 0.4), layout="constrained")
        panels = figure.subplots(len(scenes), 2, squeeze=False)
        for (left, right), scene in zip(panels, scenes, strict=True):
            of_scene = rows[rows["scene"] == scene]
            first = of_scene[of_scene["seed"] == of_scene["seed"].min()]
            draw_stack(left, {row["method"]: row for row in first.to_dict("records")})
            left.set(title=scene, ylabel="PSNR of a cell (dB)")
            for _, group in of_scene.groupby("seed"):
                methods = {row["method"]: row for row in group.to_dict("records")}
                for name, colour in ((best_rate(methods), BLUE), *COLOURS):
                    row = methods[name]
                    right.plot(row["times"], row["held_out"], color=colour, lw=1)
                right.axhline(methods["lbfgs"]["teacher_psnr"], color=BLACK, lw=0.8, ls=":")
            right.set(title=scene, xlabel="seconds", ylabel="PSNR held out (dB)")
        figure.legend(
            *panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3
        )
    return figure
