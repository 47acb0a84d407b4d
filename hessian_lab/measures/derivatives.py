"""A fitted signal with its gradient and Laplacian by the coordinates, beside the target's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hessian_lab.errors import UsageError
from hessian_lab.measures.checkpoints import checkpoint, loss_failure, snr_at
from hessian_lab.signal import Signal
from hessian_lab.training.files import locked, write_atomically
from hessian_lab.training.run import Run

NAME = "derivatives"
# Points that are differentiated at once.
CHUNK = 1 << 13
# Points that a second difference takes along each axis.
FEWEST = 3
# Coordinates of a grid are equally spaced up to this share of the spacing.
SPACING_RTOL = 1e-4
# Of red, green and blue: ITU-R BT.601.
LUMINANCE = (0.299, 0.587, 0.114)
KINDS = ("values", "gradient", "laplacian")


@dataclass(frozen=True, eq=False)
class Derivatives:
    """A signal and its derivatives by the coordinates, in float64.

    Attributes:
        values: f [p, c].
        gradient: ∂f/∂xᵢ [p, c, d].
        laplacian: Σᵢ ∂²f/∂xᵢ² [p, c].
    """

    values: Tensor
    gradient: Tensor
    laplacian: Tensor

    def luminance(self) -> "Derivatives":
        """Return those of 0.299 R + 0.587 G + 0.114 B; of other than three channels, the mean."""
        channels = self.values.shape[1]
        parts = LUMINANCE if channels == len(LUMINANCE) else (1 / channels,) * channels
        weights = self.values.new_tensor(parts)
        return Derivatives(
            (self.values @ weights).unsqueeze(1),
            torch.einsum("pcd,c->pd", self.gradient, weights).unsqueeze(1),
            (self.laplacian @ weights).unsqueeze(1),
        )


@dataclass(frozen=True)
class Errors:
    """Root mean squares over points, channels and axes, of values, gradient or Laplacian.

    Derivatives are compared away from the edges of the grid, where differences have both sides.

    Attributes:
        target: Of the target.
        field: Of the field.
        error: Of their difference.
        sampled_error: Of the difference when the field too is differentiated by finite differences:
            what is left of ``error`` is what it does between the points of the grid.
    """

    target: float
    field: float
    error: float
    sampled_error: float


@dataclass(frozen=True, eq=False)
class Measured:
    """The derivatives of a run's field at one checkpoint.

    Attributes:
        run: What was trained.
        step: The optimizer step.
        loss: The loss of the whole signal there, as recorded in training.
        psnr: Likewise, in dB; NaN where it is not defined.
        loss_error: See ``Checkpoint``.
        shape: The grid, (points,) or (rows, columns).
        field: Exact, by autograd.
        target: The values that were fitted, with their finite differences.
        errors: By ``values``, ``gradient`` and ``laplacian``.
    """

    run: Run
    step: int
    loss: float
    psnr: float
    loss_error: float
    shape: tuple[int, ...]
    field: Derivatives
    target: Derivatives
    errors: dict[str, Errors]

    @property
    def failures(self) -> list[str]:
        """What does not hold of the results, in a sentence each."""
        failed = loss_failure(self.run, self.step, self.loss_error)
        failures = [failed] if failed else []
        for kind, one in self.errors.items():
            if not math.isfinite(one.field):
                failures.append(f"step {self.step}: {kind} of the field are not finite")
        return failures

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``derivatives --json`` prints."""
        return {
            "command": NAME,
            "run": str(self.run.path),
            "setup": self.run.setup.to_json(),
            "num_parameters": self.run.num_parameters,
            "step": self.step,
            "loss": self.loss,
            "psnr": self.psnr,
            **snr_at(self.run, self.step),
            "loss_error": self.loss_error,
            "shape": list(self.shape),
            "errors": {kind: vars(one) for kind, one in self.errors.items()},
        }


def measure_derivatives(run: Run, step: int | None = None) -> Measured:
    """Differentiate a run's field at one checkpoint, by default the last.

    In float64; about c (2 + d) passes over the points for c channels and d coordinates. Writes
    ``derivatives.npz`` beside the trajectory: ``values`` […, c], ``gradient`` […, c, d] and
    ``laplacian`` […, c] on the grid, the same of the target with ``target_`` before, and ``step``.

    Raises:
        UsageError: If there is no such checkpoint, or the signal is on no grid.

    References:
        Curvature-Aware Training for Coordinate Networks (2023), Fig. 3.
    """
    step = run.steps[-1] if step is None else step
    if step not in run.steps:
        few = ", ".join(map(str, run.steps[:6])) + (", …" if len(run.steps) > 6 else "")
        raise UsageError(f"step must be a checkpoint ({few}), got {step}.")
    signal = run.signal()
    spacings = grid_spacings(signal)
    assert signal.shape is not None
    one = checkpoint(run, signal, step)
    coords, values = (each.double() for each in (signal.coords, signal.values))
    field = field_derivatives(one.model.double(), coords)
    target = grid_derivatives(values, signal.shape, spacings)
    sampled = grid_derivatives(field.values, signal.shape, spacings)
    found = Measured(
        run=run,
        step=step,
        loss=one.loss,
        psnr=one.psnr,
        loss_error=one.loss_error,
        shape=signal.shape,
        field=field,
        target=target,
        errors=compared(field, target, sampled, signal.shape),
    )
    _write(found)
    return found


