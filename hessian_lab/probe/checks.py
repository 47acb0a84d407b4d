"""What must hold of a model, a loss and data before their curvature means anything."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.errors import NonFiniteError
from hessian_lab.losses import Loss
from hessian_lab.probe.data import Points
from hessian_lab.probe.kept_graph import trainable, wrong_derivative
from hessian_lab.probe.linearize import Linearizer
from hessian_lab.probe.operators import SymmetricOperator, require_symmetric

# Two evaluations of one loss agree to this many roundings; more is randomness.
REPEAT_ROUNDINGS = 1e3
# Points on which it is seen whether a loss is a mean.
SAMPLED = 64


def check_symmetry(operator: SymmetricOperator) -> None:
    """Check that products are those of a symmetric matrix, where an operation may be wrong.

    Raises:
        ValueError: If they are not.
    """
    try:
        require_symmetric(operator)
    except ValueError as error:
        raise wrong_derivative("uᵀ H v and vᵀ H u differ for random u, v") from error


def check_model(model: nn.Module, loss: Loss) -> None:
    """Check that a module has parameters of one type on one device, and no randomness to be seen.

    Raises:
        TypeError: If it is no module, its parameters differ in dtype or device, or the loss is no
            callable.
        ValueError: If nothing is trainable, or dropout or batch statistics are on.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if not callable(loss):
        raise TypeError(f"loss must be callable, got {type(loss).__name__}.")
    parameters = trainable(model)
    if not parameters:
        raise ValueError("model must have parameters that require gradients, got none.")
    for kind, found in (
        ("dtype", {value.dtype for value in parameters}),
        ("device", {value.device for value in parameters}),
    ):
        if len(found) > 1:
            names = ", ".join(sorted(str(one) for one in found))
            raise TypeError(f"model must have parameters of one {kind}, got {names}.")
    for name, part in model.named_modules():
        reason = _changes(part) if part.training else None
        if reason:
            raise ValueError(
                f"model must be in evaluation mode: {name or 'it'} ({type(part).__name__}) "
                f"{reason} in training mode. Call model.eval() first."
            )


def _changes(part: nn.Module) -> str | None:
    if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
        return "drops units at random"
    if isinstance(part, nn.RNNBase) and part.dropout > 0:
        return "drops units at random"
    if isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats:
        return "uses and changes batch statistics"
    if isinstance(part, nn.modules.batchnorm._BatchNorm):
        return "uses batch statistics"
    return None


def count_points(points: Points) -> int:
    """Return the number of points in all batches.

    Raises:
        ValueError: If there is none.
    """
    total = sum(len(targets) for _, targets in points)
    if not total:
        raise ValueError("data must hold at least one batch, got none.")
    return total


def check_twice(linearizer: Linearizer, points: Points, num_points: int) -> None:
    """Evaluate the loss twice.

    Raises:
        ValueError: If the loss is no scalar, differs between two evaluations or changes buffers.
        NonFiniteError: If it is not finite.
    """
    buffers = {name: value.clone() for name, value in linearizer.buffers.items()}
    counts, (first, second) = zip(*(_mean_loss(linearizer, points) for _ in range(2)), strict=True)
    for name, value in linearizer.buffers.items():
        if not torch.allclose(value, buffers[name], rtol=0, atol=0, equal_nan=True):
            raise ValueError(
                f"model must not change in its forward pass, but buffer {name} does. "
                "Call model.eval() first."
            )
    if set(counts) != {num_points}:
        raise ValueError(
            f"data must be the same whenever it is gone through, got {num_points} points, then "
            f"{counts[0]} and {counts[1]}."
        )
    if not math.isfinite(first):
        raise NonFiniteError(f"the loss must be finite at the model's parameters, got {first}.")
    if not _same(linearizer, first, second):
        raise ValueError(
            f"loss must be the same in two evaluations, got {first!r}, then {second!r}: model, "
            "loss or data are random. Call model.eval(), fix the data, or pass check=False."
        )


def _mean_loss(linearizer: Linearizer, points: Points) -> tuple[int, float]:
    num_points, total = 0, 0.0
    for inputs, targets in points:
        inputs, targets = linearizer.placed(inputs, targets)
        value = linearizer.value(linearizer.outputs(inputs), targets)
        num_points += len(targets)
        total += len(targets) * float(value.detach())
    return num_points, total / max(1, num_points)


def why_no_mean(linearizer: Linearizer, points: Points, num_points: int) -> str | None:
    """Return what shows that a loss is no mean over points, or None.

    Where all points are in one batch only a sum is told from a mean; where they are cut, whatever
    depends on how.
    """
    inputs, targets = linearizer.placed(*points.first())
    cut = len(targets) < num_points
    if isinstance(inputs, Tensor):
        inputs, targets = inputs[:SAMPLED], targets[:SAMPLED]
    try:
        factor = _factor(linearizer, inputs, targets)
        apart = cut and isinstance(inputs, Tensor) and _depends_on_cut(linearizer, inputs, targets)
    except (RuntimeError, ValueError, IndexError):
        # A loss may be one of this very batch.
        return None
    if factor is not None:
        return f"with every point twice it is {factor:.3g} times as large"
    return "of some points it is not the mean of those of two parts" if apart else None


def _factor(linearizer: Linearizer, inputs: Any, targets: Tensor) -> float | None:
    """Return by how much a loss grows when every point is there twice, or None if it does not."""
    outputs = linearizer.outputs(inputs)
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != len(targets):
        return None
    once = float(linearizer.value(outputs, targets).detach())
    both = torch.cat([outputs, outputs]), torch.cat([targets, targets])
    twice = float(linearizer.value(*both).detach())
    if _same(linearizer, once, twice):
        return None
    return twice / once if once else math.inf


def _depends_on_cut(linearizer: Linearizer, inputs: Tensor, targets: Tensor) -> bool:
    """Tell whether the loss of some points differs from the weighed mean over two parts."""
    if len(targets) < 2:
        inputs, targets = torch.cat([inputs, inputs]), torch.cat([targets, targets])
    sizes = [len(targets) // 3 + 1, len(targets) - len(targets) // 3 - 1]
    sizes = [size for size in sizes if size]

    def loss(some: Tensor, wanted: Tensor) -> float:
        return float(linearizer.value(linearizer.outputs(some), wanted).detach())

    parts = zip(inputs.split(sizes), targets.split(sizes), strict=True)
    mean = sum(len(wanted) * loss(some, wanted) for some, wanted in parts) / len(targets)
    return not _same(linearizer, loss(inputs, targets), mean)


def _same(linearizer: Linearizer, first: float, second: float) -> bool:
    eps = torch.finfo(linearizer.dtype).eps
    return abs(first - second) <= REPEAT_ROUNDINGS * eps * max(abs(first), abs(second))
