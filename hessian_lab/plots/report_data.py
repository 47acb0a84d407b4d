"""What a page tells of a run: plain data, gathered from its directory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from hessian_lab.plots.report_text import Cell
from hessian_lab.probe.conditioning import ConditionEnclosure
from hessian_lab.probe.conditions import Conditioning
from hessian_lab.probe.log_density import LogDensity
from hessian_lab.probe.spectrum import Spectrum

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Fit:
    """A signal and what a field makes of it.

    Attributes:
        step: The optimizer step of the field.
        target: Values of the signal [p, c].
        fitted: Those of the field [p, c].
        shape: Rows and columns of an image; None for a line.
        coords: Where the points of a line lie [p]; None for an image.
    """

    step: int
    target: Array
    fitted: Array
    shape: tuple[int, int] | None = None
    coords: Array | None = None


@dataclass(frozen=True, eq=False)
class Measurement:
    """What every measurement along a run has.

    Attributes:
        title: What was measured, as a heading.
        origin: How, and in which file it is.
        steps: The optimizer steps of the checkpoints.
        losses: Of the whole signal, NaN where unknown.
        psnrs: Likewise, in dB.
    """

    title: str
    origin: str
    steps: Sequence[int]
    losses: Sequence[float]
    psnrs: Sequence[float]


@dataclass(frozen=True, eq=False)
class Spectra(Measurement):
    """All eigenvalues at every checkpoint.

    Attributes:
        spectra: Of the checkpoints.
        layers: Of the blocks of the last one's layers, by name.
        plain: Whether of the Hessian itself: of no other matrix, not preconditioned.
    """

    spectra: Sequence[Spectrum] = ()
    layers: Mapping[str, Spectrum] = field(default_factory=dict)
    plain: bool = True


@dataclass(frozen=True, eq=False)
class Estimates(Measurement):
    """What products tell of the eigenvalues.

    Attributes:
        extremes: The smallest and the largest eigenvalue.
        densities: Over log10|λ|; None each where only extremes were measured.
        kappas: Lower bounds of κ.
        traces: Means and standard errors; NaN where they were not measured.
        floors: Of rounding.
        plain: Whether of the Hessian itself.
    """

    extremes: Sequence[tuple[float, float]] = ()
    densities: Sequence[LogDensity | None] = ()
    kappas: Sequence[float] = ()
    traces: Sequence[tuple[float, float]] = ()
    floors: Sequence[float] = ()
    plain: bool = True


@dataclass(frozen=True, eq=False)
class Traces(Measurement):
    """The trace: means, standard errors, and the ends of the intervals of a level."""

    means: Sequence[float] = ()
    errors: Sequence[float] = ()
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()
    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Conditions(Measurement):
    """Condition numbers by the name of the scaling, one entry per checkpoint.

    Attributes:
        scaled: What double precision tells.
        exact: What is proven, where it is; None at other checkpoints.
    """

    scaled: Mapping[str, Sequence[Conditioning]] = field(default_factory=dict)
    exact: Mapping[str, Sequence[ConditionEnclosure | None]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Zeros(Measurement):
    """Shares of zeros of products along a run, and a table of the parts of the last checkpoint.

    Attributes:
        curves: By what is counted; 0 to 1.
        head: Of the table.
        parts: Its rows.
        told: Its caption.
    """

    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    head: Sequence[str] = ()
    parts: Sequence[tuple[str, Sequence[Cell]]] = ()
    told: str = ""


@dataclass(frozen=True, eq=False)
class RunPart:
    """One run on a page.

    Attributes:
        title: The field and its signal, in a few words.
        headline: In one line.
        path: Where the run is, as it was typed.
        status: done, running, interrupted or diverged.
        told: What is to be said of the status; empty when all is well.
        num_parameters: ``n``.
        num_points: Of the signal.
        metrics: One row per checkpoint: step, loss, psnr, grad_norm, evaluations, wall_s.
        fit: The reconstruction, or a sentence why there is none.
        measurements: In the order in which they are shown.
        settings: Names and values.
        provenance: Likewise.
        data: Likewise, of the signal: attribution, licence, digest.
        notes: What does not hold of the results, or could not be read.
        missing: What was not measured, and the command that measures it.
    """

    title: str
    headline: str
    path: str
    status: str
    told: str
    num_parameters: int
    num_points: int
    metrics: pd.DataFrame
    fit: Fit | str
    measurements: Sequence[Measurement]
    settings: Sequence[tuple[str, str]]
    provenance: Sequence[tuple[str, str]]
    data: Sequence[tuple[str, str]]
    notes: Sequence[str] = ()
    missing: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Detail:
    """How much a page shows of long measurements and large signals.

    Attributes:
        side: Pixels of an image, per side at most.
        frames: Checkpoints of a slider.
        points: Of a curve.
    """

    side: int = 256
    frames: int = 60
    points: int = 400

    def half(self) -> "Detail":
        """Return half as much of everything."""
        return Detail(self.side // 2, self.frames // 2, self.points // 2)


def chosen(total: int, most: int) -> list[int]:
    """Return the places of at most ``most`` of ``total`` entries, evenly, the ends included."""
    if total <= most:
        return list(range(total))
    return sorted({round(place) for place in np.linspace(0, total - 1, most)})


def first_middle_last(total: int) -> list[int]:
    """Return three places of a list, or fewer when it is short."""
    return sorted({0, total // 2, total - 1})
