"""Leave-one-out estimates and their variance: XTrace, XDiag, and row norms alike.

Every random vector ωᵢ is measured on what the *other* vectors' products do not span, so that each
of the ``k`` values tᵢ is unbiased. They share their vectors, and the error published with XTrace,
which takes them for independent, covers only 71-88 %. With tᵢⱼ the value of ωᵢ where ωⱼ is left
out too, both ``tᵢ - tᵢⱼ`` given ωⱼ and ``tⱼ - tⱼᵢ`` given ωᵢ have mean zero, and hence::

    Cov(tᵢ, tⱼ) = E[(tᵢ - tᵢⱼ) (tⱼ - tⱼᵢ)]
    Var(mean t) = E[s² / k + mean over i ≠ j of (tᵢ - tᵢⱼ) (tⱼ - tⱼᵢ)]

with s² the sample variance: an unbiased variance from the products there are. The delete-one
jackknife reads the same tᵢⱼ and overstates the variance two- to tenfold.

References:
    Epperly, Tropp & Webber (2024), https://arxiv.org/abs/2301.07825.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hessian_lab.probe.deletions import Deletions, Sketch
from hessian_lab.probe.estimate import skewness

# The covariance, small beside its own noise where spectra decay fast, adds this share at least.
LEAST_COVARIANCE = 0.25
# Rows of a vector estimate that are worked on at once.
ROWS = 8192


@dataclass(frozen=True, eq=False)
class Means:
    """A mean of exchangeable values, its variance, and the skewness of the values."""

    mean: Tensor
    variance: Tensor
    skewness: Tensor
    num: int
    samples: Tensor | None = None  # [k]


def mean_trace(sketch: Sketch, *, squared: bool = False) -> Means:
    """Return the leave-one-out estimate of tr A (XTrace), or of tr A²; O(k⁴) operations."""
    basis, deletions = sketch.basis, Deletions(sketch)
    coefficients = (basis.vectors.T @ sketch.vectors).cpu()
    left = basis.products if squared else basis.vectors
    right = sketch.products if squared else sketch.vectors
    form = (left.T @ basis.products).cpu()
    form = (form + form.T) / 2
    quadratic = (right * sketch.products).sum(dim=0).cpu()
    bent = (left.T @ sketch.products).cpu() - form @ coefficients
    constant = quadratic - (coefficients * (2 * bent + form @ coefficients)).sum(dim=0)
    constant = constant + form.trace()
    table = _Quadratic(form, bent, constant, coefficients)

    values = table.values([deletions.single])
    num = len(values)
    apart = torch.zeros(num, num, dtype=torch.float64)
    for j in deletions.partners:
        directions = [deletions.single[:, j : j + 1], deletions.pair(j)]
        apart[:, j] = values - table.values(directions)
    apart.fill_diagonal_(0)
    own = values.var() / num
    covariance = (apart * apart.T).sum() / (num * (num - 1))
    variance = torch.maximum(own + covariance, (1 + LEAST_COVARIANCE) * own)
    return Means(values.mean(), variance, skewness(values), num, values.to(left))


def mean_diagonal(sketch: Sketch) -> Means:
    """Return the leave-one-out estimate of the diagonal [n], XDiag; O(n k³) operations.

    The values are regressed on the random signs, or on the entries of Gaussian vectors, whose
    quotients alone would have no variance.
    """
    return _by_rows(sketch, squared=False, least_covariance=0.0)


def mean_squares(sketch: Sketch) -> Means:
    """Return the leave-one-out estimate of the squared row norms [n]; O(n k³) operations."""
    return _by_rows(sketch, squared=True, least_covariance=LEAST_COVARIANCE)


def _by_rows(sketch: Sketch, *, squared: bool, least_covariance: float) -> Means:
    basis, deletions = sketch.basis, Deletions(sketch)
    coefficients = basis.vectors.T @ (sketch.vectors if squared else sketch.products)
    parts = []
    for start in range(0, sketch.probing.size, ROWS):
        rows = slice(start, start + ROWS)
        table = _Rows(
            left=(basis.products if squared else basis.vectors)[rows],
            right=basis.products[rows],
            products=sketch.products[rows],
            coefficients=coefficients,
            vectors=None if squared else sketch.vectors[rows],
        )
        parts.append(_row_means(table, deletions, least_covariance))
    means, variances, skews = (torch.cat(part) for part in zip(*parts, strict=True))
    return Means(means, variances, skews, sketch.vectors.shape[1])


def _row_means(
    table: "_Rows", deletions: Deletions, least_covariance: float
) -> tuple[Tensor, Tensor, Tensor]:
    weights = table.weights
    single = deletions.single.to(weights)
    values = table.values(slice(None), table.lifted([single]))
    num = values.shape[1]
    total = weights.square().sum(dim=1)
    mean = (weights * values).sum(dim=1) / total
    own = (values - mean.unsqueeze(1) * weights).square().sum(dim=1) / ((num - 1) * total)
    cross = torch.zeros_like(mean)
    for j in deletions.partners:
        others, this = slice(0, j), slice(j, j + 1)
        lifted = table.lifted([single[:, this], deletions.pair(j)[:, others].to(weights)])
        of_others = values[:, others] - table.values(others, lifted)
        of_this = values[:, this] - table.values(this, lifted)
        of_pairs = weights[:, others] * of_others * weights[:, this] * of_this
        cross += 2 * of_pairs.sum(dim=1)
    covariance = cross / total.square() * (num / (num - 1))
    variance = torch.maximum(own + covariance, (1 + least_covariance) * own)
    return mean, variance, skewness(weights * values)


class _Quadratic:
    """Values of ``tr(P F P) + xᵀ F x`` with ``P`` a smaller projector and ``x`` what it leaves."""

    def __init__(self, form: Tensor, bent: Tensor, constant: Tensor, coefficients: Tensor) -> None:
        self._form = form
        self._bent = bent
        self._constant = constant
        self._coefficients = coefficients

    def values(self, directions: list[Tensor]) -> Tensor:
        """Return the value of every vector [k] without the given directions [r, 1 or k]."""
        result = self._constant
        moved = torch.zeros_like(self._coefficients)
        for direction in directions:
            result = result - (direction * (self._form @ direction)).sum(dim=0)
            moved = moved + direction * (direction * self._coefficients).sum(dim=0)
        return result + (moved * (2 * self._bent + self._form @ moved)).sum(dim=0)


class _Rows:
    """Values of some rows: of a diagonal, or of squared row norms where ``vectors`` is None."""

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        products: Tensor,
        coefficients: Tensor,
        vectors: Tensor | None,
    ) -> None:
        self._left = left
        self._right = right
        self._low = (left * right).sum(dim=1, keepdim=True)
        self._rest = products - left @ coefficients
        self._coefficients = coefficients
        self._vectors = vectors
        self.weights = torch.ones_like(products) if vectors is None else vectors

    def lifted(self, directions: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return each direction with what the basis and its products make of it."""
        return [(one, self._left @ one, self._right @ one) for one in directions]

    def values(self, columns: slice, lifted: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Return the values [rows, columns] of vectors without some directions."""
        low, rest = self._low, self._rest[:, columns]
        for direction, left, right in lifted:
            low = low - left * right
            rest = rest + left * (direction * self._coefficients[:, columns]).sum(dim=0)
        if self._vectors is None:
            return low + rest.square()
        return self._vectors[:, columns] * low + rest
