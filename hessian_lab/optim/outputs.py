"""What a loss is at the outputs that it was computed from: its slope and its curvature."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hessian_lab.optim.contract import Closure
from hessian_lab.probe.vectors import rademacher

# Two ways to a product with the curvature of one point agree to this many roundings.
SEPARABLE_ROUNDINGS = 1e3


def pairs(closure: Closure) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return a closure that is known to give ``(loss, outputs)``.

    Raises:
        TypeError: When called, if it gives anything else.
    """

    def checked() -> tuple[Tensor, Tensor]:
        result: Any = closure()
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                f"closure must return (loss, outputs), got {type(result).__name__}. Return the "
                "outputs of the network beside the loss that was computed from them."
            )
        loss, outputs = result
        if not (isinstance(outputs, Tensor) and outputs.ndim):
            raise TypeError(
                "closure must return (loss, outputs) with outputs a tensor [points, channels], "
                f"got {type(outputs).__name__}."
            )
        return loss, outputs

    return checked


class OutputCurvature:
    """The loss as a function of the outputs alone: ``∂ℓ/∂f``, and products with ``∂²ℓ/∂f²``.

    Args:
        loss: A scalar with its graph.
        outputs: The tensor [points, channels] (or [points]) of that graph.

    Raises:
        ValueError: If the loss was not computed from this tensor.
    """

    def __init__(self, loss: Tensor, outputs: Tensor) -> None:
        slope = None
        if outputs.requires_grad:
            (slope,) = torch.autograd.grad(loss, outputs, create_graph=True, allow_unused=True)
        if slope is None:
            raise ValueError(
                "closure must return the outputs that its loss was computed from: the loss does "
                "not depend on the tensor beside it."
            )
        self.outputs = outputs
        self.slope = slope

    def product(self, moved: Tensor) -> Tensor:
        """Return ``∂²ℓ/∂f² u`` for ``u`` of the outputs' shape; zero for a linear loss."""
        if not self.slope.requires_grad:
            return torch.zeros_like(moved)
        (curved,) = torch.autograd.grad(
            self.slope, self.outputs, moved, retain_graph=True, materialize_grads=True
        )
        return curved

    def blocks(self) -> Tensor:
        """Return the curvature of every point [points, channels, channels], at a pass each channel.

        It is that of the whole loss: of a mean over points it holds the 1/points.
        """
        columns = []
        for channel in range(_by_channel(self.outputs.detach()).shape[1]):
            unit = torch.zeros_like(_by_channel(self.outputs.detach()))
            unit[:, channel] = 1
            columns.append(_by_channel(self.product(unit.reshape(self.outputs.shape))))
        return torch.stack(columns, dim=2)

    def require_separable(self, blocks: Tensor) -> None:
        """Check that points do not interact, on one random vector.

        Raises:
            ValueError: If they do.
        """
        signs = rademacher(self.outputs.numel(), 1, seed=0, like=self.outputs)[:, 0]
        probe = signs.view_as(self.outputs)
        product = _by_channel(self.product(probe))
        expected = torch.einsum("pij,pj->pi", blocks, _by_channel(probe))
        scale = blocks.abs().sum(dim=2).max()
        tolerance = SEPARABLE_ROUNDINGS * torch.finfo(blocks.dtype).eps * scale
        if bool(((product - expected).abs() > tolerance).any()):
            raise ValueError("loss must be a mean or a sum over points, so that none interact.")

    def roots(self, blocks: Tensor) -> Tensor:
        """Return ``R`` [points, channels, channels] with ``R Rᵀ`` the positive part of blocks."""
        if not bool(blocks.isfinite().all()):
            return torch.full_like(blocks, math.nan)
        diagonal = blocks.diagonal(dim1=1, dim2=2)
        if not bool((blocks - torch.diag_embed(diagonal)).any()):
            return torch.diag_embed(diagonal.clamp(min=0).sqrt())
        values, basis = torch.linalg.eigh(blocks)
        root: Tensor = basis * values.clamp(min=0).sqrt().unsqueeze(1)
        return root

    def cotangents(self, roots: Tensor) -> list[Tensor]:
        """Return the columns of the roots, each in the outputs' shape."""
        return [column.reshape(self.outputs.shape) for column in roots.unbind(dim=2)]


def _by_channel(values: Tensor) -> Tensor:
    """Return values as [points, channels]."""
    return values.reshape(-1, 1 if values.ndim == 1 else values.shape[-1])
