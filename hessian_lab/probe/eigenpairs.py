"""A few extreme eigenpairs of a symmetric operator, with their residuals and all their copies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hessian_lab.probe.operators import (
    Multiplies,
    SymmetricOperator,
    as_operator,
    require_finite,
)
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.thick_restart import Search, Signs

Which = Literal["largest", "smallest", "both", "magnitude"]
# Each end of the spectrum ranks eigenvalues by the largest of its signs times the eigenvalue.
ENDS: dict[str, tuple[Signs, ...]] = {
    "largest": ((1,),),
    "smallest": ((-1,),),
    "both": ((1,), (-1,)),
    "magnitude": ((1, -1),),
}
# Vectors that are held, unless told otherwise, before the search restarts from the best of them.
BASIS_SIZE = 300
# Columns of A V that are multiplied at once.
BLOCK_SIZE = 16


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Eigenvalues and eigenvectors with what is known of their errors.

    An eigenvalue of ``A`` lies within ``residuals[i]`` of ``values[i]``, whatever ``converged``
    says.

    Attributes:
        values: Eigenvalues, float64, on the CPU: descending, but ascending for ``smallest`` and
            by descending magnitude for ``magnitude``. For ``both`` the ``num`` largest are
            followed by the ``num`` smallest (fewer where they overlap).
        vectors: Orthonormal columns [n, num], in the operator's precision and place.
        residuals: The norms ``‖A v - λ v‖``, computed by products.
        converged: Which residuals are at or below ``tolerance``.
        tolerance: The larger of ``rtol max|λ|`` and the rounding floor of residuals.
        complete: Whether a deflated search found that no copy and no better eigenvalue is missing.
        num_products: Products of the search.
        num_check_products: Products of the residuals and of the deflated searches.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    tolerance: float
    complete: bool
    num_products: int
    num_check_products: int

    def __str__(self) -> str:
        rows = zip(
            self.values.tolist(), self.residuals.tolist(), self.converged.tolist(), strict=True
        )
        lines = [
            f"{value:14.6e} ± {residual:.1e}{'' if converged else '  not converged'}"
            for value, residual, converged in rows
        ]
        copies = "" if self.complete else "; copies were not ruled out"
        return "\n".join(
            [*lines, f"{self.num_products} + {self.num_check_products} products{copies}"]
        )


@full_precision()
def extreme_eigenpairs(
    operator: Multiplies,
    *,
    num: int,
    which: Which = "largest",
    rtol: float = 1e-6,
    max_products: int = 3000,
    seed: int = 0,
    check_copies: bool = True,
    basis_size: int | None = None,
    scratch: Path | None = None,
) -> Eigenpairs:
    """Return ``num`` extreme eigenpairs by thick-restarted Lanczos.

    A pair has converged when ``‖A v - λ v‖ ≤ max(rtol, 20 eps) · max|λ|``; its eigenvalue
    is then wrong by at most that, and by its square over the gap to the next one. One Krylov
    space holds one copy of a multiple eigenvalue. So when the search is over, further searches
    start from random vectors in the complement of what is known, until one shows that the
    complement holds nothing beyond the last of the ``num``: because its best Ritz pair converged
    and is no better, or because with probability 1 - 1e-6 over its start nothing better could
    have stayed hidden for so many steps.

    Args:
        operator: A symmetric matrix ``A`` [n, n].
        num: How many pairs, at most ``n``; from each end for ``both``.
        which: ``largest`` and ``smallest`` are algebraic.
        rtol: Tolerance of the residuals relative to ``max|λ|``.
        max_products: Where the search gives up, and the deflated searches together do. What has
            not converged is returned as it is.
        seed: Of the random starts.
        check_copies: Whether to search for further copies.
        basis_size: How many vectors of length ``n`` to hold, by default ``min(n, max(300, least))``
            with ``least`` three times the number of pairs and 20 more. Fewer need more products.
        scratch: A directory for a file with these vectors where they do not fit in memory; see
            ``lanczos.Recurrence``.

    Returns:
        The pairs.

    Raises:
        ValueError: For an argument out of range.
        NonFiniteError: If a product is not finite.
        ResourceError: If the basis does not fit, before it is allocated.

    References:
        Wu & Simon (2000), https://doi.org/10.1137/S0895479898334605 (thick restart). Van
        Dorsselaer, Hochstenbach & Van der Vorst (2001),
        https://doi.org/10.1137/S0895479800366859 (the probability).
    """
    operator = as_operator(operator)
    if which not in ENDS:
        raise ValueError(f"which must be one of {', '.join(ENDS)}, got {which!r}.")
    if not 1 <= num <= operator.size:
        raise ValueError(f"num must be in [1, {operator.size}], got {num}.")
    num_wanted = min(num * len(ENDS[which]), operator.size)
    if not (0 <= rtol < 1):
        raise ValueError(f"rtol must be in [0, 1), got {rtol}.")
    if max_products < num_wanted:
        raise ValueError(
            f"max_products must be at least {num_wanted}, one for each pair, got {max_products}."
        )
    least = _least_basis(operator.size, num_wanted)
    if basis_size is None:
        basis_size = default_basis(operator.size, num_wanted)
    if not least <= basis_size <= operator.size:
        raise ValueError(
            f"basis_size must be in [{least}, {operator.size}] for {num_wanted} pairs, "
            f"got {basis_size}."
        )
    search = Search(
        operator,
        ENDS[which],
        num=num,
        rtol=rtol,
        seed=seed,
        basis_size=basis_size,
        scratch=scratch,
    )
    settled = search.find(max_products)
    num_products = search.num_products
    complete = settled and check_copies and search.find_copies(num_products + max_products)
    vectors = search.vectors()
    values, residuals = _residuals(operator, vectors, first=search.num_products + 1)
    order = _order(values, which)
    values, residuals = values[order], residuals[order]
    return Eigenpairs(
        values=values,
        vectors=vectors[:, order.to(vectors.device)],
        residuals=residuals,
        converged=residuals <= search.tolerance,
        tolerance=search.tolerance,
        complete=complete,
        num_products=num_products,
        num_check_products=search.num_products - num_products + len(values),
    )


def default_basis(size: int, num_wanted: int) -> int:
    """Return how many vectors of length ``size`` a search for some pairs holds by default."""
    return max(_least_basis(size, num_wanted), min(size, BASIS_SIZE))


def _least_basis(size: int, num_wanted: int) -> int:
    return min(size, 3 * num_wanted + 20)


def _residuals(
    operator: SymmetricOperator, vectors: Tensor, *, first: int
) -> tuple[Tensor, Tensor]:
    """Return Rayleigh quotients and residual norms of orthonormal columns, in float64."""
    parts = []
    for start in range(0, vectors.shape[1], BLOCK_SIZE):
        block = vectors[:, start : start + BLOCK_SIZE]
        products = operator @ block
        require_finite(products, first=first + start)
        block, products = block.double(), products.double()
        values = (block * products).sum(dim=0) / block.square().sum(dim=0)
        norms = torch.linalg.vector_norm(products - values * block, dim=0)
        parts.append(torch.stack([values, norms]))
    values, norms = torch.cat(parts, dim=1).cpu()
    return values, norms


def _order(values: Tensor, which: Which) -> Tensor:
    keys = values.abs() if which == "magnitude" else values
    return keys.argsort(descending=which != "smallest", stable=True)
