"""The exact Hessian of any module by reverse-over-reverse products on one kept graph."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hessian_lab.losses import Loss
from hessian_lab.signal import Signal

# Rows per product, and the bytes of activations that one block of rows may work on.
BLOCK_RANGE = (1, 16)
BLOCK_BYTES = 1 << 28


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require gradients, in the order of ``named_parameters()``."""
    return [value for value in model.parameters() if value.requires_grad]


def hessian_rows(model: nn.Module, loss: Loss, signal: Signal) -> Tensor:
    """Return the Hessian [n, n] of any twice differentiable module and loss.

    The gradient is built once with its graph; blocks of its rows are then pulled back through it,
    ``n`` products in all. A parameter that the loss does not use has a row of zeros. The result is
    symmetrized: rounding leaves the two triangles apart by some 1e-16 of their size.
    """
    parameters = trainable(model)
    saved = _SavedBytes()
    with torch.enable_grad(), saved.hooks():
        value = loss(model(signal.coords), signal.values)
        gradients = torch.autograd.grad(
            value, parameters, create_graph=True, allow_unused=True, materialize_grads=True
        )
        gradient = torch.cat([part.reshape(-1) for part in gradients])
    size = len(gradient)
    hessian = gradient.new_zeros(size, size)
    if not gradient.requires_grad:
        return hessian
    step = _block_size(saved.total)
    start = 0
    while start < size:
        rows = slice(start, min(start + step, size))
        try:
            _pull_back(gradient, parameters, rows, hessian[rows])
        except RuntimeError:
            # Not every operation can be batched; one row at a time always works.
            if step == 1:
                raise
            step = 1
            continue
        start = rows.stop
    return symmetrize(hessian)


def _pull_back(
    gradient: Tensor, parameters: Sequence[nn.Parameter], rows: slice, out: Tensor
) -> None:
    """Write some rows of the Hessian."""
    units = torch.zeros_like(out)
    units[:, rows] = torch.eye(len(out), dtype=out.dtype, device=out.device)
    batched = len(out) > 1
    pulled = torch.autograd.grad(
        gradient,
        parameters,
        units if batched else units[0],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=not batched,
        is_grads_batched=batched,
    )
    parts = [
        torch.zeros(len(out), value.numel(), dtype=out.dtype, device=out.device)
        if part is None
        else part.reshape(len(out), -1)
        for part, value in zip(pulled, parameters, strict=True)
    ]
    out.copy_(torch.cat(parts, dim=1))


def symmetrize(matrix: Tensor, *, tile: int = 1024) -> Tensor:
    """Replace a square matrix by the mean of itself and its transpose, in place, tile by tile."""
    for i in range(0, len(matrix), tile):
        for j in range(0, i + 1, tile):
            upper, lower = matrix[j : j + tile, i : i + tile], matrix[i : i + tile, j : j + tile]
            mean = (upper + lower.T) / 2
            upper.copy_(mean)
            lower.copy_(mean.T)
    return matrix


def _block_size(saved_bytes: int) -> int:
    least, most = BLOCK_RANGE
    return max(least, min(most, BLOCK_BYTES // max(1, saved_bytes)))


class _SavedBytes:
    """Counts the bytes that a graph keeps while it is built."""

    def __init__(self) -> None:
        self.total = 0

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Return the context in which tensors are counted."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        self.total += tensor.numel() * tensor.element_size()
        return tensor
