"""All eigenvalues of a curvature matrix at every checkpoint of a run."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from hessian_lab.measures.checkpoints import (
    Checkpoint,
    along,
    along_training,
    loss_failure,
    nan_if_none,
    told,
)
from hessian_lab.measures.planning import num_parameters, require_dense
from hessian_lab.measures.record import can_read_back, mark, suffix
from hessian_lab.measures.scaled import preconditioned_matrix, reordered
from hessian_lab.names import known
from hessian_lab.optim.preconditioner import Preconditioner
from hessian_lab.probe.hessian import dense_ggn, dense_hessian, fill_matrix
from hessian_lab.probe.kept_graph import KeptGradient, KeptOutputs, trainable
from hessian_lab.probe.linearized import MATRICES, Matrix
from hessian_lab.probe.memory import require_bytes, undivided
from hessian_lab.probe.parameters import Layout, selected_names
from hessian_lab.probe.ranks import ALONE, Ranks
from hessian_lab.probe.scratch import temporary
from hessian_lab.probe.sharding import shared_hessian
from hessian_lab.probe.spectrum import LADDER, SCALARS, TILE, Spectrum, pooled, spectrum
from hessian_lab.signal import Signal
from hessian_lab.training.files import finite, write_atomically, write_json
from hessian_lab.training.run import Run

VALUES, TABLE, RECORD = "eigenvalues", "spectrum", "eigs"
# A product with the dense Hessian and one by double backward agree to this many roundings of ‖H‖.
PRODUCT_ROUNDINGS = 1e4


@dataclass(frozen=True, eq=False)
class Measured:
    """The spectrum at one checkpoint, with its two checks.

    Attributes:
        step: The optimizer step.
        loss: The loss of the whole signal there, as recorded in training.
        psnr: Likewise, in dB; NaN where it is not defined.
        spectrum: All eigenvalues.
        product_error: ‖H v - (H v by double backward)‖ / ‖H‖_F for a random unit vector v.
        loss_error: The difference between the loss recorded and computed again, relative to the
            loss, or to what rounding of values of the signal's size makes of it where that is more.
        layers: The spectra of the layers' diagonal blocks, by name, where they were asked for.
    """

    step: int
    loss: float
    psnr: float
    spectrum: Spectrum
    product_error: float
    loss_error: float
    layers: dict[str, Spectrum] = field(default_factory=dict)

    @property
    def row(self) -> np.ndarray:  # type: ignore[type-arg]
        """All eigenvalues [n], and after them those of each layer."""
        parts = (self.spectrum, *self.layers.values())
        return np.concatenate([part.values.numpy() for part in parts])

    def to_json(self) -> dict[str, Any]:
        """Return every scalar, as ``--json`` prints it."""
        entries: dict[str, Any] = {"step": self.step, "loss": self.loss, "psnr": self.psnr}
        entries |= scalars(self.spectrum)
        entries |= {"product_error": self.product_error, "loss_error": self.loss_error}
        if self.layers:
            entries["layers"] = {
                name: {"num_parameters": len(one.values), **scalars(one)}
                for name, one in self.layers.items()
            }
        return entries


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """The spectra of a run; its files lie in the run directory.

    Attributes:
        run: What was measured.
        measured: One entry per checkpoint.
        matrix: Of which matrix: ``hessian`` or ``ggn``.
        preconditioned: Whether of ``P^{-1/2} A P^{-1/2}`` with the optimizer's ``P``.
    """

    run: Run
    measured: list[Measured]
    matrix: Matrix = "hessian"
    preconditioned: bool = False

    @property
    def spectra(self) -> list[Spectrum]:
        """One spectrum per checkpoint."""
        return [one.spectrum for one in self.measured]

    @property
    def failures(self) -> list[str]:
        """What does not hold of the results, in a sentence each; empty when all is well."""
        failures = []
        for one in self.measured:
            if not math.isfinite(one.spectrum.spectral_radius):
                failures.append(f"step {one.step}: the matrix is not finite")
            elif not one.product_error <= PRODUCT_ROUNDINGS * torch.finfo(torch.float64).eps:
                failures.append(
                    f"step {one.step}: a product differs from double backward by "
                    f"{one.product_error:.1e} of the norm"
                )
            changed = loss_failure(self.run, one.step, one.loss_error)
            failures += [changed] if changed else []
        return failures

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``eigs --json`` prints."""
        return {
            "command": "eigs",
            "run": str(self.run.path),
            "setup": self.run.setup.to_json(),
            "num_parameters": self.run.num_parameters,
            "method": "dense",
            "matrix": self.matrix,
            "preconditioned": self.preconditioned,
            "spectra": told(self.run, self.measured),
            "pooled": pooled(self.spectra),
        }


