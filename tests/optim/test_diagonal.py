import copy
import gc
import io
import weakref

import pytest
import torch

from hessian_lab.errors import DivergenceError
from hessian_lab.optim.adahessian import AdaHessian
from hessian_lab.optim.contract import is_finite
from hessian_lab.optim.esgd import ESGD, ESGDMax
from hessian_lab.optim.preconditioned_sgd import PreconditionedSGD
from hessian_lab.probe.vectors import probes
from tests.optim.curvature_problems import FAMILY, entries, network
from tests.reference import assert_same

by_backward = pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
# Rates at which the small network is fitted where 0.02 does not do.
RATES = {"esgd-max": 1.0, "adahessian-jacobi": 0.001}
each = pytest.mark.parametrize("name", FAMILY)


def make(name, params, lr=0.05, **options):
    kind, own = FAMILY[name]
    return kind(params, lr=lr, **{**own, **options})


def step_by_backward(optimizer, closure):
    optimizer.zero_grad()
    closure().backward(create_graph=optimizer.should_create_graph())
    return optimizer.step()


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def two_groups(name, model):
    groups = [
        {"params": list(model[0].parameters())},
        {"params": list(model[2].parameters()), "lr": 0.02},
    ]
    optimizer = make(name, groups)
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def multiply(operator, vector):
    return operator.matmat(vector.unsqueeze(1))[:, 0]


@by_backward
@each
def test_both_conventions_take_the_same_steps(name):
    model, closure = network()
    optimizer = make(name, model.parameters())
    other, other_closure = network()
    by_caller = make(name, other.parameters())
    for _ in range(8):
        optimizer.step(closure)
        assert step_by_backward(by_caller, other_closure) is None
        assert torch.equal(entries(model.parameters()), entries(other.parameters()))
    assert optimizer.diagnostics() == by_caller.diagnostics()


@each
def test_resuming_is_bit_identical(name):
    model, closure = network()
    optimizer, scheduler = two_groups(name, model)
    for _ in range(5):
        optimizer.step(closure)
        scheduler.step()
    saved = through_a_file(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        }
    )
    for _ in range(7):
        optimizer.step(closure)
        scheduler.step()

    other, other_closure = network()
    resumed, other_scheduler = two_groups(name, other)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    other_scheduler.load_state_dict(saved["scheduler"])
    for _ in range(7):
        resumed.step(other_closure)
        other_scheduler.step()
    assert torch.equal(entries(model.parameters()), entries(other.parameters()))
    assert optimizer.diagnostics() == resumed.diagnostics()


def test_settings_are_saved_with_the_state():
    model, closure = network()
    optimizer = ESGD(model.parameters(), lr=0.05, seed=3, num_probes=2, update_every=2)
    optimizer.step(closure)
    other, other_closure = network()
    other.load_state_dict(model.state_dict())
    resumed = ESGD(other.parameters(), lr=1)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for _ in range(60):
        optimizer.step(closure)
        resumed.step(other_closure)
    assert torch.equal(entries(model.parameters()), entries(other.parameters()))


@by_backward
@each
@pytest.mark.parametrize("convention", ["closure", "backward"])
def test_a_dropped_model_is_freed_without_a_collector(name, convention):
    # What torch imports when an optimizer is first made refers to its caller.
    make(name, network()[0].parameters())
    gc.collect()
    gc.disable()
    try:
        model, closure = network()
        optimizer = make(name, model.parameters())
        for _ in range(2):
            if convention == "closure":
                optimizer.step(closure)
            else:
                step_by_backward(optimizer, closure)
        watched = [weakref.ref(value) for value in model.parameters()]
        del model, closure, optimizer
        assert [reference() for reference in watched] == [None] * 4
    finally:
        gc.enable()


@by_backward
@each
@pytest.mark.parametrize("convention", ["closure", "backward"])
def test_gradients_are_left_without_their_graph(name, convention):
    model, closure = network()
    expected = torch.autograd.grad(closure(), list(model.parameters()))
    optimizer = make(name, model.parameters())
    if convention == "closure":
        loss, before = optimizer.step(closure), float(network()[1]().detach())
        assert float(loss) == before
        assert not loss.requires_grad
    else:
        step_by_backward(optimizer, closure)
    for value, gradient in zip(model.parameters(), expected, strict=True):
        assert value.grad.grad_fn is None
        assert not value.grad.requires_grad
        assert_same(value.grad, gradient, roundings=10)


