"""What the tests of optimizers with a line search share."""

import io

import torch

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.optim.bfgs import BFGS
from hessian_lab.optim.lbfgs import LBFGS
from hessian_lab.optim.newton import Newton
from hessian_lab.optim.newton_cg import NewtonCG
from hessian_lab.optim.nonlinear_cg import NonlinearCG
from hessian_lab.signals import load_signal

# name -> an optimizer of parameters, every branch that has a state of its own once.
SEARCHES = {
    "lbfgs": LBFGS,
    "lbfgs-short": lambda params: LBFGS(params, history_size=3),
    "bfgs": BFGS,
    "newton": Newton,
    "newton-damped": lambda params: Newton(params, solve="damped"),
    "newton-cg": NewtonCG,
    "nonlinear-cg": NonlinearCG,
    "nonlinear-cg-fr": lambda params: NonlinearCG(params, beta="FR", restart=7),
}


def field_problem(act="sine", size=8, width=4, depth=2, seed=0):
    """Return a small field and its closure."""
    signal = load_signal("camera", size)
    model = make_field(act, 2, 1, width=width, depth=depth, seed=seed)
    return model, lambda: mse(model(signal.coords), signal.values)


def quadratic(size=12, condition=100.0, seed=0):
    """Return a parameter, a closure ½ xᵀ A x − bᵀ x, A, and the minimum."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(noise).Q
    values = torch.logspace(0, torch.tensor(condition).log10(), size, dtype=torch.float64)
    matrix = basis * values @ basis.T
    matrix = (matrix + matrix.T) / 2
    shift = torch.randn(size, generator=generator, dtype=torch.float64)
    point = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))
    minimum = torch.linalg.solve(matrix, shift)
    return point, lambda: 0.5 * point @ matrix @ point - shift @ point, matrix, minimum


def rosenbrock(start=(-1.2, 1.0)):
    """Return a parameter and the closure of Rosenbrock's function, least at (1, 1)."""
    point = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    return point, lambda: 100 * (point[1] - point[0] ** 2) ** 2 + (1 - point[0]) ** 2


def through_file(state):
    """Return what a file gives back of a state."""
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def vector(parameters):
    """Return the parameters as one vector, copied."""
    return torch.cat([value.detach().flatten() for value in parameters])
