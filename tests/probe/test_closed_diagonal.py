import pytest
import torch
from torch import nn

from hessian_lab.errors import ResourceError
from hessian_lab.fields import ACTIVATIONS
from hessian_lab.losses import bce, mse
from hessian_lab.probe import closed_diagonal
from hessian_lab.probe.closed_diagonal import exact_diagonal
from hessian_lab.probe.hessian import dense_ggn, dense_hessian, hessian_terms
from tests.probe.test_hessian import doubled, hooked, reparametrized, tied
from tests.reference import assert_same, autograd_hessian, points, small_field

# Agreement with torch.func.hessian to 1e-12 of the largest entry.
ROUNDINGS = 1e-12 / torch.finfo(torch.float64).eps
DENSE = {"hessian": dense_hessian, "ggn": dense_ggn}


def coupled_channels(predictions, values):
    """A mean over points whose curvature is not diagonal in the channels."""
    cubes = (predictions - values).abs() ** 3
    return cubes.mean() + (predictions[:, :1] * predictions[:, 1:]).mean()


@pytest.mark.parametrize("depth", range(5))
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_diagonal_is_that_of_the_autograd_hessian(act, depth):
    num_outputs = 1 + depth % 3
    signal, model = points(num_outputs=num_outputs), small_field(act, num_outputs, depth, width=4)
    ours = exact_diagonal(model, mse, signal, chunk_size=16)
    expected = autograd_hessian(model, mse, signal).diagonal()
    assert_same(ours, expected, roundings=ROUNDINGS)


@pytest.mark.parametrize("matrix", DENSE)
@pytest.mark.parametrize("width", [1, 2, 9, 17, 33])
def test_diagonal_is_that_of_the_dense_matrix_at_every_width(width, matrix):
    signal, model = points(num_points=11, num_outputs=3), small_field("tanh", 3, 4, width)
    ours = exact_diagonal(model, mse, signal, matrix=matrix)
    assert_same(ours, DENSE[matrix](model, mse, signal).diagonal())


@pytest.mark.parametrize("matrix", DENSE)
@pytest.mark.parametrize(
    "loss",
    [mse, bce, nn.MSELoss(), nn.HuberLoss(delta=0.3), nn.L1Loss(), coupled_channels],
    ids=["mse", "bce", "MSE", "Huber", "L1", "coupled"],
)
def test_diagonal_takes_any_mean_over_points(loss, matrix):
    signal, model = points(num_outputs=2), small_field("gaussian", 2, 3)
    dense = DENSE[matrix](model, loss, signal)
    ours = exact_diagonal(model, loss, signal, matrix=matrix)
    assert_same(ours, dense.diagonal(), scale=float(dense.abs().max()))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_difference_of_both_diagonals_is_what_the_activation_adds(act):
    signal, model = points(num_outputs=3), small_field(act, 3, 3)
    terms = hessian_terms(model, mse, signal)
    whole = exact_diagonal(model, mse, signal)
    ggn = exact_diagonal(model, mse, signal, matrix="ggn")
    assert_same(ggn, terms.ggn.diagonal())
    scale = float(whole.abs().max())
    assert_same(whole - ggn, terms.activation.diagonal(), scale=scale)
    assert not terms.cross.diagonal().any()