def rung_name(rung: float) -> str:
    """Return the key of a rung of the ladder: ``1e-03``."""
    return f"{rung:.0e}"


def scalars(one: Spectrum) -> dict[str, Any]:
    """Return every number that is told of a spectrum."""
    shares = one.shares_below
    entries = {name: getattr(one, name) for name in SCALARS}
    return entries | {"shares_below": {rung_name(rung): shares[rung] for rung in LADDER}}


def measure_eigenvalues(
    run: Run,
    *,
    every: int = 1,
    matrix: Matrix = "hessian",
    layers: bool = False,
    preconditioned: bool = False,
    watch: Callable[[Measured], None] | None = None,
    ranks: Ranks = ALONE,
    split: str = "checkpoints",
    scratch: Path | None = None,
) -> Eigenvalues:
    """Measure the whole Hessian spectrum at every ``every``-th checkpoint, and at the last.

    In double precision, whatever the training's. Writes ``eigenvalues.npy`` [checkpoints, n],
    ``spectrum.csv`` and ``eigs.json`` beside the trajectory, also half-way: they hold all that was
    measured of this run so far, and none of it is measured again. About ``p n² + 4/3 n³``
    operations per checkpoint. With another matrix or with layers, the names of the files say so
    (``eigs-ggn.json``), and ``eigenvalues-layers.npy`` holds those of the blocks, layer by layer.

    Args:
        run: The trajectory.
        every: Checkpoints from one measured to the next.
        matrix: ``hessian``, or ``ggn`` for the Gauss–Newton matrix.
        layers: Whether to measure the layers' diagonal blocks too.
        preconditioned: Measure ``P^{-1/2} A P^{-1/2}``, with the ``P`` that the optimizer of the
            run has at that checkpoint; the run is trained once more for it. Checkpoints before the
            optimizer has one are left out. Its rounding floor is measured: by the matrix of the
            same points in another order.
        watch: Called with every checkpoint when it is done.
        ranks: The processes that call this together; the first writes, and returns the spectra.
        split: What they divide: ``checkpoints``; or ``columns``, where all assemble each matrix for
            the first, which computes its eigenvalues.
        scratch: A directory for the matrix where it and its eigenvalue problem do not fit in memory
            together; without effect on ``preconditioned`` and among ranks that divide columns.

    Raises:
        ValueError: For an unknown matrix.
        ResourceError: If the matrix does not fit, before it is allocated.
        UsageError: If another process is writing the run, or its optimizer has no preconditioner.
        InputError: If a run cannot be trained again here, as ``preconditioned`` asks.
    """
    known("matrix", matrix, MATRICES)
    files = _Files(run, matrix, layers=layers, preconditioned=preconditioned)

    if preconditioned:

        def measure_scaled(one: Checkpoint, preconditioner: Preconditioner) -> Measured:
            return _measure(files, one, preconditioner)

        measured = along_training(
            run, measure_scaled, every=every, store=files, watch=watch, ranks=ranks
        )
        return Eigenvalues(run, measured, matrix, preconditioned)

    def measure(one: Checkpoint) -> Measured | None:
        if split == "checkpoints":
            return _measure(files, one, None, scratch)
        model, signal = one.model.double(), one.signal.to(dtype=torch.float64)
        whole = shared_hessian(model, run.loss, signal, ranks=ranks, matrix=matrix)
        if whole is None:
            return None
        with undivided():
            return _measured(files, one, model, signal, whole)

    measured = along(
        run,
        measure,
        every=every,
        store=files,
        watch=watch,
        ranks=ranks,
        dealt=split == "checkpoints",
    )
    return Eigenvalues(run, measured, matrix, preconditioned)


