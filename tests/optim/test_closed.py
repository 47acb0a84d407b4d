import pytest
import torch
from torch import nn

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import bce, mse
from hessian_lab.optim.closed import calls_of, closed_curvature
from hessian_lab.optim.gauss_newton import GaussNewton
from hessian_lab.optim.make import make_optimizer
from hessian_lab.optim.newton import Newton
from hessian_lab.optim.preconditioned_sgd import PreconditionedSGD
from hessian_lab.signal import Signal
from tests.optim.searches import vector
from tests.reference import assert_same, autograd_hessian

COORDS = torch.linspace(-1, 1, 23, dtype=torch.float64).view(-1, 1)
VALUES = torch.cat([torch.sin(3 * COORDS) ** 2, torch.cos(2 * COORDS) ** 2], dim=1)


def field(act="sine", seed=0):
    return make_field(act, 1, 2, width=4, depth=2, seed=seed)


def closed(model, loss_of, parameters=None):
    with calls_of(model) as calls:
        loss = loss_of(model)
    return closed_curvature(model, calls, loss, parameters or list(model.parameters()))


def data_loss(model):
    return mse(model(COORDS), VALUES)


@pytest.mark.parametrize("act", ["sine", "gaussian", "relu_pe"])
@pytest.mark.parametrize("loss", [mse, bce, nn.MSELoss(), nn.MSELoss(reduction="sum")])
def test_the_curvature_is_that_of_double_backward(act, loss):
    model = field(act)
    found = closed(model, lambda field: loss(field(COORDS), VALUES))
    expected = autograd_hessian(model, loss, Signal(COORDS, VALUES))
    scale = float(expected.abs().max())
    assert_same(found.matrix(), expected, scale=scale)
    assert_same(found.row_norms(), torch.linalg.vector_norm(expected, dim=1), scale=scale)
    assert_same(found.diagonal(), expected.diagonal(), scale=scale)
    assert not model._forward_hooks


def twice(model):
    return mse(model(COORDS), VALUES) + mse(model(-COORDS), VALUES)


def decayed(model):
    return data_loss(model) + sum(value.square().sum() for value in model.parameters())


def coupled(model):
    return model(COORDS).mean(dim=0).square().sum()


def of_slopes(model):
    coords = COORDS.clone().requires_grad_()
    outputs = model(coords)
    (slopes,) = torch.autograd.grad(outputs.sum(), coords, create_graph=True)
    return mse(outputs, VALUES) + slopes.square().mean()


def of_hidden_units(model):
    seen = []
    hook = model.layers[1].register_forward_hook(lambda *call: seen.append(call[2]))
    loss = data_loss(model) + seen[0].square().mean()
    hook.remove()
    return loss


@pytest.mark.parametrize("loss_of", [twice, decayed, coupled, of_slopes, of_hidden_units])
def test_losses_without_a_closed_form_are_left_to_products(loss_of):
    model = field()
    assert closed(model, loss_of) is None
    step = {}
    for given in (model, None):
        copy = field()
        optimizer = Newton(copy.parameters(), model=None if given is None else copy)
        optimizer.step(lambda copy=copy: loss_of(copy))
        assert optimizer.diagnostics()["products"] == vector(copy.parameters()).numel()
        step[given is None] = vector(copy.parameters())
    assert torch.equal(step[True], step[False])


def test_parameters_must_be_the_models_own_in_order():
    model, other = field(), field(seed=1)
    own = list(model.parameters())
    assert closed(model, data_loss, own[::-1]) is None
    assert closed(model, data_loss, own[:-1]) is None
    assert closed(model, data_loss, list(other.parameters())) is None
    assert closed(model, data_loss, own) is not None
    own[0].requires_grad_(False)
    assert closed(model, data_loss, own) is None


def test_subclasses_and_other_precisions_are_left_to_products():
    class Doubled(type(field())):
        def forward(self, coords):
            return 2 * super().forward(coords)

    doubled = field()
    doubled.__class__ = Doubled
    assert closed(doubled, data_loss) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert closed(field().float(), lambda model: mse(model(COORDS.float()), VALUES)) is None


MAKERS = {
    "newton": lambda params, model: Newton(params, model=model),
    "newton-damped": lambda params, model: Newton(params, solve="damped", model=model),
    "psgd": lambda params, model: PreconditionedSGD(params, model=model),
    "psgd-jacobi": lambda params, model: PreconditionedSGD(
        params, preconditioner="jacobi", model=model
    ),
    "psgd-abs": lambda params, model: PreconditionedSGD(
        params, 0.5, preconditioner="abs-hessian", eps=0.01, model=model
    ),
    "gauss-newton": lambda params, model: GaussNewton(params, solver="dense", model=model),
}


@pytest.mark.parametrize("name", MAKERS)
def test_steps_are_those_of_products_without_any(name):
    ends, losses = [], []
    for with_model in (True, False):
        model = field("tanh")
        optimizer = MAKERS[name](model.parameters(), model if with_model else None)

        def closure(model=model, optimizer=optimizer):
            outputs = model(COORDS)
            loss = mse(outputs, VALUES)
            return (loss, outputs) if optimizer.takes_outputs else loss

        losses.append([float(optimizer.step(closure)) for _ in range(8)])
        ends.append(vector(model.parameters()))
        assert (optimizer.diagnostics()["products"] == 0) is with_model
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-7, atol=1e-9)
    assert losses[0][-1] < 0.9 * losses[0][0]


@pytest.mark.parametrize("name", ["newton", "psgd", "gauss_newton"])
def test_make_optimizer_passes_the_model(name):
    model = field()
    options = {"solver": "dense"} if name == "gauss_newton" else {}
    assert make_optimizer(name, model, **options).model is model


def scaled_in_place(model):
    outputs = model(COORDS)
    outputs.mul_(3)
    return mse(outputs, VALUES)


def moved_in_place(model):
    coords = COORDS.clone()
    loss = mse(model(coords), VALUES)
    coords.add_(1)
    return loss


@pytest.mark.parametrize("loss_of", [scaled_in_place, moved_in_place])
def test_what_was_changed_in_place_is_left_to_products(loss_of):
    assert closed(field(), loss_of) is None


def test_a_call_by_keyword_is_a_call():
    model = field()
    found = closed(model, lambda model: mse(model(coords=COORDS), VALUES))
    assert torch.equal(found.matrix(), closed(model, data_loss).matrix())
