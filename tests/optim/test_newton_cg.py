import pytest
import torch

from hessian_lab.optim.newton_cg import NewtonCG
from tests.optim.searches import field_problem, quadratic, vector
from tests.optim.test_newton import saddle


def test_the_inner_residual_meets_the_forcing_sequence():
    point, closure, matrix, _ = quadratic(30, 1e3)
    gradient = torch.autograd.grad(closure(), point)[0]
    optimizer = NewtonCG([point])
    optimizer.step(closure)
    step = point.detach()
    size = float(torch.linalg.vector_norm(gradient))
    residual = float(torch.linalg.vector_norm(matrix @ step + gradient))
    assert residual <= min(0.5, size**0.5) * size
    # It is truncated: far from the solution of the whole system.
    assert residual > 1e-3 * size
    assert 1 < optimizer.diagnostics()["products"] < 30


def test_convergence_is_superlinear():
    point, bowl, _, _ = quadratic(20, 100.0)
    optimizer = NewtonCG([point])
    points = []
    for _ in range(25):
        points.append(point.detach().clone())
        optimizer.step(lambda: bowl() + 20 * (point - 0.3).cosh().sum())
    assert point.grad.abs().max() < 1e-11
    errors = [float(torch.linalg.vector_norm(each - point.detach())) for each in points]
    late = [place for place, error in enumerate(errors) if 1e-12 < error < 1e-4]
    ratios = [errors[place + 1] / errors[place] for place in late]
    assert len(ratios) >= 3
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 0.01


def test_negative_curvature_is_descended_along():
    # On the ridge the gradient itself has negative curvature.
    point, closure = saddle((0.0, 1e-3))
    optimizer = NewtonCG([point])
    value = float(optimizer.step(closure))
    assert optimizer.diagnostics()["negative_curvature"] == 1
    assert optimizer.diagnostics()["products"] == 1
    assert float(closure().detach()) < value
    # As long as the curvature says, times the length that was searched.
    assert abs(point[1]) > 1.5e-3

    point, closure = saddle()
    optimizer = NewtonCG([point])
    for _ in range(40):
        optimizer.step(closure)
    torch.testing.assert_close(
        point.detach().abs(), torch.tensor([0, 0.5**0.5], dtype=torch.float64), rtol=0, atol=1e-7
    )
    assert optimizer.diagnostics()["negative_curvature"] >= 1


def test_what_was_found_before_negative_curvature_is_kept():
    values = torch.tensor([4.0, 1.0, -0.5], dtype=torch.float64)
    point = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    shift = torch.tensor([1.0, 1.0, 0.3], dtype=torch.float64)
    optimizer = NewtonCG([point])
    optimizer.step(lambda: 0.5 * (values * point.square()).sum() + 1e-3 * shift @ point)
    gradient = 1e-3 * shift
    # One iteration of conjugate gradients is along the gradient; more are not.
    cosine = torch.nn.functional.cosine_similarity(point.detach(), -gradient, dim=0)
    assert optimizer.diagnostics()["negative_curvature"] == 1
    assert optimizer.diagnostics()["products"] == 3
    assert 0 < cosine < 0.99


def test_products_are_bounded():
    point, closure, _, _ = quadratic(30, 1e6)
    optimizer = NewtonCG([point], max_products=4)
    for number in range(5):
        optimizer.step(closure)
        assert optimizer.diagnostics()["products"] <= 4 * (number + 1)


def test_no_step_has_length_zero_and_losses_descend():
    model, closure = field_problem()
    optimizer = NewtonCG(model.parameters())
    losses = []
    for _ in range(40):
        before = vector(model.parameters())
        losses.append(float(optimizer.step(closure)))
        assert not torch.equal(before, vector(model.parameters()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1 * losses[0]


def test_curvature_that_is_not_finite_skips_the_step():
    point = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = NewtonCG([point])
    optimizer.step(lambda: (point.abs() ** 1.5).sum() + point.sum())
    assert optimizer.diagnostics()["skipped"] == 1
    assert not point.any()


def test_it_has_no_preconditioner():
    with pytest.raises(ValueError, match="NewtonCG has no preconditioner"):
        NewtonCG([torch.nn.Parameter(torch.ones(2))]).preconditioner()


def test_refuses_options_out_of_range():
    with pytest.raises(ValueError, match="max_products must be at least 1, got 0"):
        NewtonCG([torch.nn.Parameter(torch.ones(1))], max_products=0)
