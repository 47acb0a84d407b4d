"""Tables for people, and objects for machines."""

import argparse
import json
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from hessian_lab.measures.eigenvalues import Eigenvalues, Measured
from hessian_lab.names import plural
from hessian_lab.probe.spectrum import Spectrum, pooled
from hessian_lab.training.files import finite
from hessian_lab.training.run import COLUMNS, Run

NAMES = {"hessian": "the Hessian", "ggn": "the Gauss–Newton matrix"}
BAR_WIDTH = 40
# Decades of the text histogram, counted down from max|λ|.
NUM_DECADES = 14

logger = logging.getLogger(__name__)


class Checked(Protocol):
    """What a command has measured, with its checks."""

    @property
    def failures(self) -> list[str]:
        """What does not hold, in a sentence each."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""


def tell(
    args: argparse.Namespace, result: Checked, table: Callable[[], str], **more: object
) -> int:
    """Print a result as one object or as a table, log what failed, and return the exit status.

    Args:
        args: The command line.
        result: What was measured.
        table: Makes the table.
        more: What the object holds beside ``result.to_json()``.
    """
    if args.json:
        entries = finite(result.to_json() | more)
        print(json.dumps(entries, ensure_ascii=False, allow_nan=False))
    else:
        print(table())
    for failure in result.failures:
        logger.error("check failed: %s", failure)
    return 3 if result.failures else 0


def train_json(run: Run) -> dict[str, Any]:
    """Return the object that ``train --json`` prints."""
    last = {name: run.metrics[name].iloc[-1].item() for name in COLUMNS}
    result: dict[str, Any] = finite(
        {
            "command": "train",
            "run": str(run.path),
            "setup": run.setup.to_json(),
            "num_parameters": run.num_parameters,
            "num_checkpoints": len(run.steps),
            "final": last,
        }
    )
    return result


class Fit:
    """The column of a table that says how well a run fits its signal.

    The PSNR; the SNR of a signal for which no PSNR is defined, as of sounds; nothing where there is
    neither, as of solids.

    Attributes:
        unit: ``PSNR dB``, ``SNR dB``, or nothing.
        head: Of the column, after a space.
    """

    def __init__(self, run: Run, *, width: int = 7) -> None:
        known = [name for name in ("psnr", "snr") if run.metrics[name].notna().any()]
        self.unit = f"{known[0].upper()} dB" if known else ""
        self.head = f" {self.unit:>{width}}" if known else ""
        self._width = width
        self._values = run.metrics.set_index("step")[known[0]].to_dict() if known else {}

    def at(self, step: int) -> str:
        """Return the number at a checkpoint, after a space."""
        return f" {decibels(self._values[step]):>{self._width}}" if self.unit else ""

    def told(self, step: int) -> str:
        """Return the number at a checkpoint, after a comma and the name."""
        name, _, unit = self.unit.partition(" ")
        return f", {name} {decibels(self._values[step])} {unit}" if name else ""


def train_table(run: Run, *, files: Sequence[str] = ()) -> str:
    """Return the first, middle and last checkpoint of a run, for people.

    Args:
        run: What was trained.
        files: What else was written, a line each.
    """
    fit = Fit(run, width=9)
    lines = [headline(run), "", f"{'step':>8} {'loss':>11}{fit.head} {'|grad|':>10} {'s':>8}"]
    for place in first_middle_last(len(run.steps)):
        row = run.metrics.iloc[place]
        step = int(row["step"])
        lines.append(
            f"{step:8d} {row['loss']:11.4e}{fit.at(step)} {row['grad_norm']:10.3e} "
            f"{row['wall_s']:8.2f}"
        )
    lines += ["", f"{plural(len(run.steps), 'checkpoint')} in {run.path}", *files]
    return "\n".join(lines)


def eigs_table(result: Eigenvalues, *, pictures: list[str]) -> str:
    """Return the spectra of a run, for people."""
    run, spectra = result.run, result.spectra
    resolved = [one for one in spectra if math.isfinite(one.spectral_radius)]
    if not resolved:
        return f"{headline(run)}\n\nno Hessian is finite"
    fit = Fit(run)
    name = matrix_name(run, result.matrix, preconditioned=result.preconditioned)
    lines = [
        headline(run),
        f"all eigenvalues of {name} at {plural(len(spectra), 'checkpoint')}",
        "exact (dense, float64)",
        "",
        f"{'step':>5} {'loss':>8}{fit.head} {'λmin':>8} {'λmax':>7} {'zero':>6} "
        f"{'struct.':>7} {'neg.':>6} {'min|λ|':>7} {'κ':>9}",
    ]
    for place in first_middle_last(len(spectra)):
        lines.append(_row(result.measured[place], fit))
    pool = pooled(spectra)
    floors = [one.tolerance for one in resolved]
    least = min(resolved, key=lambda one: one.smallest_magnitude)
    floor = " (measured)" if result.preconditioned else " n·eps·max|λ|"
    below = "" if least.smallest_magnitude_resolved else ", below its floor: not told from zero"
    if least.structural_zeros:
        below = ", exactly: rows of the Hessian are zero"
    lines += [
        "",
        f"pooled over training: {pool['numerical_zero_share']:.1%} zero "
        f"({pool['structural_zero_share']:.1%} structural), {pool['negative_share']:.1%} negative",
        f"smallest |λ|: {least.smallest_magnitude:.2g}{below}",
        f"rounding floor{floor}: {min(floors):.1e} … {max(floors):.1e}",
        "",
        *histogram(resolved),
        "",
        *_layer_lines(result.measured[-1]),
        f"results in {run.path}",
        *pictures,
    ]
    return "\n".join(lines)


def _layer_lines(last: Measured) -> list[str]:
    if not last.layers:
        return []
    width = max(len(name) for name in last.layers)
    lines = [
        f"layers at step {last.step}:",
        f"{'':>{width}} {'n':>6} {'λmin':>8} {'λmax':>7} {'zero':>6} {'struct.':>7} {'neg.':>6} "
        f"{'κ':>9}",
    ]
    for name, one in last.layers.items():
        size = len(one.values)
        bound = "" if one.condition_number_resolved else "≥ "
        lines.append(
            f"{name:>{width}} {size:6d} {one.lambda_min:8.1e} {one.lambda_max:7.1e} "
            f"{one.numerical_zeros / size:6.1%} {one.structural_zeros / size:7.1%} "
            f"{one.negative / size:6.1%} {f'{bound}{one.condition_number:.1e}':>9}"
        )
    return [*lines, ""]


def headline(run: Run) -> str:
    """Return one line on what was trained on what."""
    setup, data = run.setup, run.record["data"]
    name = run.record["module"] if run.record["own_module"] else setup.act
    shape = "" if run.record["own_module"] else f" {setup.depth}×{setup.width}"
    recipe = f" by {setup.recipe}" if setup.recipe else ""
    return (
        f"{name}{shape} ({run.num_parameters} parameters) on {data['name']} "
        f"({data['num_points']} points), {setup.optimizer}{recipe}, "
        f"{plural(run.steps[-1], 'step')}, seed {setup.seed}"
    )


def figure_title(run: Run, matrix: str, *, preconditioned: bool = False) -> str:
    """Return the headline of a figure, which names a matrix that is not the Hessian."""
    name = "" if matrix == "hessian" else f"{NAMES[matrix].removeprefix('the ')}, "
    if preconditioned:
        symbol = "G" if matrix == "ggn" else "H"
        name = f"P^-1/2 {symbol} P^-1/2 with the P of {run.setup.optimizer}, "
    return name + headline(run)


def matrix_name(run: Run, matrix: str, *, preconditioned: bool = False) -> str:
    """Return what a table calls a matrix."""
    scaled = f", preconditioned by {run.setup.optimizer}" if preconditioned else ""
    return NAMES[matrix] + scaled


def first_middle_last(count: int) -> list[int]:
    """Return three places of a list, or fewer when it is short."""
    return sorted({0, count // 2, count - 1})


def histogram(spectra: Sequence[Spectrum]) -> list[str]:
    """Return the pooled magnitudes by decades below each spectrum's own max|λ|."""
    decades, zero, negative = [], [], []
    for one in spectra:
        magnitudes, top = one.magnitudes.numpy(), one.spectral_radius
        with np.errstate(divide="ignore", invalid="ignore"):
            decades.append(np.log10(magnitudes / top) if top else np.full(len(magnitudes), -np.inf))
        zero.append(magnitudes <= one.tolerance)
        negative.append(one.values.numpy() < 0)
    place, dead, minus = np.concatenate(decades), np.concatenate(zero), np.concatenate(negative)
    rows = []
    for decade in range(NUM_DECADES):
        inside = (place > -decade - 1) & ~dead & (place <= -decade)
        if decade == NUM_DECADES - 1:
            inside = (place <= -decade) & ~dead
        label = f"1e-{decade + 1:02d} … 1e-{decade:02d}"
        rows.append((label, float((inside & ~minus).mean()), float((inside & minus).mean())))
    while len(rows) > 1 and rows[-1][1] + rows[-1][2] == 0:
        rows.pop()
    widest = max(dead.mean(), *(plus + less for _, plus, less in rows))
    lines = ["|λ| / max|λ|, pooled   █ positive  ▒ negative  ░ zero"]
    lines += [_bar(label, [(plus, "█"), (less, "▒")], widest) for label, plus, less in rows]
    return [*lines, _bar("zero (≤ floor)", [(float(dead.mean()), "░")], widest)]


def _bar(label: str, parts: list[tuple[float, str]], widest: float) -> str:
    total = sum(share for share, _ in parts)
    bars = "".join(mark * round(BAR_WIDTH * share / widest) for share, mark in parts)
    return f"{label:>15} {total:6.1%} {bars}".rstrip()


def _row(one: Measured, fit: Fit) -> str:
    spectrum = one.spectrum
    size = len(spectrum.values)
    bound = "" if spectrum.condition_number_resolved else "≥ "
    smallest = f"{spectrum.smallest_magnitude:.1e}" if spectrum.smallest_magnitude else "0"
    kappa = f"{bound}{spectrum.condition_number:.1e}"
    return (
        f"{one.step:5d} {one.loss:8.2e}{fit.at(one.step)} {spectrum.lambda_min:8.1e} "
        f"{spectrum.lambda_max:7.1e} {spectrum.numerical_zeros / size:6.1%} "
        f"{spectrum.structural_zeros / size:7.1%} {spectrum.negative / size:6.1%} {smallest:>7} "
        f"{kappa:>9}"
    )


def decibels(value: float) -> str:
    """Return a PSNR or SNR for a table."""
    return "–" if math.isnan(value) else f"{value:.1f}"