@dataclass(frozen=True)
class _Files:
    """What is measured of a run, and where it is written."""

    run: Run
    matrix: Matrix
    layers: bool
    preconditioned: bool = False

    def path(self, name: str, ending: str) -> Path:
        kind = suffix(matrix=self.matrix, layers=self.layers, preconditioned=self.preconditioned)
        return self.run.path / f"{name}{kind}{ending}"

    def known(self) -> list[Measured]:
        if not can_read_back(self.run):
            return []
        try:
            record = json.loads(self.path(RECORD, ".json").read_text())
            values = np.load(self.path(VALUES, ".npy"))
            if any(record[name] != value for name, value in mark(self.run).items()):
                return []
            pairs = zip(record["spectra"], values, strict=False)
            size = self.run.num_parameters
            found = [from_json(entries, row, size) for entries, row in pairs]
            return [one for one in found if one is not None]
        except (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError):
            return []

    def save(self, results: list[Measured]) -> None:
        values = np.stack([one.row for one in results])
        whole = Eigenvalues(self.run, results, self.matrix, self.preconditioned)
        record = whole.to_json() | mark(self.run)
        # The values first: a record never speaks of rows that are not there.
        write_atomically(self.path(VALUES, ".npy"), lambda stream: np.save(stream, values))
        write_json(self.path(RECORD, ".json"), record)
        _write_table(self.path(TABLE, ".csv"), results)


def _measure(
    files: _Files,
    one: Checkpoint,
    preconditioner: Preconditioner | None,
    scratch: Path | None = None,
) -> Measured:
    model, signal = one.model.double(), one.signal.to(dtype=torch.float64)
    if scratch is not None and require_dense(model, signal.num_points, scratch):
        return _measured(files, one, model, signal, _in_file(files, model, signal, scratch))
    dense = dense_ggn if files.matrix == "ggn" else dense_hessian
    matrix = dense(model, files.run.loss, signal)
    if preconditioner is None or not bool(matrix.isfinite().all()):
        return _measured(files, one, model, signal, matrix)
    error = _product_error(files, model, signal, matrix, one.step)
    again = dense(model, files.run.loss, reordered(signal))
    scaled, rounding = preconditioned_matrix(preconditioner, matrix, again)
    return _spectra(files, one, model, scaled, error, rounding)


def _in_file(files: _Files, model: nn.Module, signal: Signal, scratch: Path) -> Tensor:
    """Return the matrix in a file that goes with it."""
    size = num_parameters(model)
    what = f"The dense Hessian of {size} parameters"
    out = temporary((size, size), dtype=torch.float64, directory=scratch, what=what)
    fill_matrix(out, model, files.run.loss, signal, matrix=files.matrix)
    return out


def _measured(
    files: _Files, one: Checkpoint, model: nn.Module, signal: Signal, matrix: Tensor
) -> Measured:
    """Return what the matrix itself says."""
    error = _product_error(files, model, signal, matrix, one.step)
    return _spectra(files, one, model, matrix, error)


def _spectra(
    files: _Files,
    one: Checkpoint,
    model: nn.Module,
    matrix: Tensor,
    error: float,
    rounding: float = 0.0,
) -> Measured:
    places = _places(model) if files.layers else {}
    return Measured(
        step=one.step,
        loss=one.loss,
        psnr=one.psnr,
        product_error=error,
        loss_error=one.loss_error,
        layers={
            name: _spectrum(_block(matrix, name, index), rounding) for name, index in places.items()
        },
        spectrum=_spectrum(matrix, rounding),
    )


def _block(matrix: Tensor, name: str, index: Tensor) -> Tensor:
    """Return a copy of a layer's block, in memory."""
    require_bytes(
        len(index) ** 2 * matrix.itemsize,
        f"The block of layer {name}",
        device=matrix.device,
        cure="Measure without --layers.",
    )
    return matrix[index.unsqueeze(1), index]


