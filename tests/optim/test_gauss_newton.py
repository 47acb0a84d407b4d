"""Gauss–Newton: its three solvers, its damping, and its convergence."""

import gc
import io
import weakref
from itertools import pairwise

import pytest
import torch
from torch import nn

from hessian_lab.errors import DivergenceError, ResourceError
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import bce, mse
from hessian_lab.optim.gauss_newton import GaussNewton
from hessian_lab.probe.hessian import dense_ggn
from tests.reference import assert_same, points, small_field

LOSSES = {
    "mse": mse,
    "mean": nn.MSELoss(),
    "sum": nn.MSELoss(reduction="sum"),
    "bce": bce,
}
SOLVERS = ("cg", "dense", "dual")
EXACT_CG = {"max_cg": 2000, "cg_rtol": 1e-13}


def closure_of(model, signal, loss=mse):
    def closure():
        outputs = model(signal.coords)
        return loss(outputs, signal.values), outputs

    return closure


def vector(tensors):
    return torch.cat([value.detach().flatten() for value in tensors])


def fixed(model, solver, damping, lr=1.0, **options):
    return GaussNewton(
        model.parameters(), lr, solver=solver, damping=damping, adapt_damping=False, **options
    )


def move_of(solver, damping, loss=mse, num_outputs=1, num_points=9, closure=None):
    """Return the first step [n] and the gradient before it [n], of a field of its own."""
    model, signal = small_field(num_outputs=num_outputs), points(num_points, 2, num_outputs)
    start = vector(model.parameters())
    optimizer = fixed(model, solver, damping, **EXACT_CG)
    optimizer.step((closure or closure_of)(model, signal, loss))
    gradient = vector(value.grad for value in model.parameters())
    return vector(model.parameters()) - start, gradient


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_step_solves_the_damped_system(solver, loss, num_outputs):
    model, signal = small_field(num_outputs=num_outputs), points(9, 2, num_outputs)
    matrix = dense_ggn(model, loss, signal)
    move, gradient = move_of(solver, 0.01, loss, num_outputs)
    shifted = matrix + 0.01 * torch.eye(len(matrix)).double()
    assert_same(move, -torch.linalg.solve(shifted, gradient), roundings=1e7)


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_matrix_is_the_gauss_newton_matrix(loss, num_outputs):
    model, signal = small_field(num_outputs=num_outputs), points(9, 2, num_outputs)
    matrix = dense_ggn(model, loss, signal)
    optimizer = fixed(model, "dense", 0.01)
    root = optimizer.preconditioner(closure=closure_of(model, signal, loss)).inverse_sqrt.dense()
    shifted = matrix + 0.01 * torch.eye(len(matrix)).double()
    assert_same(torch.linalg.inv(root @ root), shifted, roundings=1e7)
    optimizer.step(closure_of(model, signal, loss))
    assert_same(optimizer.preconditioner(model).inverse_sqrt.dense(), root, roundings=1e5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_penalties_outside_the_outputs_are_in_the_gradient_alone(solver):
    def penalized(model, signal, loss):
        def closure():
            value, outputs = closure_of(model, signal, loss)()
            return value + 0.1 * sum(each.square().sum() for each in model.parameters()), outputs

        return closure

    matrix = dense_ggn(small_field(), mse, points(9))
    move, gradient = move_of(solver, 0.05, closure=penalized)
    shifted = matrix + 0.05 * torch.eye(len(matrix)).double()
    assert_same(move, -torch.linalg.solve(shifted, gradient), roundings=1e7)


@pytest.mark.parametrize("solver", ["cg", "dense"])
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_one_undamped_step_solves_a_linear_problem(solver, num_outputs):
    model, signal = small_field(depth=0, num_outputs=num_outputs), points(num_outputs=num_outputs)
    fixed(model, solver, 0.0, **EXACT_CG).step(closure_of(model, signal))
    extended = torch.cat([signal.coords, torch.ones(signal.num_points, 1).double()], dim=1)
    solution = torch.linalg.lstsq(extended, signal.values).solution.T
    assert_same(torch.cat([model.maps[0].weight, model.maps[0].bias[:, None]], 1), solution)


def test_one_undamped_dual_step_fits_fewer_points_than_parameters():
    model, signal = small_field(depth=0, num_outputs=3), points(3, num_outputs=3)
    fixed(model, "dual", 0.0).step(closure_of(model, signal))
    assert_same(model(signal.coords), signal.values, roundings=1e5)


def test_dense_undamped_takes_the_least_solution_of_many():
    move, gradient = move_of("dense", 0.0, num_points=5)
    matrix = dense_ggn(small_field(), mse, points(5))
    expected = -torch.linalg.pinv(matrix, hermitian=True) @ gradient
    assert_same(move, expected, roundings=1e9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_fit_without_residual_converges_quadratically(solver):
    signal = points(51)
    teacher = make_field("tanh", 2, 1, width=3, depth=1, seed=4)
    student = make_field("tanh", 2, 1, width=3, depth=1, seed=4)
    with torch.no_grad():
        signal = type(signal)(signal.coords, teacher(signal.coords))
        for value in student.parameters():
            value.add_(0.01 * torch.ones_like(value))
    target = vector(teacher.parameters())
    optimizer = fixed(student, solver, 1e-15 if solver == "dual" else 0.0, **EXACT_CG)
    errors = []
    for _ in range(6):
        errors.append(float((vector(student.parameters()) - target).norm()))
        optimizer.step(closure_of(student, signal))
    falling = [error for error in errors if error > 1e-7]
    assert len(falling) >= 3
    assert errors[-1] < 1e-9
    ratios = [after / before**2 for before, after in zip(falling, errors[1:], strict=False)]
    assert max(ratios) < 100 * min(ratios) or max(ratios) < 10


@pytest.mark.parametrize("solver", SOLVERS)
def test_adapted_damping_never_raises_the_loss(solver):
    model, signal = make_field("sine", 2, 1, width=8, depth=3), points(60)
    optimizer = GaussNewton(model.parameters(), solver=solver, damping=1e-9)
    losses = [float(optimizer.step(closure_of(model, signal))) for _ in range(15)]
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < 0.2 * losses[0]
    # Some trial was undone.
    assert optimizer.diagnostics()["evaluations"] > 30


def test_damping_follows_the_gain_ratio():
    model, signal = small_field(depth=0), points()
    optimizer = GaussNewton(model.parameters(), solver="dense", damping=0.3)
    optimizer.step(closure_of(model, signal))
    # The model is exact, so the gain is 1 and the damping falls by the most it may.
    assert optimizer.param_groups[0]["damping"] == pytest.approx(0.1)


def test_a_rejected_step_is_undone_and_doubles_the_damping():
    value = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))

    def closure():
        outputs = torch.atan(value)
        return outputs.square().sum() / 2, outputs

    with torch.no_grad():
        value.fill_(3.0)
    optimizer = GaussNewton([value], solver="dense", damping=1e-6)
    optimizer.step(closure)
    # Undamped, the step from 3 goes to 3 - 10 atan 3 = -9.5.
    assert abs(value.item()) < 3
    assert optimizer.param_groups[0]["damping"] > 1e-6
    assert optimizer.diagnostics()["evaluations"] > 3
    assert optimizer.diagnostics()["step_length"] == pytest.approx(3 - value.item())


