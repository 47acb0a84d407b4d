"""Row norms and the Frobenius norm of a symmetric matrix from its products, with their errors."""

from typing import Literal

import torch
from torch import Tensor

from hessian_lab.probe.budget import Budget, Estimator, estimate
from hessian_lab.probe.deletions import Sketch
from hessian_lab.probe.diagonal import Regression
from hessian_lab.probe.estimate import Estimate, skewness
from hessian_lab.probe.leave_one_out import Means, mean_squares, mean_trace
from hessian_lab.probe.operators import Multiplies
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.sketch import Probing
from hessian_lab.probe.vectors import Distribution

NormMethod = Literal["hutchinson", "leave-one-out", "exact"]


@full_precision()
def row_norms(
    operator: Multiplies,
    *,
    method: NormMethod = "leave-one-out",
    num_products: int = 30,
    distribution: Distribution = "rademacher",
    rtol: float | None = None,
    max_products: int = 1000,
    seed: int = 0,
) -> Estimate[Tensor]:
    """Estimate the Euclidean norms [n] of the rows of ``A`` from products with random vectors.

    With ``v`` of identity covariance::

        ‖A_i‖² = E[(A v)_i²]

    - ``hutchinson`` averages ``(A v)²``: a relative error of 1/√(2m) after ``m`` products, whatever
      the matrix. Its square is χ²; exactly for ``gaussian`` vectors, and with signs that know the
      part of the diagonal in each row.
    - ``leave-one-out`` takes what of a row lies in the span of the products with the other vectors
      exactly, and estimates the rest. Where eigenvalues decay fast it is far better at the same
      cost; where they do not, up to twice worse.
    - ``exact`` estimates nothing: the operator of a ``CoordinateMLP`` knows its row norms in closed
      form, see ``exact_row_norms``; of another the columns are multiplied out, by n products.

    Random signs see a diagonal matrix exactly, and ``leave-one-out`` one of rank below m/2. At
    ``num_products`` ≥ n the columns of ``A`` are multiplied out instead. The squares are unbiased;
    the norms, their roots, are too small by about half the variance over the norm.

    Args:
        operator: A symmetric matrix ``A`` [n, n].
        method: See above.
        num_products: What to spend; ``leave-one-out`` leaves an odd one unspent. See ``trace``.
        distribution: Of the random vectors.
        rtol: If given, go on, doubling the products, until the standard errors are at most
            ``rtol`` times the norms, both in the 2-norm. Products are reused.
        max_products: Where to stop with ``rtol``, whatever the error.
        seed: Of the random vectors.

    Returns:
        The estimate, in float64 on the operator's device, without samples. Memory: 16 vectors with
        ``hutchinson``, or 2 m of them.

    Raises:
        ValueError: For options out of range.
        NonFiniteError: If a product is NaN or infinite, with its number.
        ResourceError: If the vectors do not fit in memory.

    References:
        The leave-one-out estimate follows Epperly, Tropp & Webber (2024),
        https://arxiv.org/abs/2301.07825.
    """
    budget = Budget(method, num_products, distribution, rtol, max_products, seed)
    kinds = {"hutchinson": _Rows, "leave-one-out": _LeaveOneOutRows}
    return estimate(operator, budget, kinds, _exact_rows, _known_rows)


@full_precision()
def frobenius_norm(
    operator: Multiplies,
    *,
    method: NormMethod = "hutchinson",
    num_products: int = 30,
    distribution: Distribution = "rademacher",
    rtol: float | None = None,
    max_products: int = 1000,
    seed: int = 0,
) -> Estimate[float]:
    """Estimate the Frobenius norm ``‖A‖ = √Σ λ²`` from products with random vectors.

    With ``v`` of identity covariance::

        ‖A‖² = E[‖A v‖²]

    ``hutchinson`` averages ``‖A v‖²``, its ``samples``; ``leave-one-out`` deflates each vector by
    the products with the others (XTrace of ``A²``). Arguments, exactness, memory and errors are
    those of ``row_norms``, of which this is the 2-norm.
    """
    budget = Budget(method, num_products, distribution, rtol, max_products, seed)
    kinds = {"hutchinson": _Total, "leave-one-out": _LeaveOneOutTotal}
    return estimate(operator, budget, kinds, _exact_total, _known_total)


def _exact_rows(probing: Probing) -> Estimate[Tensor]:
    norms = torch.cat([torch.linalg.vector_norm(block, dim=0) for _, block in probing.columns()])
    return Estimate(
        mean=norms,
        standard_error=torch.zeros_like(norms),
        num_products=probing.num_products,
        rounding=_rounding(probing),
    )


