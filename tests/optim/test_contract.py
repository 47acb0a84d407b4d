import copy
import gc
import io
import math
import pickle
import weakref

import pytest
import torch
from torch import nn

import hessian_lab.optim as optim
from hessian_lab.errors import DivergenceError, UsageError
from hessian_lab.losses import mse
from hessian_lab.optim import DEFAULT_RATES, OPTIMIZERS, RECIPES, SUMMARIES
from hessian_lab.optim.contract import COUNTERS, MOST_SKIPPED, is_finite
from hessian_lab.optim.first_order import SGD, Adam
from hessian_lab.optim.make import has_option, make_optimizer
from hessian_lab.probe.curvature import HessianOperator
from tests.reference import assert_same, points, small_field

FIRST_ORDER = [SGD, Adam]
TORCH = {SGD: torch.optim.SGD, Adam: torch.optim.Adam}


def closure_of(model, signal=None):
    signal = signal or points()
    return lambda: mse(model(signal.coords), signal.values)


def parameters_of(model):
    return torch.cat([value.detach().flatten() for value in model.parameters()])


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_steps_are_those_of_torch(kind):
    ours, theirs = small_field("tanh"), small_field("tanh")
    optimizer, reference = kind(ours.parameters(), lr=0.1), TORCH[kind](theirs.parameters(), lr=0.1)
    for _ in range(20):
        loss = optimizer.step(closure_of(ours))
        reference.zero_grad()
        expected = closure_of(theirs)()
        expected.backward()
        reference.step()
        assert float(loss) == expected.item()
        assert not loss.requires_grad
    assert torch.equal(parameters_of(ours), parameters_of(theirs))


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_all_three_conventions_are_one(kind):
    def backward(closure):
        loss = closure()
        loss.backward()
        return loss

    models = [small_field("tanh") for _ in range(3)]
    first, second, third = (kind(model.parameters(), lr=0.1) for model in models)
    closures = [closure_of(model) for model in models]
    for _ in range(5):
        first.step(closures[0])
        second.step(lambda: backward(closures[1]))
        third.zero_grad()
        backward(closures[2])
        assert third.step() is None
    for model in models[1:]:
        assert torch.equal(parameters_of(model), parameters_of(models[0]))


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_resumes_bit_for_bit(kind):
    options = {"momentum": 0.9} if kind is SGD else {}

    def start():
        model = small_field("tanh")
        first, *rest = model.parameters()
        groups = [{"params": [first], "lr": 0.01}, {"params": rest}]
        optimizer = kind(groups, lr=0.1, **options)
        return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def walk(model, optimizer, schedule, steps):
        for _ in range(steps):
            optimizer.step(closure_of(model))
            schedule.step()

    whole = start()
    walk(*whole, 12)
    half = start()
    walk(*half, 5)
    stream = io.BytesIO()
    torch.save([part.state_dict() for part in half], stream)
    stream.seek(0)
    resumed = start()
    for part, state in zip(resumed, torch.load(stream, weights_only=True), strict=True):
        part.load_state_dict(state)
    walk(*resumed, 7)
    assert torch.equal(parameters_of(resumed[0]), parameters_of(whole[0]))
    assert resumed[1].diagnostics() == whole[1].diagnostics()


def test_state_of_another_precision_than_the_parameters_stays_in_it():
    model = small_field("tanh", dtype=torch.float32)
    optimizer = Adam(model.parameters())
    optimizer.step(closure_of(model, points().to(dtype=torch.float32)))
    first = next(model.parameters())
    factor = torch.full((2, 2), 1 / 3, dtype=torch.float64)
    optimizer.state[first]["factor"] = factor
    other = Adam(model.parameters())
    other.load_state_dict(optimizer.state_dict())
    loaded = other.state[first]["factor"]
    assert torch.equal(loaded, factor)
    assert loaded.dtype == torch.float64
    assert loaded is not factor


def test_adams_preconditioner_makes_its_step():
    model = small_field("tanh")
    optimizer = Adam(model.parameters(), lr=0.1, betas=(0.0, 0.9))
    with pytest.raises(ValueError, match="no preconditioner before its first step"):
        optimizer.preconditioner()
    for _ in range(4):
        before = parameters_of(model)
        optimizer.step(closure_of(model))
    gradient = torch.cat([value.grad.flatten() for value in model.parameters()])
    preconditioner = optimizer.preconditioner(model)
    assert_same(before - parameters_of(model), 0.1 * gradient / preconditioner.scale)
    root = preconditioner.inverse_sqrt
    assert_same(root @ (root @ gradient), gradient / preconditioner.scale)
    told = optimizer.diagnostics()
    assert told["scale_min"] == float(preconditioner.scale.min())
    assert told["scale_median"] <= told["scale_max"] == float(preconditioner.scale.max())


