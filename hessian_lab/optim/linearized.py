"""The Jacobian of outputs in the parameters, as products both ways on one kept graph."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hessian_lab.optim.outputs import OutputCurvature

# Rows that one batched backward takes.
BLOCK = 16


class LinearizedOutputs:
    """``J v``, ``Jᵀ u`` and ``Jᵀ (∂²ℓ/∂f²) J v`` at the parameters where the graph was built.

    ``J v`` is the derivative by u of ``Jᵀ u``, which is linear in u.

    Args:
        curvature: The loss at the outputs.
        parameters: Leaves; one that the outputs do not use has columns of zeros.
    """

    def __init__(self, curvature: OutputCurvature, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.curvature = curvature
        self.outputs = curvature.outputs
        self.cotangent = torch.zeros_like(self.outputs).requires_grad_()
        pulled = torch.autograd.grad(
            self.outputs,
            self.parameters,
            self.cotangent,
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        with torch.enable_grad():
            self.transposed = torch.cat([part.reshape(-1) for part in pulled])

    @property
    def num_outputs(self) -> int:
        """Points times channels."""
        return self.outputs.numel()

    def push(self, rows: Tensor) -> Tensor:
        """Return ``J v`` [k, outputs] for rows ``v`` [k, n]."""
        return pulled(self.transposed, [self.cotangent], rows)

    def pull(self, rows: Tensor) -> Tensor:
        """Return ``Jᵀ u`` [k, n] for rows ``u`` [k, outputs]."""
        return pulled(self.outputs, self.parameters, rows)

    def curve(self, rows: Tensor) -> Tensor:
        """Return ``∂²ℓ/∂f² u`` [k, outputs] for rows ``u`` [k, outputs]."""
        slope = self.curvature.slope
        if not slope.requires_grad:
            return torch.zeros_like(rows)
        return pulled(slope, [self.outputs], rows)

    def products(self, rows: Tensor) -> Tensor:
        """Return ``G v`` [k, n] for rows ``v`` [k, n]: about three gradients each."""
        return self.pull(self.curve(self.push(rows)))

    def ggn(self) -> Tensor:
        """Return ``G`` [n, n], symmetrized, by ``n`` products."""
        size = len(self.transposed)
        matrix = self.transposed.new_zeros(size, size)
        for place in _places(size):
            units = matrix.new_zeros(place.stop - place.start, size)
            units[:, place].fill_diagonal_(1)
            matrix[place] = self.products(units)
        return (matrix + matrix.T).div_(2)

    def jacobian(self) -> Tensor:
        """Return ``J`` [outputs, n], by a gradient each output."""
        size = self.num_outputs
        matrix = self.transposed.new_zeros(size, len(self.transposed))
        for place in _places(size):
            units = matrix.new_zeros(place.stop - place.start, size)
            units[:, place].fill_diagonal_(1)
            matrix[place] = self.pull(units)
        return matrix


def pulled(value: Tensor, inputs: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Return rows [k, value's size] pulled back through ``value`` to ``inputs``, [k, inputs' size].

    Many at once where every operation can be batched, else one at a time.
    """
    if len(rows) > 1:
        try:
            return torch.cat([_together(value, inputs, part) for part in rows.split(BLOCK)])
        except RuntimeError:
            return torch.cat([_together(value, inputs, part) for part in rows.split(1)])
    return _together(value, inputs, rows)


def _together(value: Tensor, inputs: Sequence[Tensor], rows: Tensor) -> Tensor:
    several = len(rows) > 1
    cotangents = rows.view(len(rows), *value.shape) if several else rows.view(value.shape)
    parts = torch.autograd.grad(
        value,
        inputs,
        cotangents,
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=several,
    )
    found = [
        rows.new_zeros(len(rows), leaf.numel()) if part is None else part.reshape(len(rows), -1)
        for part, leaf in zip(parts, inputs, strict=True)
    ]
    return torch.cat(found, dim=1)


def _places(size: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]