@each
def test_a_closure_that_called_backward_is_told_so(name):
    model, closure = network()
    optimizer = make(name, model.parameters())

    def backward():
        loss = closure()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="must return the loss with its graph and not call"):
        optimizer.step(backward)


@each
def test_gradients_without_their_graph_are_refused_when_it_is_needed(name):
    model, closure = network()
    optimizer = make(name, model.parameters())
    with pytest.raises(RuntimeError, match="step must have a closure or gradients"):
        optimizer.step()
    closure().backward()
    before = entries(model.parameters())
    with pytest.raises(RuntimeError, match="gradients must have their graph for this step"):
        optimizer.step()
    assert torch.equal(before, entries(model.parameters()))


def test_the_graph_is_asked_for_when_a_measurement_is_due():
    model, closure = network()
    optimizer = ESGD(model.parameters(), lr=0.01, update_every=4, warmup_steps=3)
    due = []
    for _ in range(12):
        due.append(optimizer.should_create_graph())
        optimizer.step(closure)
    assert [step for step, is_due in enumerate(due) if is_due] == [0, 1, 2, 6, 10]


@pytest.mark.parametrize("num_probes", [1, 3])
def test_one_graph_serves_all_probes(num_probes):
    model, closure = network()
    optimizer = AdaHessian(model.parameters(), lr=0.01, num_probes=num_probes, update_every=2)
    for _ in range(6):
        optimizer.step(closure)
    diagnostics = optimizer.diagnostics()
    assert diagnostics["evaluations"] == 6
    assert diagnostics["curvature_updates"] == 3
    assert diagnostics["products"] == 3 * num_probes


@each
def test_a_step_is_the_gradient_over_the_preconditioner(name):
    model, closure = network()
    optimizer = make(name, model.parameters(), lr=0.1)
    before = entries(model.parameters())
    optimizer.step(closure)
    gradient = torch.cat([value.grad.flatten() for value in model.parameters()])
    root = optimizer.preconditioner().inverse_sqrt
    step = multiply(root, multiply(root, gradient))
    # One measurement of ESGD-max: its rate is 1 - 0.99 of what was asked for.
    rate = 0.1 * 0.01 if name == "esgd-max" else 0.1
    assert_same(before - entries(model.parameters()), rate * step, scale=1.0)


@each
def test_the_preconditioner_comes_in_the_order_of_a_model(name):
    model, closure = network()
    optimizer = make(name, list(reversed(list(model.parameters()))))
    with pytest.raises(ValueError, match="has no preconditioner before it has measured"):
        optimizer.preconditioner()
    optimizer.step(closure)
    sizes = [value.numel() for value in model.parameters()]
    vector = torch.linspace(1, 2, sum(sizes), dtype=torch.float64)
    turned = torch.cat(vector.split(sizes)[::-1])
    own = multiply(optimizer.preconditioner().inverse_sqrt, turned)
    expected = torch.cat(own.split(sizes[::-1])[::-1])
    assert_same(multiply(optimizer.preconditioner(model).inverse_sqrt, vector), expected)


def probes_of(optimizer, number):
    return entries(optimizer._vectors(number))


def test_probes_take_both_signs_and_have_mean_zero():
    model, _ = network()
    optimizer = AdaHessian(model.parameters())
    drawn = torch.stack([probes_of(optimizer, number) for number in range(2000)])
    assert drawn.unique().tolist() == [-1, 1]
    assert drawn.mean(0).abs().max() < 5 / 2000**0.5
    # Independent entries, those of different parameters too.
    covariance = drawn.T @ drawn / 2000
    assert (covariance - torch.eye(len(covariance))).abs().max() < 5 / 2000**0.5


def test_every_measurement_draws_new_probes(monkeypatch):
    model, closure = network()
    optimizer = AdaHessian(model.parameters(), num_probes=2, update_every=3)
    numbers = []
    draw = optimizer._vectors
    monkeypatch.setattr(
        optimizer, "_vectors", lambda number: numbers.append(number) or draw(number)
    )
    for _ in range(7):
        optimizer.step(closure)
    assert numbers == [0, 1, 2, 3, 4, 5]


