"""The condition number: a value where it can be resolved, else a lower bound."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessian_lab.probe.lanczos import Tridiagonalization, tridiagonalize
from hessian_lab.probe.operators import (
    MatrixOperator,
    Multiplies,
    SymmetricOperator,
    as_operator,
    require_finite,
)
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.spectrum import spectrum
from hessian_lab.probe.vectors import gaussian

DEFAULT_STEPS = 100


@dataclass(frozen=True, eq=False)
class ConditionNumber:
    """``κ = max|λ| / min|λ|``, or a lower bound of it; it prints as ``≥ 1.2e+09`` then.

    Attributes:
        value: κ where ``resolved``, else a lower bound; NaN for the zero matrix.
        resolved: Whether min|λ| is known, and above the rounding floor.
        largest: max|λ|; from products a lower bound of it, with a relative error of at most
            ``residual / largest`` where it has converged.
        smallest: min|λ|; from products an upper bound of it.
        floor: The rounding floor ``n · eps · max|λ|``: ``value`` never exceeds ``largest / floor``.
        residual: ``‖A v - λ v‖`` of the largest; 0 for a dense matrix.
        num_products: What it cost; 0 for a dense matrix.
    """

    value: float
    resolved: bool
    largest: float
    smallest: float
    floor: float
    residual: float = 0.0
    num_products: int = 0

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{'' if self.resolved else '≥ '}{self.value:.3g}"


@dataclass(frozen=True)
class ConditionEnclosure:
    """An interval that holds ``log₁₀ κ``; κ itself may lie beyond double precision.

    Attributes:
        lower: Its lower end, rounded down.
        upper: Its upper end, rounded up; infinite where κ is, or may be.
        singular: Whether the matrix is proven singular: a row is exactly zero, and κ is infinite.
        num_unscaled: Entries of ``D`` that are exactly zero, and were set to 1.
        bits: The working precision that it took.
    """

    lower: float
    upper: float
    singular: bool = False
    num_unscaled: int = 0
    bits: int = 0

    @property
    def known(self) -> bool:
        """Whether κ is enclosed, or proven to be infinite."""
        return self.singular or math.isfinite(self.upper)

    @property
    def log10(self) -> float:
        """The middle of the interval; infinite where singular, NaN where nothing is known."""
        if self.singular:
            return math.inf
        return (self.lower + self.upper) / 2 if self.known else math.nan

    def __str__(self) -> str:
        if self.singular:
            return "∞"
        if not self.known:
            return "not enclosed"
        return f"1e{self.log10:.4f}"


@full_precision()
def condition_number(
    operator: Multiplies,
    *,
    num_steps: int | None = None,
    seed: int = 0,
    scratch: Path | None = None,
) -> ConditionNumber:
    """Return the condition number of a symmetric matrix, or a lower bound of it.

    A dense matrix (a tensor, an array, a ``MatrixOperator``) is decomposed: ``4/3 n³`` operations
    and two copies of it; κ is resolved where min|λ| is above the rounding floor. To resolve κ of
    another operator, pass ``operator.dense()``.

    Of any other operator only products are known, and κ is never resolved. Lanczos gives max|λ|
    from below, and from above ``min|λ| ≤ ‖A v‖`` for the unit vector ``v`` of the Krylov space
    that ``A`` shrinks most. Both are read off true products, so the bound holds up to rounding; it
    is far from κ where small eigenvalues hide inside the spectrum.

    Args:
        operator: ``A`` [n, n].
        num_steps: Lanczos steps ``k`` where only products are known, by default ``min(n, 100)``.
            Costs ``k + 2`` products and holds ``k`` vectors. More steps, higher bound.
        seed: Of the random start.
        scratch: A directory for a file with the Lanczos vectors where they do not fit in memory;
            see ``lanczos.Recurrence``.

    Raises:
        ValueError: If ``num_steps`` is not in [1, n], or a dense matrix is not finite.
        NonFiniteError: If a product is not finite.
        ResourceError: If the decomposition or the Lanczos basis does not fit.

    References:
        Paige, Parlett & Van der Vorst (1995), https://doi.org/10.1002/nla.1680020205.
    """
    if isinstance(operator, MatrixOperator):
        operator = operator.matrix
    if isinstance(operator, Tensor | np.ndarray):
        return _of_matrix(operator)
    operator = as_operator(operator)
    num_steps = min(operator.size, DEFAULT_STEPS) if num_steps is None else num_steps
    start = gaussian(operator.size, 1, seed=seed, like=operator)
    run = tridiagonalize(operator, start, num_steps=num_steps, keep_basis=True, scratch=scratch)
    return _of_krylov(operator, run)


def _of_matrix(matrix: Tensor | NDArray[np.floating]) -> ConditionNumber:
    found = spectrum(matrix)
    return ConditionNumber(
        value=found.condition_number,
        resolved=found.condition_number_resolved,
        largest=found.spectral_radius,
        smallest=found.smallest_magnitude,
        floor=found.tolerance,
    )


def _of_krylov(operator: SymmetricOperator, run: Tridiagonalization) -> ConditionNumber:
    basis = cast(Tensor, run.basis)[0]
    pair = torch.from_numpy(_extremes(run)).to(basis) @ basis
    products = operator @ pair.T
    require_finite(products, first=run.num_products + 1)
    pair, products = pair.double(), products.T.double()
    pair_norms = torch.linalg.vector_norm(pair, dim=1)
    quotient = (pair[0] @ products[0]) / pair_norms[0] ** 2
    residual = torch.linalg.vector_norm(products[0] - quotient * pair[0]) / pair_norms[0]
    smallest = torch.linalg.vector_norm(products[1]) / pair_norms[1]
    largest = float(torch.linalg.vector_norm(products[0]) / pair_norms[0])
    floor = operator.size * torch.finfo(operator.dtype).eps * largest
    below = max(float(smallest), floor)
    return ConditionNumber(
        value=largest / below if below else float("nan"),
        resolved=False,
        largest=largest,
        smallest=float(smallest),
        floor=floor,
        residual=float(residual),
        num_products=run.num_products + 2,
    )


def _extremes(run: Tridiagonalization) -> NDArray[np.float64]:
    """Return in the Lanczos basis the Ritz vector of max|θ| and the minimizer of ‖A v‖ [2, k]."""
    alphas, betas = run.alphas[0].numpy(), run.betas[0].numpy()
    size = len(alphas)
    extended = np.zeros((size + 1, size))
    places = np.arange(size)
    extended[places, places] = alphas
    extended[places + 1, places] = betas
    extended[places[:-1], places[1:]] = betas[:-1]
    values, vectors = np.linalg.eigh(extended[:size])
    rows = np.linalg.svd(extended)[2]
    return np.stack([vectors[:, np.abs(values).argmax()], rows[-1]])
