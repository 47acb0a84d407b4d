"""One look for every picture: sizes, fonts, colours that colour-blind readers tell apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from hessian_lab.training.files import make_directory, write_atomically

# Okabe & Ito (2008).
BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"

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
    "savefig.dpi": 300,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the common look; the user's own settings come back afterwards."""
    with matplotlib.rc_context(STYLE):
        yield


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem.png`` and ``stem.pdf`` and return their paths."""
    make_directory(stem.parent)
    paths = [stem.with_name(stem.name + ending) for ending in (".png", ".pdf")]
    with styled():
        for path in paths:
            write_atomically(path, partial(figure.savefig, format=path.suffix[1:]))
    return paths