def test_probes_are_not_those_of_analyses():
    point = torch.nn.Parameter(torch.ones(64, dtype=torch.float64))
    optimizer = ESGD([point])
    analysis = probes(64, 1, seed=0, like=point)[:, 0]
    assert not torch.equal(probes_of(optimizer, 0), analysis)
    assert not torch.equal(probes_of(optimizer, 0), probes_of(ESGD([point], seed=1), 0))


@each
@pytest.mark.parametrize("bad", ["loss", "curvature", "gradient"])
def test_what_is_not_finite_is_skipped(name, bad):
    model, closure = network()
    other, other_closure = network()
    optimizer, reference = make(name, model.parameters()), make(name, other.parameters())
    spoil = {
        "loss": lambda: closure() * float("nan"),
        # |x|^{3/2} has a finite gradient at 0 and an infinite second derivative.
        "curvature": lambda: closure() + (model[0].bias - model[0].bias.detach()).pow(1.5).sum(),
        "gradient": lambda: closure() + (model[0].bias - model[0].bias.detach()).pow(0.5).sum(),
    }[bad]
    before = entries(model.parameters())
    loss = optimizer.step(spoil)
    assert loss.isfinite() == (bad != "loss")
    assert torch.equal(before, entries(model.parameters()))
    assert optimizer.diagnostics()["skipped"] == 1
    assert optimizer.diagnostics()["step_length"] == 0
    for _ in range(5):
        optimizer.step(closure)
        reference.step(other_closure)
    assert torch.equal(entries(model.parameters()), entries(other.parameters()))
    assert "step_length" not in optimizer.diagnostics()


@each
def test_training_ends_after_ten_skipped_steps(name):
    model, closure = network()
    optimizer = make(name, model.parameters())
    for _ in range(9):
        optimizer.step(lambda: closure() * float("inf"))
    with pytest.raises(DivergenceError, match="loss became inf in 10 steps in a row"):
        optimizer.step(lambda: closure() * float("inf"))


def test_large_numbers_are_finite():
    largest = torch.finfo(torch.float64).max
    assert is_finite([torch.tensor([largest, largest], dtype=torch.float64)])
    for value in (float("inf"), float("nan")):
        assert not is_finite([torch.zeros(2), torch.tensor([value, -value])])


@by_backward
def test_a_gradient_that_is_not_finite_is_skipped_without_a_closure():
    model, closure = network()
    optimizer = ESGD(model.parameters())
    before = entries(model.parameters())
    step_by_backward(optimizer, lambda: closure() * float("nan"))
    assert torch.equal(before, entries(model.parameters()))


def test_groups_have_rates_of_their_own():
    model, closure = network()
    optimizer = ESGD(
        [
            {"params": model[0].parameters(), "lr": 0.0},
            {"params": model[2].parameters(), "lr": 0.1},
        ]
    )
    first, last = entries(model[0].parameters()), entries(model[2].parameters())
    optimizer.step(closure)
    assert torch.equal(first, entries(model[0].parameters()))
    assert not torch.equal(last, entries(model[2].parameters()))


@each
def test_a_group_added_later_is_corrected_from_its_own_start(name):
    model, closure = network()
    optimizer = make(name, model[2].parameters())
    for _ in range(5):
        optimizer.step(closure)
    optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.03})
    assert optimizer.should_create_graph()
    with pytest.raises(ValueError, match="has no preconditioner before"):
        optimizer.preconditioner()
    before = entries(model[0].parameters())
    optimizer.step(closure)
    gradient = torch.cat([value.grad.flatten() for value in model[0].parameters()])
    step = before - entries(model[0].parameters())
    if name == "psgd-abs":
        assert step.any()
        return
    scale = optimizer.preconditioner().scale[-len(step) :]
    rate = 0.03 * 0.01 if name == "esgd-max" else 0.03
    assert_same(step, rate * gradient / scale, scale=1.0)


def test_groups_share_what_one_product_serves():
    model, _ = network()
    optimizer = ESGD(model[0].parameters())
    with pytest.raises(ValueError, match="num_probes must be the same in all groups, 1, got 2"):
        optimizer.add_param_group({"params": model[2].parameters(), "num_probes": 2})
    with pytest.raises(ValueError, match="lr must be at least 0 and finite, got -1"):
        optimizer.add_param_group({"params": model[2].parameters(), "lr": -1})
    assert len(optimizer.param_groups) == 1


