"""PyHessian."""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hessian_lab.losses import mse
from tests.benchmarks.problem import Problem, flat

Nodes = tuple[Tensor, Tensor]


def operator(problem: Problem) -> Any:
    """Its Hessian; it leaves gradients with graphs in the model, so it gets one of its own."""
    from pyhessian import hessian

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
        return hessian(copy.deepcopy(problem.model), mse, data=problem.batch, cuda=False)


def product(problem: Problem, vectors: Tensor) -> Callable[[], Tensor]:
    """One vector after the other: it has no blocks."""
    from pyhessian.utils import hessian_vector_product

    matrix = operator(problem)
    parts = [problem.parts(vector) for vector in vectors.T.contiguous()]

    def run() -> Tensor:
        columns = [flat(hessian_vector_product(matrix.gradsH, matrix.params, v)) for v in parts]
        return torch.stack(columns, dim=1)

    return run


def density(problem: Problem, *, num_probes: int, num_steps: int) -> Callable[[], Nodes]:
    """From network to nodes and weights; the first run of few steps shows whether it works."""
    operator(problem).density(iter=2, n_v=1)

    def run() -> Nodes:
        torch.manual_seed(0)
        nodes, weights = operator(problem).density(iter=num_steps, n_v=num_probes)
        return torch.tensor(nodes), torch.tensor(weights)

    return run


def trace(problem: Problem, num_products: int) -> Callable[[], float]:
    """Hutchinson's estimate, of which its own tolerance must not end the sampling."""

    def run() -> float:
        torch.manual_seed(0)
        samples = operator(problem).trace(maxIter=num_products, tol=-math.inf)
        return math.fsum(samples) / len(samples)

    return run


def eigenvalues(problem: Problem, num: int, rtol: float, most: int) -> Callable[[], Tensor]:
    """The largest in magnitude, by power iteration and deflation."""

    def run() -> Tensor:
        torch.manual_seed(0)
        values, _ = operator(problem).eigenvalues(maxIter=most, tol=rtol, top_n=num)
        return torch.tensor(values)

    return run
