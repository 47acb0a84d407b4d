"""What double precision tells of the condition of a symmetric matrix, before and after scaling."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessian_lab.probe.operators import MatrixOperator
from hessian_lab.probe.scaling import Scaling, equilibration, jacobi, scaling
from hessian_lab.probe.spectrum import spectrum

NAMES = ("identity", "equilibrated", "jacobi")
QUANTILE = 0.1
# The rounding of one matrix, in differences of two that sum the same terms in another order.
SAFETY = 2.0


@dataclass(frozen=True)
class Conditioning:
    """What double precision tells of the condition of ``D^{-1/2} A D^{-1/2}``.

    Attributes:
        kappa: ``κ = max|λ| / min|λ|`` where ``resolved``, else the bound ``max|λ| / floor``.
        resolved: Whether min|λ| is above the rounding floor, ``n · eps · max|λ|`` or what was
            measured.
        effective: max|λ| over the smallest |λ| above the floor.
        eff10: max|λ| over the 10 % quantile of |λ|, or over the floor where that is larger.
        eff10_resolved: Whether the quantile is above the floor; else ``eff10`` is a lower bound.
        num_below: How many |λ| are at or below the floor.
        num_unscaled: Entries of ``D`` that were too small to divide by, and were set to 1.
    """

    kappa: float
    resolved: bool
    effective: float
    eff10: float
    eff10_resolved: bool
    num_below: int
    num_unscaled: int = 0


def conditions(
    matrix: Tensor, *, again: Tensor | None = None, estimated: int = 0, seed: int = 0
) -> dict[str, Conditioning]:
    """Return what double precision tells of κ, of a symmetric matrix and of its scaled forms.

    Scaling magnifies the rounding of small entries. It is measured where the matrix is given twice:
    the floor is then at least twice the Frobenius norm of the scaled difference. From one matrix
    the floor presumes that entries are right to a few roundings each. Where entries of ``D`` were
    too small to divide by, κ is that of the ``D`` in which they are 1, and may lie far above κ of
    the whole one.

    Args:
        matrix: Dense [n, n], float64. One decomposition of ``4/3 n³`` operations per scaling.
        again: The same matrix, its terms summed in another order.
        estimated: Probes (signs) of the estimated scalings, √mean (A v)² and the
            magnitude of mean v ⊙ A v; 0 for the exact ones alone.
        seed: Of the probes.

    Returns:
        ``identity``, ``equilibrated``, ``jacobi`` and, where asked for, ``equilibrated_estimated``
        and ``jacobi_estimated``. All numbers are NaN for a matrix that is not finite.
    """
    if not matrix.isfinite().all():
        return dict.fromkeys(NAMES, conditioning(matrix))
    scalings = {
        "equilibrated": scaling(torch.linalg.vector_norm(matrix, dim=1)),
        "jacobi": scaling(matrix.diagonal()),
    }
    if estimated:
        operator = MatrixOperator(matrix)
        options: dict[str, Any] = {"num_products": estimated, "seed": seed}
        scalings |= {
            "equilibrated_estimated": equilibration(operator, method="hutchinson", **options),
            "jacobi_estimated": jacobi(operator, method="hutchinson", **options),
        }
    gap = None if again is None else matrix - again

    def told(one: Scaling | None) -> Conditioning:
        parts = [
            part if part is None or one is None else _scaled(part, one) for part in (matrix, gap)
        ]
        scaled, error = parts
        assert scaled is not None
        rounding = 0.0 if error is None else SAFETY * float(torch.linalg.matrix_norm(error))
        num_unscaled = 0 if one is None else one.num_unscaled
        return conditioning(scaled, rounding=rounding, num_unscaled=num_unscaled)

    return {"identity": told(None)} | {name: told(one) for name, one in scalings.items()}


def _scaled(matrix: Tensor, one: Scaling) -> Tensor:
    root = one.inverse_sqrt
    return root.unsqueeze(1) * matrix * root


def conditioning(matrix: Tensor, *, rounding: float = 0.0, num_unscaled: int = 0) -> Conditioning:
    """Return what double precision tells of κ of one symmetric matrix.

    Args:
        matrix: Dense [n, n], float64; ``4/3 n³`` operations.
        rounding: What is known of its error in the 2-norm; n · eps · max|λ| is presumed anyway.
        num_unscaled: Of the scaling that made it.
    """
    if not matrix.isfinite().all():
        return Conditioning(math.nan, False, math.nan, math.nan, False, 0)
    found = spectrum(matrix, rounding=rounding)
    largest, floor = found.spectral_radius, found.tolerance
    quantile = float(torch.quantile(found.magnitudes, QUANTILE))
    return Conditioning(
        kappa=found.condition_number,
        resolved=found.condition_number_resolved,
        effective=found.effective_condition_number,
        eff10=largest / max(quantile, floor) if largest else math.nan,
        eff10_resolved=quantile > floor,
        num_below=found.numerical_zeros,
        num_unscaled=num_unscaled,
    )