def _exact_total(probing: Probing) -> Estimate[float]:
    rows = _exact_rows(probing)
    return Estimate(
        mean=float(torch.linalg.vector_norm(rows.mean)),
        standard_error=0.0,
        num_products=probing.num_products,
        rounding=_rounding(probing),
    )


def _known_rows(probing: Probing) -> Estimate[Tensor] | None:
    norms = probing.operator.known_row_norms()
    # Products tell which of them is not finite.
    if norms is None or not norms.isfinite().all():
        return None
    norms = norms.double()
    return Estimate(
        mean=norms,
        standard_error=torch.zeros_like(norms),
        rounding=probing.eps * float(torch.linalg.vector_norm(norms)),
    )


def _known_total(probing: Probing) -> Estimate[float] | None:
    rows = _known_rows(probing)
    if rows is None:
        return None
    total = float(torch.linalg.vector_norm(rows.mean))
    return Estimate(mean=total, standard_error=0.0, rounding=rows.rounding)


def _rounding(probing: Probing) -> float:
    """Return how far rounded products may move ``‖A v‖ / ‖v‖``, or the norm of a row."""
    return probing.eps * probing.norm()


def _root(square: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the root of an estimated square, and its standard error."""
    norm = square.sqrt()
    return norm, variance.sqrt() / (2 * torch.where(norm > 0, norm, 1))


class _Rows(Estimator[Tensor]):
    """Means of squares, whose χ² has the fewer free directions the less is the diagonal's.

    With signs, the square of ``A_ii v_i + e`` varies only as far as ``e`` does: with ``ρ`` the
    share of A_ii² in the squared norm, ``m`` samples have the relative variance
    2 (1 - ρ²) / m, that of χ² with m / (1 - ρ²) degrees of freedom.
    """

    least_products = 2
    keeps_vectors = False

    def __init__(self, probing: Probing) -> None:
        super().__init__(probing)
        self._regression = Regression.of(probing)

    def estimate(self, num_products: int) -> Estimate[Tensor]:
        regression = self._regression
        for vectors, products in self.probing.blocks(num_products - self.probing.num_products):
            regression.update(vectors, products)
        norm = (regression.squares / regression.num).sqrt()
        dof = self._dof()
        return Estimate(
            mean=norm,
            standard_error=norm / (2 * dof).sqrt(),
            dof=dof,
            num_products=self.probing.num_products,
            rounding=_rounding(self.probing),
            law="root-chi2",
        )

    def _dof(self) -> Tensor:
        regression = self._regression
        num = torch.full_like(regression.squares, regression.num)
        if self.probing.distribution == "gaussian":
            return num
        squares = torch.where(regression.squares > 0, regression.squares, 1)
        off_diagonal = (regression.residual / squares).clamp(max=1)
        return num / (off_diagonal * (2 - off_diagonal))


class _LeaveOneOutRows(Estimator[Tensor]):
    least_products = 4
    keeps_vectors = True

    def __init__(self, probing: Probing) -> None:
        super().__init__(probing)
        self._sketch = Sketch(probing)

    def estimate(self, num_products: int) -> Estimate[Tensor]:
        self._sketch.grow(num_products)
        means = mean_squares(self._sketch)
        norm, error = _root(means.mean, means.variance)
        return Estimate(
            mean=norm,
            standard_error=error,
            dof=means.num - 1,
            num_products=self.probing.num_products,
            rounding=_rounding(self.probing),
            skewness=means.skewness,
            law="root-t",
        )


class _Total(Estimator[float]):
    least_products = 2
    keeps_vectors = False

    def __init__(self, probing: Probing) -> None:
        super().__init__(probing)
        self._samples: list[Tensor] = []

    def estimate(self, num_products: int) -> Estimate[float]:
        for _, products in self.probing.blocks(num_products - self.probing.num_products):
            self._samples.append(products.square().sum(dim=0))
        samples = torch.cat(self._samples)
        num = len(samples)
        means = Means(samples.mean(), samples.var() / num, skewness(samples), num, samples)
        return _total(self.probing, means)


class _LeaveOneOutTotal(Estimator[float]):
    least_products = 4
    keeps_vectors = True

    def __init__(self, probing: Probing) -> None:
        super().__init__(probing)
        self._sketch = Sketch(probing)

    def estimate(self, num_products: int) -> Estimate[float]:
        self._sketch.grow(num_products)
        return _total(self.probing, mean_trace(self._sketch, squared=True))


def _total(probing: Probing, means: Means) -> Estimate[float]:
    norm, error = _root(means.mean.clamp(min=0), means.variance)
    return Estimate(
        mean=float(norm),
        standard_error=float(error),
        samples=means.samples,
        dof=means.num - 1,
        num_products=probing.num_products,
        rounding=_rounding(probing),
        skewness=float(means.skewness),
        law="root-t",
    )
