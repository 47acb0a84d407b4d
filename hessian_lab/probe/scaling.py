"""The diagonal preconditioners of a matrix, from its products: equilibration and Jacobi.

ESGD scales by row norms, √mean (A v)², that is by equilibration. So does AdaHessian, whatever it is
called: for signs ``v`` its statistic √mean (v ⊙ A v)² is the same number, since ``v²`` is 1, and
converges to the row norms, not to the diagonal. Jacobi's scale averages ``v ⊙ A v`` with its sign
and takes the magnitude last; an average of ``|v ⊙ A v|`` is neither.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hessian_lab.probe.diagonal import DiagonalMethod, diagonal
from hessian_lab.probe.estimate import Estimate
from hessian_lab.probe.norms import NormMethod, row_norms
from hessian_lab.probe.operators import Multiplies, as_operator
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.vectors import Distribution


@dataclass(frozen=True, eq=False)
class Scaling:
    """A positive diagonal ``D``; the scaled matrix is ``ScaledOperator(A, scaling.inverse_sqrt)``.

    Attributes:
        scale: The diagonal of ``D`` [n], in float64.
        num_unscaled: How many entries were too small to divide by, and were set to 1.
        estimate: What ``scale`` was made of, with its errors; None where it was given exactly.
    """

    scale: Tensor
    num_unscaled: int = 0
    estimate: Estimate[Tensor] | None = None

    @property
    def inverse_sqrt(self) -> Tensor:
        """The diagonal of ``D^{-1/2}`` [n]."""
        return self.scale.rsqrt()

    def __str__(self) -> str:
        low, high = self.scale.min(), self.scale.max()
        error = "" if self.estimate is None else f" ± {self.estimate.relative_error:.1%} in norm"
        unscaled = f", {self.num_unscaled} of {len(self.scale)} unscaled"
        return f"scale in [{low:.3g}, {high:.3g}]{error}{unscaled}"


@full_precision()
def scaling(
    values: Tensor, *, dtype: torch.dtype | None = None, estimate: Estimate[Tensor] | None = None
) -> Scaling:
    """Return the scaling by the magnitudes of ``values`` [n], such as an exact diagonal.

    Magnitudes of at most n · eps · max are rounding noise and are set to 1: a fifth of a ReLU field
    with positional encoding has no curvature at all.

    Args:
        values: Row norms, or a diagonal.
        dtype: The precision that they were computed in, if not that of ``values``.
        estimate: Where they come from.

    Raises:
        ValueError: If ``values`` is no vector, or not finite.
    """
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values must have shape [n], n > 0, got {list(values.shape)}.")
    if not values.isfinite().all():
        raise ValueError("values must be finite, got NaN or Inf.")
    scale = values.double().abs()
    eps = torch.finfo(dtype or values.dtype).eps
    small = scale <= len(scale) * eps * scale.max()
    return Scaling(torch.where(small, 1, scale), int(small.sum()), estimate)


def equilibration(
    operator: Multiplies,
    *,
    method: NormMethod = "leave-one-out",
    num_products: int = 30,
    distribution: Distribution = "rademacher",
    rtol: float | None = None,
    max_products: int = 1000,
    seed: int = 0,
) -> Scaling:
    """Estimate the equilibration ``Dᵢ = ‖A_i‖₂`` by the row norms; see ``row_norms``.

    With ``method="hutchinson"`` it is √mean (A v)², what ESGD and AdaHessian estimate.

    References:
        Dauphin, de Vries & Bengio (2015), https://arxiv.org/abs/1502.04390.
    """
    operator = as_operator(operator)
    estimate = row_norms(
        operator,
        method=method,
        num_products=num_products,
        distribution=distribution,
        rtol=rtol,
        max_products=max_products,
        seed=seed,
    )
    return scaling(estimate.mean, dtype=operator.dtype, estimate=estimate)


def jacobi(
    operator: Multiplies,
    *,
    method: DiagonalMethod = "hutchinson",
    num_products: int = 30,
    distribution: Distribution = "rademacher",
    rtol: float | None = None,
    max_products: int = 1000,
    seed: int = 0,
) -> Scaling:
    """Estimate Jacobi's scale ``Dᵢ = |A_ii|`` by the signed mean of ``v ⊙ A v``; see ``diagonal``.

    An entry below its standard error, ``estimate.standard_error``, is noise: from ``m`` products no
    |A_ii| below about ‖A_i‖ / √m is seen, and Jacobi takes far more products than equilibration.
    """
    operator = as_operator(operator)
    estimate = diagonal(
        operator,
        method=method,
        num_products=num_products,
        distribution=distribution,
        rtol=rtol,
        max_products=max_products,
        seed=seed,
    )
    return scaling(estimate.mean, dtype=operator.dtype, estimate=estimate)
