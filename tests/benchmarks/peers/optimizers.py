"""Optimizers of torch and of pytorch_optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.losses import mse
from tests.benchmarks.problem import Problem, flat


def torch_lbfgs(problem: Problem, steps: int) -> Callable[[], nn.Module]:
    """A training by ``torch.optim.LBFGS``: iterations end by their number alone."""

    def run() -> nn.Module:
        model = problem.fresh()
        optimizer = torch.optim.LBFGS(
            model.parameters(),
            max_iter=steps,
            # Its default of 5/4 max_iter ends a search that needs a few more, silently.
            max_eval=26 * steps,
            tolerance_grad=0,
            tolerance_change=0,
            history_size=100,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = problem.loss(model)
            loss.backward()
            return loss

        optimizer.step(closure)
        return model

    return run


def steps_of(
    problem: Problem, make: Callable[[list[nn.Parameter]], Any], steps: int, *, graph: bool
) -> Callable[[], Tensor]:
    """Steps of an optimizer of torch's kind on a fresh field's weights; returns them [n].

    Args:
        problem: The field and its points.
        make: Makes the optimizer of some weights.
        steps: How many.
        graph: Whether its steps differentiate the gradients again.
    """

    def run() -> Tensor:
        model = problem.fresh()
        weights = weights_of(model)
        optimizer = make(weights)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = mse(model(problem.signal.coords), problem.signal.values)
            loss.backward(create_graph=graph)
            optimizer.step()
        optimizer.zero_grad()
        return flat(weights)

    return run


def weights_of(model: Any) -> list[nn.Parameter]:
    """Return the weights of a field's maps, after freezing the biases.

    Libraries agree on what Shampoo does with matrices, and differ on vectors.
    """
    for layer in model.maps:
        layer.bias.requires_grad_(False)
    return [layer.weight for layer in model.maps]
