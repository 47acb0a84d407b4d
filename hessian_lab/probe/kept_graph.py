"""Curvature products of any module by reverse-over-reverse on a graph that is kept.

Never ``backward(create_graph=True)``: it ties parameters to graphs in cycles. Everything here is
``autograd.grad``, and a dropped graph is freed at once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hessian_lab.losses import Loss
from hessian_lab.probe.memory import available_bytes
from hessian_lab.probe.operators import SYMMETRY_ROUNDINGS
from hessian_lab.probe.sizes import MOST_COLUMNS, within
from hessian_lab.signal import Signal

# Rows per product, and the bytes of activations that one block of rows may work on; a GPU takes
# more, as its memory allows.
BLOCK_RANGE = (1, 16)
BLOCK_BYTES = 1 << 28
# Rows and columns that are symmetrized at once in a file: each fault reads 128 KiB of a row.
FILE_TILE = 4096
# Points from which the size of a graph is told.
SAMPLE = 32


class KeptGradient:
    """The gradient of a scalar with its graph: products with the Hessian at one backward each.

    Args:
        value: A scalar that depends on the parameters.
        parameters: Leaves; one that the value does not use has rows of zeros.
        block: Rows per backward. More than one needs every operation to be batchable; where one is
            not, rows are taken one at a time.
    """

    def __init__(self, value: Tensor, parameters: Sequence[Tensor], *, block: int = 1) -> None:
        self.parameters = list(parameters)
        self.block = block
        if value.requires_grad:
            gradients = torch.autograd.grad(
                value, self.parameters, create_graph=True, allow_unused=True, materialize_grads=True
            )
        else:
            gradients = tuple(torch.zeros_like(leaf).detach() for leaf in self.parameters)
        self.gradient = torch.cat([part.reshape(-1) for part in gradients])

    def products(self, rows: Tensor) -> Tensor:
        """Return ``V H`` [k, n] for the rows of ``V`` [k, n]."""
        out = torch.zeros_like(rows)
        if not self.gradient.requires_grad:
            return out
        start = 0
        while start < len(rows):
            part = slice(start, min(start + self.block, len(rows)))
            try:
                out[part] = _pulled(self.gradient, self.parameters, rows[part])
            except RuntimeError:
                if self.block == 1:
                    raise
                self.block = 1
                continue
            start = part.stop
        return out


class KeptOutputs:
    """The outputs of a module with their graph: products with the Gauss–Newton matrix.

    ``J v`` is the derivative by u of ``Jᵀ u``, which is linear in u; then the loss's own curvature
    at the outputs, and ``Jᵀ``: about three gradients.

    Args:
        outputs: What the loss is a function of, of any shape.
        loss: Maps such a tensor to a scalar.
        parameters: Leaves that the outputs depend on.
    """

    def __init__(
        self, outputs: Tensor, loss: Callable[[Tensor], Tensor], parameters: Sequence[Tensor]
    ) -> None:
        self.parameters = list(parameters)
        self.outputs = outputs
        self.leaf = outputs.detach().requires_grad_()
        value = loss(self.leaf)
        self.slope = torch.zeros_like(outputs).detach()
        if value.requires_grad:
            (self.slope,) = torch.autograd.grad(
                value, self.leaf, create_graph=True, materialize_grads=True
            )
        self.used = outputs.requires_grad
        if self.used:
            self.cotangent = torch.zeros_like(outputs).requires_grad_()
            pulled = torch.autograd.grad(
                outputs,
                self.parameters,
                self.cotangent,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            self.transposed = torch.cat([part.reshape(-1) for part in pulled])

    def products(self, rows: Tensor) -> Tensor:
        """Return ``V G`` [k, n] for the rows of ``V`` [k, n]."""
        if not (self.used and self.slope.requires_grad):
            return torch.zeros_like(rows)
        return torch.stack([self._product(row) for row in rows])

    def _product(self, row: Tensor) -> Tensor:
        (moved,) = torch.autograd.grad(
            self.transposed, self.cotangent, row, retain_graph=True, materialize_grads=True
        )
        (curved,) = torch.autograd.grad(
            self.slope, self.leaf, moved, retain_graph=True, materialize_grads=True
        )
        return _pulled_once(self.outputs, self.parameters, curved)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require gradients, in the order of ``named_parameters()``."""
    return [value for value in model.parameters() if value.requires_grad]


def hessian_rows(
    model: nn.Module, loss: Loss, signal: Signal, *, out: Tensor | None = None
) -> Tensor:
    """Return the Hessian [n, n] of any twice differentiable module and loss, in ``out`` if given.

    The gradient is built once with its graph; blocks of its rows are then pulled back through it,
    ``n`` products in all. A parameter that the loss does not use has a row of zeros. The result is
    symmetrized: rounding leaves the two triangles apart by some 1e-16 of their size.

    Raises:
        ValueError: If they are further apart.
    """
    parameters = trainable(model)
    with torch.enable_grad():
        block = _block(model, loss, signal, parameters)
        value = loss(model(signal.coords), signal.values)
        kept = KeptGradient(value, parameters, block=block)
    return _rows(kept, kept.gradient, out)


