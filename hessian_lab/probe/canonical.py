"""What ``k`` Lanczos steps leave open: all quadratures that have the same moments."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from hessian_lab.probe.lanczos import Tridiagonalization

Array = NDArray[np.float64]
# Quadratures, besides that of Gauss, that stand for all with the same moments.
NUM_RULES = 8
# Corners are kept below this many times the norm: larger ones cost too many digits.
FAR = 1e6
# Nodes of an exhausted Krylov space are exact to this many roundings of the operator's precision.
ROUNDINGS = 20


def cumulative_bounds(
    run: Tridiagonalization, points: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the least and the largest mass [m, g] that each probe's measure can have up to points.

    Of all measures with the moments that ``k`` steps know, the quadrature with a node at ``x`` has
    the most mass at ``x``, and::

        Σ_{θ < x} w  ≤  μ(-∞, x)  ≤  μ(-∞, x]  ≤  Σ_{θ ≤ x} w

    are the best bounds there are (Chebyshev–Markov–Stieltjes). No product is needed; each probe and
    point costs one tridiagonal eigenvalue problem of size ``k + 1``, about half a millisecond for
    ``k = 80``. Where the Krylov space was exhausted the two bounds are equal, but for rounding.

    Args:
        run: Lanczos steps from ``m`` starts.
        points: The points [g], float64, on the CPU.
        eps: The machine epsilon of the precision that the steps were taken in.

    References:
        Golub & Meurant (2010), *Matrices, Moments and Quadrature*, chapter 6 (Gauss–Radau).
        Akhiezer (1965), *The Classical Moment Problem*, section 2.5.
    """
    where = points.numpy()
    pairs = [_row_bounds(alphas, betas, where, eps) for alphas, betas in _rows(run)]
    lower, upper = (torch.from_numpy(np.stack(side)) for side in zip(*pairs, strict=True))
    return lower, upper


def canonical_rules(run: Tridiagonalization) -> list[tuple[Tensor, Tensor]]:
    """Return quadratures that have the moments ``k`` steps know, of each probe.

    The Gauss rule, and some that extend ``T`` by one row whose unknown corner moves the nodes
    evenly from one place of the Gauss rule to the next.

    Returns:
        Nodes and weights of each probe, one rule a row [q, k + 1].
    """
    return [_row_rules(alphas, betas) for alphas, betas in _rows(run)]


def _rows(run: Tridiagonalization) -> Iterator[tuple[Array, Array]]:
    """Yield each row's diagonal and couplings, the last of them the residual norm."""
    for alphas, betas, length in zip(
        run.alphas.numpy(), run.betas.numpy(), run.lengths.tolist(), strict=True
    ):
        yield alphas[:length], betas[:length]


def _row_rules(alphas: Array, betas: Array) -> tuple[Tensor, Tensor]:
    angles = (np.arange(NUM_RULES) + 0.5) / NUM_RULES * np.pi - np.pi / 2
    corners = alphas[-1] + 2 * betas[-1] * np.tan(angles)
    nodes, weights = np.empty((2, NUM_RULES + 1, len(alphas) + 1))
    values, vectors = eigh_tridiagonal(alphas, betas[:-1])
    nodes[0], weights[0] = np.append(values, values[-1]), np.append(vectors[0] ** 2, 0)
    for row, corner in enumerate(corners, start=1):
        nodes[row], vectors = eigh_tridiagonal(np.append(alphas, corner), betas)
        weights[row] = vectors[0] ** 2
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def _row_bounds(alphas: Array, betas: Array, points: Array, eps: float) -> tuple[Array, Array]:
    nodes, vectors = eigh_tridiagonal(alphas, betas[:-1])
    scale = np.abs(nodes).max() + betas.max()
    if betas[-1] == 0:
        sums = np.append(0, np.cumsum(vectors[0] ** 2))
        slack = ROUNDINGS * eps * scale
        below = np.searchsorted(nodes, points - slack, side="left")
        upto = np.searchsorted(nodes, points + slack, side="right")
        return sums[below], np.minimum(sums[upto], 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        corners = points + ((betas[-1] * vectors[-1]) ** 2 / (nodes - points[:, None])).sum(axis=1)
    # A node at infinity, as good as: what remains is the Gauss rule.
    far = ~(np.abs(corners) < FAR * scale)
    lower, upper = np.empty_like(points), np.empty_like(points)
    for place, (point, corner) in enumerate(zip(points, corners, strict=True)):
        values, weights = nodes, vectors[0] ** 2
        if not far[place]:
            values, extended = eigh_tridiagonal(np.append(alphas, corner), betas)
            weights = extended[0] ** 2
        own = np.abs(values - point).argmin()
        lower[place] = weights[:own].sum()
        upper[place] = min(1, lower[place] + weights[own])
    return lower, upper
