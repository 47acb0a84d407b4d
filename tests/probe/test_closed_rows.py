import pytest
import torch
from torch import nn

from hessian_lab.errors import ResourceError
from hessian_lab.fields import ACTIVATIONS
from hessian_lab.losses import bce, mse
from hessian_lab.probe import closed_kernel, closed_rows
from hessian_lab.probe.closed_diagonal import exact_diagonal, flat
from hessian_lab.probe.closed_form import slots_of
from hessian_lab.probe.closed_kernel import kernel_squares
from hessian_lab.probe.closed_rows import exact_row_norms
from hessian_lab.probe.closed_slabs import divide, unit_numbers
from hessian_lab.probe.hessian import dense_ggn, dense_hessian, output_derivatives
from tests.probe.test_closed_diagonal import coupled_channels
from tests.probe.test_hessian import tied
from tests.reference import assert_same, autograd_hessian, points, small_field

# Agreement with torch.func.hessian to 1e-12 of the largest norm.
ROUNDINGS = 1e-12 / torch.finfo(torch.float64).eps
DENSE = {"hessian": dense_hessian, "ggn": dense_ggn}


@pytest.fixture
def slabs(monkeypatch):
    """Return a function that sets the numbers in a slab, and how many units it has at least."""

    def setter(numbers, least=1):
        monkeypatch.setattr(closed_rows, "SLAB_NUMBERS", numbers)
        monkeypatch.setattr(closed_rows, "LEAST_UNITS", least)

    return setter


@pytest.mark.parametrize("depth", range(5))
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_norms_are_those_of_the_autograd_hessian(act, depth):
    num_outputs = 1 + depth % 3
    signal, model = points(num_outputs=num_outputs), small_field(act, num_outputs, depth, width=4)
    ours = exact_row_norms(model, mse, signal, chunk_size=16)
    expected = autograd_hessian(model, mse, signal).norm(dim=1)
    assert_same(ours, expected, roundings=ROUNDINGS)


@pytest.mark.parametrize("matrix", DENSE)
@pytest.mark.parametrize("numbers", [1, 300, 3000, 10**9])
@pytest.mark.parametrize("width", [1, 2, 9, 17])
def test_norms_hold_at_every_width_and_slab(width, numbers, matrix, slabs):
    slabs(numbers)
    signal, model = points(num_points=11, num_outputs=3), small_field("tanh", 3, 4, width)
    ours = exact_row_norms(model, mse, signal, matrix=matrix)
    assert_same(ours, DENSE[matrix](model, mse, signal).norm(dim=1))


@pytest.mark.parametrize("matrix", DENSE)
def test_norms_hold_where_tiles_and_steps_end_inside_bands(matrix, slabs, monkeypatch):
    monkeypatch.setattr("hessian_lab.probe.closed_form.TILE_NUMBERS", 1 << 14)
    slabs(1 << 19)
    signal, model = points(num_points=60, num_outputs=9), small_field("tanh", 9, 3, width=36)
    ours = exact_row_norms(model, mse, signal, matrix=matrix, chunk_size=25)
    assert_same(ours, DENSE[matrix](model, mse, signal).norm(dim=1))


@pytest.mark.parametrize("num_points", [5, 37])
@pytest.mark.parametrize("matrix", DENSE)
@pytest.mark.parametrize(
    "loss",
    [mse, bce, nn.MSELoss(), nn.HuberLoss(delta=0.3), nn.L1Loss(), coupled_channels],
    ids=["mse", "bce", "MSE", "Huber", "L1", "coupled"],
)
def test_norms_take_any_mean_over_points(loss, matrix, num_points):
    signal = points(num_points=num_points, num_outputs=2)
    model = small_field("gaussian", 2, 3)
    expected = DENSE[matrix](model, loss, signal).norm(dim=1)
    ours = exact_row_norms(model, loss, signal, matrix=matrix)
    assert_same(ours, expected, scale=max(float(expected.max()), torch.finfo(ours.dtype).tiny))


