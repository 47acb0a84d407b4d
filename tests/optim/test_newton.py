import pytest
import torch

from hessian_lab.errors import ResourceError
from hessian_lab.optim.newton import Newton
from tests.optim.searches import field_problem, quadratic, rosenbrock, vector


def saddle(start=(1.0, 1e-3)):
    """Return a parameter near the saddle of x² - y² + y⁴ at 0, and the closure."""
    point = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    return point, lambda: point[0] ** 2 - point[1] ** 2 + point[1] ** 4


@pytest.mark.parametrize("solve", ["abs", "damped", "exact"])
def test_one_step_ends_a_quadratic(solve):
    point, closure, _, minimum = quadratic()
    Newton([point], solve=solve, damping=1e-12).step(closure)
    torch.testing.assert_close(point.detach(), minimum, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("solve", ["abs", "damped", "exact"])
def test_convergence_is_quadratic(solve):
    point, closure = rosenbrock((0.9, 0.8))
    optimizer = Newton([point], solve=solve, damping=1e-12)
    errors = []
    for _ in range(12):
        errors.append(float(torch.linalg.vector_norm(point.detach() - 1)))
        optimizer.step(closure)
    # Once below 0.02, each error is at most a constant times the square of the last.
    late = [place for place, error in enumerate(errors) if 1e-6 < error < 0.02]
    assert len(late) >= 2
    assert all(errors[place + 1] < 100 * errors[place] ** 2 for place in late)
    assert errors[-1] < 1e-12


@pytest.mark.parametrize("solve", ["abs", "damped"])
def test_it_leaves_a_saddle_that_the_exact_step_runs_into(solve):
    point, closure = saddle()
    optimizer = Newton([point], solve=solve)
    for _ in range(30):
        optimizer.step(closure)
    torch.testing.assert_close(
        point.detach().abs(), torch.tensor([0, 0.5**0.5], dtype=torch.float64), rtol=0, atol=1e-6
    )

    point, closure = saddle()
    exact = Newton([point], solve="exact")
    for _ in range(10):
        exact.step(closure)
    torch.testing.assert_close(point.detach(), torch.zeros_like(point), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="must be positive definite to have a root"):
        exact.preconditioner()


@pytest.mark.parametrize("search", ["strong_wolfe", "armijo"])
@pytest.mark.parametrize("solve", ["abs", "damped"])
def test_losses_descend_on_a_field(solve, search):
    model, closure = field_problem()
    optimizer = Newton(model.parameters(), solve=solve, line_search_fn=search)
    losses = []
    for _ in range(25):
        before = vector(model.parameters())
        losses.append(float(optimizer.step(closure)))
        assert not torch.equal(before, vector(model.parameters()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.3 * losses[0]
    assert optimizer.diagnostics()["products"] == 25 * vector(model.parameters()).numel()


@pytest.mark.parametrize("solve", ["abs", "damped"])
def test_the_preconditioner_is_that_of_the_last_step(solve):
    model, closure = field_problem()
    optimizer = Newton(model.parameters(), solve=solve, damping=1e-2)
    with pytest.raises(ValueError, match="Newton has no preconditioner before its first step"):
        optimizer.preconditioner()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(closure(), parameters, create_graph=True)
    gradient = torch.cat([part.flatten() for part in gradients])
    rows = [torch.autograd.grad(each, parameters, retain_graph=True) for each in gradient]
    hessian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    values, vectors = torch.linalg.eigh(hessian)
    assert values[0] < -1e-4
    shifted = values.abs() + 1e-2 if solve == "abs" else values + 1e-2 - values[0]
    before = vector(parameters)
    optimizer.step(closure)
    root = optimizer.preconditioner(model).inverse_sqrt
    dense = root.dense()
    expected = vectors / shifted @ vectors.T
    torch.testing.assert_close(dense @ dense, expected, rtol=1e-8, atol=1e-9)
    moved = vector(parameters) - before
    direction = -(root @ (root @ gradient.detach()))
    torch.testing.assert_close(
        moved / torch.linalg.vector_norm(moved),
        direction / torch.linalg.vector_norm(direction),
        rtol=1e-7,
        atol=1e-9,
    )


def test_curvature_that_is_not_finite_skips_the_step():
    point = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    for options in ({}, {"solve": "exact"}):
        optimizer = Newton([point], **options)
        # The second derivative of x^1.5 is infinite at 0, its value and slope are not.
        optimizer.step(lambda: (point.abs() ** 1.5).sum() + point.sum())
        assert optimizer.diagnostics()["skipped"] == 1
        assert not point.any()
    flat = Newton([point], solve="exact")
    flat.step(lambda: point.sum() + point[0] ** 2)
    assert flat.diagnostics()["skipped"] == 1


def test_refuses_what_does_not_fit_before_allocating(monkeypatch):
    with pytest.raises(ResourceError, match=r"at most 5000 parameters, got 20000.*14.9 GiB"):
        Newton([torch.nn.Parameter(torch.empty(20_000))])
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _: 10**6)
    with pytest.raises(ResourceError, match=r"size 400 must fit.*6400000 bytes.*Use NewtonCG"):
        Newton([torch.nn.Parameter(torch.empty(400))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solve": "inverse"}, "solve must be one of abs, damped, exact, got 'inverse'"),
        ({"damping": -1.0}, "damping must be positive, or 0 unless damped, got -1.0"),
        ({"damping": 0.0, "solve": "damped"}, "damping must be positive.* got 0.0"),
        ({"line_search_fn": "wolfe"}, "line_search_fn must be .* got 'wolfe'"),
        (
            {"solve": "exact", "line_search_fn": "armijo"},
            "line_search_fn must be None with solve=exact, .* got 'armijo'",
        ),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Newton([torch.nn.Parameter(torch.ones(1))], **options)
