import pytest
import torch

from hessian_lab.errors import ResourceError
from hessian_lab.optim import bfgs
from hessian_lab.optim.bfgs import BFGS, update_inverse
from tests.optim.searches import field_problem, quadratic, rosenbrock, vector


def test_an_exact_search_ends_a_quadratic_in_n_steps_with_its_inverse():
    point, closure, matrix, minimum = quadratic(8, 50.0)
    optimizer = BFGS([point], c2=1e-3)
    for _ in range(9):
        optimizer.step(closure)
    torch.testing.assert_close(point.detach(), minimum, rtol=1e-6, atol=1e-8)
    inverse = torch.linalg.inv(matrix)
    torch.testing.assert_close(optimizer.state[point]["inverse"], inverse, rtol=1e-4, atol=1e-5)


def test_an_update_is_the_textbooks():
    generator = torch.Generator().manual_seed(0)
    noise, step, change = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 6), 6, 6)
    )
    inverse = noise @ noise.T + torch.eye(6, dtype=torch.float64)
    change = change * (change @ step).sign()
    rho = 1 / (change @ step)
    left = torch.eye(6, dtype=torch.float64) - rho * torch.outer(step, change)
    expected = left @ inverse @ left.T + rho * torch.outer(step, step)
    place = inverse.data_ptr()
    update_inverse(inverse, step, change)
    assert inverse.data_ptr() == place
    torch.testing.assert_close(inverse, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(inverse @ change, step, rtol=1e-9, atol=1e-9)


def test_the_first_pair_scales_the_identity():
    point, closure, matrix, _ = quadratic(5, 20.0)
    optimizer = BFGS([point])
    before = point.detach().clone()
    optimizer.step(closure)
    step = point.detach() - before
    change = matrix @ step
    expected = torch.eye(5, dtype=torch.float64) * (step @ change) / (change @ change)
    update_inverse(expected, step, change)
    torch.testing.assert_close(optimizer.state[point]["inverse"], expected, rtol=1e-9, atol=1e-12)


def test_convergence_is_superlinear():
    point, closure = rosenbrock()
    optimizer = BFGS([point])
    errors = []
    for _ in range(60):
        optimizer.step(closure)
        errors.append(float(torch.linalg.vector_norm(point.detach() - 1)))
    last = next(place for place, error in enumerate(errors) if error < 1e-9)
    assert last < 45
    ratios = [errors[place] / errors[place - 1] for place in range(last - 2, last + 1)]
    assert max(ratios) < 0.3
    assert ratios[-1] < 0.05


def test_no_step_has_length_zero_and_losses_descend():
    model, closure = field_problem()
    optimizer = BFGS(model.parameters())
    losses = []
    for _ in range(100):
        before = vector(model.parameters())
        losses.append(float(optimizer.step(closure)))
        assert not torch.equal(before, vector(model.parameters()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1 * losses[0]
    numbers = optimizer.diagnostics()
    assert numbers["evaluations"] == numbers["trials"] + 2 <= 130
    assert numbers["curvature_updates"] + numbers["skipped_pairs"] == 100


def test_the_preconditioner_is_the_root_of_its_inverse_hessian():
    model, closure = field_problem()
    optimizer = BFGS(model.parameters())
    with pytest.raises(ValueError, match="BFGS has no preconditioner before its first pair"):
        optimizer.preconditioner()
    for _ in range(30):
        optimizer.step(closure)
    state = optimizer.state[next(model.parameters())]
    inverse, gradient = state["inverse"].clone(), state["gradient"]
    root = optimizer.preconditioner(model).inverse_sqrt
    dense = root.dense()
    scale = float(inverse.abs().max())
    torch.testing.assert_close(dense @ dense, inverse, rtol=1e-8, atol=1e-10 * scale)
    assert torch.linalg.eigvalsh(dense).min() > 0
    before = vector(model.parameters())
    optimizer.step(closure)
    moved = vector(model.parameters()) - before
    expected = -(root @ (root @ gradient))
    torch.testing.assert_close(
        moved / torch.linalg.vector_norm(moved),
        expected / torch.linalg.vector_norm(expected),
        rtol=1e-6,
        atol=1e-8,
    )


def test_pairs_of_negative_curvature_are_skipped():
    point = torch.nn.Parameter(torch.tensor([0.1, 0.2], dtype=torch.float64))
    optimizer = BFGS([point], line_search_fn=None, lr=0.1)
    for _ in range(3):
        optimizer.step(lambda: -point.square().sum())
    assert optimizer.diagnostics()["skipped_pairs"] == 3
    assert "inverse" not in optimizer.state[point]


def test_refuses_what_does_not_fit_before_allocating(monkeypatch):
    with pytest.raises(ResourceError, match=r"at most 20000 parameters, got 200000.*298 GiB"):
        BFGS([torch.nn.Parameter(torch.empty(200_000, dtype=torch.float64))])
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _: 10**6)
    with pytest.raises(ResourceError, match=r"of size 400 must fit.*1280000 bytes.*Use LBFGS"):
        BFGS([torch.nn.Parameter(torch.empty(400, dtype=torch.float64))])
    assert bfgs.MOST_PARAMETERS == 20_000
