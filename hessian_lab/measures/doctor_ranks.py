"""The check of ``doctor`` on several processes: what they compute together is what each does."""

import torch

from hessian_lab.losses import mse
from hessian_lab.measures.doctor_case import ROUNDINGS, Case, Outcome, found
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.ranks import Ranks
from hessian_lab.probe.sharding import shared_hessian
from hessian_lab.probe.vectors import gaussian

VECTORS = 3


def shared_curvature(case: Case, ranks: Ranks) -> Outcome:
    """Check products and the dense Hessian of all ranks together against those of one alone."""
    operator = HessianOperator(case.model, mse, case.signal, ranks=ranks)
    block = gaussian(operator.size, VECTORS, seed=5, like=operator)
    products = operator @ block
    matrix = shared_hessian(case.model, mse, case.signal, ranks=ranks)
    gap = _gap(products, case.operator() @ block)
    if matrix is not None:
        gap = max(gap, _gap(matrix, case.hessian))
    tolerance = ROUNDINGS * case.eps
    faults = [] if gap <= tolerance else [f"shared curvature differs by {gap:.1e}"]
    return found(faults, f"{ranks.count} ranks, {gap:.1e} ≤ {tolerance:.1e}")


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference, in units of the largest entry."""
    return float((one - other).abs().max() / other.abs().max())
