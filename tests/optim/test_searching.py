"""What holds for every optimizer with a line search."""

import copy
import gc
import itertools
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hessian_lab.errors import DivergenceError
from hessian_lab.losses import mse
from hessian_lab.optim.bfgs import BFGS
from hessian_lab.optim.lbfgs import LBFGS
from hessian_lab.optim.newton import Newton
from hessian_lab.optim.newton_cg import NewtonCG
from hessian_lab.optim.nonlinear_cg import NonlinearCG
from hessian_lab.signals import load_signal
from tests.optim.searches import SEARCHES, field_problem, quadratic, through_file, vector


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SEARCHES)
def test_resuming_changes_no_bit(name, dtype):
    def fresh():
        model = field_problem()[0].to(dtype)
        signal = load_signal("camera", 8)
        coords, values = signal.coords.to(dtype), signal.values.to(dtype)
        return model, lambda: mse(model(coords), values)

    whole, closure = fresh()
    optimizer = SEARCHES[name](whole.parameters())
    for _ in range(6):
        optimizer.step(closure)
    saved = through_file({"model": whole.state_dict(), "optimizer": optimizer.state_dict()})
    losses = [optimizer.step(closure) for _ in range(6)]

    model, closure = fresh()
    resumed = SEARCHES[name](model.parameters())
    model.load_state_dict(saved["model"])
    kept = copy.deepcopy(saved["optimizer"]["state"])
    resumed.load_state_dict(saved["optimizer"])
    assert [resumed.step(closure) for _ in range(6)] == losses
    assert torch.equal(vector(model.parameters()), vector(whole.parameters()))
    assert resumed.diagnostics() == optimizer.diagnostics()
    for name, entry in kept[0].items():
        again = saved["optimizer"]["state"][0][name]
        pairs = zip(entry, again, strict=True) if isinstance(entry, list) else [(entry, again)]
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_step_returns_the_loss_before_it_and_leaves_its_gradient(name):
    model, closure = field_problem()
    optimizer = SEARCHES[name](model.parameters())
    for _ in range(3):
        loss = closure()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        before = vector(model.parameters())
        found = optimizer.step(closure)
        assert found == loss.detach()
        assert not found.requires_grad
        for value, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(value.grad, gradient, rtol=1e-12, atol=1e-15)
            assert not value.grad.requires_grad
        moved = torch.linalg.vector_norm(vector(model.parameters()) - before)
        assert optimizer.diagnostics()["step_length"] == pytest.approx(float(moved), rel=1e-6)


@pytest.mark.parametrize("name", SEARCHES)
def test_changing_grad_in_place_changes_nothing(name):
    ends = []
    for spoil in (False, True):
        model, closure = field_problem()
        optimizer = SEARCHES[name](model.parameters())
        for _ in range(4):
            optimizer.step(closure)
            for value in model.parameters():
                if spoil:
                    value.grad.fill_(7)
        ends.append(vector(model.parameters()))
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_closure_with_backward_is_taken_where_no_graph_is_needed(name):
    model, closure = field_problem()
    twin, closure_of_twin = field_problem()
    optimizer = SEARCHES[name](model.parameters())

    def filled():
        loss = closure()
        loss.backward()
        return loss

    if optimizer.needs_graph:
        with pytest.raises(RuntimeError, match=r"Delete loss.backward\(\)"):
            optimizer.step(filled)
        return
    reference = SEARCHES[name](twin.parameters())
    for _ in range(4):
        assert optimizer.step(filled) == reference.step(closure_of_twin)
    assert torch.equal(vector(model.parameters()), vector(twin.parameters()))
    with pytest.raises(RuntimeError, match="closure must return the loss with its graph"):
        SEARCHES[name](model.parameters()).step(lambda: closure().detach())


