"""The eigenvalues of a dense symmetric matrix, and what they say with their rounding floor."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hessian_lab.probe.memory import require_bytes

LADDER = tuple(10.0**-exponent for exponent in range(3, 14))
# Two triangles that rounding alone tells apart differ by less than this many eps of the largest.
ASYMMETRY_ROUNDINGS = 1e3
TILE = 1024
# Matrices that an eigenvalue solver works in beside its input: a copy of it and, on a GPU, what
# cuSOLVER asks for.
SOLVER_COPIES = {"cpu": 1, "cuda": 3}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """All eigenvalues of a symmetric matrix, and what can be said of them in floating point.

    Attributes:
        values: The eigenvalues [n], ascending, float64, on the CPU.
        structural_zeros: How many rows of the matrix are exactly zero.
        dtype: The precision that the matrix was computed in; its eps sets the rounding floor.
        rounding: An error of the matrix known to be larger, in its 2-norm: that of a product with
            an ill-conditioned one.
    """

    values: Tensor
    structural_zeros: int = 0
    dtype: str = "float64"
    rounding: float = 0.0

    @cached_property
    def magnitudes(self) -> Tensor:
        """The |λ| [n], in the order of ``values``."""
        return self.values.abs()

    @property
    def lambda_min(self) -> float:
        """The smallest eigenvalue, sign included."""
        return float(self.values[0])

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue, sign included."""
        return float(self.values[-1])

    @property
    def spectral_radius(self) -> float:
        """The largest magnitude, max|λ|."""
        return float(self.magnitudes.max())

    @property
    def tolerance(self) -> float:
        """The rounding floor n · eps · max|λ|, or ``rounding`` where that is more.

        Smaller magnitudes cannot be told from zero.
        """
        eps = torch.finfo(getattr(torch, self.dtype)).eps
        return max(len(self.values) * eps * self.spectral_radius, self.rounding)

    @property
    def numerical_zeros(self) -> int:
        """How many |λ| are at or below the rounding floor; contains the structural zeros."""
        return int((self.magnitudes <= self.tolerance).sum())

    @property
    def negative(self) -> int:
        """How many eigenvalues lie below minus the rounding floor."""
        return int((self.values < -self.tolerance).sum())

    @property
    def smallest_magnitude(self) -> float:
        """The smallest |λ|, as computed."""
        return float(self.magnitudes.min())

    @property
    def smallest_magnitude_resolved(self) -> bool:
        """Whether the smallest |λ| is above the rounding floor."""
        return self.smallest_magnitude > self.tolerance

    @property
    def condition_number(self) -> float:
        """κ = max|λ| / min|λ| where resolved, else the lower bound max|λ| / floor."""
        if self.smallest_magnitude_resolved:
            return self.spectral_radius / self.smallest_magnitude
        return _ratio(self.spectral_radius, self.tolerance)

    @property
    def condition_number_resolved(self) -> bool:
        """Whether ``condition_number`` is κ itself rather than a lower bound."""
        return self.smallest_magnitude_resolved

    @property
    def effective_condition_number(self) -> float:
        """The ratio of max|λ| to the smallest |λ| above the rounding floor."""
        resolved = self.magnitudes[self.magnitudes > self.tolerance]
        return _ratio(self.spectral_radius, float(resolved.min())) if len(resolved) else _NAN

    @property
    def trace(self) -> float:
        """Σ λ."""
        return float(self.values.sum())

    @property
    def frobenius_norm(self) -> float:
        """√Σ λ²."""
        radius = self.spectral_radius
        return radius * float(torch.linalg.vector_norm(self.values / radius)) if radius else 0.0

    @property
    def shares_below(self) -> dict[float, float]:
        """The share of |λ| at or below 1e-3, …, 1e-13 of max|λ|."""
        return {
            rung: float((self.magnitudes <= rung * self.spectral_radius).double().mean())
            for rung in LADDER
        }

    @property
    def effective_rank(self) -> float:
        """(Σ|λ|)² / Σλ²: n for equal magnitudes, 1 for a single one, 0 for the zero matrix."""
        radius = self.spectral_radius
        if not radius:
            return 0.0
        shares = self.magnitudes / radius
        return float(shares.sum()) ** 2 / float(shares.square().sum())

    def __str__(self) -> str:
        size = len(self.values)
        promoted = "" if self.dtype == "float64" else f", computed in {self.dtype}"
        bound = "" if self.condition_number_resolved else "≥ "
        below = "" if self.smallest_magnitude_resolved else " (below the floor)"
        return (
            f"{size} eigenvalues in [{self.lambda_min:.3g}, {self.lambda_max:.3g}]{promoted}\n"
            f"zero: {self.numerical_zeros / size:.1%} "
            f"(structural {self.structural_zeros / size:.1%}), "
            f"negative: {self.negative / size:.1%}\n"
            f"smallest |λ|: {self.smallest_magnitude:.2g}{below}, floor {self.tolerance:.2g}\n"
            f"condition number κ: {bound}{self.condition_number:.3g}, "
            f"effective {self.effective_condition_number:.3g}"
        )


