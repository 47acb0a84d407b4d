"""The preconditioner ``P`` of an optimizer's step ``-η P⁻¹ m``, and the spectrum it makes."""

from dataclasses import dataclass

from torch import Tensor

from hessian_lab.probe.operators import (
    MatrixOperator,
    Multiplies,
    ScaledOperator,
    SymmetricOperator,
    as_operator,
)


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """A positive definite matrix ``P`` [n, n], by its inverse root.

    Attributes:
        inverse_sqrt: ``P^{-1/2}`` as an operator.
        scale: The diagonal [n] of a ``P`` that is diagonal, else None.
    """

    inverse_sqrt: SymmetricOperator
    scale: Tensor | None = None

    def precondition(self, operator: Multiplies) -> ScaledOperator:
        """Return ``P^{-1/2} A P^{-1/2}``, whose spectrum is that of ``P⁻¹ A``."""
        root = self.inverse_sqrt if self.scale is None else self.scale.rsqrt()
        return ScaledOperator(as_operator(operator), root)


class DiagonalOperator(SymmetricOperator):
    """A diagonal matrix.

    Args:
        diagonal: Its entries [n].
    """

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal = diagonal.detach()
        super().__init__(len(diagonal), diagonal.dtype, diagonal.device)

    def matmat(self, block: Tensor) -> Tensor:
        """Return ``diag(d) V`` [n, k]."""
        return self.diagonal.unsqueeze(1) * block

    def known_diagonal(self) -> Tensor:
        """Return the diagonal [n]."""
        return self.diagonal


def diagonal_preconditioner(scale: Tensor) -> Preconditioner:
    """Return ``diag(scale)`` as a preconditioner; ``scale`` [n] is positive."""
    return Preconditioner(DiagonalOperator(scale.rsqrt()), scale)


def dense_preconditioner(inverse_sqrt: Tensor) -> Preconditioner:
    """Return the preconditioner whose inverse root is a symmetric positive matrix [n, n]."""
    return Preconditioner(MatrixOperator(inverse_sqrt))
