"""The dense spectrum that estimates are compared with, computed once per run."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hessian_lab.losses import mse
from hessian_lab.probe.hessian import dense_hessian
from tests.benchmarks.problem import Problem, hessian_reference, relative, units

# Columns that show that the matrix is right.
COLUMNS = 8
ROUNDINGS = 1e-10


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a Hessian.

    Attributes:
        values: Eigenvalues, ascending, of the matrix rounded to the problem's precision.
        trace: Of the matrix in float64.
        off_diagonal: The Frobenius norm without the diagonal.
    """

    values: Tensor
    trace: float
    off_diagonal: float


@cache
def spectrum(problem: Problem) -> Known:
    """Return the dense spectrum, after comparing columns with ``torch.func``'s in float64."""
    double = problem.fresh().double()
    matrix = dense_hessian(double, mse, problem.signal.to(dtype=torch.float64))
    places = torch.linspace(0, problem.size - 1, COLUMNS).round().long()
    expected = hessian_reference(problem, units(problem.size, places, torch.float64))
    gap = relative(matrix[:, places], expected)
    if not gap <= ROUNDINGS:
        raise ValueError(f"The dense Hessian must be right, its columns are off by {gap:.1e}.")
    diagonal, norm = matrix.diagonal().clone(), float(matrix.norm())
    matrix = matrix.to(problem.parameters[0].dtype)
    values = torch.linalg.eigvalsh(matrix).double()
    off_diagonal = max(norm**2 - float(diagonal.square().sum()), 0.0) ** 0.5
    return Known(values, float(diagonal.sum()), off_diagonal)
