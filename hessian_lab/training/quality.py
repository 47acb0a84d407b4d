"""How well a field fits its signal."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.losses import LOSSES, Loss, bce
from hessian_lab.signal import Signal

# Points that go through a field at once: more fill no core better, and cost memory.
CHUNK = 2048


def in_unit_range(values: Tensor) -> bool:
    """Tell whether a PSNR is defined for these values: they lie in [0, 1]."""
    return bool(values.min() >= 0) and bool(values.max() <= 1)


def psnr(predictions: Tensor, values: Tensor) -> float:
    """Return -10 log₁₀ of the mean squared error over points and channels, in dB.

    NaN unless all values lie in [0, 1].
    """
    error = float((predictions - values).square().mean())
    return _decibels(error) if in_unit_range(values) else math.nan


def quality(
    model: nn.Module, loss: Loss, signal: Signal, *, chunk_size: int = CHUNK
) -> dict[str, float]:
    """Return loss, psnr and grad_norm of the whole signal; ``.grad`` is left alone.

    A ``CoordinateMLP`` takes twice ``chunk_size`` points or more in chunks, if the loss is one of
    ``LOSSES``: means over points, as a loss of your own need not be.
    """
    parameters = [value for value in model.parameters() if value.requires_grad]
    total = [torch.zeros_like(value) for value in parameters]
    value, error = 0.0, 0.0
    for share, coords, values in _parts(model, loss, signal, chunk_size):
        with torch.enable_grad():
            predictions = model(coords)
            part = loss(predictions, values) * share
            gradients = torch.autograd.grad(
                part, parameters, allow_unused=True, materialize_grads=True
            )
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += gradient
        value += float(part.detach())
        error += float((predictions.detach() - values).square().mean()) * share
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in total])
    # Predictions of the cross-entropy are logits, which no PSNR is defined for.
    defined = loss is not bce and in_unit_range(signal.values)
    return {
        "loss": value,
        "psnr": _decibels(error) if defined else math.nan,
        "grad_norm": float(torch.linalg.vector_norm(norms)),
    }


def _parts(
    model: nn.Module, loss: Loss, signal: Signal, chunk_size: int
) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Yield shares of the points, with their coordinates and values."""
    pointwise = isinstance(model, CoordinateMLP) and loss in LOSSES.values()
    if not pointwise or signal.num_points < 2 * chunk_size:
        yield 1.0, signal.coords, signal.values
        return
    pairs = zip(signal.coords.split(chunk_size), signal.values.split(chunk_size), strict=True)
    for coords, values in pairs:
        yield len(coords) / signal.num_points, coords, values


def _decibels(error: float) -> float:
    return math.inf if error == 0 else -10 * math.log10(error)