@pytest.mark.parametrize("name", SEARCHES)
def test_a_loss_that_is_not_finite_is_skipped_ten_times(name):
    point = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = SEARCHES[name]([point])
    for number in range(9):
        optimizer.step(lambda: point.sum() * float("nan"))
        assert optimizer.diagnostics()["skipped"] == number + 1
    assert torch.equal(point, torch.ones_like(point))
    with pytest.raises(DivergenceError, match="not finite in 10 steps in a row"):
        optimizer.step(lambda: point.sum() * float("nan"))


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_shrinks_into_the_domain(name):
    point = torch.nn.Parameter(torch.tensor([1e-2, 2.0], dtype=torch.float64))
    optimizer = SEARCHES[name]([point])
    # log is NaN below 0; the minimum is at 1e-3.
    losses = [float(optimizer.step(lambda: (point - 1e-3 * point.log()).sum())) for _ in range(60)]
    assert all(after <= before for before, after in itertools.pairwise(losses))
    torch.testing.assert_close(point.detach(), torch.full_like(point, 1e-3), rtol=1e-3, atol=0)
    assert optimizer.diagnostics()["skipped"] == 0


@pytest.mark.parametrize("name", SEARCHES)
def test_a_closure_that_fails_leaves_the_parameters_where_they_were(name):
    point, closure, _, _ = quadratic()
    optimizer, calls = SEARCHES[name]([point]), 0

    def failing():
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return closure()

    before = point.detach().clone()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(failing)
    assert torch.equal(point, before)


@pytest.mark.parametrize("name", SEARCHES)
def test_one_group_of_dense_real_parameters(name):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(2)]
    with pytest.raises(ValueError, match="takes one parameter group"):
        SEARCHES[name](groups)
    with pytest.raises(TypeError, match="dense float32 or float64, got torch"):
        SEARCHES[name]([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))])


@pytest.mark.parametrize("name", SEARCHES)
def test_converged_steps_cost_one_evaluation(name):
    point, closure, _, minimum = quadratic(4, 10.0)
    optimizer = SEARCHES[name]([point])
    for _ in range(60):
        optimizer.step(closure)
    torch.testing.assert_close(point.detach(), minimum, rtol=1e-6, atol=1e-7)
    assert optimizer.converged
    numbers = optimizer.diagnostics()
    before = point.detach().clone()
    optimizer.step(closure)
    assert torch.equal(point, before)
    numbers["evaluations"] += 1
    assert optimizer.diagnostics() == numbers
    with torch.no_grad():
        point.add_(1)
    optimizer.step(closure)
    assert not optimizer.converged


@pytest.mark.parametrize("name", SEARCHES)
def test_another_loss_goes_on_from_where_the_last_converged(name):
    point, closure, _, minimum = quadratic(4, 10.0)
    optimizer = SEARCHES[name]([point])
    for _ in range(60):
        optimizer.step(closure)
    assert optimizer.converged
    for _ in range(60):
        optimizer.step(lambda: (point - minimum - 1).square().sum())
    torch.testing.assert_close(point.detach(), minimum + 1, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [LBFGS, BFGS, NonlinearCG])
def test_mini_batches_are_noticed_and_told_once(kind):
    model, _ = field_problem()
    signal = load_signal("camera", 8)

    def batch(number):
        part = slice(number % 4, None, 4)
        return mse(model(signal.coords[part]), signal.values[part])

    optimizer, told = kind(model.parameters()), []
    for number in range(12):
        expected = float(batch(number).detach())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert float(optimizer.step(lambda number=number: batch(number))) == expected
        told += [str(each.message) for each in caught]
        assert not optimizer.converged
    (message,) = told
    assert f"{kind.__name__} was given another batch" in message


@pytest.mark.parametrize("name", SEARCHES)
def test_a_learning_rate_of_zero_stays_and_does_not_converge(name):
    point, closure, _, minimum = quadratic(4, 10.0)
    optimizer = SEARCHES[name]([point])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 2))
    for step in range(60):
        before = point.detach().clone()
        optimizer.step(closure)
        assert torch.equal(point, before) or step > 2
        schedule.step()
    torch.testing.assert_close(point.detach(), minimum, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SEARCHES)
