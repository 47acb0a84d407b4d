"""The searches against SciPy's, and against two other packages where they are installed."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from hessian_lab.optim.bfgs import BFGS
from hessian_lab.optim.newton import Newton
from hessian_lab.optim.newton_cg import NewtonCG
from hessian_lab.optim.nonlinear_cg import NonlinearCG
from tests.optim.searches import quadratic

PAIRS = {"BFGS": BFGS, "CG": lambda params: NonlinearCG(params, c2=0.4), "Newton-CG": NewtonCG}


def bowl(place):
    """A convex function of ten variables that is not quadratic."""
    _, _, matrix, minimum = quadratic(10, 100.0)
    offset = place - minimum
    return 0.5 * offset @ matrix @ offset + 5 * ((place - 0.3).cosh() - 1).sum()


def valley(place):
    """Rosenbrock's."""
    return 100 * (place[1] - place[0] ** 2) ** 2 + (1 - place[0]) ** 2


STARTS = {bowl: [0.0] * 10, valley: [0.5, 0.5]}


def start_of(problem):
    return torch.tensor(STARTS[problem], dtype=torch.float64)


def functions_of(problem):
    """Return loss, gradient and Hessian–vector product as functions of arrays."""

    def gradient(array, **more):
        point = torch.as_tensor(array).requires_grad_()
        return point, torch.autograd.grad(problem(point), point, **more)[0]

    def product(array, vector):
        point, first = gradient(array.copy(), create_graph=True)
        return torch.autograd.grad(first, point, torch.as_tensor(vector))[0].numpy()

    return (
        lambda array: float(problem(torch.as_tensor(array))),
        lambda array: gradient(array.copy())[1].numpy(),
        product,
    )


def iterations(kind, problem, goal, most=300):
    """Return the iterations until the gradient is below a goal, and where that is."""
    point = torch.nn.Parameter(start_of(problem))
    optimizer = kind([point])
    for number in range(most):
        (gradient,) = torch.autograd.grad(problem(point), point)
        if float(gradient.abs().max()) < goal:
            return number, point.detach().numpy().copy()
        optimizer.step(lambda: problem(point))
    raise AssertionError("the optimizer has not converged")


@pytest.mark.parametrize("problem", STARTS)
@pytest.mark.parametrize("name", PAIRS)
def test_scipy_finds_the_same_minimum_in_about_as_many_iterations(name, problem):
    goal = 1e-6
    ours, minimum = iterations(PAIRS[name], problem, goal)
    loss, gradient, product = functions_of(problem)
    options = {"xtol": 1e-10} if name == "Newton-CG" else {"gtol": goal}
    more = {"hessp": product} if name == "Newton-CG" else {}
    start = start_of(problem).numpy()
    theirs = minimize(loss, start, method=name, jac=gradient, options=options, **more)
    np.testing.assert_allclose(minimum, theirs.x, rtol=1e-5, atol=1e-6)
    assert 0.5 * theirs.nit - 3 <= ours <= 2 * theirs.nit + 3


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("bfgs", BFGS),
        ("cg", PAIRS["CG"]),
        ("newton-cg", NewtonCG),
        ("newton-exact", lambda params: Newton(params, solve="damped", damping=1e-6)),
    ],
)
@pytest.mark.parametrize("problem", STARTS)
def test_pytorch_minimize_finds_the_same_minimum(method, kind, problem):
    torchmin = pytest.importorskip("torchmin")
    ours, minimum = iterations(kind, problem, 1e-6)
    theirs = torchmin.minimize(problem, start_of(problem), method=method, tol=1e-9)
    np.testing.assert_allclose(minimum, theirs.x.numpy(), rtol=1e-3, atol=1e-4)
    assert ours <= 2 * theirs.nit + 3


@pytest.mark.parametrize(
    ("modules", "kind"),
    [
        (lambda tz: (tz.m.BFGS(), tz.m.StrongWolfe(c2=0.9)), BFGS),
        (lambda tz: (tz.m.NewtonCG(), tz.m.StrongWolfe(c2=0.9)), NewtonCG),
        (lambda tz: (tz.m.PolakRibiere(), tz.m.StrongWolfe(c2=0.1)), NonlinearCG),
    ],
    ids=["bfgs", "newton-cg", "polak-ribiere"],
)
@pytest.mark.parametrize("problem", STARTS)
def test_torchzero_finds_the_same_minimum(modules, kind, problem):
    torchzero = pytest.importorskip("torchzero")
    ours, minimum = iterations(kind, problem, 1e-6)
    point = torch.nn.Parameter(start_of(problem))
    optimizer = torchzero.Optimizer([point], *modules(torchzero))

    def closure(backward=True):
        loss = problem(point)
        if backward:
            optimizer.zero_grad()
            loss.backward()
        return loss

    for _ in range(2 * ours + 20):
        optimizer.step(closure)
    np.testing.assert_allclose(minimum, point.detach().numpy(), rtol=1e-4, atol=1e-5)
