"""A sketch whose vectors deflate one another, and what goes with each of them left out."""

import torch
from torch import Tensor

from hessian_lab.probe.sketch import Basis, Probing, looks_diagonal

# 1 - leverage of a product that alone spans a direction; rounding leaves less.
SOLE = 1e-10
# What a basis of the whole range leaves of a product, in roundings of it: its own conditioning.
SPANNED = 1e3


class Sketch:
    """Random vectors [n, k], their products, and a basis of what these span.

    Signs that see a diagonal matrix are spent on that finding: their basis is left empty, and fresh
    vectors take their place.
    """

    def __init__(self, probing: Probing) -> None:
        self.probing = probing
        self.basis = Basis(probing)
        self.vectors = probing.empty()
        self.products = probing.empty()
        self._diagonal = False

    def grow(self, num_products: int) -> None:
        """Draw vectors until ``num_products`` products are spent in all, or one less."""
        if not self._diagonal:
            vectors, products = self.probing.draw(num_products // 2 - self.vectors.shape[1])
            if not self.vectors.shape[1]:
                self._diagonal = looks_diagonal(vectors, products, eps=self.probing.eps)
            if not self._diagonal:
                self.basis.extend(products)
                self._keep(vectors, products)
        if self._diagonal:
            self._keep(*self.probing.draw(num_products - self.probing.num_products))

    def exhausted(self) -> bool:
        """Return whether the basis spans the whole range, with fewer columns than vectors."""
        if self.basis.vectors.shape[1] == self.vectors.shape[1]:
            return False
        inside = self.basis.vectors.T @ self.vectors
        rest = (self.products - self.basis.products @ inside).abs().max()
        return bool(rest <= SPANNED * self.probing.eps * self.products.abs().max())

    def _keep(self, vectors: Tensor, products: Tensor) -> None:
        self.vectors = torch.cat([self.vectors, vectors], dim=1)
        self.products = torch.cat([self.products, products], dim=1)


class Deletions:
    """The directions that leave the span of ``Q R`` when columns of ``R`` [r, k] are left out.

    Attributes:
        single: For each column, the unit vector in the range of ``R`` that is orthogonal to all
            other columns [r, k]; 0 where the others span it too.
        partners: The columns that are also left out together with another one: all, or none where
            the others always span the whole range, and every value is exact.
    """

    def __init__(self, sketch: Sketch) -> None:
        triangle = (sketch.basis.vectors.T @ sketch.products).cpu()
        eps = sketch.probing.eps
        left, values, right = torch.linalg.svd(triangle, full_matrices=False)
        kept = values > eps * values.max() if len(values) else values > 0
        right = right[kept].T
        self._duals = left[:, kept] @ (right / values[kept]).T
        self._hat = right @ right.T
        self._gaps = 1 - self._hat.diagonal()
        sole = self._gaps < SOLE
        self.single = _unit(self._duals) * sole
        exact = sketch.exhausted() and not sole.any()
        self.partners = range(0 if exact else len(sole))

    def pair(self, j: int) -> Tensor:
        """Return what more leaves it with each column when column ``j`` is left out [r, k]."""
        if self._gaps[j] < SOLE:
            alone = self.single[:, j : j + 1]
            duals = self._duals - alone * (alone * self._duals).sum(dim=0)
            gaps = self._gaps
        else:
            shares = self._hat[j] / self._gaps[j]
            duals = self._duals + self._duals[:, j : j + 1] * shares
            gaps = self._gaps - self._hat[j] * shares
        result: Tensor = _unit(duals) * (gaps < SOLE)
        return result


def _unit(columns: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(columns, dim=0)
    return columns / torch.where(norms > 0, norms, 1)