@each
def test_a_parameter_that_the_loss_does_not_use_stays(name):
    model, closure = network()
    spare = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = make(name, [*model.parameters(), spare])
    for _ in range(4):
        optimizer.step(closure)
    assert torch.equal(spare, torch.ones(3, dtype=torch.float64))


@each
def test_weight_decay_is_decoupled(name):
    model, closure = network()
    other, other_closure = network()
    before = entries(model.parameters())
    make(name, model.parameters()).step(closure)
    make(name, other.parameters(), weight_decay=0.5).step(other_closure)
    rate = 0.05 * 0.01 if name == "esgd-max" else 0.05
    apart = entries(model.parameters()) - entries(other.parameters())
    assert_same(apart, rate * 0.5 * before, scale=1.0)


@each
def test_trains_in_single_precision(name):
    model, closure = network(torch.float32)
    optimizer = make(name, model.parameters(), lr=RATES.get(name, 0.02))
    first = optimizer.step(closure)
    for _ in range(20):
        last = optimizer.step(closure)
    assert last < first
    assert all(value.dtype == torch.float32 for value in model.parameters())


def test_a_copy_goes_its_own_way():
    model, closure = network()
    optimizer = ESGD(model.parameters())
    optimizer.step(closure)
    twin = copy.deepcopy(optimizer)
    optimizer.step(closure)
    assert twin.diagnostics()["evaluations"] == 1


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ESGD, {"lr": -1.0}, "lr must be at least 0 and finite, got -1.0"),
        (ESGD, {"lr": float("nan")}, "lr must be at least 0 and finite, got nan"),
        (ESGD, {"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        (ESGD, {"betas": (0.9,)}, r"betas must be two numbers in \[0, 1\), got \(0.9,\)"),
        (ESGD, {"eps": 0.0}, "eps must be positive and finite, got 0.0"),
        (ESGD, {"weight_decay": -0.1}, "weight_decay must be at least 0 and finite, got -0.1"),
        (ESGD, {"num_probes": 0}, "num_probes must be a whole number of at least 1, got 0"),
        (ESGD, {"update_every": 2.5}, "update_every must be a whole number of at least 1, got 2.5"),
        (ESGD, {"warmup_steps": -1}, "warmup_steps must be a whole number of at least 0, got -1"),
        (ESGD, {"accumulate": "max"}, "accumulate must be one of ema, sum, mean, got 'max'"),
        (ESGD, {"bias_correction": "step"}, "Did you mean steps"),
        (ESGD, {"momentum": "nestrov"}, "Did you mean nesterov"),
        (ESGD, {"distribution": "normal"}, "must be one of rademacher, gaussian, got 'normal'"),
        (ESGD, {"seed": -1}, r"seed must be a whole number in \[0, 2\*\*31\), got -1"),
        (ESGDMax, {"lr_warmup": 1.0}, r"lr_warmup must be in \[0, 1\), got 1.0"),
        (AdaHessian, {"estimator": "jacob"}, "Did you mean jacobi"),
        (AdaHessian, {"hessian_power": 0.0}, "hessian_power must be positive and finite, got 0.0"),
        (PreconditionedSGD, {"preconditioner": "abs"}, "equilibrated, jacobi, abs-hessian, ident"),
        (PreconditionedSGD, {"mode": "dense"}, "mode must be one of exact, hutchinson, got 'dense"),
        (
            PreconditionedSGD,
            {"preconditioner": "abs-hessian", "mode": "hutchinson"},
            "mode must be exact for precondit",
        ),
        (PreconditionedSGD, {"exponent": -0.5}, "exponent must be positive and finite, got -0.5"),
    ],
)
def test_refuses_options_out_of_range(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind([torch.nn.Parameter(torch.ones(1))], **options)


@pytest.mark.parametrize("kind", [ESGD, ESGDMax, AdaHessian, PreconditionedSGD])
def test_refuses_complex_parameters(kind):
    with pytest.raises(TypeError, match=r"dense float32 or float64, got torch\.complex64"):
        kind([torch.nn.Parameter(torch.ones(1, dtype=torch.complex64))])
