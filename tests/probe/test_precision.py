import pytest
import torch
from torch import nn

from hessian_lab.losses import mse
from hessian_lab.optim import OPTIMIZERS, make_optimizer
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.precision import full_precision
from tests.reference import points, small_field

PRECISIONS = ["highest", "high", "medium"]
# Where torch ≥ 2.9 keeps what may be shortened, and to what.
SETTINGS = [
    (torch.backends.cuda.matmul, "tf32"),
    (torch.backends.cudnn.conv, "tf32"),
    (torch.backends.mkldnn.matmul, "bf16"),
]


@pytest.fixture(autouse=True)
def restored():
    convolutions = torch.backends.cudnn.allow_tf32
    before = [backend.fp32_precision for backend, _ in SETTINGS]
    yield
    for (backend, _), value in zip(SETTINGS, before, strict=True):
        backend.fp32_precision = value
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = convolutions


def state():
    precisions = [backend.fp32_precision for backend, _ in SETTINGS]
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, precisions


def shortened():
    return [backend.fp32_precision in ("tf32", "bf16") for backend, _ in SETTINGS]


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_shortcuts_are_off_inside_and_back_outside(precision, convolutions):
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions
    before = state()
    with full_precision():
        assert not any(shortened())
        with full_precision():
            assert not any(shortened())
        assert not any(shortened())
    assert state() == before
    with pytest.raises(KeyError), full_precision():
        raise KeyError
    assert state() == before


@pytest.mark.parametrize("backend", range(len(SETTINGS)))
def test_shortcuts_that_were_set_one_by_one_are_off_too(backend):
    place, kind = SETTINGS[backend]
    place.fp32_precision = kind
    before = [place.fp32_precision for place, _ in SETTINGS]
    with full_precision():
        assert not any(shortened())
    assert [place.fp32_precision for place, _ in SETTINGS] == before


def float32_case(generic):
    model = small_field(dtype=torch.float32)
    if generic:
        model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
    return model, points().to(dtype=torch.float32)


@pytest.mark.parametrize("chunk_size", [None, 10])
@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("operator", [HessianOperator, GGNOperator])
def test_operators_compute_without_shortcuts(operator, generic, chunk_size):
    seen = []

    def loss(predictions, values):
        seen.append(any(shortened()))
        return mse(predictions, values)

    model, signal = float32_case(generic)
    expected = operator(model, mse, signal, chunk_size=chunk_size).dense()
    torch.set_float32_matmul_precision("medium")
    before = state()
    inside = operator(model, loss, signal, chunk_size=chunk_size)
    assert torch.equal(inside.dense(), expected)
    assert seen
    assert not any(seen)
    assert state() == before
    with pytest.raises(ValueError, match="a scalar"):
        operator(model, lambda predictions, _: predictions, signal)
    assert state() == before


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("operator", [HessianOperator, GGNOperator])
def test_autocast_does_not_reach_curvature(operator, generic):
    model, signal = float32_case(generic)
    outside = operator(model, mse, signal)
    expected = outside.dense()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(outside.dense(), expected)
        assert torch.equal(operator(model, mse, signal).dense(), expected)


# The gradients of others are as precise as their user wants them.
DIFFERENTIATING = [name for name in OPTIMIZERS if name not in ("sgd", "adam", "shampoo")]


@pytest.mark.parametrize("name", DIFFERENTIATING)
def test_optimizers_differentiate_without_shortcuts(name, monkeypatch):
    model, signal = float32_case(generic=True)
    optimizer, seen = make_optimizer(name, model), []
    differentiate = torch.autograd.grad

    def noted(*arguments, **options):
        seen.append(any(shortened()))
        return differentiate(*arguments, **options)

    def closure():
        outputs = model(signal.coords)
        loss = mse(outputs, signal.values)
        return (loss, outputs) if optimizer.takes_outputs else loss

    monkeypatch.setattr(torch.autograd, "grad", noted)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    for _ in range(2):
        optimizer.step(closure)
    assert seen
    assert not any(seen)
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