def test_dropped_models_are_freed(name):
    alive = []
    for seed in range(3):
        model, closure = field_problem(seed=seed)
        optimizer = SEARCHES[name](model.parameters())
        for _ in range(2):
            optimizer.step(closure)
        alive += [weakref.ref(value) for value in model.parameters()]
        del model, closure, optimizer
    gc.collect()
    assert not [reference for reference in alive if reference() is not None]


@pytest.mark.parametrize("kind", [LBFGS, Newton, NewtonCG])
def test_mini_batches_warn_once_and_never_converge(kind):
    point = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    with pytest.warns(UserWarning, match="mini-batch") as warned:
        optimizer = kind([point], same_batch=False)
    assert len(warned) == 1
    # Any further warning is an error here.
    for shift in (1.0, 1.0, 0.0, 3.0):
        for _ in range(3):
            optimizer.step(lambda shift=shift: (point - shift).square().sum())
    assert not optimizer.converged
    torch.testing.assert_close(point.detach(), torch.full_like(point, 3.0))


def test_parameters_that_the_loss_does_not_use_stay():
    used, unused = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    for kind in SEARCHES.values():
        optimizer = kind([used, unused])
        for _ in range(3):
            optimizer.step(lambda: (used.square() + used**4).sum())
        assert torch.equal(unused, torch.ones_like(unused))


def test_changing_grad_after_convergence_changes_nothing():
    point, closure, _, _ = quadratic(4, 10.0)
    optimizer = LBFGS([point], tolerance_grad=1e-6)
    while not optimizer.converged:
        optimizer.step(closure)
    kept = point.grad.clone()
    point.grad.fill_(7)
    optimizer.step(closure)
    assert torch.equal(point.grad, kept)


def test_pairs_of_two_precisions_are_loaded_as_they_were():
    def fresh():
        short = torch.nn.Parameter(torch.full((2,), 0.3, dtype=torch.float32))
        long = torch.nn.Parameter(torch.full((2,), 0.7, dtype=torch.float64))
        return [short, long], lambda: (short.cosh().sum() * long.exp().sum()).double()

    parameters, closure = fresh()
    optimizer = LBFGS(parameters)
    for _ in range(4):
        optimizer.step(closure)
    saved = through_file(optimizer.state_dict())
    again, _ = fresh()
    resumed = LBFGS(again)
    resumed.load_state_dict(saved)
    pairs = optimizer.state[parameters[0]], resumed.state[again[0]]
    for one, other in zip(*(state["changes"] for state in pairs), strict=True):
        assert one.dtype == other.dtype == torch.float64
        assert torch.equal(one, other)


@pytest.fixture(params=["for all at once", "of one backend"])
def rough_products(request):
    backends = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    former = [each.fp32_precision for each in backends]
    if request.param == "for all at once":
        torch.set_float32_matmul_precision("high")
    else:
        backends[0].fp32_precision = "tf32"
    yield
    torch.set_float32_matmul_precision("highest")
    for each, precision in zip(backends, former, strict=True):
        each.fp32_precision = precision


@pytest.mark.usefixtures("rough_products")
@pytest.mark.parametrize("kind", [LBFGS, NewtonCG, NonlinearCG])
def test_searches_warn_of_tf32_on_a_gpu_alone(kind):
    def made(device, dtype):
        with warnings.catch_warnings(record=True) as caught, FakeTensorMode():
            warnings.simplefilter("always")
            kind([nn.Parameter(torch.empty(3, device=device, dtype=dtype))])
        return [str(each.message) for each in caught]

    (message,) = made("cuda", torch.float32)
    assert f"{kind.__name__} compares losses that TF32 rounds too coarsely" in message
    assert made("cuda", torch.float64) == []
    assert made("cpu", torch.float32) == []
