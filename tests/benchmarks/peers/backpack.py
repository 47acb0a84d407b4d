"""BackPACK."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.losses import mse
from tests.benchmarks.problem import Problem, flat


def product(problem: Problem, vectors: Tensor) -> Callable[[], Tensor]:
    """One vector after the other, on one graph of the gradient."""
    from backpack.hessianfree.hvp import hessian_vector_product

    parameters, loss = problem.parameters, problem.loss()
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    parts = [problem.parts(vector) for vector in vectors.T.contiguous()]

    def run() -> Tensor:
        columns = [
            flat(hessian_vector_product(loss, parameters, part, grad_params=gradient))
            for part in parts
        ]
        return torch.stack(columns, dim=1)

    return run


def ggn_product(problem: Problem, vectors: Tensor) -> Callable[[], Tensor]:
    """One vector after the other, on one graph of the outputs."""
    from backpack.hessianfree.ggnvp import ggn_vector_product

    outputs = problem.model(problem.signal.coords)
    loss = mse(outputs, problem.signal.values)
    parts = [problem.parts(vector) for vector in vectors.T.contiguous()]

    def run() -> Tensor:
        columns = [flat(ggn_vector_product(loss, outputs, problem.model, part)) for part in parts]
        return torch.stack(columns, dim=1)

    return run


def _extended(problem: Problem, extension: str) -> Callable[[], Any]:
    """Return a backward pass with an extension; its losses average over channels, without ½."""
    import backpack
    from backpack import extensions

    model = backpack.extend(copy.deepcopy(problem.sequential))
    loss = backpack.extend(nn.MSELoss())

    def run() -> Any:
        model.zero_grad()
        with backpack.backpack(getattr(extensions, extension)()):
            loss(model(problem.signal.coords), problem.signal.values).backward()
        return model

    return run


def _scale(problem: Problem) -> float:
    return problem.signal.values.shape[1] / 2


def diagonal(problem: Problem) -> Callable[[], Tensor]:
    """The exact diagonal [n]."""
    backward, scale = _extended(problem, "DiagHessian"), _scale(problem)
    return lambda: flat([value.diag_h for value in backward().parameters()]) * scale


def blocks(problem: Problem) -> Callable[[], list[Tensor]]:
    """The diagonal block of every parameter, by its products with the unit vectors."""
    backward, scale = _extended(problem, "HMP"), _scale(problem)

    def run() -> list[Tensor]:
        found = []
        for value in backward().parameters():
            eye = torch.eye(value.numel(), dtype=value.dtype).view(-1, *value.shape)
            found.append(value.hmp(eye).reshape(value.numel(), -1) * scale)
        return found

    return run
