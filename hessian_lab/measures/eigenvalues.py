"""All eigenvalues of the Hessian at every checkpoint of a run."""

import io
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import hessian_lab
from hessian_lab.losses import Loss
from hessian_lab.probe.hessian import dense_hessian, require_hessian
from hessian_lab.probe.kept_graph import trainable
from hessian_lab.probe.memory import require_bytes
from hessian_lab.probe.spectrum import LADDER, SCALARS, Spectrum, pooled, spectrum
from hessian_lab.signal import Signal
from hessian_lab.training.files import finite, locked, write_atomically, write_json
from hessian_lab.training.run import Run

VALUES, TABLE, RECORD = "eigenvalues.npy", "spectrum.csv", "eigs.json"
# A product with the dense Hessian and one by double backward agree to this many roundings of ‖H‖.
PRODUCT_ROUNDINGS = 1e4
# The loss at a checkpoint, computed again, agrees to this many roundings with the one recorded.
LOSS_ROUNDINGS = 1e4
# Writing partial results may take this share of the time.
SAVING_SHARE = 0.05

logger = logging.getLogger(__name__)


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
    """

    step: int
    loss: float
    psnr: float
    spectrum: Spectrum
    product_error: float
    loss_error: float

    def to_json(self) -> dict[str, Any]:
        """Return every scalar, as ``--json`` prints it."""
        entries: dict[str, Any] = {"step": self.step, "loss": self.loss, "psnr": self.psnr}
        entries |= {name: getattr(self.spectrum, name) for name in SCALARS}
        shares = self.spectrum.shares_below
        entries["shares_below"] = {rung_name(rung): shares[rung] for rung in LADDER}
        return entries | {"product_error": self.product_error, "loss_error": self.loss_error}


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """The spectra of a run; its files lie in the run directory."""

    run: Run
    measured: list[Measured]

    @property
    def spectra(self) -> list[Spectrum]:
        """One spectrum per checkpoint."""
        return [one.spectrum for one in self.measured]

    @property
    def failures(self) -> list[str]:
        """What does not hold of the results, in a sentence each; empty when all is well."""
        failures = []
        eps = torch.finfo(getattr(torch, self.run.setup.dtype)).eps
        for one in self.measured:
            if not math.isfinite(one.spectrum.spectral_radius):
                failures.append(f"step {one.step}: the Hessian is not finite")
            elif not one.product_error <= PRODUCT_ROUNDINGS * torch.finfo(torch.float64).eps:
                failures.append(
                    f"step {one.step}: H v differs from double backward by "
                    f"{one.product_error:.1e} of ‖H‖"
                )
            if not one.loss_error <= LOSS_ROUNDINGS * eps:
                failures.append(
                    f"step {one.step}: the loss computed again differs by {one.loss_error:.1e}; "
                    "the model or the loss is not deterministic"
                )
        return failures

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``eigs --json`` prints."""
        return {
            "command": "eigs",
            "run": str(self.run.path),
            "setup": self.run.setup.to_json(),
            "num_parameters": self.run.num_parameters,
            "method": "dense",
            "spectra": [one.to_json() for one in self.measured],
            "pooled": pooled(self.spectra),
        }


def rung_name(rung: float) -> str:
    """Return the key of a rung of the ladder: ``1e-03``."""
    return f"{rung:.0e}"


def measure_eigenvalues(
    run: Run, *, every: int = 1, watch: Callable[[Measured], None] | None = None
) -> Eigenvalues:
    """Measure the whole Hessian spectrum at every ``every``-th checkpoint, and at the last.

    In double precision, whatever the training's. Writes ``eigenvalues.npy`` [checkpoints, n],
    ``spectrum.csv`` and ``eigs.json`` beside the trajectory, also half-way: they hold all that was
    measured of this run so far, and none of it is measured again. About ``p n² + 4/3 n³``
    operations per checkpoint.

    Raises:
        ResourceError: If the matrix does not fit, before it is allocated.
        UsageError: If another process is writing the run.
    """
    steps = selected(run.steps, every)
    signal = run.signal()
    metrics = run.metrics.set_index("step")
    with locked(run.path):
        known = {one.step: one for one in _read_back(run)}
        saver = _Saver(run)
        for step in steps:
            if step not in known:
                row = dict(metrics.loc[step])
                known[step] = _measure(run.model(step), run.loss, signal, step, row)
                saver.save_if_due(known)
            if watch is not None:
                watch(known[step])
        saver.save(known)
    return Eigenvalues(run, [known[step] for step in steps])


def selected(steps: list[int], every: int) -> list[int]:
    """Return every ``every``-th checkpoint, and the last."""
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}.")
    chosen = steps[::every]
    return chosen if chosen[-1] == steps[-1] else [*chosen, steps[-1]]


def require_spectrum(model: nn.Module, num_points: int) -> None:
    """Check that Hessian and eigenvalue problem of a model fit, before it is trained.

    Raises:
        ResourceError: If they do not.
    """
    parameters = trainable(model)
    size = sum(value.numel() for value in parameters)
    require_hessian(model, size, num_points, item_size=8)
    require_bytes(
        3 * 8 * size**2,
        f"The dense Hessian of {size} parameters and its copies for the eigenvalues",
        device=parameters[0].device,
        cure="Measure a smaller network (--width, --depth, --octaves).",
    )


