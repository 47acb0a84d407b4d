"""Thick-restarted Lanczos in the complement of what has been found."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh, eigh_tridiagonal
from torch import Tensor

from hessian_lab.probe.lanczos import Recurrence
from hessian_lab.probe.operators import SymmetricOperator
from hessian_lab.probe.vectors import gaussian

# Which share of the basis survives a restart.
KEPT_SHARE = 0.75
# How likely the search for further copies may be to miss one.
MISS_PROBABILITY = 1e-6
# Residuals cannot be brought below this many roundings of ‖A‖: computed pairs of float32 fields and
# matrices, n = 20 to 12,737, stay within 7.
ROUNDINGS = 20
# An estimated residual this far below the tolerance has a true one below it.
SAFETY = 0.9
# Entries of the basis that are combined at once.
CHUNK = 1 << 16

Array = NDArray[np.floating]
# The signs s of one end of the spectrum: an eigenvalue's rank there is by the largest s λ.
Signs = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """The eigenpairs of a projected matrix; its columns α, β where it is tridiagonal."""

    values: Array
    vectors: Array
    residuals: Array
    alphas: Array
    betas: Array
    tridiagonal: bool


class Search:
    """Lanczos in the complement of the pairs that it has locked: the first rows of its basis."""

    def __init__(
        self,
        operator: SymmetricOperator,
        ends: tuple[Signs, ...],
        *,
        num: int,
        rtol: float,
        seed: int,
        basis_size: int,
        scratch: Path | None = None,
    ) -> None:
        self.ends = ends
        self.num = num
        self.num_wanted = min(num * len(ends), operator.size)
        self.seed = seed
        self.num_draws = 0
        self.run = Recurrence(
            operator, num_rows=basis_size, cure="Take a smaller basis_size.", scratch=scratch
        )
        eps = torch.finfo(operator.dtype).eps
        self.rtol = max(rtol, ROUNDINGS * eps)
        self.norm = 0.0
        self.locked: Array = np.empty(0)
        # After a restart: the Ritz values kept, and how the next vector is coupled to them.
        self.kept: Array = np.empty(0)
        self.arrow: Array = np.empty(0)

    @property
    def tolerance(self) -> float:
        """What residuals must not exceed."""
        return self.rtol * self.norm

    @property
    def num_products(self) -> int:
        """Products so far."""
        return self.run.num_products

    def find(self, budget: int) -> bool:
        """Search the whole space; lock what was found, and return whether all of it converged."""
        ritz = self._grow(budget, self._settled)
        self._lock(ritz, self._wanted(ritz.values))
        return self._settled(ritz)

    def find_copies(self, budget: int) -> bool:
        """Search the complement, again while it holds better pairs; return whether it ended."""
        while len(self.locked) < self.run.operator.size:
            ritz = self._grow(budget, self._decided)
            if not self._decided(ritz):
                return False
            better = self._better(ritz.values)
            if not better.any():
                return True
            self._lock(ritz, np.flatnonzero(better))
        return True

    def vectors(self) -> Tensor:
        """Return the best of the locked vectors [n, num], without the roundings of restarts."""
        chosen = torch.from_numpy(self._wanted(self.locked))
        rows = self.run.basis[0, chosen.to(self.run.basis.device)]
        vectors: Tensor = torch.linalg.qr(rows.T).Q
        return vectors

    def _grow(self, budget: int, done: Callable[[RitzPairs], bool]) -> RitzPairs:
        """Return the Ritz pairs of a random start, grown until ``done`` or out of products."""
        run = self.run
        run.position = len(self.locked)
        self.kept = self.arrow = np.empty(0)
        couplings: Tensor | None = self._draw()
        due = 1
        while True:
            going = run.step(couplings)
            couplings = None
            size = run.position - len(self.locked)
            full, spent = run.position == run.num_rows, run.num_products >= budget
            if going and not full and not spent and size < due:
                continue
            going = run.look()
            size, full = run.position - len(self.locked), run.position == run.num_rows
            ritz = self._ritz()
            if done(ritz) or spent or run.position == run.operator.size:
                return ritz
            if full:
                couplings = self._restart(ritz)
                size = run.position - len(self.locked)
            if not going:
                couplings = self._draw()
            due = size + max(run.every, size // (10 if len(self.kept) else 20))

    def _draw(self) -> Tensor:
        """Put a random vector of the complement into the next row; it is coupled to none."""
        operator = self.run.operator
        vector = gaussian(operator.size, 1, seed=self.seed, like=operator, first=self.num_draws)
        self.num_draws += 1
        self.run.start(vector.T)
        return self.run.betas[:, :0]

    def _ritz(self) -> RitzPairs:
        values: Array
        vectors: Array
        run, kept = self.run, len(self.kept)
        rows = slice(len(self.locked) + kept, run.position)
        alphas, betas = torch.stack([run.alphas[0, rows], run.betas[0, rows]]).cpu().numpy()
        if kept:
            diagonal = np.concatenate([self.kept, alphas])
            matrix = np.diag(diagonal)
            matrix[:kept, kept] = matrix[kept, :kept] = self.arrow
            places = np.arange(kept, len(diagonal) - 1)
            matrix[places, places + 1] = matrix[places + 1, places] = betas[:-1]
            values, vectors = eigh(matrix)
        else:
            values, vectors = eigh_tridiagonal(alphas, betas[:-1])
        self.norm = max(self.norm, float(np.abs(values).max()))
        residuals = betas[-1] * np.abs(vectors[-1])
        return RitzPairs(values, vectors, residuals, alphas, betas, not kept)

    def _restart(self, ritz: RitzPairs) -> Tensor:
        """Keep Ritz vectors of both ends and the residual; return how it is coupled to them.

        Both, whichever is wanted: outliers at the other end slow the search as much.
        """
        run = self.run
        half = int(KEPT_SHARE * len(ritz.values)) // 2
        chosen = np.r_[:half, len(ritz.values) - half : len(ritz.values)]
        beta = float(run.betas[0, run.position - 1])
        following = run.basis[:, run.position].clone()
        self._combine(ritz.vectors[:, chosen])
        run.position = len(self.locked) + len(chosen)
        run.basis[:, run.position] = following
        self.kept, self.arrow = ritz.values[chosen], beta * ritz.vectors[-1, chosen]
        return torch.from_numpy(self.arrow).to(run.betas.device).unsqueeze(0)

    def _lock(self, ritz: RitzPairs, chosen: NDArray[np.intp]) -> None:
        """Lock some pairs, and the largest others that converged while half of the basis lasts.

        They make the next search shorter: what is locked no longer hides what is not.
        """
        half = self.run.num_rows // 2
        others = np.setdiff1d(np.flatnonzero(self._good(ritz)), chosen)
        others = others[np.argsort(-np.abs(ritz.values[others]))]
        room = max(0, half - len(self.locked) - len(chosen))
        chosen = np.concatenate([chosen, others[:room]])
        self._combine(ritz.vectors[:, chosen])
        self.locked = np.concatenate([self.locked, ritz.values[chosen]])
        if len(self.locked) > max(half, self.num_wanted):
            best = self._wanted(self.locked)
            self.run.basis[0, : len(best)] = self.run.basis[0, torch.from_numpy(best)]
            self.locked = self.locked[best]

    def _good(self, ritz: RitzPairs) -> NDArray[np.bool_]:
        """Whether the residuals are estimated to be small enough."""
        good: NDArray[np.bool_] = ritz.residuals <= SAFETY * self.tolerance
        return good

    def _combine(self, vectors: Array) -> None:
        """Replace the rows after the locked ones by combinations of them, in place."""
        basis = self.run.basis[0, len(self.locked) :]
        coefficients = torch.from_numpy(vectors.T.copy()).to(basis)
        for chunk in basis.split(CHUNK, dim=1):
            chunk[: vectors.shape[1]] = coefficients @ chunk[: len(vectors)]

    def _keys(self, values: Array) -> list[Array]:
        return [np.max([sign * values for sign in signs], axis=0) for signs in self.ends]

    def _orders(self, values: Array) -> list[NDArray[np.intp]]:
        """Return for each end the places of all values, best first; equal ones, too, differ."""
        ascending = np.argsort(values, kind="stable")
        return [
            np.argsort(-np.abs(values)) if len(signs) > 1 else ascending[:: -signs[0]]
            for signs in self.ends
        ]

    def _wanted(self, values: Array) -> NDArray[np.intp]:
        return np.unique(np.concatenate([order[: self.num] for order in self._orders(values)]))

    def _settled(self, ritz: RitzPairs) -> bool:
        good = self._good(ritz)[self._wanted(ritz.values)]
        return len(ritz.values) >= self.num_wanted and bool(good.all())

    def _thresholds(self) -> list[float]:
        """Return for each end what only a better pair than the locked ones exceeds."""
        return [
            float(np.sort(keys)[-self.num]) + self.tolerance for keys in self._keys(self.locked)
        ]

    def _better(self, values: Array) -> NDArray[np.bool_]:
        better = np.zeros(len(values), dtype=bool)
        for keys, threshold in zip(self._keys(values), self._thresholds(), strict=True):
            better |= keys > threshold
        return better

    def _decided(self, ritz: RitzPairs) -> bool:
        """Whether all better pairs in sight converged or, with none in sight, there are none."""
        good = self._good(ritz)
        better = self._better(ritz.values)
        if better.any():
            return bool(good[better].all())
        return all(
            good[order[0]] or all(self._excluded(ritz, sign, threshold) for sign in signs)
            for signs, threshold, order in zip(
                self.ends, self._thresholds(), self._orders(ritz.values), strict=True
            )
        )

    def _excluded(self, ritz: RitzPairs, sign: int, threshold: float) -> bool:
        """Whether ``sign · λ > threshold`` is too unlikely for any λ of the complement.

        A random start in ``d`` dimensions has less than ``δ`` of a given eigenvector with
        probability ``δ √(2 d / π)``.
        """
        if not ritz.tridiagonal:
            return False
        dimension = self.run.operator.size - len(self.locked)
        needed = 0.5 * math.log(2 * dimension / math.pi) - math.log(MISS_PROBABILITY)
        return growth(sign * ritz.alphas, ritz.betas, threshold) >= needed


def growth(alphas: Array, betas: Array, place: float) -> float:
    """Return the logarithm of the Lanczos polynomial ``p_k`` at a place beyond its Ritz values.

    ``p_k(A)`` maps the start to the next vector, both of unit norm: the start contains at most
    ``1 / p_k(λ)`` of the eigenvector of λ. It is infinite where the Krylov space is exhausted, and
    minus infinity where the place is not beyond the Ritz values.
    """
    total, previous, ratio = 0.0, 0.0, math.inf
    for alpha, beta in zip(alphas.tolist(), betas.tolist(), strict=True):
        slope = place - alpha - previous / ratio
        if slope <= 0:
            return -math.inf
        if beta == 0:
            return math.inf
        previous, ratio = beta, slope / beta
        total += math.log(ratio)
    return total
