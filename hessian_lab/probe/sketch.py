"""Products with random vectors and with a basis of their range: what every estimator reads."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hessian_lab.probe.operators import Multiplies, as_operator, require_finite
from hessian_lab.probe.sizes import columns_at_once
from hessian_lab.probe.vectors import Distribution, probes

# Vectors that the CPU multiplies at once.
BLOCK = 16
# Products differ from exact ones by fewer roundings of their norm than this.
ROUNDINGS = 30


class Probing:
    """An operator with its random vectors, its count of products, and the size of its products.

    Vectors are multiplied in the operator's precision and returned in float64. The ``j``-th vector
    is a function of the seed and ``j`` alone.

    Raises:
        NonFiniteError: If a product is NaN or infinite, with its number.
    """

    def __init__(self, operator: Multiplies, *, seed: int, distribution: Distribution) -> None:
        self.operator = as_operator(operator)
        self.seed = seed
        self.distribution = distribution
        # Asking for no vectors checks what they are asked with.
        probes(self.size, 0, seed=seed, like=self.operator, distribution=distribution)
        self.num_probes = 0
        self.num_products = 0
        # Products are handed on in double precision.
        self._block = columns_at_once(
            BLOCK, device=self.operator.device, size=self.size, itemsize=8
        )
        self._squares: list[Tensor] = []

    @property
    def size(self) -> int:
        """The number of rows ``n``."""
        return self.operator.size

    @property
    def eps(self) -> float:
        """The relative rounding of a product."""
        return ROUNDINGS * float(torch.finfo(self.operator.dtype).eps)

    def blocks(self, num: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the next ``num`` vectors and their products, a few columns [n, k] at a time."""
        while num:
            few = min(num, self._block)
            block = probes(
                self.size,
                few,
                seed=self.seed,
                like=self.operator,
                distribution=self.distribution,
                first=self.num_probes,
            )
            self.num_probes += few
            num -= few
            products = self._times(block)
            self._squares.append(products.square().sum(dim=0))
            yield block.double(), products

    def draw(self, num: int) -> tuple[Tensor, Tensor]:
        """Return the next ``num`` vectors and their products, [n, num] each."""
        pairs = list(self.blocks(num))
        if not pairs:
            return (empty := self.empty()), empty
        vectors, products = zip(*pairs, strict=True)
        return torch.cat(vectors, dim=1), torch.cat(products, dim=1)

    def times(self, vectors: Tensor) -> Tensor:
        """Return the products with vectors [n, k], a few at a time."""
        parts = vectors.to(self.operator.dtype).split(self._block, 1)
        blocks = [self._times(block) for block in parts]
        return torch.cat(blocks, dim=1)

    def columns(self) -> Iterator[tuple[int, Tensor]]:
        """Yield all columns of the matrix, a few at a time, with the number of the first."""
        like = torch.empty(0, dtype=self.operator.dtype, device=self.operator.device)
        for start in range(0, self.size, self._block):
            units = like.new_zeros(self.size, min(self._block, self.size - start))
            units[start:].fill_diagonal_(1)
            products = self._times(units)
            self._squares.append(self.size * products.square().sum(dim=0))
            yield start, products

    def empty(self) -> Tensor:
        """Return no vectors, [n, 0] in float64."""
        return torch.empty(self.size, 0, dtype=torch.float64, device=self.operator.device)

    def norm(self) -> float:
        """Return about ‖A‖, the Frobenius norm, from the norms of the products so far."""
        return float(torch.cat(self._squares).mean().sqrt())

    def _times(self, block: Tensor) -> Tensor:
        products = self.operator @ block
        require_finite(products, first=self.num_products + 1)
        self.num_products += block.shape[1]
        return products.double()


class Basis:
    """Orthonormal columns ``Q`` [n, r] that span the products so far, and ``A Q``."""

    def __init__(self, probing: Probing) -> None:
        self._probing = probing
        self._largest = 0.0
        self.vectors = probing.empty()
        self.products = probing.empty()

    def extend(self, products: Tensor) -> None:
        """Take in more products [n, k]: at most ``k`` more columns, none for rounding noise."""
        if not products.shape[1]:
            return
        new = self._apart(products)
        basis, triangle = torch.linalg.qr(new)
        left, values, _ = torch.linalg.svd(triangle.cpu())
        self._largest = max(self._largest, float(values.max()))
        new = basis @ left[:, values > self._probing.eps * self._largest].to(basis)
        if not new.shape[1]:
            return
        if self.vectors.shape[1]:
            new = torch.linalg.qr(self._apart(new))[0]
        # Rows of zeros stay exactly zero.
        new = new * (products != 0).any(dim=1, keepdim=True)
        self.products = torch.cat([self.products, self._probing.times(new)], dim=1)
        self.vectors = torch.cat([self.vectors, new], dim=1)

    def _apart(self, vectors: Tensor) -> Tensor:
        return vectors - self.vectors @ (self.vectors.T @ vectors)


def looks_diagonal(vectors: Tensor, products: Tensor, *, eps: float) -> bool:
    """Return whether sign vectors [n, k] and their products tell the matrix from no diagonal one.

    Signs see a diagonal matrix without error, and projecting it would spoil that.
    """
    if vectors.shape[1] < 2:
        return False
    seen = vectors * products
    spread = (seen - seen.mean(dim=1, keepdim=True)).abs().max()
    return bool((spread <= eps * seen.abs().max()) & (vectors.abs() == 1).all())
