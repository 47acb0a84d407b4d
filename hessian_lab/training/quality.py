"""How well a field fits its signal."""

import math

import torch
from torch import Tensor, nn

from hessian_lab.losses import Loss, bce
from hessian_lab.signal import Signal


def in_unit_range(values: Tensor) -> bool:
    """Tell whether a PSNR is defined for these values: they lie in [0, 1]."""
    return bool(values.min() >= 0) and bool(values.max() <= 1)


def psnr(predictions: Tensor, values: Tensor) -> float:
    """Return -10 log₁₀ of the mean squared error over points and channels, in dB.

    NaN unless all values lie in [0, 1].
    """
    if not in_unit_range(values):
        return math.nan
    error = float((predictions - values).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def quality(model: nn.Module, loss: Loss, signal: Signal) -> dict[str, float]:
    """Return loss, psnr and grad_norm of the whole signal; ``.grad`` is left alone."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    with torch.enable_grad():
        predictions = model(signal.coords)
        value = loss(predictions, signal.values)
        gradients = torch.autograd.grad(
            value, parameters, allow_unused=True, materialize_grads=True
        )
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
    return {
        "loss": float(value.detach()),
        # Predictions of the cross-entropy are logits, which no PSNR is defined for.
        "psnr": math.nan if loss is bce else psnr(predictions.detach(), signal.values),
        "grad_norm": float(torch.linalg.vector_norm(norms)),
    }