def _product_error(
    files: _Files, model: nn.Module, signal: Signal, matrix: Tensor, step: int
) -> float:
    """Return ‖A v - (A v by a kept graph)‖ / ‖A‖_F for a random unit vector v."""
    generator = torch.Generator().manual_seed(step)
    vector = torch.randn(len(matrix), dtype=torch.float64, generator=generator).to(matrix.device)
    vector /= torch.linalg.vector_norm(vector)
    loss, parameters = files.run.loss, trainable(model)
    kept: KeptGradient | KeptOutputs
    if files.matrix == "ggn":
        kept = KeptOutputs(
            model(signal.coords), lambda outputs: loss(outputs, signal.values), parameters
        )
    else:
        kept = KeptGradient(loss(model(signal.coords), signal.values), parameters)
    product = kept.products(vector.unsqueeze(0)).squeeze(0)
    gap = torch.linalg.vector_norm(matrix @ vector - product)
    norm = torch.linalg.matrix_norm(matrix)
    return float(gap / norm) if norm else float(gap)


def _places(model: nn.Module) -> dict[str, Tensor]:
    """Return the rows of each layer's block, by name."""
    layers = Layout(model, selected_names(model, None)).layers()
    return {
        name: torch.cat([torch.arange(place.start, place.stop) for place in places])
        for name, places in layers.items()
    }


def _spectrum(hessian: Tensor, rounding: float = 0.0) -> Spectrum:
    """Return all eigenvalues, or NaN for each where the Hessian is not finite."""
    # Not of the whole at once: that takes more than another matrix.
    if torch.stack([rows.isfinite().all() for rows in hessian.split(TILE)]).all():
        return spectrum(hessian, rounding=rounding)
    return Spectrum(torch.full((len(hessian),), math.nan, dtype=torch.float64))


def from_json(
    entries: dict[str, Any],
    row: np.ndarray,  # type: ignore[type-arg]
    size: int,
) -> Measured | None:
    """Return one checkpoint; the row holds its eigenvalues, then those of each layer.

    None where the row is not the record's: a process was killed between the two files.
    """
    ends = [nan_if_none(entries[name]) for name in ("lambda_min", "lambda_max")]
    if not np.array_equal(row[[0, size - 1]], ends, equal_nan=True):
        return None
    layers, start = {}, size
    for name, part in entries.get("layers", {}).items():
        stop = start + part["num_parameters"]
        layers[name] = _from_scalars(row[start:stop], part)
        start = stop
    return Measured(
        step=entries["step"],
        loss=nan_if_none(entries["loss"]),
        psnr=nan_if_none(entries["psnr"]),
        spectrum=_from_scalars(row[:size], entries),
        product_error=nan_if_none(entries["product_error"]),
        loss_error=nan_if_none(entries["loss_error"]),
        layers=layers,
    )


def _from_scalars(values: np.ndarray, entries: dict[str, Any]) -> Spectrum:  # type: ignore[type-arg]
    """Return a spectrum from its eigenvalues and from what is told of it."""
    plain = Spectrum(torch.from_numpy(values), entries["structural_zeros"])
    tolerance = nan_if_none(entries["tolerance"])
    return plain if not tolerance > plain.tolerance else replace(plain, rounding=tolerance)


def _write_table(path: Path, measured: list[Measured]) -> None:
    rows = []
    for one in measured:
        entries = finite(one.to_json())
        layers = entries.pop("layers", {})
        rows.append(_table_row(entries) | ({"layer": ""} if layers else {}))
        for name, part in layers.items():
            rows.append(_table_row(part) | {"step": one.step, "layer": name})
    buffer = io.StringIO()
    pd.DataFrame(rows).to_csv(buffer, index=False)
    write_atomically(path, lambda stream: stream.write(buffer.getvalue().encode()))


def _table_row(entries: dict[str, Any]) -> dict[str, Any]:
    shares = entries.pop("shares_below")
    return entries | {f"share_below_{name}": share for name, share in shares.items()}
