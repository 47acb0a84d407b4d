import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils._python_dispatch import TorchDispatchMode

from hessian_lab.fields import ACTIVATIONS
from hessian_lab.fields.activations import Activation
from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.losses import bce, mse
from hessian_lab.probe import linearized
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.hessian import dense_ggn, dense_hessian, hessian_terms, output_derivatives
from hessian_lab.probe.linearized import LinearizedField, stored_numbers
from hessian_lab.probe.vectors import gaussian
from tests.reference import assert_same, autograd_hessian, points, small_field

MATRICES = ["hessian", "ggn"]
LOSSES = {
    "mse": mse,
    "bce": bce,
    "mse_loss": mse_loss,
    "MSELoss": nn.MSELoss(),
    "BCEWithLogits": nn.BCEWithLogitsLoss(),
    "Huber": nn.HuberLoss(delta=0.3),
    "callable": lambda f, y: ((f - y).abs() ** 3).mean() + (f[:, :1] * f[:, -1:]).mean(),
}


def linearize(model, loss, signal, matrix="hessian"):
    derivatives = output_derivatives(model, loss, signal.coords, signal.values)
    return LinearizedField(model, signal.coords, *derivatives, matrix=matrix)


def rows_of(model, num, seed=0):
    size = sum(value.numel() for value in model.parameters())
    return gaussian(size, num, seed=seed, like=next(model.parameters())).T.contiguous()


@pytest.mark.parametrize("num_outputs", [1, 2, 3])
@pytest.mark.parametrize("depth", range(5))
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_products_are_those_of_the_closed_forms(act, depth, num_outputs):
    signal = points(num_outputs=num_outputs)
    model = small_field(act, num_outputs, depth)
    assert_same(HessianOperator(model, mse, signal).dense(), dense_hessian(model, mse, signal))
    ggn = hessian_terms(model, mse, signal).ggn
    assert_same(GGNOperator(model, mse, signal).dense(), ggn)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_products_are_those_of_any_mean_over_points(act, loss):
    signal, model = points(num_outputs=2), small_field(act, 2)
    hessian = HessianOperator(model, loss, signal)
    assert isinstance(hessian._kept[0], LinearizedField)
    assert_same(hessian.dense(), dense_hessian(model, loss, signal))
    assert_same(GGNOperator(model, loss, signal).dense(), dense_ggn(model, loss, signal))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_products_are_those_of_autograd(depth, loss):
    signal, model = points(num_outputs=3), small_field("wavelet", 3, depth)
    expected = autograd_hessian(model, loss, signal)
    assert_same(HessianOperator(model, loss, signal).dense(), expected)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("num", [1, 2, 16, 17, 40])
def test_blocks_hold_the_products_of_their_vectors(matrix, num):
    signal, model = points(num_outputs=2), small_field("gaussian", 2, 3)
    field, rows = linearize(model, mse, signal, matrix), rows_of(model, num)
    single = torch.cat([field.products(row.unsqueeze(0)) for row in rows])
    assert_same(field.products(rows), single)
    assert_same(field.products(rows[:1]), single[:1])


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("num_points", [1, 2, 64, 65, 130, 200])
def test_tiles_do_not_change_products(matrix, num, num_points, monkeypatch):
    signal, model = points(num_points=num_points, num_outputs=2), small_field("sine", 2, 3)
    rows = rows_of(model, num)
    whole = linearize(model, mse, signal, matrix).products(rows)
    monkeypatch.setattr(linearized, "TILE_NUMBERS", 1)
    tiled = linearize(model, mse, signal, matrix)
    assert tiled._tile_size(num) <= 64
    assert_same(tiled.products(rows), whole)
    assert_same(tiled.products(rows), whole)


def test_products_leave_no_trace_in_later_ones():
    signal, model = points(num_points=90), small_field("sine", depth=3)
    field, rows = linearize(model, mse, signal), rows_of(model, 17)
    first, kept = field.products(rows), rows.clone()
    for num in (1, 5, 17, 1):
        field.products(1e6 * rows[:num])
    assert torch.equal(field.products(rows), first)
    assert torch.equal(rows, kept)
    assert not field.products(torch.zeros_like(rows)).any()


def test_buffers_are_kept_of_the_last_two_widths_alone():
    model = small_field("sine", depth=3)
    field = linearize(model, mse, points())
    for num in (16, 1, 2, 3, 4, 3):
        field.products(rows_of(model, num))
    workspace = field._workspace
    assert set(workspace.blocks) == {num for num, _ in workspace._spaces} == {3, 4}
    assert set(field._bound) == set(workspace.blocks.values())
    numbers = sum(
        buffer.numel()
        for space in workspace._spaces.values()
        for buffer in (*space.tangents, *space.moved, space.curved)
    )
    assert numbers == (3 + 4) * 37 * (5 * 3 + 5 * 3 + 2)


def test_batches_of_a_loader_share_their_buffers():
    model = small_field("sine", depth=3)
    signal = points(num_points=40)
    loader = list(zip(signal.coords.split(10), signal.values.split(10), strict=True))
    operator = HessianOperator(model, mse, loader)
    expected = operator.dense()
    assert len({id(kept._workspace) for kept in operator._kept}) == 1
    assert len(operator._kept[0]._workspace._spaces) <= 2
    assert_same(expected, dense_hessian(model, mse, signal))


