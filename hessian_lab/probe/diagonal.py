"""The diagonal of a symmetric matrix from its products, with an error for every entry."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hessian_lab.probe.budget import Budget, Estimator, estimate
from hessian_lab.probe.deletions import Sketch
from hessian_lab.probe.estimate import Estimate
from hessian_lab.probe.leave_one_out import mean_diagonal
from hessian_lab.probe.operators import Multiplies
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.sketch import Probing
from hessian_lab.probe.vectors import Distribution

DiagonalMethod = Literal["hutchinson", "xdiag", "exact"]


@full_precision()
def diagonal(
    operator: Multiplies,
    *,
    method: DiagonalMethod = "hutchinson",
    num_products: int = 30,
    distribution: Distribution = "rademacher",
    rtol: float | None = None,
    max_products: int = 1000,
    seed: int = 0,
) -> Estimate[Tensor]:
    """Estimate the diagonal [n] of a symmetric matrix ``A`` from products with random vectors.

    With ``v`` of identity covariance::

        diag A = E[v ⊙ A v]

    - ``hutchinson`` regresses ``A v`` on ``v`` entry by entry, which for signs is the mean of
      ``v ⊙ A v``. The error of entry ``i`` is √(Σ_{j≠i} A_ij² / m) after ``m`` products.
    - ``xdiag`` deflates each vector by the products with the others: fewer products where
      eigenvalues decay fast, more where they do not.
    - ``exact`` estimates nothing: the operator of a ``CoordinateMLP`` knows its diagonal in closed
      form, see ``exact_diagonal``; of another the columns are multiplied out, by n products.

    A diagonal matrix comes out exactly; with ``xdiag`` also one of rank below m/2. At
    ``num_products`` ≥ n the columns of ``A`` are multiplied out instead.

    Args:
        operator: A symmetric matrix ``A`` [n, n].
        method: See above.
        num_products: What to spend; ``xdiag`` leaves an odd one unspent. See ``trace``.
        distribution: Of the random vectors; with ``gaussian`` ones Student's t of ``hutchinson``
            is exact.
        rtol: If given, go on, doubling the products, until the standard errors are at most
            ``rtol`` times the diagonal, both in the 2-norm. Products are reused.
        max_products: Where to stop with ``rtol``, whatever the error.
        seed: Of the random vectors.

    Returns:
        The estimate, in float64 on the operator's device, without samples. Memory: 16 vectors, or
        2 m of them with ``xdiag``.

    Raises:
        ValueError: For options out of range.
        NonFiniteError: If a product is NaN or infinite, with its number.
        ResourceError: If the vectors of ``xdiag`` do not fit in memory.

    References:
        Bekas, Kokiopoulou & Saad (2007), https://doi.org/10.1016/j.apnum.2007.01.003. Epperly,
        Tropp & Webber (2024), https://arxiv.org/abs/2301.07825.
    """
    budget = Budget(method, num_products, distribution, rtol, max_products, seed)
    kinds = {"hutchinson": _Hutchinson, "xdiag": _XDiag}
    return estimate(operator, budget, kinds, _exact, known_diagonal)


@dataclass(eq=False)
class Regression:
    """The running regression of products on their vectors, through the origin, row by row.

    Attributes:
        slope: Σ v y / Σ v² [n], an unbiased estimate of the diagonal.
        residual: Σ (y - slope v)² [n], free of cancellation.
        weight: Σ v² [n].
        squares: Σ y² [n].
        num: How many vectors.
    """

    slope: Tensor
    residual: Tensor
    weight: Tensor
    squares: Tensor
    num: int = 0

    @classmethod
    def of(cls, probing: Probing) -> "Regression":
        """Return the regression of nothing yet."""
        return cls(*probing.empty().new_zeros(4, probing.size))

    def update(self, vectors: Tensor, products: Tensor) -> None:
        """Take in vectors and products [n, k]."""
        weight = vectors.square().sum(dim=1)
        slope = (vectors * products).sum(dim=1) / weight
        total = self.weight + weight
        gap = slope - self.slope
        self.residual += (products - slope.unsqueeze(1) * vectors).square().sum(dim=1)
        self.residual += gap.square() * self.weight * weight / total
        self.slope = self.slope + gap * weight / total
        self.weight = total
        self.squares = self.squares + products.square().sum(dim=1)
        self.num += vectors.shape[1]


def _exact(probing: Probing) -> Estimate[Tensor]:
    entries = torch.cat([block[first:].diagonal() for first, block in probing.columns()])
    return _estimate(probing, entries, torch.zeros_like(entries))


def known_diagonal(probing: Probing) -> Estimate[Tensor] | None:
    """Return what the operator knows of its diagonal without products."""
    entries = probing.operator.known_diagonal()
    # Products tell which of them is not finite.
    if entries is None or not entries.isfinite().all():
        return None
    entries = entries.double()
    rounding = probing.eps * float(torch.linalg.vector_norm(entries))
    return Estimate(mean=entries, standard_error=torch.zeros_like(entries), rounding=rounding)


def _estimate(
    probing: Probing, mean: Tensor, variance: Tensor, dof: float = float("inf")
) -> Estimate[Tensor]:
    return Estimate(
        mean=mean,
        standard_error=variance.sqrt(),
        dof=dof,
        num_products=probing.num_products,
        rounding=probing.eps * probing.norm(),
    )


class _Hutchinson(Estimator[Tensor]):
    least_products = 2
    keeps_vectors = False

    def __init__(self, probing: Probing) -> None:
        super().__init__(probing)
        self._regression = Regression.of(probing)

    def estimate(self, num_products: int) -> Estimate[Tensor]:
        regression = self._regression
        for vectors, products in self.probing.blocks(num_products - self.probing.num_products):
            regression.update(vectors, products)
        dof = regression.num - 1
        variance = regression.residual / (dof * regression.weight)
        return _estimate(self.probing, regression.slope, variance, dof)


class _XDiag(Estimator[Tensor]):
    least_products = 4
    keeps_vectors = True

    def __init__(self, probing: Probing) -> None:
        super().__init__(probing)
        self._sketch = Sketch(probing)

    def estimate(self, num_products: int) -> Estimate[Tensor]:
        self._sketch.grow(num_products)
        means = mean_diagonal(self._sketch)
        return _estimate(self.probing, means.mean, means.variance, means.num - 1)