@pytest.mark.parametrize("matrix", DENSE)
@pytest.mark.parametrize("chunk_size", [1, 7, 36, 37, 38, 1000])
def test_chunks_do_not_change_the_norms(chunk_size, matrix):
    signal, model = points(num_outputs=2), small_field(num_outputs=2, depth=4)
    whole = exact_row_norms(model, mse, signal, matrix=matrix)
    ours = exact_row_norms(model, mse, signal, matrix=matrix, chunk_size=chunk_size)
    assert_same(ours, whole, roundings=100)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_kernel_gives_the_squares_of_the_ggn(act, num_outputs, monkeypatch):
    monkeypatch.setattr(closed_kernel, "PANEL_NUMBERS", 700)
    signal, model = points(num_outputs=num_outputs), small_field(act, num_outputs, 3)
    derivatives = output_derivatives(model, bce, signal.coords, signal.values)
    ours = flat(kernel_squares(model, signal.coords, *derivatives))
    assert_same(ours, dense_ggn(model, bce, signal).square().sum(dim=1))


@pytest.mark.parametrize("num_points", [1, 3, 9])
def test_kernel_of_a_few_points_gives_the_squares(num_points):
    signal, model = points(num_points=num_points), small_field(depth=3)
    derivatives = output_derivatives(model, mse, signal.coords, signal.values)
    ours = flat(kernel_squares(model, signal.coords, *derivatives))
    assert_same(ours, dense_ggn(model, mse, signal).square().sum(dim=1))


def test_kernel_serves_the_ggn_of_few_points_alone(monkeypatch):
    model, whole, few = small_field(num_outputs=2), points(37, 2, 2), points(14, 2, 2)
    # 57 parameters: 14 points of 2 outputs make a kernel of 28 × 28 in place of 14 × 2² rows.
    assert sum(value.numel() for value in model.parameters()) == 57
    with monkeypatch.context() as patch:
        patch.setattr(closed_rows, "kernel_squares", None)
        exact_row_norms(model, mse, few)
        exact_row_norms(model, mse, whole, matrix="ggn")
        exact_row_norms(model, mse, points(15, 2, 2), matrix="ggn")
    monkeypatch.setattr(closed_rows, "_slab_squares", None)
    exact_row_norms(model, mse, few, matrix="ggn")


def test_norm_of_the_norms_is_the_frobenius_norm_and_bounds_the_diagonal():
    signal, model = points(), small_field(depth=3)
    norms = exact_row_norms(model, mse, signal)
    assert_same(norms.norm(), torch.linalg.matrix_norm(dense_hessian(model, mse, signal)))
    diagonal = exact_diagonal(model, mse, signal)
    assert (diagonal.abs() <= norms * (1 + 1e-12)).all()


@pytest.mark.parametrize("matrix", DENSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-22, 1e-12, 1.0, 1e12, 1e22])
def test_scaling_the_loss_scales_the_norms(scale, dtype, matrix):
    signal, model = points().to(dtype=dtype), small_field(depth=3, dtype=dtype)
    scaled = exact_row_norms(model, lambda f, y: scale * mse(f, y), signal, matrix=matrix)
    assert scaled.dtype == dtype
    assert_same(scaled / scale, exact_row_norms(model, mse, signal, matrix=matrix))


@pytest.mark.parametrize("num_points", [20, 200])
@pytest.mark.parametrize("matrix", DENSE)
def test_float32_is_the_rounded_float64(matrix, num_points):
    signal = points(num_points).to(dtype=torch.float32)
    model = small_field(depth=3, dtype=torch.float32)
    single = exact_row_norms(model, mse, signal, matrix=matrix)
    double = exact_row_norms(model.double(), mse, signal.to(dtype=torch.float64), matrix=matrix)
    assert_same(single, double.float())


@pytest.mark.parametrize("num_points", [20, 200])
@pytest.mark.parametrize("matrix", DENSE)
def test_dead_units_have_norms_that_are_exactly_zero(matrix, num_points, slabs):
    slabs(500)
    model = small_field("relu", depth=2)
    with torch.no_grad():
        model.layers[1].bias[2] = -100.0
    dead = [15 + 2 * 5 + unit for unit in range(5)] + [15 + 25 + 2, 45 + 2]
    norms = exact_row_norms(model, mse, points(num_points), matrix=matrix)
    assert not norms[dead].any()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("numbers", [1, 2000, 20_000, 10**9])
