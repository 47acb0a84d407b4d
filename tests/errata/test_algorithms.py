"""Errors of the papers in second-order algorithms and their rates of convergence."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.optim.bfgs import BFGS, update_inverse
from hessian_lab.optim.compact import two_loop
from hessian_lab.optim.lbfgs import LBFGS
from hessian_lab.optim.newton_cg import NewtonCG
from hessian_lab.optim.nonlinear_cg import NonlinearCG
from hessian_lab.optim.wolfe import Trial, strong_wolfe
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.probe.spectrum import spectrum
from hessian_lab.signal import Signal
from tests.errata.states import badly_scaled, quadratic_of, relative
from tests.optim.searches import quadratic, rosenbrock
from tests.reference import assert_same, points, small_field


class Quartic:
    """½ xᵀ A x + ¼ Σ x⁴ in 80 digits: strongly convex, least at 0; A has the condition 100."""

    def __init__(self, size=12):
        generator = np.random.default_rng(0)
        basis = np.linalg.qr(generator.standard_normal((size, size)))[0]
        matrix = basis * np.logspace(0, 2, size) @ basis.T
        self.matrix = exact((matrix + matrix.T) / 2)
        self.start = exact(generator.standard_normal(size))

    def value(self, x):
        return x @ (self.matrix @ x) / 2 + (x**4).sum() / 4

    def slope(self, x):
        return self.matrix @ x + x**3


def exact(array):
    return np.vectorize(mpmath.mpf, otypes=[object])(array)


def iterations_per_ten_digits(problem, history, last):
    """Return how many iterations each ten further digits of ‖x‖ take from 1e-10 on."""
    place, pairs, marks = problem.start, [], []
    gradient, iteration = problem.slope(place), 0
    while len(marks) < last:
        direction = -inverse_times(pairs, gradient)
        length, new, slope = wolfe(problem, place, direction, gradient, first=not pairs)
        pairs = [*pairs, (length * direction, slope - gradient)][-history:]
        place, gradient, iteration = new, slope, iteration + 1
        while len(marks) < last and mpmath.sqrt(place @ place) < mpmath.mpf(10) ** (
            -10 * (len(marks) + 1)
        ):
            marks.append(iteration)
    return np.diff(marks).tolist()


def inverse_times(pairs, vector):
    """Return the two-loop recursion; with all pairs it is BFGS."""
    weights = []
    for step, change in reversed(pairs):
        weights.append((step @ vector) / (step @ change))
        vector = vector - weights[-1] * change
    if pairs:
        step, change = pairs[-1]
        vector = vector * ((step @ change) / (change @ change))
    for (step, change), weight in zip(pairs, reversed(weights), strict=True):
        vector = vector + (weight - (change @ vector) / (step @ change)) * step
    return vector


def wolfe(problem, place, direction, gradient, *, first):
    """Return a length by bisection of the weak Wolfe conditions, as eqs (10) and (11) have them."""
    low, high = mpmath.mpf(0), None
    length = mpmath.mpf("0.01") if first else mpmath.mpf(1)
    value, descent = problem.value(place), gradient @ direction
    while True:
        new = place + length * direction
        slope = problem.slope(new)
        if problem.value(new) > value + mpmath.mpf("1e-4") * length * descent:
            high = length
        elif slope @ direction < mpmath.mpf("0.9") * descent:
            low = length
        else:
            return length, new, slope
        length = 2 * low if high is None else (low + high) / 2


def test_e47_lbfgs_of_fixed_memory_is_linear_and_bfgs_is_not():
    with mpmath.workdps(80):
        problem = Quartic()
        short = iterations_per_ten_digits(problem, 5, 4)
        long = iterations_per_ten_digits(problem, 10**6, 6)
    assert min(short) > 40
    assert min(short) > 0.75 * max(short)
    assert long[-1] <= 0.7 * long[0]
    assert max(long) < min(short) / 3


def test_e48_a_field_that_interpolates_has_no_isolated_minimum():
    coords = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
    values = torch.sin(2 * math.pi * coords) + torch.sin(6 * math.pi * coords)
    signal = Signal(coords, values)
    model = make_field("sine", 1, 1, width=16, depth=2, omega=10.0, seed=1)
    optimizer = LBFGS(model.parameters(), history_size=5)
    marks, step = [], 0
    while len(marks) < 5:
        loss = float(optimizer.step(lambda: mse(model(coords), values)).detach())
        marks += [step] if loss < 10.0 ** (-8 - 4 * len(marks)) else []
        step += 1
    size = sum(value.numel() for value in model.parameters())
    matrix = dense_hessian(model, mse, signal)
    magnitudes = spectrum(matrix).magnitudes.sort(descending=True).values
    assert size == 321
    # The minimum is no point but a set of 301 dimensions: the theorem's Hessian is singular.
    assert float(magnitudes[20] / magnitudes[0]) < 1e-9
    assert float(magnitudes[19] / magnitudes[0]) > 1e-6
    # Superlinear means fewer and fewer iterations to each further four digits.
    needed = np.diff(marks)
    assert needed.min() > 0.75 * needed.max()


def test_e49_a_quasi_newton_step_needs_its_length():
    point, closure, matrix, _ = quadratic(condition=100.0)
    start, before = point.detach().clone(), float(closure().detach())
    (gradient,) = torch.autograd.grad(closure(), point)
    with torch.no_grad():
        point.sub_(gradient)  # M is the identity before the first pair.
    assert float(closure().detach()) > before + 1

    with torch.no_grad():
        point.copy_(start)
    losses = []
    optimizer = BFGS([point])
    for _ in range(30):
        losses.append(float(optimizer.step(closure)))
    assert all(later <= earlier for earlier, later in pairwise(losses))
    assert relative(matrix @ point.detach(), -optimizer_shift(closure, point, matrix)) < 1e-6


def optimizer_shift(closure, point, matrix):
    """Return what the gradient of ½ xᵀAx − bᵀx leaves beside A x: −b."""
    (gradient,) = torch.autograd.grad(closure(), point)
    return gradient - matrix @ point.detach()


def test_e50_the_inverse_update_fulfils_the_inverse_secant_equation():
    generator = torch.Generator().manual_seed(0)
    matrix = badly_scaled(12, 2.0)
    inverse = torch.eye(12, dtype=torch.float64)
    for _ in range(5):
        step = torch.randn(12, generator=generator, dtype=torch.float64)
        change = matrix @ step
        # Eq. (15), written out.
        weight = 1 / (change @ step)
        left = torch.eye(12, dtype=torch.float64) - weight * torch.outer(step, change)
        expected = left @ inverse @ left.T + weight * torch.outer(step, step)
        update_inverse(inverse, step, change)
        assert_same(inverse, expected, roundings=1e5)
        assert_same(inverse @ change, step, roundings=1e6)
        assert relative(inverse @ step, change) > 0.5


def test_e52_the_printed_newton_cg_multiplies_by_no_hessian():
    signal = points()
    products = {}
    for kind in (NonlinearCG, NewtonCG):
        model = small_field("sine")
        optimizer = kind(model.parameters())
        for _ in range(5):
            optimizer.step(lambda model=model: mse(model(signal.coords), signal.values))
        products[kind] = optimizer.diagnostics()["products"]
    assert products[NonlinearCG] == 0
    assert products[NewtonCG] > 0

    point, closure, *_ = quadratic()
    (gradient,) = torch.autograd.grad(closure(), point)
    zero = torch.zeros_like(gradient)
    assert (gradient - zero) @ gradient / (zero @ zero) == math.inf
    NonlinearCG([point]).step(closure)
    cosine = torch.nn.functional.cosine_similarity(point.detach(), -gradient, dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-12)

    # On one batch the directions are conjugate: about as many steps as parameters suffice.
    point, closure, _, minimum = quadratic(condition=30.0)
    optimizer = NonlinearCG([point], c2=1e-3)
    for _ in range(14):
        optimizer.step(closure)
    assert relative(point.detach(), minimum) < 1e-3


def test_e53_only_an_exact_search_leaves_no_slope():
    matrix = badly_scaled(12, 1.0)
    point, closure = quadratic_of(matrix)
    (gradient,) = torch.autograd.grad(closure(), point)
    exact_length = (gradient @ gradient) / (gradient @ matrix @ gradient)
    new = matrix @ (point.detach() - exact_length * gradient)
    assert abs(float(gradient @ new)) < 1e-12 * float(gradient @ gradient)

    left = []
    for start in ((-1.2, 1.0), (0.5, 2.0), (2.0, -1.0)):
        point, closure = rosenbrock(start)
        (gradient,) = torch.autograd.grad(closure(), point)
        origin, square = point.detach().clone(), float(gradient @ gradient)

        def trial(length, point=point, origin=origin, gradient=gradient, closure=closure):
            with torch.no_grad():
                point.copy_(origin - length * gradient)
            loss = closure()
            (slope,) = torch.autograd.grad(loss, point)
            return Trial(length, float(loss.detach()), -float(slope @ gradient))

        found = strong_wolfe(trial, trial(0.0), 1e-3, c2=0.9)
        left.append(abs(found.slope) / square)
        assert left[-1] <= 0.9
    assert max(left) > 0.01


def test_e54_the_second_loop_adds():
    generator = torch.Generator().manual_seed(0)
    matrix = badly_scaled(10, 2.0)
    steps = list(torch.randn(4, 10, generator=generator, dtype=torch.float64))
    changes = [matrix @ step for step in steps]
    inner = [step @ change for step, change in zip(steps, changes, strict=True)]
    vector = torch.randn(10, generator=generator, dtype=torch.float64)
    scale = inner[-1] / (changes[-1] @ changes[-1])
    inverse = scale * torch.eye(10, dtype=torch.float64)
    for step, change in zip(steps, changes, strict=True):
        update_inverse(inverse, step, change)
    expected = inverse @ vector
    assert_same(two_loop(steps, changes, inner, vector), expected, roundings=1e6)

    # Alg. 4 as it stands: z is replaced, not raised.
    weights, rest = [], vector
    for step, change, curvature in zip(
        reversed(steps), reversed(changes), reversed(inner), strict=True
    ):
        weights.append(step @ rest / curvature)
        rest = rest - weights[-1] * change
    printed = scale * rest
    for step, change, curvature, weight in zip(
        steps, changes, inner, reversed(weights), strict=True
    ):
        printed = (weight - change @ printed / curvature) * step
    assert relative(printed, expected) > 0.3
    # All of it lies along the last step, and it need not descend; −z does.
    assert int(torch.linalg.matrix_rank(torch.stack([printed, steps[-1]]))) == 1
    assert float(vector @ expected) > 0


def test_e70_the_recursion_is_a_constant_share_of_an_iteration():
    history, shares = 100, []
    for width in (16, 64, 256):
        signal = points(500)
        model = make_field("sine", 2, 1, width=width, depth=4)
        with FlopCounterMode(display=False) as counter:
            mse(model(signal.coords), signal.values).backward()
        size = sum(value.numel() for value in model.parameters())
        gradient = counter.get_total_flops()
        assert gradient == pytest.approx(6 * size * signal.num_points, rel=0.2)
        # Two inner products and two sums of n numbers, a multiplication and an addition each.
        recursion = 4 * 2 * history * size
        shares.append(recursion / gradient)
    assert max(shares) / min(shares) < 1.2
    assert shares[-1] == pytest.approx(4 * history / (3 * 500), rel=0.1)
