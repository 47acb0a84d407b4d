"""A block-diagonal matrix of Kronecker products, as the inverse root of a preconditioner."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hessian_lab.probe.operators import SymmetricOperator


@dataclass(frozen=True, eq=False)
class KroneckerRoot:
    """Maps a matrix ``X`` to ``U (S ∘ (Uᵀ X V)) Vᵀ``: symmetric, and positive where ``S`` is.

    Attributes:
        places: Where in the flat order the entries of ``X`` stand, [rows, columns].
        scale: ``S`` [rows, columns].
        left: The orthogonal ``U``, or None for the identity.
        right: The orthogonal ``V``, or None.
    """

    places: Tensor
    scale: Tensor
    left: Tensor | None = None
    right: Tensor | None = None

    def apply(self, block: Tensor) -> Tensor:
        """Return the image of every matrix of ``block`` [k, rows, columns]."""
        inner = block if self.left is None else self.left.T @ block
        inner = self.scale * (inner if self.right is None else inner @ self.right)
        inner = inner if self.left is None else self.left @ inner
        return inner if self.right is None else inner @ self.right.T


class KroneckerOperator(SymmetricOperator):
    """A block-diagonal matrix [n, n] of such maps, which are made on first use.

    Args:
        size: ``n``.
        like: What tells its precision and device.
        make: Makes the blocks; together their places are all of 0 … n - 1.
    """

    def __init__(
        self, size: int, like: Tensor, make: Callable[[], Sequence[KroneckerRoot]]
    ) -> None:
        self._make = make
        super().__init__(size, like.dtype, like.device)

    @cached_property
    def blocks(self) -> Sequence[KroneckerRoot]:
        """The blocks."""
        with torch.no_grad():
            return self._make()

    def matmat(self, block: Tensor) -> Tensor:
        """Return the product with ``V`` [n, k]."""
        out = torch.empty_like(block)
        for part in self.blocks:
            matrices = block[part.places].permute(2, 0, 1).to(part.scale.dtype)
            out[part.places] = part.apply(matrices).permute(1, 2, 0).to(block.dtype)
        return out


def places_of(parameters: Sequence[Tensor], order: Sequence[int]) -> list[Tensor]:
    """Return where the entries of each parameter stand in a flat order, in its own shape.

    Args:
        parameters: An optimizer's.
        order: Which of them is first, second, … in the flat order.
    """
    found: dict[int, Tensor] = {}
    start = 0
    for place in order:
        value = parameters[place]
        entries = torch.arange(start, start + value.numel(), device=value.device)
        found[place] = entries.view(value.shape)
        start += value.numel()
    return [found[place] for place in range(len(parameters))]


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and vectors of a symmetric matrix, computed in and given in float64.

    LAPACK's divide and conquer fails now and then on matrices that are all but diagonal; a
    perturbation far below rounding of the float32 case, and a growing one, lets it succeed.
    """
    exact = matrix.double()
    ridge = torch.finfo(exact.dtype).eps * exact.diagonal().abs().max()
    for tries in range(4):
        try:
            values, basis = torch.linalg.eigh(exact)
        except RuntimeError:
            if tries == 3 or not bool(exact.isfinite().all()):
                raise
            exact = exact + ridge * torch.eye(len(exact), dtype=exact.dtype, device=exact.device)
            ridge = 1e3 * ridge
        else:
            return values, basis
    raise AssertionError("unreachable")