def _measure(
    model: nn.Module, loss: Loss, signal: Signal, step: int, row: dict[str, float]
) -> Measured:
    with torch.no_grad():
        again = float(loss(model(signal.coords), signal.values))
    model, signal = model.double(), signal.to(dtype=torch.float64)
    hessian = dense_hessian(model, loss, signal)
    generator = torch.Generator().manual_seed(step)
    vector = torch.randn(len(hessian), dtype=torch.float64, generator=generator).to(hessian.device)
    vector /= torch.linalg.vector_norm(vector)
    gap = torch.linalg.vector_norm(hessian @ vector - _product(model, loss, signal, vector))
    norm = torch.linalg.matrix_norm(hessian)
    return Measured(
        step=step,
        loss=float(row["loss"]),
        psnr=float(row["psnr"]),
        spectrum=_spectrum(hessian),
        product_error=float(gap / norm) if norm else float(gap),
        loss_error=abs(again - row["loss"]) / _loss_scale(row["loss"], signal),
    )


def _spectrum(hessian: Tensor) -> Spectrum:
    """Return all eigenvalues, or NaN for each where the Hessian is not finite."""
    if hessian.isfinite().all():
        return spectrum(hessian)
    return Spectrum(torch.full((len(hessian),), math.nan, dtype=torch.float64))


def _loss_scale(loss: float, signal: Signal) -> float:
    """Return what a difference of losses is measured by: residuals are as exact as values are."""
    rms = float(signal.values.square().mean().sqrt())
    eps = torch.finfo(torch.float64).eps
    tiny = torch.finfo(torch.float64).tiny
    return float(max(abs(loss), abs(loss) ** 0.5 * rms, eps * rms**2, tiny))


def _product(model: nn.Module, loss: Loss, signal: Signal, vector: Tensor) -> Tensor:
    """Return ``H v`` [n] by double backward: what the dense Hessian is checked against."""
    parameters = trainable(model)
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    value = loss(model(signal.coords), signal.values)
    gradients = torch.autograd.grad(value, parameters, create_graph=True, **options)
    slope = torch.cat([part.reshape(-1) for part in gradients]) @ vector
    if not slope.requires_grad:
        return torch.zeros_like(vector)
    products = torch.autograd.grad(slope, parameters, **options)
    return torch.cat([part.reshape(-1) for part in products])


def _read_back(run: Run) -> list[Measured]:
    """Return what an earlier measurement of this very run has left, whole or half-way.

    Nothing for a module or a loss that was handed in: no file can tell that it is the same one.
    """
    if run.module is not None or run.own_loss is not None:
        return []
    try:
        record = json.loads((run.path / RECORD).read_text())
        values = np.load(run.path / VALUES)
        if any(record[name] != value for name, value in _mark(run).items()):
            return []
        return [
            _from_json(entries, row)
            for entries, row in zip(record["spectra"], values, strict=False)
            # A process killed between the two files leaves rows that the record does not speak of.
            if (row[0], row[-1]) == (entries["lambda_min"], entries["lambda_max"])
        ]
    except (OSError, EOFError, ValueError, TypeError, LookupError):
        return []


def _mark(run: Run) -> dict[str, str]:
    """Return what results must carry to be taken for results of a run."""
    return {"run_id": run.record["id"], "hessian_lab": hessian_lab.__version__}


def _from_json(entries: dict[str, Any], row: np.ndarray) -> Measured:  # type: ignore[type-arg]
    return Measured(
        step=entries["step"],
        loss=entries["loss"],
        psnr=math.nan if entries["psnr"] is None else entries["psnr"],
        spectrum=Spectrum(torch.from_numpy(row), entries["structural_zeros"]),
        product_error=math.nan if entries["product_error"] is None else entries["product_error"],
        loss_error=math.nan if entries["loss_error"] is None else entries["loss_error"],
    )


class _Saver:
    """Writes partial results often enough, and not so often that it costs much."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.cost = 0.0
        self.last = time.perf_counter()

    def save_if_due(self, known: dict[int, Measured]) -> None:
        if time.perf_counter() - self.last >= self.cost / SAVING_SHARE:
            self.save(known)

    def save(self, known: dict[int, Measured]) -> None:
        start = time.perf_counter()
        measured = [known[step] for step in sorted(known)]
        values = np.stack([one.spectrum.values.numpy() for one in measured])
        record = Eigenvalues(self.run, measured).to_json() | _mark(self.run)
        # The values first: a record never speaks of rows that are not there.
        write_atomically(self.run.path / VALUES, lambda stream: np.save(stream, values))
        write_json(self.run.path / RECORD, record)
        _write_table(self.run.path / TABLE, measured)
        self.last = time.perf_counter()
        self.cost = self.last - start


def _write_table(path: Path, measured: list[Measured]) -> None:
    rows = []
    for one in measured:
        entries = finite(one.to_json())
        shares = entries.pop("shares_below")
        rows.append(entries | {f"share_below_{name}": share for name, share in shares.items()})
    buffer = io.StringIO()
    pd.DataFrame(rows).to_csv(buffer, index=False)
    write_atomically(path, lambda stream: stream.write(buffer.getvalue().encode()))