@pytest.mark.parametrize("matrix", DENSE)
@pytest.mark.parametrize("chunk_size", [1, 7, 36, 37, 38, 1000])
def test_chunks_do_not_change_the_diagonal(chunk_size, matrix):
    signal, model = points(num_outputs=2), small_field(num_outputs=2, depth=4)
    whole = exact_diagonal(model, mse, signal, matrix=matrix)
    ours = exact_diagonal(model, mse, signal, matrix=matrix, chunk_size=chunk_size)
    assert_same(ours, whole, roundings=100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_scaling_the_loss_scales_the_diagonal(scale, dtype):
    signal, model = points().to(dtype=dtype), small_field(depth=3, dtype=dtype)
    scaled = exact_diagonal(model, lambda f, y: scale * mse(f, y), signal)
    assert scaled.dtype == dtype
    assert_same(scaled / scale, exact_diagonal(model, mse, signal), roundings=1e3)


@pytest.mark.parametrize("matrix", DENSE)
def test_float32_is_the_rounded_float64(matrix):
    signal, model = points().to(dtype=torch.float32), small_field(depth=3, dtype=torch.float32)
    single = exact_diagonal(model, mse, signal, matrix=matrix)
    double = exact_diagonal(model.double(), mse, signal.to(dtype=torch.float64), matrix=matrix)
    assert_same(single, double.float())


def test_points_are_summed_in_double_precision():
    # Copies of one point, one by one: a sum in single precision drifts away.
    signal, model = points(num_points=1), small_field("tanh", depth=0)
    many = type(signal)(signal.coords.expand(4096, 2), signal.values.expand(4096, 1))
    single = exact_diagonal(model.float(), mse, many.to(dtype=torch.float32), chunk_size=1)
    assert_same(single, exact_diagonal(model.double(), mse, signal).float(), roundings=4)


@pytest.mark.parametrize("matrix", DENSE)
def test_dead_units_have_entries_that_are_exactly_zero(matrix):
    model = small_field("relu", depth=2)
    with torch.no_grad():
        model.layers[1].bias[2] = -100.0
    dead = [15 + 2 * 5 + unit for unit in range(5)] + [15 + 25 + 2, 45 + 2]
    assert not exact_diagonal(model, mse, points(), matrix=matrix)[dead].any()


def test_model_and_its_gradients_are_left_alone():
    model, signal = small_field(), points()
    before = [value.clone() for value in model.parameters()]
    with torch.no_grad():
        inside = exact_diagonal(model, mse, signal)
    assert torch.equal(inside, exact_diagonal(model, mse, signal))
    assert not inside.requires_grad
    assert all(map(torch.equal, before, model.parameters()))
    assert all(value.grad is None for value in model.parameters())


def test_memory_is_asked_for_with_the_panels(monkeypatch):
    asked = []
    monkeypatch.setattr(
        closed_diagonal, "require_bytes", lambda needed, *_, **__: asked.append(needed)
    )
    for chunk_size in (None, 5):
        exact_diagonal(small_field(depth=3), mse, points(), chunk_size=chunk_size)
    # Two panels of the widest layer's square, 5 + 1, for each point of a chunk.
    assert asked == [8 * 2 * 37 * 36, 8 * 2 * 5 * 36]


def test_refuses_what_does_not_fit(monkeypatch):
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _: 10**4)
    with pytest.raises(ResourceError, match=r"diagonal of 51 parameters .* smaller chunk_size"):
        exact_diagonal(small_field(depth=2), mse, points())


def test_refuses_modules_that_are_no_coordinate_network():
    with pytest.raises(
        TypeError,
        match=r"model must be a CoordinateMLP, got Linear\. Estimate instead: "
        r"diagonal\(HessianOperator\(model, loss, signal\)\)\.",
    ):
        exact_diagonal(nn.Linear(2, 1), mse, points())


@pytest.mark.parametrize("build", [doubled, hooked, reparametrized, tied])
def test_refuses_networks_that_were_changed(build):
    with pytest.raises(
        ValueError, match=r"model must be a CoordinateMLP as it was built.*diagonal\(GGNOperator\("
    ):
        exact_diagonal(build(), mse, points(), matrix="ggn")


def test_refuses_frozen_layers():
    model = small_field()
    model.layers[0].requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter trainable"):
        exact_diagonal(model, mse, points())


def test_refuses_losses_that_couple_points():
    with pytest.raises(ValueError, match=r"loss must be a mean over points\. Estimate instead:"):
        exact_diagonal(small_field(), lambda f, y: (f - y).square().mean().sqrt(), points())


def test_refuses_other_matrices_chunks_and_mixed_precision():
    model, signal = small_field(), points()
    with pytest.raises(ValueError, match="matrix must be one of hessian, ggn, got 'fisher'"):
        exact_diagonal(model, mse, signal, matrix="fisher")
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        exact_diagonal(model, mse, signal, chunk_size=0)
    with pytest.raises(TypeError, match="signal must have the dtype of the parameters"):
        exact_diagonal(model, mse, signal.to(dtype=torch.float32))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("matrix", DENSE)
def test_diagonal_on_a_gpu(matrix):
    signal, model = points(), small_field(depth=3)
    expected = exact_diagonal(model, mse, signal, matrix=matrix)
    ours = exact_diagonal(model.cuda(), mse, signal.to(device="cuda"), matrix=matrix)
    assert ours.is_cuda
    assert_same(ours.cpu(), expected)