@pytest.mark.parametrize("widths", [(7, 3), (3, 7), (1, 9), (4, 4)])
def test_layers_may_differ_in_width(widths):
    first, second = widths
    model, signal = small_field(), points()
    layers = nn.Linear(2, first), nn.Linear(first, second), nn.Linear(second, 1)
    model.layers = nn.ModuleList(layers).double()
    for operator, dense in ((HessianOperator, dense_hessian), (GGNOperator, dense_ggn)):
        assert_same(operator(model, mse, signal).dense(), dense(model, mse, signal))


@pytest.mark.parametrize("width", [1, 2, 9, 33])
def test_products_hold_at_every_width(width):
    signal, model = points(num_points=11), small_field(width=width, depth=3)
    rows = rows_of(model, 4)
    for matrix, dense in (("hessian", dense_hessian), ("ggn", dense_ggn)):
        expected = rows @ dense(model, mse, signal)
        assert_same(linearize(model, mse, signal, matrix).products(rows), expected)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_float32_agrees_with_float64(act, matrix):
    signal, model = points(num_points=300), small_field(act, depth=3, width=16)
    rows = rows_of(model, 3)
    exact = linearize(model, mse, signal, matrix).products(rows)
    ours = linearize(model.float(), mse, signal.to(dtype=torch.float32), matrix)
    products = ours.products(rows.float())
    assert products.dtype == torch.float32
    gap = (products - exact).norm(dim=1) / exact.norm(dim=1)
    # Rounding ω x = 30 x in float32 costs the sine a decade.
    assert gap.max() < 2e-5


def test_dead_units_have_rows_that_are_exactly_zero():
    model = small_field("relu", depth=2)
    with torch.no_grad():
        model.layers[1].bias[2] = -100.0
    hessian = HessianOperator(model, mse, points()).dense()
    dead = [15 + 2 * 5 + unit for unit in range(5)] + [15 + 25 + 2, 45 + 2]
    assert not hessian[dead].any()
    assert not hessian[:, dead].any()


class Multiplications(TorchDispatchMode):
    """Counts the multiplications of matrix products."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            left, right = args[-2:]
            self.total += left.numel() * right.shape[-1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("matrix", "products"), [("hessian", 6), ("ggn", 4)])
@pytest.mark.parametrize("num", [1, 16])
def test_a_product_costs_six_multiplications_per_hidden_map(matrix, products, num):
    width, depth, num_points = 32, 4, 100
    signal = points(num_points=num_points)
    model = small_field("gaussian", width=width, depth=depth)
    field, rows = linearize(model, mse, signal, matrix), rows_of(model, num)
    with Multiplications() as counter:
        field.products(rows)
    floor = products * (depth - 1) * width**2 * num_points * num
    thin = 2 * 3 * width * num_points * num + products * width * num_points * num
    assert floor < counter.total <= floor + thin


def test_transcendental_functions_are_evaluated_once():
    calls = []

    def count(function):
        return lambda z: calls.append(1) or function(z)

    model, signal = small_field("gaussian", depth=3), points()
    plain = model.activation
    model.activation = Activation(count(plain.value), count(plain.jet))
    field = linearize(model, mse, signal)
    made = len(calls)
    assert made
    field.products(rows_of(model, 17))
    assert len(calls) == made


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("depth", [0, 1, 4])
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_what_is_kept_is_what_is_said(matrix, depth, num_outputs):
    signal = points(num_points=50, num_outputs=num_outputs)
    model = small_field("sine", num_outputs, depth, width=16)
    field = linearize(model, mse, signal, matrix)
    lists = field.inputs, field.slopes, getattr(field, "deltas", []), getattr(field, "bends", [])
    kept = [tensor for each in lists for tensor in each if tensor is not None]
    numbers = sum(tensor.numel() for tensor in [*kept, field.curvature])
    told = stored_numbers(model, 50, matrix=matrix)
    # φ″ of every layer is in hand besides until the last is stored.
    assert numbers + 50 * 16 * depth <= told <= 4 * numbers
    assert told == 50 * stored_numbers(model, 1, matrix=matrix)


@pytest.mark.parametrize("act", ["relu", "relu_pe"])
def test_no_second_derivative_is_kept_of_a_piecewise_linear_field(act):
    field = linearize(small_field(act, depth=3), mse, points())
    assert field.bends == [None] * 3


def test_nothing_is_kept_of_the_model_but_its_weights():
    model = small_field()
    field = linearize(model, mse, points())
    assert not any(isinstance(value, CoordinateMLP) for value in vars(field).values())
    assert not any(weight.requires_grad for weight in field.weights)
    assert not field.products(rows_of(model, 2)).requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("num", [1, 16])
def test_products_on_a_gpu(matrix, num):
    signal, model = points(num_points=300, num_outputs=2), small_field("sine", 2, depth=3)
    rows = rows_of(model, num)
    expected = linearize(model, mse, signal, matrix).products(rows)
    ours = linearize(model.cuda(), mse, signal.to(device="cuda"), matrix).products(rows.cuda())
    assert ours.is_cuda
    assert_same(ours.cpu(), expected)
