"""Reverse over reverse by hand, with torch alone: the graph of the gradient is kept."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.benchmarks.problem import Problem, flat, units


def _gradient(problem: Problem) -> Tensor:
    parts = torch.autograd.grad(problem.loss(), problem.parameters, create_graph=True)
    return torch.cat([part.reshape(-1) for part in parts])


def product(problem: Problem, vectors: Tensor) -> Callable[[], Tensor]:
    """One vector after the other."""
    gradient, parameters = _gradient(problem), problem.parameters

    def run() -> Tensor:
        columns = [
            flat(torch.autograd.grad(gradient, parameters, vector, retain_graph=True))
            for vector in vectors.T
        ]
        return torch.stack(columns, dim=1)

    return run


def batched(problem: Problem, vectors: Tensor, block: int) -> Callable[[], Tensor]:
    """Blocks of vectors, by ``is_grads_batched``."""
    gradient, parameters = _gradient(problem), problem.parameters

    def run() -> Tensor:
        found = []
        for rows in vectors.T.contiguous().split(block):
            parts = torch.autograd.grad(
                gradient, parameters, rows, retain_graph=True, is_grads_batched=True
            )
            found.append(torch.cat([part.reshape(len(rows), -1) for part in parts], dim=1))
        return torch.cat(found).T

    return run


def columns(problem: Problem, places: Tensor, block: int = 1) -> Callable[[], Tensor]:
    """Columns [n, k] of the Hessian."""
    vectors = units(problem.size, places, problem.parameters[0].dtype)
    return product(problem, vectors) if block == 1 else batched(problem, vectors, block)