def test_slabs_hold_every_unit_once_and_no_more_than_fits(numbers, residual):
    slots = slots_of(small_field(depth=4, width=19, num_outputs=3))
    plan = divide(slots, residual=residual, numbers=numbers)
    bands = [band for bands, _ in plan for band in bands]
    units = [(band.index, unit) for band in bands for unit in range(19)[band.rows]]
    assert sorted(units) == [
        (i, unit) for i, slot in enumerate(slots) for unit in range(slot.fan_out)
    ]
    assert [band.index for band in bands] == sorted((band.index for band in bands), reverse=True)
    for slab, total in plan:
        assert total == sum(band.numbers(slots, residual=residual) for band in slab)
        assert total <= numbers or (len(slab) == 1 and slab[0].units == 1)
    assert all(
        unit_numbers(slots, band.index, residual=residual) * band.units
        >= band.numbers(slots, residual=residual)
        for band in bands
    )


def test_slabs_shrink_where_memory_is_short(monkeypatch):
    signal, model, asked = points(num_points=5), small_field(depth=4, width=16), []
    expected = exact_row_norms(model, mse, signal)
    monkeypatch.setattr(closed_rows, "require_bytes", lambda needed, *_, **__: asked.append(needed))
    for there in (None, 1 << 21, 1 << 10):
        monkeypatch.setattr(closed_rows, "available_bytes", lambda _, there=there: there)
        assert_same(exact_row_norms(model, mse, signal), expected)
    slots, panels = slots_of(model), 6 * 5 * 17**2
    unit = max(unit_numbers(slots, i, residual=True) for i in range(5))
    whole = sum(total for _, total in divide(slots, residual=True, numbers=1 << 24))
    assert asked[0] == 8 * (panels + whole) + 8 * unit
    assert 8 * (panels + unit) < asked[1] <= (1 << 20) + 8 * unit
    assert asked[2] == 8 * (panels + unit) + 8 * unit


def test_refuses_what_does_not_fit(monkeypatch):
    for place in ("memory", "closed_rows"):
        monkeypatch.setattr(f"hessian_lab.probe.{place}.available_bytes", lambda _: 10**4)
    with pytest.raises(ResourceError, match=r"A slab of the matrix of 51 .* smaller chunk_size"):
        exact_row_norms(small_field(), mse, points())
    with pytest.raises(ResourceError, match=r"The kernel of 37 outputs .* on fewer points"):
        exact_row_norms(small_field(), mse, points(), matrix="ggn")


def test_refuses_what_has_no_closed_form():
    with pytest.raises(
        TypeError,
        match=r"got Linear\. Estimate instead: row_norms\(HessianOperator\(model, loss, signal\)\)",
    ):
        exact_row_norms(nn.Linear(2, 1), mse, points())
    with pytest.raises(ValueError, match=r"as it was built.* row_norms\(GGNOperator\("):
        exact_row_norms(tied(), mse, points(), matrix="ggn")
    with pytest.raises(ValueError, match=r"loss must be a mean over points\. .*row_norms\("):
        exact_row_norms(small_field(), lambda f, y: (f - y).square().mean().sqrt(), points())


def test_model_is_left_alone_under_no_grad_too():
    model, signal = small_field(), points()
    before = [value.clone() for value in model.parameters()]
    with torch.no_grad():
        inside = exact_row_norms(model, mse, signal)
    assert torch.equal(inside, exact_row_norms(model, mse, signal))
    assert not inside.requires_grad
    assert all(map(torch.equal, before, model.parameters()))
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_points", [20, 200])
@pytest.mark.parametrize("matrix", DENSE)
def test_norms_on_a_gpu(matrix, num_points):
    signal, model = points(num_points), small_field(depth=3)
    expected = exact_row_norms(model, mse, signal, matrix=matrix)
    ours = exact_row_norms(model.cuda(), mse, signal.to(device="cuda"), matrix=matrix)
    assert ours.is_cuda
    assert_same(ours.cpu(), expected)