def test_a_preconditioned_hessian_has_the_spectrum_of_p_inverse_h():
    model, signal = small_field("tanh"), points()
    optimizer = Adam(model.parameters())
    for _ in range(3):
        optimizer.step(closure_of(model, signal))
    hessian = HessianOperator(model, mse, signal)
    preconditioner = optimizer.preconditioner(model)
    ours = torch.linalg.eigvalsh(preconditioner.precondition(hessian).dense())
    direct = torch.linalg.eigvals(hessian.dense() / preconditioner.scale.unsqueeze(1))
    assert_same(ours, direct.real.sort().values)


def test_a_preconditioner_follows_the_order_of_the_model():
    model = small_field("tanh")
    turned = list(model.parameters())[::-1]
    one, other = Adam(model.parameters()), Adam(turned)
    model_scale = []
    for optimizer in (one, other):
        state = [value.detach().clone() for value in model.parameters()]
        optimizer.step(closure_of(model))
        model_scale.append(optimizer.preconditioner(model).scale)
        with torch.no_grad():
            for value, former in zip(model.parameters(), state, strict=True):
                value.copy_(former)
    assert torch.equal(*model_scale)
    assert not torch.equal(other.preconditioner().scale, model_scale[1])
    with pytest.raises(ValueError, match="model has a parameter that the optimizer does not"):
        one.preconditioner(small_field("tanh"))


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_a_loss_that_is_not_finite_moves_nothing(kind):
    model = small_field("tanh")
    optimizer = kind(model.parameters(), lr=0.1)
    before = parameters_of(model)
    broken = lambda: closure_of(model)() * math.nan  # noqa: E731
    for _ in range(MOST_SKIPPED - 1):
        assert math.isnan(float(optimizer.step(broken)))
    assert torch.equal(parameters_of(model), before)
    assert optimizer.diagnostics()["skipped"] == MOST_SKIPPED - 1
    optimizer.step(closure_of(model))
    for _ in range(MOST_SKIPPED - 1):
        optimizer.step(broken)
    message = rf"loss became nan in {MOST_SKIPPED} steps in a row, the last of them step 20\."
    with pytest.raises(DivergenceError, match=message):
        optimizer.step(broken)


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_a_gradient_that_is_not_finite_moves_nothing(kind):
    model = small_field("tanh")
    optimizer = kind(model.parameters(), lr=0.1)
    before = parameters_of(model)
    (closure_of(model)() * math.inf).backward()
    optimizer.step()
    assert torch.equal(parameters_of(model), before)
    assert optimizer.diagnostics()["skipped"] == optimizer.diagnostics()["evaluations"] == 1


def test_dropped_models_are_gone():
    def use():
        model = small_field("tanh")
        optimizer = Adam(model.parameters())
        optimizer.step(closure_of(model))
        return weakref.ref(next(model.parameters()))

    gc.collect()
    gc.disable()
    try:
        assert use()() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2, dtype=torch.complex64), "dense float32 or float64, got torch.complex64"),
        (torch.zeros(2, dtype=torch.bfloat16), "dense float32 or float64, got torch.bfloat16"),
        (torch.zeros(2, 2).to_sparse(), "dense float32 or float64, got sparse"),
    ],
)
def test_refuses_parameters_of_another_kind(value, message):
    with pytest.raises(TypeError, match=message):
        SGD([value.requires_grad_()])


def test_refuses_frozen_parameters():
    with pytest.raises(ValueError, match=r"must require gradients. Leave the frozen ones out"):
        Adam([torch.zeros(2)])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_found(bad):
    fine = [torch.full((3,), 1e308, dtype=torch.float64), torch.zeros(2, 2).double()]
    assert is_finite(fine)
    fine[1][1, 0] = bad
    assert not is_finite(fine)


def test_every_name_is_made_and_has_a_rate():
    assert OPTIMIZERS.keys() == DEFAULT_RATES.keys() == SUMMARIES.keys()
    model = nn.Linear(2, 1)
    for name in OPTIMIZERS:
        made = make_optimizer(name, model)
        assert type(made).__name__ in optim.__all__
        assert type(made) is getattr(optim, type(made).__name__)
        assert set(made.counters) == set(COUNTERS)