def test_at_the_minimum_it_stays_there():
    model, signal = small_field(depth=0), points()
    optimizer = GaussNewton(model.parameters(), solver="dense")
    for _ in range(40):
        optimizer.step(closure_of(model, signal))
    start, evaluations = vector(model.parameters()), optimizer.counters["evaluations"]
    for _ in range(10):
        optimizer.step(closure_of(model, signal))
    assert_same(vector(model.parameters()), start)
    # What rounding says of the gain is not heard: no trial is undone, and the damping stays.
    assert optimizer.counters["evaluations"] - evaluations == 20
    assert optimizer.param_groups[0]["damping"] < 1e-3


def test_cg_stops_at_its_budget_and_counts_products():
    model, signal = small_field(), points()
    optimizer = fixed(model, "cg", 1e-6, max_cg=7, cg_rtol=0.0)
    optimizer.step(closure_of(model, signal))
    assert optimizer.diagnostics()["products"] == 7
    assert optimizer.diagnostics()["curvature_updates"] == 1
    assert optimizer.diagnostics()["evaluations"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_resume_is_bit_identical(solver, dtype):
    signal = points(9).to(dtype=dtype)

    def begin():
        model = small_field().to(dtype)
        optimizer = GaussNewton(model.parameters(), solver=solver)
        return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def advance(model, optimizer, scheduler, steps):
        for _ in range(steps):
            optimizer.step(closure_of(model, signal))
            scheduler.step()

    whole, first, second = begin(), begin(), begin()
    advance(*whole, 7)
    advance(*first, 3)
    file = io.BytesIO()
    torch.save([each.state_dict() for each in first], file)
    file.seek(0)
    for each, state in zip(second, torch.load(file, weights_only=True), strict=True):
        each.load_state_dict(state)
    advance(*second, 4)
    assert torch.equal(vector(whole[0].parameters()), vector(second[0].parameters()))
    assert whole[1].counters == second[1].counters


@pytest.mark.parametrize("solver", SOLVERS)
def test_dropped_models_are_freed_without_the_collector(solver):
    signal = points(9)
    gc.collect()
    gc.disable()
    try:
        model = small_field()
        optimizer = GaussNewton(model.parameters(), solver=solver)
        for _ in range(2):
            optimizer.step(closure_of(model, signal))
        kept = [weakref.ref(value) for value in model.parameters()]
        del model, optimizer
        assert not [each for each in kept if each() is not None]
    finally:
        gc.enable()


def test_loss_before_the_step_is_returned_and_the_gradient_left():
    model, signal = small_field(), points()
    expected, _ = closure_of(model, signal)()
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = GaussNewton(model.parameters()).step(closure_of(model, signal))
    assert not loss.requires_grad
    assert_same(loss, expected.detach())
    for value, gradient in zip(model.parameters(), gradients, strict=True):
        assert_same(value.grad, gradient)
        assert not value.grad.requires_grad


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_not_finite_is_skipped_and_then_stops(solver):
    model, signal = small_field(), points(9)
    closure = closure_of(model, signal)
    start = vector(model.parameters())
    optimizer = GaussNewton(model.parameters(), solver=solver)

    def spoiled():
        loss, outputs = closure()
        return loss * float("nan"), outputs

    def kinked():
        # 0 · x^1.5 at x = 0: value and slope are 0, the curvature 0 · ∞.
        loss, outputs = closure()
        return loss + 0 * (outputs - outputs.detach()).pow(1.5).sum(), outputs

    for spoil in (spoiled, kinked):
        optimizer.step(spoil)
        assert torch.equal(vector(model.parameters()), start)
    assert optimizer.diagnostics()["skipped"] == 2
    for _ in range(7):
        optimizer.step(spoiled)
    with pytest.raises(DivergenceError, match="not finite in 10 steps in a row"):
        optimizer.step(spoiled)


def test_closures_are_checked():
    model, signal = small_field(), points()
    closure = closure_of(model, signal)
    optimizer = GaussNewton(model.parameters())
    with pytest.raises(TypeError, match=r"must return \(loss, outputs\), got Tensor"):
        optimizer.step(lambda: closure()[0])
    with pytest.raises(TypeError, match=r"outputs a tensor \[points, channels\], got float"):
        optimizer.step(lambda: (closure()[0], 1.0))
    with pytest.raises(ValueError, match="outputs that its loss was computed from"):
        optimizer.step(lambda: (closure()[0], closure()[1]))

    def backward():
        loss, outputs = closure()
        loss.backward()
        return loss, outputs

    with pytest.raises(RuntimeError, match="not call backward"):
        optimizer.step(backward)


def test_what_is_too_large_is_refused_before_it_is_allocated():
    value = nn.Parameter(torch.zeros(5001))
    with pytest.raises(ResourceError, match=r"n = 5001 parameters .* 5000 rows.*bytes"):
        GaussNewton([value], solver="dense")
    optimizer = GaussNewton([value], solver="dual")

    def used():
        outputs = value * 1
        return outputs.square().sum(), outputs

    with pytest.raises(ResourceError, match=r"5001 points × channels"):
        optimizer.step(used)
    with pytest.raises(ValueError, match="no preconditioner before a step"):
        GaussNewton([value]).preconditioner()
    with pytest.raises(ResourceError, match="n = 5001"):
        GaussNewton([value]).preconditioner(closure=used)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0.0),
        ("damping", -1.0),
        ("damping", 0.0),
        ("max_cg", 0),
        ("cg_rtol", 1.0),
        ("solver", "cgs"),
    ],
)
def test_options_are_checked(option, value):
    with pytest.raises(ValueError, match=rf"^{option} must be .*, got"):
        GaussNewton(small_field().parameters(), **{option: value})


