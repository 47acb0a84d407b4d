import pytest
import torch

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.optim.lbfgs import LBFGS
from hessian_lab.signals import load_signal
from hessian_lab.training.quality import psnr
from tests.optim.searches import field_problem, vector


@pytest.fixture
def problem():
    signal = load_signal("camera", 12)
    model = make_field("sine", 2, 1, width=8, depth=2)
    return model, lambda: mse(model(signal.coords), signal.values)


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
    state["steps"] = [torch.tensor([1.0, 0.0], dtype=torch.float64)]
    state["changes"] = [torch.tensor([-1.0, 0.0], dtype=torch.float64)]
    state["curvatures"] = [torch.tensor(-1.0, dtype=torch.float64)]
    before, value = point.detach().clone(), float(closure().detach())
    gradient = torch.autograd.grad(closure(), point)[0]
    optimizer.step(closure)
    moved = point.detach() - before
    assert torch.nn.functional.cosine_similarity(moved, -gradient, dim=0) > 1 - 1e-12
    assert float(closure().detach()) < value
    assert optimizer.diagnostics()["restarts"] == 1
    assert len(state["steps"]) == 1


def test_a_closure_that_lies_about_its_gradient_ends_as_converged():
    point = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer, calls = LBFGS([point]), 0

    def closure():
        nonlocal calls
        calls += 1
        loss = point.square().sum()
        # The value is right, the gradient that of its negative.
        return 2 * loss.detach() - loss

    before = point.detach().clone()
    loss = optimizer.step(closure)
    assert torch.equal(point, before)
    assert optimizer.converged
    made = calls
    for _ in range(3):
        assert optimizer.step(closure) == loss
    assert calls == made + 3
    assert optimizer.diagnostics()["converged"] == 1
    with torch.no_grad():
        point.add_(1)
    optimizer.step(closure)
    assert calls > made + 4


def test_one_evaluation_per_iteration_a_first_one_and_one_that_confirms(problem):
    model, closure = problem
    optimizer, calls = LBFGS(model.parameters()), 0

    def counted():
        nonlocal calls
        calls += 1
        return closure()

    for _ in range(100):
        optimizer.step(counted)
    numbers = optimizer.diagnostics()
    assert calls == numbers["evaluations"] == numbers["trials"] + 2 <= 110


def test_moved_parameters_and_new_batches_are_evaluated_anew(problem):
    model, closure = problem
    optimizer = LBFGS(model.parameters())
    optimizer.step(closure)
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    expected = float(closure().detach())
    assert float(optimizer.step(closure)) == expected

    with pytest.warns(UserWarning, match="LBFGS searches along a line of each mini-batch"):
        optimizer = LBFGS(model.parameters(), same_batch=False)
    optimizer.step(closure)
    expected = 3 * float(closure().detach())
    assert float(optimizer.step(lambda: 3 * closure())) == pytest.approx(expected, rel=1e-12)


def test_pairs_are_of_one_batch():
    # The second batch is the first, shifted: gradients across batches would differ by a constant.
    point = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    scales = torch.tensor([1.0, 7.0], dtype=torch.float64)
    with pytest.warns(UserWarning, match="mini-batch"):
        optimizer = LBFGS([point], same_batch=False)
    for number in range(6):
        optimizer.step(
            lambda shift=5.0 * number: (scales * point.square()).sum() + shift * point.sum()
        )
    state = optimizer.state[point]
    for step, change in zip(state["steps"], state["changes"], strict=True):
        torch.testing.assert_close(change, 2 * scales * step, rtol=1e-9, atol=1e-12)


def test_pairs_without_curvature_are_skipped_and_counted():
    point = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = LBFGS([point], line_search_fn=None, lr=0.1)
    for _ in range(4):
        optimizer.step(lambda: point.sum())
    assert optimizer.diagnostics()["skipped_pairs"] == 4
    assert not optimizer.state[point].get("steps")


def test_without_a_search_it_is_torchs(problem):
    model, closure = problem
    start = vector(model.parameters())
    ours = LBFGS(model.parameters(), lr=0.1, line_search_fn=None)
    for _ in range(15):
        ours.step(closure)
    once = vector(model.parameters())
    torch.nn.utils.vector_to_parameters(start, model.parameters())
    theirs = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=15, tolerance_change=0)

    def filled():
        theirs.zero_grad()
        loss = closure()
        loss.backward()
        return loss

    theirs.step(filled)
    torch.testing.assert_close(once, vector(model.parameters()), rtol=1e-9, atol=1e-12)
    assert ours.diagnostics()["evaluations"] == 17


