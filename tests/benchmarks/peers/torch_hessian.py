"""``torch.func.hessian``, in one piece as its users call it."""

from collections.abc import Callable

from torch import Tensor

from hessian_lab.losses import mse
from tests.benchmarks.problem import Problem
from tests.reference import autograd_hessian


def whole(problem: Problem) -> Callable[[], Tensor]:
    """The Hessian [n, n]."""
    return lambda: autograd_hessian(problem.model, mse, problem.signal)
