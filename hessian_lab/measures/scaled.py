"""A curvature matrix under a preconditioner, with the rounding that scaling has made visible."""

from dataclasses import replace

import torch
from torch import Tensor

from hessian_lab.optim.preconditioner import Preconditioner
from hessian_lab.probe.conditions import SAFETY
from hessian_lab.probe.memory import require_bytes
from hessian_lab.signal import Signal


def reordered(signal: Signal) -> Signal:
    """Return the same points in another order, always the same one."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(signal.num_points, generator=generator).to(signal.coords.device)
    return replace(signal, coords=signal.coords[order], values=signal.values[order])


def preconditioned_matrix(
    preconditioner: Preconditioner, matrix: Tensor, again: Tensor
) -> tuple[Tensor, float]:
    """Return ``P^{-1/2} A P^{-1/2}`` [n, n], exactly symmetric, and its rounding in the 2-norm.

    A large ``P^{-1/2}`` magnifies the rounding of small entries of ``A`` far beyond the product's
    n · eps · max|λ|. It is seen where ``A`` is computed twice, and taken as twice the Frobenius
    norm of the difference.

    Args:
        preconditioner: ``P``.
        matrix: ``A`` [n, n] in float64; it is overwritten where ``P`` is diagonal.
        again: The same matrix, summed in another order; likewise.

    Raises:
        ResourceError: If the products do not fit.
    """
    require_bytes(
        2 * 8 * matrix.numel(),
        f"The preconditioned matrix of size {len(matrix)}",
        device=matrix.device,
        cure="Measure a smaller network, or its density: eigs --method slq.",
    )
    if preconditioner.scale is not None:
        root = preconditioner.scale.to(matrix).rsqrt()
        both = torch.outer(root, root)
        first, second = matrix.mul_(both), again.mul_(both)
    else:
        root = preconditioner.inverse_sqrt.dense().to(matrix)
        first, second = (_between(root, one) for one in (matrix, again))
    return first, SAFETY * float(torch.linalg.matrix_norm(first - second))


def _between(root: Tensor, matrix: Tensor) -> Tensor:
    """Return ``Rᵀ A R``, exactly symmetric."""
    product = root.T @ matrix @ root
    return product.add_(product.T.clone()).div_(2)