def dense_inverse(steps, changes):
    """Return the inverse Hessian that BFGS makes of pairs, by its definition."""
    size, gamma = len(steps[0]), steps[-1].dot(changes[-1]) / changes[-1].dot(changes[-1])
    eye = torch.eye(size, dtype=steps[0].dtype)
    inverse = gamma * eye
    for step, change in zip(steps, changes, strict=True):
        rho = 1 / step.dot(change)
        left = eye - rho * torch.outer(step, change)
        inverse = left @ inverse @ left.T + rho * torch.outer(step, step)
    return inverse


@pytest.mark.parametrize("history", [4, 100])
def test_the_preconditioner_is_the_root_of_its_inverse_hessian(history):
    model, closure = field_problem()
    optimizer = LBFGS(model.parameters(), history_size=history)
    with pytest.raises(ValueError, match="no preconditioner before its first pair"):
        optimizer.preconditioner()
    for _ in range(30):
        optimizer.step(closure)
    state = optimizer.state[next(model.parameters())]
    assert len(state["steps"]) == min(history, 30)
    inverse = dense_inverse(state["steps"], state["changes"])
    root = optimizer.preconditioner().inverse_sqrt
    dense = root.dense()
    assert torch.linalg.eigvalsh(dense).min() > 0
    torch.testing.assert_close(dense, dense.T, rtol=1e-10, atol=1e-12)
    scale = float(inverse.abs().max())
    torch.testing.assert_close(dense @ dense, inverse, rtol=1e-7, atol=1e-9 * scale)
    torch.testing.assert_close(root.known_diagonal(), dense.diagonal(), rtol=1e-9, atol=1e-12)

    gradient = state["gradient"]
    before = vector(model.parameters())
    optimizer.step(closure)
    moved = vector(model.parameters()) - before
    length = float(torch.linalg.vector_norm(moved))
    expected = -(root @ (root @ gradient))
    torch.testing.assert_close(
        moved / length, expected / torch.linalg.vector_norm(expected), rtol=1e-6, atol=1e-8
    )


def test_the_preconditioner_follows_the_order_of_a_model():
    model, closure = field_problem()
    backwards = LBFGS(list(model.parameters())[::-1])
    for _ in range(5):
        backwards.step(closure)
    own = backwards.preconditioner().inverse_sqrt.dense()
    ordered = backwards.preconditioner(model).inverse_sqrt.dense()
    sizes = [value.numel() for value in backwards.parameters]
    parts = torch.arange(sum(sizes)).split(sizes)
    places = torch.cat(parts[::-1])
    torch.testing.assert_close(ordered, own[places][:, places], rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="model must have all 6 parameters"):
        backwards.preconditioner(
            model[0] if isinstance(model, torch.nn.Sequential) else last(model)
        )


def last(model):
    return next(part for part in model.modules() if isinstance(part, torch.nn.Linear))


def test_a_zero_gradient_stays_where_it_is():
    point = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = LBFGS([point])
    for _ in range(3):
        optimizer.step(lambda: point.square().sum())
    assert not point.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": float("nan")}, "lr must be positive and finite, got nan"),
        ({"c2": 1.0}, "c2 must lie between 0.0001 and 1, got 1.0"),
        ({"tolerance_grad": -1.0}, "tolerance_grad must not be negative, got -1.0"),
        ({"history_size": 0}, "history_size must be at least 1, got 0"),
        (
            {"line_search_fn": "none"},
            "line_search_fn must be strong_wolfe, armijo or None, got 'none'",
        ),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        LBFGS([torch.nn.Parameter(torch.ones(1))], **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_two_hundred_iterations_fit_the_camera_to_57_decibels(dtype):
    signal = load_signal("camera", 50)
    model = make_field("sine", 2, 1, width=64, depth=4).to(dtype)
    coords, values = signal.coords.to(dtype), signal.values.to(dtype)
    optimizer = LBFGS(model.parameters())
    for _ in range(200):
        optimizer.step(lambda: mse(model(coords), values))
    with torch.no_grad():
        assert psnr(model(coords), values) >= 57
    assert optimizer.diagnostics()["evaluations"] <= 220
