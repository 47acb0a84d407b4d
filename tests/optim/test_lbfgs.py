import pytest
import torch

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.names import resolve
from hessian_lab.optim import DEFAULT_RATES, OPTIMIZERS
from hessian_lab.optim.lbfgs import LBFGS
from hessian_lab.signals import load_signal


@pytest.fixture
def problem():
    signal = load_signal("camera", 12)
    model = make_field("sine", 2, 1, width=8, depth=2)
    return model, lambda: mse(model(signal.coords), signal.values)


def test_every_name_has_a_default_rate():
    assert OPTIMIZERS.keys() == DEFAULT_RATES.keys()


def test_one_iteration_per_step_is_many_iterations_in_one(problem):
    model, closure = problem
    start = [value.detach().clone() for value in model.parameters()]
    ours = LBFGS(model.parameters())
    for _ in range(20):
        ours.step(closure)
    once = [value.detach().clone() for value in model.parameters()]

    with torch.no_grad():
        for value, first in zip(model.parameters(), start, strict=True):
            value.copy_(first)
    theirs = torch.optim.LBFGS(
        model.parameters(),
        max_iter=20,
        max_eval=10**6,
        history_size=100,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )

    def filled():
        theirs.zero_grad()
        loss = closure()
        loss.backward()
        return loss

    theirs.step(filled)
    for one, other in zip(once, model.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-9, atol=1e-12)


def test_no_step_has_length_zero(problem):
    model, closure = problem
    optimizer = LBFGS(model.parameters())
    losses = []
    for _ in range(60):
        before = torch.cat([value.detach().flatten() for value in model.parameters()])
        losses.append(float(optimizer.step(closure)))
        after = torch.cat([value.detach().flatten() for value in model.parameters()])
        assert torch.linalg.vector_norm(after - before) > 0
    assert losses[-1] < 0.05 * losses[0]


def test_a_useless_memory_is_dropped_and_the_gradient_followed():
    point = torch.nn.Parameter(torch.tensor([3.0, 1.0], dtype=torch.float64))
    optimizer = LBFGS([point])

    def closure():
        return (point * torch.tensor([1.0, 10.0], dtype=torch.float64) * point).sum()

    for _ in range(3):
        optimizer.step(closure)
    # A direction of ascent, as rounding or a changed objective may leave behind.
    state = optimizer.state[point]
    state["old_dirs"], state["old_stps"], state["ro"] = [], [], []
    state["old_dirs"] = [torch.tensor([1.0, 0.0], dtype=torch.float64)]
    state["old_stps"] = [torch.tensor([1.0, 0.0], dtype=torch.float64)]
    state["ro"] = [torch.tensor(1.0, dtype=torch.float64)]
    state["H_diag"] = torch.tensor(-1.0, dtype=torch.float64)
    state["prev_flat_grad"] = torch.autograd.grad(closure(), point)[0]
    before, value = point.detach().clone(), float(closure().detach())
    optimizer.step(closure)
    assert not torch.equal(before, point)
    assert float(closure().detach()) < value


def test_a_zero_gradient_stays_where_it_is():
    point = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = LBFGS([point])
    for _ in range(3):
        optimizer.step(lambda: point.square().sum())
    assert not point.any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_return_the_loss_before_and_descend(name, problem):
    model, closure = problem
    rate = min(DEFAULT_RATES[name], 1e-3) if name == "sgd" else DEFAULT_RATES[name]
    optimizer = resolve(OPTIMIZERS[name])(model.parameters(), lr=rate)
    before = float(closure().detach())
    assert float(optimizer.step(closure)) == before
    assert float(closure().detach()) < before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history_size": 0}, "history_size must be at least 1, got 0"),
        ({"line_search_fn": "none"}, "line_search_fn must be strong_wolfe, armijo or None, got 'none'"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        LBFGS([torch.nn.Parameter(torch.ones(1))], **options)