SCALARS = (
    "lambda_min",
    "lambda_max",
    "tolerance",
    "structural_zeros",
    "numerical_zeros",
    "negative",
    "smallest_magnitude",
    "smallest_magnitude_resolved",
    "condition_number",
    "condition_number_resolved",
    "effective_condition_number",
    "trace",
    "frobenius_norm",
    "effective_rank",
)


def spectrum(matrix: Tensor | np.ndarray, *, rounding: float = 0.0) -> Spectrum:
    """Return all eigenvalues of a symmetric matrix [n, n], with what they can and cannot say.

    Rows that are exactly zero are left out of the eigenvalue problem: their eigenvalues are zero
    exactly, and a ReLU field with half of its rows dead takes an eighth of the time. A matrix in
    single precision is promoted to double, which it logs; the floor stays that of single precision.

    Args:
        matrix: Symmetric up to rounding; its lower triangle is read. About ``4/3 n³`` operations
            and a copy of the matrix, on a GPU three, and one more where it is in single precision
            or has rows of zeros.
        rounding: An error that it is known to have, in its 2-norm, if more than its own rounding.

    Raises:
        ValueError: If it is not square, not finite or not symmetric.
        ResourceError: If the copy does not fit, before it is made.
    """
    tensor = torch.as_tensor(matrix).detach()
    _check(tensor)
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype != torch.float64:
        logger.warning(
            "The %s matrix is promoted to float64; its rounding floor stays that of %s.",
            dtype,
            dtype,
        )
    # Not tensor != 0: that is as large as an eighth of the matrix.
    alive = torch.cat([rows.any(dim=1) for rows in tensor.split(TILE)]).nonzero().squeeze(1)
    zeros = len(tensor) - len(alive)
    copied = bool(zeros) or tensor.dtype != torch.float64
    require_bytes(
        8 * eigenvalue_numbers(len(alive), device=tensor.device, copied=copied),
        f"The eigenvalue problem of size {len(alive)}",
        device=tensor.device,
        cure="Measure a smaller network.",
    )
    core = tensor[alive.unsqueeze(1), alive].double() if zeros else tensor.double()
    values = torch.linalg.eigvalsh(core).cpu()
    if zeros:
        values = torch.cat([values, values.new_zeros(zeros)]).sort().values
    return Spectrum(values, structural_zeros=zeros, dtype=dtype, rounding=rounding)


def eigenvalue_numbers(size: int, *, device: torch.device, copied: bool) -> int:
    """Return how many numbers a solver works in beside a matrix [n, n], ``copied`` first or not."""
    copies = SOLVER_COPIES.get(device.type, SOLVER_COPIES["cuda"]) + copied
    return int(copies * size**2)


def _check(matrix: Tensor) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"matrix must have shape [n, n], n > 0, got {list(matrix.shape)}.")
    if not matrix.is_floating_point():
        raise TypeError(f"matrix must be real and floating-point, got {matrix.dtype}.")
    largest = float(matrix.abs().max()) if len(matrix) < TILE else _largest(matrix)
    if not np.isfinite(largest):
        raise ValueError("matrix must be finite, got NaN or Inf.")
    gap = asymmetry(matrix)
    if gap > ASYMMETRY_ROUNDINGS * torch.finfo(matrix.dtype).eps * largest:
        raise ValueError(f"matrix must be symmetric, got max|A - Aᵀ| = {gap:.3g}.")


def _largest(matrix: Tensor) -> float:
    """Return max|A| without a copy of A; NaN where there is one."""
    parts = torch.stack([torch.stack(torch.aminmax(rows)) for rows in matrix.split(TILE)])
    return float(parts.abs().max())


def asymmetry(matrix: Tensor) -> float:
    """Return max|A - Aᵀ|, tile by tile."""
    gaps = []
    for i in range(0, len(matrix), TILE):
        for j in range(0, i + 1, TILE):
            lower = matrix[i : i + TILE, j : j + TILE]
            upper = matrix[j : j + TILE, i : i + TILE]
            gaps.append((lower - upper.T).abs().max())
    return float(torch.stack(gaps).max())


def pooled(spectra: Sequence[Spectrum]) -> dict[str, float]:
    """Return shares of zero and negative eigenvalues over all spectra, and the smallest |λ|."""
    total = sum(len(one.values) for one in spectra)
    return {
        "numerical_zero_share": sum(one.numerical_zeros for one in spectra) / total,
        "structural_zero_share": sum(one.structural_zeros for one in spectra) / total,
        "negative_share": sum(one.negative for one in spectra) / total,
        "smallest_magnitude": min(one.smallest_magnitude for one in spectra),
    }


_NAN = float("nan")


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else _NAN
