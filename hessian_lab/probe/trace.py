"""The trace of a symmetric matrix from its products, with an honest error."""

import math
from typing import Literal

import torch
from torch import Tensor

from hessian_lab.probe.budget import Budget, Estimator, estimate
from hessian_lab.probe.deletions import Sketch
from hessian_lab.probe.diagonal import known_diagonal
from hessian_lab.probe.estimate import Estimate, skewness
from hessian_lab.probe.leave_one_out import mean_trace
from hessian_lab.probe.operators import Multiplies
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.sketch import Basis, Probing, looks_diagonal
from hessian_lab.probe.vectors import Distribution

TraceMethod = Literal["hutchinson", "hutch++", "xtrace", "exact"]


@full_precision()
def trace(
    operator: Multiplies,
    *,
    method: TraceMethod = "hutchinson",
    num_products: int = 30,
    distribution: Distribution = "rademacher",
    rtol: float | None = None,
    max_products: int = 1000,
    seed: int = 0,
) -> Estimate[float]:
    """Estimate the trace of a symmetric matrix ``A`` from its products with random vectors.

    With ``v`` of identity covariance::

        tr A = E[vᵀ A v]

    - ``hutchinson`` averages ``vᵀ A v``. Its error is √(2/m) ‖A‖ after ``m`` products, less what
      the diagonal adds to ‖A‖ (Frobenius norm); it keeps no vectors.
    - ``hutch++`` spends a quarter of its products on a sketch of the range, a quarter on the trace
      within it, exactly, and half on Hutchinson's estimate of the rest.
    - ``xtrace`` lets every vector serve both ends. It needs the fewest products where eigenvalues
      decay fast, and the most where they do not.
    - ``exact`` sums the diagonal, and estimates nothing: see ``diagonal``.

    Random signs see a diagonal matrix exactly. ``hutch++`` up to rank m/4 and ``xtrace`` below
    rank m/2 are exact too. At ``num_products`` ≥ n the columns of ``A`` are multiplied out
    instead, and the trace is exact.

    Args:
        operator: A symmetric matrix ``A`` [n, n].
        method: See above.
        num_products: What to spend. ``xtrace`` leaves an odd one unspent; sketches of low rank
            need fewer. What was spent is in the result; the symmetry of an operator that is not
            ours is checked by two more.
        distribution: Of the random vectors: ``rademacher`` signs have the smaller variance,
            ``gaussian`` vectors one that does not depend on the basis.
        rtol: If given, go on, doubling the products, until the standard error is at most ``rtol``
            times the trace in magnitude. Products are reused. Stopping at an error that looks
            small costs the intervals about a point of coverage.
        max_products: Where to stop with ``rtol``, whatever the error.
        seed: Of the random vectors.

    Returns:
        The estimate. Its ``samples`` are ``vᵀ A v`` [m], or the values of each vector that the
        others deflate. Over random signs at 30 products its 95 % interval covers in 93-96 % of
        seeds; in up to 99 % where few entries make a dominant eigenvector. Memory: 16 vectors,
        or 2 m of them with ``hutch++`` and ``xtrace``.

    Raises:
        ValueError: For options out of range.
        NonFiniteError: If a product is NaN or infinite, with its number.
        ResourceError: If the vectors of a sketch do not fit in memory.

    References:
        Hutchinson (1990), https://doi.org/10.1080/03610919008812866. Meyer, Musco, Musco &
        Woodruff (2021), https://arxiv.org/abs/2010.09649. Epperly, Tropp & Webber (2024),
        https://arxiv.org/abs/2301.07825.
    """
    budget = Budget(method, num_products, distribution, rtol, max_products, seed)
    kinds = {"hutchinson": _Hutchinson, "hutch++": _HutchPlusPlus, "xtrace": _XTrace}
    return estimate(operator, budget, kinds, _exact, _known)


def _exact(probing: Probing) -> Estimate[float]:
    parts = [block[first:].diagonal().sum() for first, block in probing.columns()]
    return Estimate(
        mean=float(torch.stack(parts).sum()),
        standard_error=0.0,
        num_products=probing.num_products,
        rounding=_rounding(probing),
    )


def _known(probing: Probing) -> Estimate[float] | None:
    diagonal = known_diagonal(probing)
    if diagonal is None:
        return None
    return Estimate(
        mean=float(diagonal.mean.sum()),
        standard_error=0.0,
        rounding=math.sqrt(probing.size) * diagonal.rounding,
    )


def _rounding(probing: Probing) -> float:
    """Return how far rounded products may move ``vᵀ A v``: ε ‖v‖ ‖A v‖."""
    return probing.eps * math.sqrt(probing.size) * probing.norm()


def _mean(probing: Probing, samples: Tensor) -> Estimate[float]:
    """Return the mean of independent samples."""
    return Estimate(
        mean=float(samples.mean()),
        standard_error=float(samples.std()) / len(samples) ** 0.5,
        samples=samples,
        dof=len(samples) - 1,
        num_products=probing.num_products,
        rounding=_rounding(probing),
        skewness=float(skewness(samples)),
    )


class _Hutchinson(Estimator[float]):
    least_products = 2
    keeps_vectors = False

    def __init__(self, probing: Probing) -> None:
        super().__init__(probing)
        self._samples: list[Tensor] = []

    def estimate(self, num_products: int) -> Estimate[float]:
        for vectors, products in self.probing.blocks(num_products - self.probing.num_products):
            self._samples.append((vectors * products).sum(dim=0))
        return _mean(self.probing, torch.cat(self._samples))


class _HutchPlusPlus(Estimator[float]):
    """A quarter of the products makes the sketch, a quarter its trace, the rest the samples."""

    least_products = 4
    keeps_vectors = True

    def __init__(self, probing: Probing) -> None:
        super().__init__(probing)
        self._basis = Basis(probing)
        self._vectors = self._products = probing.empty()
        self._num_sketched = 0
        self._diagonal = False

    def estimate(self, num_products: int) -> Estimate[float]:
        self._sketch(num_products // 4 - self._num_sketched)
        vectors, products = self.probing.draw(num_products - self.probing.num_products)
        self._vectors = torch.cat([self._vectors, vectors], dim=1)
        self._products = torch.cat([self._products, products], dim=1)
        return _mean(self.probing, self._samples())

    def _sketch(self, num: int) -> None:
        vectors, products = self.probing.draw(num)
        if not self._num_sketched:
            self._diagonal = looks_diagonal(vectors, products, eps=self.probing.eps)
        self._num_sketched += num
        if not self._diagonal:
            self._basis.extend(products)

    def _samples(self) -> Tensor:
        """Return ``tr QᵀAQ + xᵀ A x`` [m] with ``x`` what the basis leaves of each vector."""
        basis, images = self._basis.vectors, self._basis.products
        inside = basis.T @ self._vectors
        rest = self._vectors - basis @ inside
        image = self._products - images @ inside
        return (basis * images).sum() + (rest * image).sum(dim=0)


class _XTrace(Estimator[float]):
    least_products = 4
    keeps_vectors = True

    def __init__(self, probing: Probing) -> None:
        super().__init__(probing)
        self._sketch = Sketch(probing)

    def estimate(self, num_products: int) -> Estimate[float]:
        self._sketch.grow(num_products)
        means = mean_trace(self._sketch)
        return Estimate(
            mean=float(means.mean),
            standard_error=float(means.variance.sqrt()),
            samples=means.samples,
            dof=means.num - 1,
            num_products=self.probing.num_products,
            rounding=_rounding(self.probing),
            skewness=float(means.skewness),
        )
