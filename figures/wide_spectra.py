"""Eigenvalues of 4×64 fields before and after a training."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.activation_spectra import TITLES, draw_histogram
from hessian_lab.plots.style import styled

NAME = "wide_spectra"
CAPTION = (
    "Eigenvalues of the full-batch Hessian of 4×64 fields before and after 50 steps of L-BFGS on "
    "a 50×50 photograph (camera from scikit-image, public domain), pooled: shares per half decade "
    "below max|λ|; zero is what lies at or below the rounding floor n·eps·max|λ|. After P1s Fig. 2."
)


def draw(record: dict[str, Any]) -> Figure:
    """Return the figure of a record, at the width of two columns."""
    rows = pd.DataFrame(record["rows"])
    acts = list(dict.fromkeys(rows["act"]))
    with styled():
        figure = Figure(figsize=(7.1, 2.3), layout="constrained")
        panels = figure.subplots(1, len(acts), squeeze=False, sharey=True)[0]
        for place, (panel, act) in enumerate(zip(panels, acts, strict=True)):
            chosen = rows[rows["act"] == act]
            draw_histogram(panel, chosen, legend=place == 0)
            panel.set_title(TITLES[act])
        panels[0].set_ylabel("share of eigenvalues")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        figure.supxlabel("log₁₀ |λ| / max|λ|", fontsize=9)
    return figure
