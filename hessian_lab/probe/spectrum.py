"""The eigenvalues of a dense symmetric matrix, and what they say with their rounding floor."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from hessian_lab.probe.memory import fits, require_bytes
from hessian_lab.probe.watch import unheard

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

    The matrix may lie in a file (``dense_hessian(…, file=PATH)``), but not its eigenvalue problem.
    Each of the n Householder steps that make it tridiagonal multiplies the whole trailing matrix
    with a vector that the step before decides: n³ / 3 numbers would come off the disk, at n =
    50,000 and 1 GB/s in four days, where memory takes hours. Beyond, take products: ``lanczos`` and
    ``spectral_measure``.

    Args:
        matrix: Symmetric up to rounding. About ``4/3 n³`` operations and one copy of it in memory,
            on a GPU three; one more where it is single, or rows are left out, and they fit.
        rounding: An error that it is known to have, in its 2-norm, if more than its own rounding.

    Raises:
        ValueError: If it is not square, not finite or not symmetric.
        ResourceError: If not even one copy fits, before it is made.
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
    # Not matrix != 0: that is as large as an eighth of the matrix.
    alive = torch.cat([rows.any(dim=1) for rows in tensor.split(TILE)]).nonzero().squeeze(1)
    zeros = len(tensor) - len(alive)
    values = _eigenvalues(tensor, alive if zeros else None)
    if zeros:
        values = torch.cat([values, values.new_zeros(zeros)]).sort().values
    return Spectrum(values, structural_zeros=zeros, dtype=dtype, rounding=rounding)


def spectrum_bytes(size: int, device: torch.device, *, copied: bool = False) -> int:
    """Return the bytes that an eigenvalue problem takes beside its matrix.

    What the solver works in, and a copy before it of what is not in double precision or leaves rows
    out.
    """
    copies = SOLVER_COPIES.get(device.type, SOLVER_COPIES["cuda"]) + copied
    return int(8 * copies * size**2)


def _eigenvalues(matrix: Tensor, places: Tensor | None) -> Tensor:
    """Return the eigenvalues of a matrix, of some of its rows and columns if given, on the CPU."""
    device, size = matrix.device, len(matrix if places is None else places)
    copied = places is not None or matrix.dtype != torch.float64
    # LAPACK of SciPy may work on the copy itself; that of torch copies, and is faster.
    short = not fits(spectrum_bytes(size, device, copied=True), device)
    sparing = copied and short and device.type == "cpu"
    require_bytes(
        spectrum_bytes(size, device, copied=copied and not sparing),
        f"The eigenvalue problem of size {size}",
        device=device,
        cure="Measure a smaller network, or take products: spectral_measure, --method slq.",
    )
    if sparing:
        return _overwriting(matrix, places)
    core = matrix if places is None else matrix[places.unsqueeze(1), places]
    values: Tensor = torch.linalg.eigvalsh(core.double()).cpu()
    return values


def _overwriting(matrix: Tensor, places: Tensor | None) -> Tensor:
    """Return the eigenvalues, with a single copy of the matrix."""
    places = torch.arange(len(matrix)) if places is None else places
    core = np.empty((len(places), len(places)), order="F")
    for column, row in enumerate(places.tolist()):
        core[:, column] = matrix[row][places].numpy()
    # SciPy keeps Python's lock.
    with unheard():
        values = eigh(core, eigvals_only=True, overwrite_a=True, check_finite=False, driver="evd")
    return torch.from_numpy(values)


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
    # Wide tiles of large matrices, which may lie in files: a fault reads 128 KiB of a row.
    tile = max(TILE, len(matrix) // 8)
    for i in range(0, len(matrix), tile):
        for j in range(0, i + 1, tile):
            lower = matrix[i : i + tile, j : j + tile]
            upper = matrix[j : j + tile, i : i + tile]
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