def _block(model: nn.Module, loss: Loss, signal: Signal, parameters: Sequence[nn.Parameter]) -> int:
    """Return how many rows to pull back at once, from what the graph of a few points keeps."""
    few = min(SAMPLE, signal.num_points)
    try:
        with saved_bytes() as saved:
            KeptGradient(loss(model(signal.coords[:few]), signal.values[:few]), parameters)
    except (RuntimeError, ValueError, IndexError):
        # A loss may be one of all these points, and of no others.
        return BLOCK_RANGE[0]
    return block_size(saved.total * signal.num_points // few, parameters[0].device)


def ggn_rows(model: nn.Module, loss: Loss, signal: Signal, *, out: Tensor | None = None) -> Tensor:
    """Return the Gauss–Newton matrix [n, n] of any module, by ``n`` products; symmetrized."""
    parameters = trainable(model)
    with torch.enable_grad():
        kept = KeptOutputs(
            model(signal.coords), lambda outputs: loss(outputs, signal.values), parameters
        )
    like = parameters[0].new_zeros(sum(value.numel() for value in parameters))
    return _rows(kept, like, out)


def _rows(kept: KeptGradient | KeptOutputs, like: Tensor, out: Tensor | None) -> Tensor:
    """Return every row of a matrix [n, n], symmetrized; ``like`` is [n]."""
    size, peaks = len(like), []
    matrix = like.new_empty(size, size) if out is None else out
    for start in range(0, size, BLOCK_RANGE[1]):
        rows = slice(start, min(start + BLOCK_RANGE[1], size))
        units = like.new_zeros(rows.stop - start, size)
        units[:, rows].fill_diagonal_(1)
        found = kept.products(units)
        peaks.append(found.abs().max())
        matrix[rows] = found
    gap = symmetrize(matrix) if out is None else symmetrize(matrix, tile=FILE_TILE)
    largest = float(torch.stack(peaks).max())
    if gap > SYMMETRY_ROUNDINGS * torch.finfo(matrix.dtype).eps * largest:
        raise wrong_derivative("entries of the upper and the lower triangle differ")
    return matrix


def wrong_derivative(symptom: str) -> ValueError:
    """Return the error for a matrix that is not symmetric."""
    return ValueError(
        f"model and loss must be twice differentiable: {symptom}. One of their operations has a "
        "wrong second derivative."
    )


def _pulled(value: Tensor, parameters: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Return rows [k, m] pulled back through ``value`` [m], [k, n]."""
    if len(rows) == 1:
        return _pulled_once(value, parameters, rows[0]).unsqueeze(0)
    pulled = torch.autograd.grad(
        value, parameters, rows, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    parts = [
        rows.new_zeros(len(rows), leaf.numel()) if part is None else part.reshape(len(rows), -1)
        for part, leaf in zip(pulled, parameters, strict=True)
    ]
    return torch.cat(parts, dim=1)


def _pulled_once(value: Tensor, parameters: Sequence[Tensor], row: Tensor) -> Tensor:
    """Return one row, in the shape of ``value``, pulled back to [n]."""
    pulled = torch.autograd.grad(
        value, parameters, row, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.reshape(-1) for part in pulled])


def symmetrize(matrix: Tensor, *, tile: int = 1024) -> float:
    """Replace a square matrix by the mean of itself and its transpose, in place, tile by tile.

    Returns the largest difference between the two.
    """
    gaps = []
    for i in range(0, len(matrix), tile):
        for j in range(0, i + 1, tile):
            upper, lower = matrix[j : j + tile, i : i + tile], matrix[i : i + tile, j : j + tile]
            gaps.append((upper - lower.T).abs().max())
            mean = (upper + lower.T) / 2
            upper.copy_(mean)
            lower.copy_(mean.T)
    return float(torch.stack(gaps).max())


def block_size(num_bytes: int, device: torch.device) -> int:
    """Return how many rows may be pulled back at once through a graph that keeps so many bytes."""
    least, most = BLOCK_RANGE
    if device.type == "cpu":
        return max(least, min(most, BLOCK_BYTES // max(1, num_bytes)))
    return within(available_bytes(device), num_bytes, least=least, most=MOST_COLUMNS)


@contextmanager
def saved_bytes() -> Iterator["Saved"]:
    """Count the bytes that a graph built inside keeps.

    For graphs to be thrown away: with such hooks autograd does not notice that something it keeps
    was overwritten.
    """
    saved = Saved()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        yield saved


class Saved:
    """A running count of saved tensors' bytes; what several operations keep counts once."""

    def __init__(self) -> None:
        self.total = 0
        self._seen: set[tuple[int, int]] = set()

    def pack(self, tensor: Tensor) -> Tensor:
        """Count one saved tensor."""
        key = tensor.data_ptr(), tensor.numel()
        if key not in self._seen:
            self._seen.add(key)
            self.total += tensor.numel() * tensor.element_size()
        # The tensor itself may be the output of the very node that keeps it: a cycle.
        return tensor.detach()
