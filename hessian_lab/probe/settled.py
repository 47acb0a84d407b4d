"""Eigenpairs that several Lanczos runs agree on, and what a probe's quadrature is without them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from hessian_lab.probe.lanczos import Tridiagonalization
from hessian_lab.probe.memory import require_bytes

Array = NDArray[np.float64]
# A Ritz pair may have converged if its residual is this small next to the gap to its neighbours.
SHARE_OF_GAP = 0.1
# Ritz values with less than this share of the mass 1/n are passed over.
NEGLIGIBLE = 1e-6
# Computed residuals are wrong by fewer roundings of ‖A‖.
ROUNDINGS = 100
# Ritz vectors of independent runs agree, and span an eigenspace, if all but r eigenvalues of their
# Gram matrix are below AGREEING and these r above SPANNING.
AGREEING = 1e-4
SPANNING = 1e-2
# Vectors count by the inverse of their radii, but no less than this next to the best one.
LEAST_TRUST = 1e-3
# How many more vectors than its dimension must have been found in an eigenspace, and by how many
# of the probes: by most, so that what is settled hardly depends on how large the masses there are.
SPARE = 2
WITNESSES = 0.8


@dataclass(frozen=True, eq=False)
class Candidates:
    """Ritz pairs that may have converged: values, radii and probes [c], and vectors [c, n]."""

    values: Tensor
    radii: Tensor
    rows: Tensor
    vectors: Tensor


@dataclass(frozen=True, eq=False)
class Settled:
    """Eigenpairs that independent runs agree on.

    Attributes:
        values: Eigenvalues [d], float64, on the CPU, descending, each as often as it is there.
        vectors: Orthonormal rows [d, n].
    """

    values: Tensor
    vectors: Tensor


def candidates(run: Tridiagonalization, *, first: int) -> Candidates:
    """Return the Ritz pairs of a run whose residuals are small next to the gaps beside them.

    Args:
        run: Lanczos steps with their basis.
        first: The number of the run's first probe.

    Raises:
        ResourceError: If the vectors do not fit, before they are made.
    """
    assert run.basis is not None
    chosen = [_chosen(run, row) for row in range(len(run.lengths))]
    _, _, size = run.basis.shape
    count = sum(len(values) for values, _, _ in chosen)
    require_bytes(
        count * size * run.basis.element_size(),
        f"The {count} Ritz vectors of length {size}",
        device=run.basis.device,
        cure="Pass settle=False.",
    )
    vectors = [
        torch.from_numpy(combinations).to(basis) @ basis[: combinations.shape[1]]
        for (_, _, combinations), basis in zip(chosen, run.basis, strict=True)
    ]
    rows = [torch.full((len(values),), first + row) for row, (values, _, _) in enumerate(chosen)]
    values, radii = (
        torch.from_numpy(np.concatenate([one[place] for one in chosen])) for place in (0, 1)
    )
    return Candidates(values, radii, torch.cat(rows), torch.cat(vectors))


def _chosen(run: Tridiagonalization, row: int) -> tuple[Array, Array, Array]:
    """Return values and radii [c] of a row's candidates, and their combinations of its basis.

    Copies of a multiple eigenvalue grow from rounding beside the first one and mix with it. What
    the probe has in all of them is one vector of the eigenspace.
    """
    assert run.basis is not None
    length, eps = int(run.lengths[row]), torch.finfo(run.basis.dtype).eps
    alphas, betas = run.alphas[row, :length].numpy(), run.betas[row, :length].numpy()
    nodes, vectors = eigh_tridiagonal(alphas, betas[:-1])
    scale = float(np.abs(nodes).max())
    begins = np.flatnonzero(np.append(True, np.diff(nodes) > eps**0.5 * scale))
    weights = vectors[0] ** 2
    masses = np.maximum(np.add.reduceat(weights, begins), np.finfo(np.float64).tiny)
    values = np.add.reduceat(weights * nodes, begins) / masses
    deviations = nodes - np.repeat(values, np.diff(np.append(begins, length)))
    spreads = np.sqrt(np.add.reduceat(weights * deviations**2, begins) / masses)
    real = masses > NEGLIGIBLE / run.basis.shape[2]
    masses, values, spreads = masses[real], values[real], spreads[real]
    combined = np.add.reduceat(vectors[0] * vectors, begins, axis=1)[:, real] / np.sqrt(masses)
    residuals = betas[-1] * np.abs(combined[-1])
    apart = np.concatenate([[np.inf], np.diff(values), [np.inf]])
    near = residuals <= SHARE_OF_GAP * np.minimum(apart[:-1], apart[1:])
    radii = residuals + spreads + ROUNDINGS * eps * scale
    return values[near], radii[near], combined[:, near].T


def agreement(found: Sequence[Candidates], *, num_probes: int) -> Settled:
    """Return the eigenpairs on which Ritz vectors of independent probes agree.

    One Krylov space holds one vector of each eigenspace, whatever its dimension ``r``. Independent
    ones hold independent vectors of it: once more than ``r`` of them lie in ``r`` dimensions, they
    have converged and the multiplicity is ``r``. Candidates whose intervals ``θ ± radius`` overlap
    are compared; where they do not span a space clearly smaller than their number, nothing is
    settled.
    """
    values, radii, rows = (
        torch.cat([getattr(one, name) for one in found]) for name in ("values", "radii", "rows")
    )
    vectors = torch.cat([one.vectors for one in found])
    settled = [(values[:0], vectors[:0])]
    known = vectors[:0]
    for members in _clusters(values, radii):
        if len(rows[members].unique()) < WITNESSES * num_probes:
            continue
        chosen = vectors[members.to(vectors.device)]
        space = _eigenspace(values[members], radii[members], chosen)
        if space and not _overlap(space[1], known, [len(one) for one, _ in settled]):
            settled.append(space)
            known = torch.cat([known, space[1]])
    joined = torch.cat([one for one, _ in settled])
    order = joined.argsort(descending=True, stable=True)
    return Settled(joined[order], known[order.to(vectors.device)])


def _clusters(values: Tensor, radii: Tensor) -> list[Tensor]:
    """Return the indices of intervals ``value ± radius`` that overlap, cluster by cluster."""
    order = (values - radii).argsort(stable=True)
    reach = (values + radii)[order].cummax(dim=0).values
    begins = (values - radii)[order][1:] > reach[:-1]
    numbers = torch.cat([torch.zeros(min(1, len(values))), begins.cumsum(dim=0)])
    sizes = numbers.unique_consecutive(return_counts=True)[1]
    return [part for part in order.split(sizes.tolist()) if len(part) > SPARE]


def _eigenspace(values: Tensor, radii: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return Ritz values [r] and an orthonormal basis [r, n] of what vectors agree on, or None."""
    gram = (vectors @ vectors.T).double().cpu()
    lengths = torch.linalg.eigvalsh(gram)
    dimension = int((lengths > SPANNING).sum())
    disagreement = lengths[: len(lengths) - dimension]
    if dimension + SPARE > len(values) or (disagreement > AGREEING).any():
        return None
    trust = torch.where(radii > 0, radii.min() / radii, 1).clamp(min=LEAST_TRUST)
    lengths, rotation = torch.linalg.eigh(trust.unsqueeze(1) * gram * trust)
    combination = (trust.unsqueeze(1) * rotation / lengths.sqrt())[:, -dimension:].T
    # Aᵢⱼ = yᵢᵀ A yⱼ, from the Ritz values on either side.
    projected = combination @ ((values.unsqueeze(1) + values) / 2 * gram) @ combination.T
    inner, turn = torch.linalg.eigh(projected)
    return inner, (turn.T @ combination).to(vectors) @ vectors


def _overlap(vectors: Tensor, known: Tensor, dimensions: list[int]) -> bool:
    """Return whether a space shares a direction with any of those known: one that rounding split.

    Args:
        vectors: Its basis [r, n].
        known: Bases [d, n] of all others.
        dimensions: Theirs; they add up to ``d``.
    """
    if not len(known):
        return False
    parts = ((vectors @ known.T) ** 2).split(dimensions, dim=1)
    return bool(torch.stack([part.sum(dim=1).max() for part in parts]).max() > SPANNING)


def without(nodes: Tensor, weights: Tensor, places: Tensor, masses: Tensor) -> Tensor:
    """Return weights [m, k] with ``masses`` [m, d] taken away, each from the nodes closest by."""
    left = weights.clone()
    for row in range(len(nodes)):
        order = (nodes[row] - places.unsqueeze(1)).abs().argsort(dim=1).numpy()
        rest = left[row].numpy()
        for mass, closest in zip(masses[row].tolist(), order, strict=True):
            for node in closest:
                taken = min(mass, rest[node])
                rest[node] -= taken
                mass -= taken
                if mass <= 0:
                    break
    return left