def test_every_recipe_makes_its_optimizer():
    for recipe in RECIPES.values():
        made = make_optimizer(recipe.optimizer, nn.Linear(2, 1), lr=recipe.lr, **recipe.options)
        assert made.param_groups[0]["lr"] == recipe.lr


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    made = make_optimizer("adam", model)
    assert [id(value) for value in made.parameters] == [id(v) for v in model[1].parameters()]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adm", {}, "optimizer must be one of .*, got 'adm'. Did you mean adam?"),
        ("adam", {"beta": 1}, "option of adam must be one of .* Did you mean betas?"),
        ("sgd", {"momentum": "much"}, "momentum of sgd must be a number, got 'much'"),
        ("adam", {"amsgrad": 1}, "amsgrad of adam must be true or false, got 1"),
        ("sgd", {"momentum": -1.0}, "options of sgd must be valid: .*momentum"),
    ],
)
def test_refuses_what_there_is_not(name, options, message):
    with pytest.raises(UsageError, match=message):
        make_optimizer(name, nn.Linear(2, 1), **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrapped_modules_are_refused_where_they_break():
    wrapped = nn.DataParallel(nn.Linear(2, 1))
    with pytest.raises(UsageError, match=r"esgd differentiates twice.*, model\.module\."):
        make_optimizer("esgd", wrapped)
    compiled = torch.compile(nn.Linear(2, 1))
    with pytest.raises(UsageError, match=r"kfac differentiates twice.*, model\._orig_mod\."):
        make_optimizer("kfac", compiled)
    for name in ("sgd", "adam", "lbfgs"):
        assert make_optimizer(name, wrapped).parameters


def test_options_are_found_by_name():
    assert has_option("sgd", "momentum")
    assert not has_option("adam", "momentum")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hooks_are_called_once_a_step(name):
    model = small_field("tanh")
    # Where torch's own class is in use, its step is hooked too.
    torch.optim.SGD(model.parameters())
    torch.optim.Adam(model.parameters())
    optimizer, calls = make_optimizer(name, model), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure():
        outputs = model(points().coords)
        loss = mse(outputs, points().values)
        return (loss, outputs) if optimizer.takes_outputs else loss

    optimizer.step(closure)
    assert calls == ["before", "after"]


def one_closure(optimizer, model, signal=None):
    signal = signal or points()

    def closure():
        outputs = model(signal.coords)
        loss = mse(outputs, signal.values)
        return (loss, outputs) if optimizer.takes_outputs else loss

    return closure


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_copies_go_on_as_the_original(name, copied):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    optimizer = make_optimizer(name, model)
    for _ in range(3):
        optimizer.step(one_closure(optimizer, model))
    other_model, other = copied((model, optimizer))
    for _ in range(3):
        optimizer.step(one_closure(optimizer, model))
        other.step(one_closure(other, other_model))
    assert torch.equal(parameters_of(model), parameters_of(other_model))
    assert other.diagnostics() == optimizer.diagnostics()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_schedules_from_and_to_zero_are_followed(name):
    model = small_field("tanh")
    optimizer = make_optimizer(name, model)
    lr = optimizer.param_groups[0]["lr"]
    for kind in (
        lambda: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 2, 1.0)),
        lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3),
    ):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = lr
        schedule = kind()
        for _ in range(4):
            before = parameters_of(model)
            still = optimizer.param_groups[0]["lr"] == 0
            optimizer.step(one_closure(optimizer, model))
            assert torch.equal(parameters_of(model), before) is still
            schedule.step()


def test_a_group_that_is_refused_is_not_kept():
    first = nn.Parameter(torch.zeros(2))
    optimizer = Adam([first])
    for bad in (torch.zeros(2, dtype=torch.complex64), torch.zeros(2)):
        with pytest.raises((TypeError, ValueError), match="parameters must"):
            optimizer.add_param_group({"params": [bad]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - {"sgd", "adam", "shampoo"}))
def test_a_parameter_that_is_frozen_later_is_told(name):
    model = small_field("tanh")
    optimizer = make_optimizer(name, model)
    next(model.parameters()).requires_grad_(False)
    with pytest.raises((ValueError, RuntimeError), match=r"frozen after|require gradients"):
        optimizer.step(one_closure(optimizer, model))


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_parameters_that_the_loss_does_not_use_stay(kind):
    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = kind([used, unused], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.step(lambda: used.square().sum())
    assert torch.equal(unused, torch.ones(2))
    assert unused.grad is None
    assert not torch.equal(used, torch.ones(2))


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_a_gradient_that_is_not_finite_is_skipped(kind):
    point = nn.Parameter(torch.zeros(1))
    optimizer = kind([point], lr=0.1)
    assert float(optimizer.step(lambda: point.abs().sqrt().sum())) == 0
    assert torch.equal(point, torch.zeros(1))
    assert optimizer.diagnostics()["skipped"] == 1


@pytest.mark.parametrize("name", ["sgd", "adam", "lbfgs", "bfgs", "nonlinear_cg", "shampoo"])
def test_a_closure_that_called_backward_may_give_a_number(name):
    model, other = small_field("tanh"), small_field("tanh")
    optimizer, twin = make_optimizer(name, model), make_optimizer(name, other)

    def closure():
        loss = closure_of(model)()
        loss.backward()
        return loss.item()

    for _ in range(3):
        assert float(optimizer.step(closure)) == pytest.approx(float(twin.step(closure_of(other))))
