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
    """Check products and the dense Hessian of all ranks together against those of one alone.

    Nothing is tried together where a rank cannot do its part alone.
    """
    try:
        alone, failure = _alone(case), None
    except Exception as error:
        failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    all_failures = ranks.told(ranks.collected(failure))
    for rank, text in enumerate(all_failures):
        if text:
            return Outcome(False, f"not tried, rank {rank} alone raised {text}")
    operator = HessianOperator(case.model, mse, case.signal, ranks=ranks)
    block, expected, dense = alone
    products = operator @ block
    matrix = shared_hessian(case.model, mse, case.signal, ranks=ranks)
    gap = _gap(products, expected)
    if matrix is not None:
        gap = max(gap, _gap(matrix, dense))
    tolerance = ROUNDINGS * case.eps
    faults = [] if gap <= tolerance else [f"shared curvature differs by {gap:.1e}"]
    return found(faults, f"{ranks.count} ranks, {gap:.1e} ≤ {tolerance:.1e}")


def _alone(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return vectors [n, k], their products, and the Hessian, by this rank alone."""
    operator = case.operator()
    block = gaussian(operator.size, VECTORS, seed=5, like=operator)
    return block, operator @ block, case.hessian


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference, in units of the largest entry."""
    return float((one - other).abs().max() / other.abs().max())