def test_groups_mean_nothing():
    one, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="takes one parameter group"):
        GaussNewton([{"params": [one]}, {"params": [other]}])


@pytest.mark.parametrize("solver", ["cg", "dense", "dual"])
def test_losses_that_are_not_convex_in_the_outputs_descend(solver):
    model = small_field("tanh")
    optimizer = GaussNewton(model.parameters(), solver=solver)
    signal = points()

    def cauchy():
        outputs = model(signal.coords)
        return (outputs - signal.values - 5).square().log1p().sum(), outputs

    losses = [float(optimizer.step(cauchy)) for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]


def test_closures_may_differentiate_by_the_coordinates():
    model = small_field("tanh")
    optimizer = GaussNewton(model.parameters())

    def slopes():
        coords = points().coords.clone().requires_grad_()
        (found,) = torch.autograd.grad(model(coords).sum(), coords, create_graph=True)
        return (found - 1).square().mean(), found

    losses = [float(optimizer.step(slopes)) for _ in range(4)]
    assert losses[-1] < losses[0]


def test_an_interrupt_inside_a_trial_leaves_the_parameters_as_they_were():
    model, calls = small_field("tanh"), []
    optimizer = GaussNewton(model.parameters())
    signal = points()

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        outputs = model(signal.coords)
        return mse(outputs, signal.values), outputs

    before = [value.clone() for value in model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