@torch.enable_grad()  # type: ignore[untyped-decorator]
def field_derivatives(model: nn.Module, coords: Tensor, *, chunk_size: int = CHUNK) -> Derivatives:
    """Return a field's values and exact derivatives at coordinates [p, d].

    The model must treat points one by one. Of ReLU, φ″ = 0 everywhere, as autograd has it.
    """
    parts = [_derivatives(model, part) for part in coords.detach().split(chunk_size)]
    values, gradient, laplacian = (torch.cat(each) for each in zip(*parts, strict=True))
    return Derivatives(values, gradient, laplacian)


def _derivatives(model: nn.Module, coords: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    points = coords.clone().requires_grad_()
    values = model(points)
    slopes, bends = [], []
    for channel in range(values.shape[1]):
        # Points do not interact, so the derivative of a sum over points holds each point's own.
        slope = _derivative(values[:, channel].sum(), points, keep=True)
        bend = torch.zeros_like(slope[:, 0]).detach()
        for axis in range(coords.shape[1]):
            bend = bend + _derivative(slope[:, axis].sum(), points)[:, axis].detach()
        slopes.append(slope.detach())
        bends.append(bend)
    return values.detach(), torch.stack(slopes, dim=1), torch.stack(bends, dim=1)


def _derivative(value: Tensor, points: Tensor, *, keep: bool = False) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(points)
    (found,) = torch.autograd.grad(
        value,
        points,
        create_graph=keep,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return found


def grid_spacings(signal: Signal) -> list[float]:
    """Return the distance of neighbours along each axis of a signal's grid.

    Raises:
        UsageError: If the points fill no grid of equal spacings, or one too small for differences.
    """
    shape, dims = signal.shape, signal.coords.shape[1]
    if shape is None or len(shape) != dims or math.prod(shape) != signal.num_points:
        raise UsageError(
            "signal must fill a grid, for its derivatives are finite differences: give Signal a "
            f"shape of {dims} sides."
        )
    if min(shape) < FEWEST:
        raise UsageError(
            f"signal must have at least {FEWEST} points along each axis, got {list(shape)}."
        )
    coords = signal.coords.double().reshape(*shape, dims)
    spacings = []
    for axis in range(dims):
        steps = coords[..., axis].diff(dim=axis)
        spacing = float(steps.mean())
        if not float((steps - spacing).abs().max()) <= SPACING_RTOL * abs(spacing):
            raise UsageError(f"signal must have equal spacings, axis {axis} has not.")
        spacings.append(spacing)
    return spacings


def grid_derivatives(
    values: Tensor, shape: Sequence[int], spacings: Sequence[float]
) -> Derivatives:
    """Return finite differences of values [p, c] on a grid, of second order.

    Central inside; at the edges the gradient is one-sided, and a second derivative that of the
    neighbour.
    """
    grid = values.detach().cpu().numpy().reshape(*shape, values.shape[1])
    slopes, laplacian = [], np.zeros_like(grid)
    for axis, spacing in enumerate(spacings):
        slopes.append(np.gradient(grid, spacing, axis=axis, edge_order=2))
        inner = np.diff(grid, n=2, axis=axis) / spacing**2
        pad = [(1, 1) if place == axis else (0, 0) for place in range(grid.ndim)]
        laplacian += np.pad(inner, pad, mode="edge")
    gradient = np.stack(slopes, axis=-1).reshape(*values.shape, len(spacings))
    return Derivatives(
        values,
        torch.from_numpy(gradient).to(values),
        torch.from_numpy(laplacian.reshape(values.shape)).to(values),
    )


def compared(
    field: Derivatives, target: Derivatives, sampled: Derivatives, shape: Sequence[int]
) -> dict[str, Errors]:
    """Return root mean squares and errors of values, gradient and Laplacian."""
    inside = torch.zeros(tuple(shape), dtype=torch.bool)
    inside[tuple(slice(1, -1) for _ in shape)] = True
    chosen = inside.flatten().to(field.values.device)
    found = {}
    for kind in KINDS:
        parts = [getattr(each, kind) for each in (field, target, sampled)]
        if kind != "values":
            parts = [each[chosen] for each in parts]
        ours, theirs, differences = parts
        found[kind] = Errors(
            target=_rms(theirs),
            field=_rms(ours),
            error=_rms(ours - theirs),
            sampled_error=_rms(differences - theirs),
        )
    return found


def _rms(numbers: Tensor) -> float:
    return float(numbers.square().mean().sqrt())


def _write(found: Measured) -> None:
    arrays: dict[str, Any] = {"step": np.array(found.step)}
    for prefix, part in (("", found.field), ("target_", found.target)):
        for kind in KINDS:
            entries = getattr(part, kind)
            arrays[prefix + kind] = entries.cpu().numpy().reshape(*found.shape, *entries.shape[1:])
    with locked(found.run.path):
        write_atomically(found.run.path / f"{NAME}.npz", lambda stream: np.savez(stream, **arrays))
