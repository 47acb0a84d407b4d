"""One look for every picture: sizes, fonts, colours that colour-blind readers tell apart."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from hessian_lab.training.files import make_directory, write_atomically

# Okabe & Ito (2008).
BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"
GREEN, PURPLE, SKY, YELLOW, BLACK = "#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#000000"
# In the order in which curves take them.
CYCLE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK, YELLOW)

# Of a headline: letters per inch at most, and the height of a line.
MOST_LETTERS = 20
LINE_INCHES = 0.16

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the common look; the user's own settings come back afterwards."""
    with matplotlib.rc_context(STYLE):
        yield


def set_title(figure: Figure, title: str | None) -> None:
    """Write a headline over a figure, in as many lines as it takes; the figure grows by them."""
    if not title:
        return
    headline = figure.suptitle("", fontsize=9, x=0.01, ha="left")
    for letters in range(int(MOST_LETTERS * figure.get_figwidth()), 1, -2):
        lines = textwrap.wrap(title, letters)
        headline.set_text("\n".join(lines))
        if headline.get_window_extent().x1 <= figure.bbox.x1:
            break
    figure.set_figheight(figure.get_figheight() + LINE_INCHES * (len(lines) - 1))


def save(
    figure: Figure, stem: Path, *, endings: Sequence[str] = (".png", ".pdf"), dpi: int = 300
) -> list[Path]:
    """Write a figure in some formats and return their paths.

    Args:
        figure: The figure.
        stem: Their paths without the ending.
        endings: Of the formats.
        dpi: Dots per inch of pixels.
    """
    make_directory(stem.parent)
    paths = [stem.with_name(stem.name + ending) for ending in endings]
    with styled():
        for path in paths:
            write_atomically(path, partial(figure.savefig, format=path.suffix[1:], dpi=dpi))
    return paths
