"""How well a field fits its signal: PSNR, SNR, SSIM, IoU, and the loss along a training."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.fields.volume import Volume
from hessian_lab.losses import LOSSES, Loss, bce
from hessian_lab.signal import Signal

# Points that go through a field at once: more fill no core better, and cost memory.
CHUNK = 2048
# The window of SSIM, a Gaussian cut off at 3.5 deviations, and the constants that steady its
# quotients, for values in [0, 1].
WINDOW, DEVIATION = 11, 1.5
STEADY = (0.01**2, 0.03**2)


def in_unit_range(values: Tensor) -> bool:
    """Tell whether a PSNR is defined for these values: they lie in [0, 1]."""
    return bool(values.min() >= 0) and bool(values.max() <= 1)


def psnr(predictions: Tensor, values: Tensor) -> float:
    """Return -10 log₁₀ of the mean squared error over points and channels, in dB.

    NaN unless all values lie in [0, 1].
    """
    error = float((predictions - values).square().mean())
    return _decibels(error) if in_unit_range(values) else math.nan


def snr(predictions: Tensor, values: Tensor) -> float:
    """Return 10 log₁₀ of the power of the values over that of the error, in dB.

    NaN where all values are 0, as in silence.
    """
    return _ratio(float(values.square().mean()), float((predictions - values).square().mean()))


def ssim(predictions: Tensor, values: Tensor) -> float:
    """Return the mean structural similarity of two images [rows, columns, channels].

    Within Gaussian windows of 11×11, where they fit; 1 for equal images. NaN unless all values lie
    in [0, 1].

    Raises:
        ValueError: If the shapes differ, or a side is shorter than the window.

    References:
        Wang, Bovik, Sheikh & Simoncelli (2004), https://doi.org/10.1109/TIP.2003.819861.
    """
    if predictions.shape != values.shape or values.ndim != 3:
        raise ValueError(
            f"images must have one shape [rows, columns, channels], got {list(predictions.shape)} "
            f"and {list(values.shape)}."
        )
    if min(values.shape[:2]) < WINDOW:
        raise ValueError(
            f"images must have at least {WINDOW} pixels a side, got {list(values.shape[:2])}."
        )
    if not in_unit_range(values):
        return math.nan
    one, other = (image.movedim(2, 0).unsqueeze(1) for image in (predictions, values))
    means = [_blurred(image) for image in (one, other)]
    variances = [
        _blurred(image.square()) - mean.square()
        for image, mean in zip((one, other), means, strict=True)
    ]
    covariance = _blurred(one * other) - means[0] * means[1]
    light = (2 * means[0] * means[1] + STEADY[0]) / (
        means[0].square() + means[1].square() + STEADY[0]
    )
    structure = (2 * covariance + STEADY[1]) / (variances[0] + variances[1] + STEADY[1])
    return float((light * structure).mean())


def iou(predictions: Tensor, values: Tensor) -> float:
    """Return the intersection over union of two solids, in [0, 1]; of two empty ones it is 1.

    Args:
        predictions: Logits, inside where they are positive, or bools.
        values: Of the same shape: bools, or 1 inside and 0 outside.

    Raises:
        ValueError: If the shapes differ, or a number is not finite.
    """
    if predictions.shape != values.shape:
        raise ValueError(
            f"predictions must have the shape of values, {list(values.shape)}, got "
            f"{list(predictions.shape)}."
        )
    for name, numbers in (("predictions", predictions), ("values", values)):
        if not numbers.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or Inf.")
    found = predictions if predictions.dtype == torch.bool else predictions > 0
    true = values if values.dtype == torch.bool else values > 0.5
    union = int((found | true).sum())
    return int((found & true).sum()) / union if union else 1.0


def _blurred(images: Tensor) -> Tensor:
    """Return images [k, 1, rows, columns] under the window, where all of it is inside."""
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    bell = torch.exp(-(offsets**2) / (2 * DEVIATION**2))
    bell = bell / bell.sum()
    rows = functional.conv2d(images, bell.reshape(1, 1, -1, 1))
    return functional.conv2d(rows, bell.reshape(1, 1, 1, -1))


def quality(
    model: nn.Module, loss: Loss, signal: Signal, *, chunk_size: int = CHUNK
) -> dict[str, float]:
    """Return loss, psnr, snr and grad_norm of the whole signal; ``.grad`` is left alone.

    A field takes twice ``chunk_size`` points or more in chunks, if the loss is one of ``LOSSES``:
    means over points, as a loss of your own need not be.
    """
    parameters = [value for value in model.parameters() if value.requires_grad]
    total = [torch.zeros_like(value) for value in parameters]
    # Summed up where the points are: one look at a GPU for all of them.
    value, error = signal.values.new_zeros(2, dtype=torch.float64)
    for share, coords, values in _parts(model, loss, signal, chunk_size):
        with torch.enable_grad():
            predictions = model(coords)
            part = loss(predictions, values) * share
            gradients = torch.autograd.grad(
                part, parameters, allow_unused=True, materialize_grads=True
            )
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += gradient
        value += part.detach()
        error += (predictions.detach() - values).square().mean().double() * share
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in total])
    loss_value, mean_error, norm = torch.stack(
        [value, error, torch.linalg.vector_norm(norms).double()]
    ).tolist()
    # Predictions of the cross-entropy are logits, which no PSNR is defined for.
    defined = loss is not bce and in_unit_range(signal.values)
    power = math.nan if loss is bce else float(signal.values.square().mean())
    return {
        "loss": loss_value,
        "psnr": _decibels(mean_error) if defined else math.nan,
        "snr": _ratio(power, mean_error),
        "grad_norm": norm,
    }


def _parts(
    model: nn.Module, loss: Loss, signal: Signal, chunk_size: int
) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Yield shares of the points, with their coordinates and values."""
    pointwise = isinstance(model, CoordinateMLP | Volume) and loss in LOSSES.values()
    if isinstance(model, Volume):
        chunk_size = max(1, chunk_size // model.samples)
    if not pointwise or signal.num_points < 2 * chunk_size:
        yield 1.0, signal.coords, signal.values
        return
    pairs = zip(signal.coords.split(chunk_size), signal.values.split(chunk_size), strict=True)
    for coords, values in pairs:
        yield len(coords) / signal.num_points, coords, values


def _ratio(power: float, error: float) -> float:
    """Return a ratio of powers in dB; NaN without a power."""
    if not power > 0 or math.isnan(error):
        return math.nan
    return _decibels(error / power)


def _decibels(error: float) -> float:
    return math.inf if error == 0 else -10 * math.log10(error)
