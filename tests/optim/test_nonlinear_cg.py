import itertools

import pytest
import torch

from hessian_lab.optim.nonlinear_cg import NonlinearCG
from tests.optim.searches import field_problem, quadratic, vector


def steps_of(optimizer, point, closure, number):
    """Return the steps taken, and the gradients before and after them."""
    steps, gradients = [], [torch.autograd.grad(closure(), point)[0]]
    for _ in range(number):
        before = point.detach().clone()
        optimizer.step(closure)
        steps.append(point.detach() - before)
        gradients.append(torch.autograd.grad(closure(), point)[0])
    return steps, gradients


def unit(tensor):
    return tensor / torch.linalg.vector_norm(tensor)


@pytest.mark.parametrize("beta", ["PR+", "PR", "FR"])
def test_the_first_step_is_steepest_descent_and_the_second_its_beta(beta):
    point, closure, _, _ = quadratic(8, 1e3)
    (first, second), (zeroth, gradient, _) = steps_of(
        NonlinearCG([point], beta=beta, c2=0.3), point, closure, 2
    )
    torch.testing.assert_close(unit(first), unit(-zeroth), rtol=1e-9, atol=1e-12)
    change = gradient if beta == "FR" else gradient - zeroth
    weight = gradient @ change / (zeroth @ zeroth)
    assert abs(weight) > 1e-2
    if beta == "PR+":
        weight = weight.clamp_min(0)
    direction = -gradient - weight * zeroth
    assert gradient @ direction < -0.01 * gradient @ gradient
    torch.testing.assert_close(unit(second), unit(direction), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("beta", ["PR+", "PR", "FR"])
def test_an_exact_search_ends_a_quadratic_in_n_steps(beta):
    point, closure, matrix, minimum = quadratic(8, 30.0)
    optimizer = NonlinearCG([point], beta=beta, c2=2e-4)
    steps, _ = steps_of(optimizer, point, closure, 8)
    torch.testing.assert_close(point.detach(), minimum, rtol=1e-6, atol=1e-7)
    for one, other in itertools.pairwise(steps[:7]):
        assert abs(unit(one) @ matrix @ unit(other)) < 1e-4


def test_it_restarts_after_so_many_steps():
    point, closure, _, _ = quadratic(10, 1e3)
    optimizer = NonlinearCG([point], restart=3)
    steps, gradients = steps_of(optimizer, point, closure, 8)
    descends = [
        bool(torch.allclose(unit(step), unit(-gradient), rtol=1e-9, atol=1e-9))
        for step, gradient in zip(steps, gradients, strict=False)
    ]
    assert descends == [True, False, False, True, False, False, True, False]
    assert optimizer.diagnostics()["restarts"] == 2


def test_it_restarts_where_the_direction_hardly_descends():
    point, closure, _, _ = quadratic(6, 100.0)
    optimizer = NonlinearCG([point])
    optimizer.step(closure)
    gradient = torch.autograd.grad(closure(), point)[0]
    # β d outweighs -g: the slope of the sum is -0.005 ‖g‖².
    optimizer.state[point]["direction"] = gradient.clone()
    optimizer.state[point]["weight"] = torch.tensor(0.995, dtype=torch.float64)
    before = point.detach().clone()
    optimizer.step(closure)
    # Both directions are along -g: the restart is told by the counter and by what is kept.
    assert optimizer.diagnostics()["restarts"] == 1
    torch.testing.assert_close(optimizer.state[point]["direction"], -gradient, rtol=1e-9, atol=0)
    assert not torch.equal(point, before)


@pytest.mark.parametrize("beta", ["PR+", "PR", "FR"])
def test_no_step_has_length_zero_and_losses_descend(beta):
    model, closure = field_problem()
    optimizer = NonlinearCG(model.parameters(), beta=beta)
    losses = []
    for _ in range(80):
        before = vector(model.parameters())
        losses.append(float(optimizer.step(closure)))
        assert not torch.equal(before, vector(model.parameters()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.3 * losses[0]
    numbers = optimizer.diagnostics()
    assert numbers["evaluations"] == numbers["trials"] + 2 <= 240


def test_it_has_no_preconditioner():
    with pytest.raises(ValueError, match="NonlinearCG has no preconditioner"):
        NonlinearCG([torch.nn.Parameter(torch.ones(2))]).preconditioner()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": "HS"}, "beta must be one of PR\\+, PR, FR, got 'HS'"),
        ({"restart": 0}, "restart must be at least 1, or None, got 0"),
        ({"c2": 0.0}, "c2 must lie between"),
        ({"lr": -1}, "lr must be positive and finite, got -1"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        NonlinearCG([torch.nn.Parameter(torch.ones(1))], **options)


@pytest.mark.parametrize("beta", ["PR+", "PR", "FR"])
def test_beta_where_the_gradient_has_hardly_turned(beta):
    point, closure, _, _ = quadratic(8, 30.0)
    optimizer = NonlinearCG([point], beta=beta, lr=0.1, c2=0.99)
    _, (zeroth, gradient) = steps_of(optimizer, point, closure, 1)
    square = zeroth @ zeroth
    expected = {
        "FR": gradient @ gradient / square,
        "PR": gradient @ (gradient - zeroth) / square,
        "PR+": torch.zeros((), dtype=torch.float64),
    }
    assert expected["PR"] < -0.01
    torch.testing.assert_close(
        optimizer.state[point]["weight"], expected[beta], rtol=1e-9, atol=1e-12
    )
