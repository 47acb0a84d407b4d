"""curvlinops."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.problem import PointMean, Problem, units

Nodes = tuple[Tensor, Tensor]


def _peer() -> Any:
    # It sets it off inside torch.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    import curvlinops

    return curvlinops


def operator(problem: Problem, kind: str = "Hessian", *, check: bool = False) -> Any:
    """Its operator; by default without its two extra passes and products that check it."""
    return getattr(_peer(), f"{kind}LinearOperator")(
        problem.model, PointMean(), problem.parameters, [problem.batch], check_deterministic=check
    )


def product(problem: Problem, vectors: Tensor, kind: str = "Hessian") -> Callable[[], Tensor]:
    """All vectors as one block."""
    matrix = operator(problem, kind)
    return lambda: matrix @ vectors


def columns(problem: Problem, places: Tensor, block: int) -> Callable[[], Tensor]:
    """Columns [n, k] of the Hessian, by blocks of unit vectors."""
    matrix = operator(problem)
    parts = [units(problem.size, some, problem.parameters[0].dtype) for some in places.split(block)]
    return lambda: torch.cat([matrix @ part for part in parts], dim=1)


def diagonal(problem: Problem, block: int) -> Callable[[], Tensor]:
    """The exact diagonal [n], of which it has nothing but its products."""
    places = torch.arange(problem.size)
    whole = columns(problem, places, block)
    return lambda: whole().diagonal()


def density(
    problem: Problem, *, num_probes: int, num_steps: int, grid: int, lean: bool
) -> Callable[[], Nodes]:
    """From network to density; ``lean`` spares it its checks and its search for the bounds."""
    peer = _peer()

    def run() -> Nodes:
        torch.manual_seed(0)
        cached = peer.LanczosApproximateSpectrumCached(
            operator(problem, check=not lean), num_steps, boundaries=(-1.0, 1.0) if lean else None
        )
        cached.approximate_spectrum(num_repeats=num_probes, num_points=grid)
        runs = cached._get_lanczos_iters(num_probes)
        return (
            torch.stack([values for values, _ in runs]),
            torch.stack([vectors[0] ** 2 for _, vectors in runs]),
        )

    return run


def quadrature(matrix: Tensor, seed: int, num_probes: int, num_steps: int) -> Nodes:
    """Nodes and weights of a dense matrix."""
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    torch.manual_seed(seed)
    runs = [fast_lanczos(matrix, num_steps) for _ in range(num_probes)]
    return (
        torch.stack([values for values, _ in runs]),
        torch.stack([vectors[0] ** 2 for _, vectors in runs]),
    )


def trace(problem: Problem, num_products: int) -> Callable[[], float]:
    """Hutchinson's estimate."""
    peer = _peer()

    def run() -> float:
        torch.manual_seed(0)
        return float(peer.hutchinson_trace(operator(problem), num_products))

    return run


def eigenvalues(problem: Problem, num: int, rtol: float) -> Callable[[], Tensor]:
    """The largest in magnitude, as its documentation says: by SciPy's ``eigsh``."""
    from scipy.sparse.linalg import eigsh

    def run() -> Tensor:
        matrix = operator(problem).to_scipy()
        found = eigsh(matrix, k=num, which="LM", tol=rtol, return_eigenvectors=False)
        return torch.as_tensor(found)

    return run
