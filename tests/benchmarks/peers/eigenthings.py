"""hessian-eigenthings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hessian_lab.losses import mse
from tests.benchmarks.problem import Problem

Nodes = tuple[Tensor, Tensor]


def operator(problem: Problem, kind: str = "Hessian") -> Any:
    import hessian_eigenthings as peer

    data = [problem.batch]
    if kind == "Hessian":
        return peer.HessianOperator(problem.model, data, peer.supervised_loss(mse))
    return peer.GGNOperator(
        problem.model, data, peer.supervised_forward, peer.supervised_loss_of_output(mse)
    )


def product(problem: Problem, vectors: Tensor, kind: str = "Hessian") -> Callable[[], Tensor]:
    """One vector after the other: it has no blocks."""
    matrix = operator(problem, kind)
    rows = vectors.T.contiguous()
    return lambda: torch.stack([matrix.matvec(row) for row in rows], dim=1)


def density(problem: Problem, *, num_probes: int, num_steps: int, grid: int) -> Callable[[], Nodes]:
    """From network to density."""
    import hessian_eigenthings as peer

    def run() -> Nodes:
        found = peer.spectral_density(
            operator(problem),
            num_runs=num_probes,
            lanczos_steps=num_steps,
            num_grid_points=grid,
            seed=0,
        )
        return found.raw_eigenvalues, found.raw_weights

    return run


def quadrature(matrix: Tensor, seed: int, num_probes: int, num_steps: int) -> Nodes:
    """Nodes and weights of a dense matrix."""
    import hessian_eigenthings as peer

    wrapped = peer.LambdaOperator(matrix.__matmul__, len(matrix), dtype=matrix.dtype)
    # Probe j of seed s is probe 0 of seed s + j.
    found = peer.spectral_density(
        wrapped, num_runs=num_probes, lanczos_steps=num_steps, seed=num_probes * seed
    )
    return found.raw_eigenvalues, found.raw_weights


def trace(problem: Problem, num_products: int) -> Callable[[], float]:
    """Hutchinson's estimate."""
    import hessian_eigenthings as peer

    return lambda: peer.hutchinson(operator(problem), num_samples=num_products, seed=0).estimate


def eigenvalues(problem: Problem, num: int, rtol: float, most: int) -> Callable[[], Tensor]:
    """The largest in magnitude, by its Lanczos method with full reorthogonalization."""
    import hessian_eigenthings as peer

    def run() -> Tensor:
        found = peer.lanczos(
            operator(problem), k=num, max_iter=most, tol=rtol, reorthogonalize=True, seed=0
        )
        return found.eigenvalues

    return run
