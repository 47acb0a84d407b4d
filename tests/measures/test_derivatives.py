import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import hessian, jacrev, vmap

from hessian_lab.errors import UsageError
from hessian_lab.fields.mlp import make_field
from hessian_lab.measures.derivatives import (
    Derivatives,
    field_derivatives,
    grid_derivatives,
    grid_spacings,
    measure_derivatives,
)
from hessian_lab.signal import Signal
from hessian_lab.signals import load_signal
from hessian_lab.training.files import locked
from hessian_lab.training.loop import train
from hessian_lab.training.run import load_run
from hessian_lab.training.setup import Setup
from tests.measures.test_estimates import damaged
from tests.reference import assert_same, points

FIELD = Setup(act="sine", omega=5.0, signal="chelsea", size=7, width=6, depth=2, steps=4)
ACTS = ["relu", "relu_pe", "sine", "gaussian", "wavelet", "sinc", "tanh"]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    return train(FIELD, out=tmp_path_factory.mktemp("derivatives") / "run")


@pytest.fixture
def run(trained_once, tmp_path):
    return load_run(shutil.copytree(trained_once.path, tmp_path / "run"))


# The field's own.


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("act", ACTS)
def test_derivatives_are_those_of_torch_func(act, depth):
    field = make_field(act, 2, 3, width=7, depth=depth, octaves=3, seed=1)
    coords = points(20).coords
    found = field_derivatives(field, coords, chunk_size=8)

    def value(point):
        return field(point.unsqueeze(0)).squeeze(0)

    bends = vmap(hessian(value))(coords)
    assert_same(found.values, field(coords).detach())
    assert_same(found.gradient, vmap(jacrev(value))(coords).detach(), scale=1.0)
    laplacian = bends.diagonal(dim1=2, dim2=3).sum(dim=2).detach()
    assert_same(found.laplacian, laplacian, scale=float(bends.detach().abs().max()) + 1)


def test_derivatives_are_the_closed_form_of_one_hidden_layer():
    field = make_field("sine", 2, 1, width=5, depth=1, omega=3.0, seed=2)
    coords = points(15).coords
    first, last = (part.weight.detach() for part in field.maps)
    phase = 3 * (coords @ first.T + field.maps[0].bias.detach())
    gradient = (3 * torch.cos(phase) * last) @ first
    laplacian = (-9 * torch.sin(phase) * last) @ first.square().sum(dim=1)
    found = field_derivatives(field, coords)
    assert_same(found.gradient[:, 0], gradient)
    assert_same(found.laplacian[:, 0], laplacian)


@pytest.mark.parametrize("act", ["relu_pe", "gaussian", "wavelet"])
def test_derivatives_are_the_limit_of_differences(act):
    field = make_field(act, 2, 1, width=6, depth=2, octaves=2, sigma=0.5, omega=3.0, seed=1)
    coords, step = points(12).coords, 1e-4
    found = field_derivatives(field, coords)
    bend = torch.zeros(12, 1, dtype=torch.float64)
    with torch.no_grad():
        for axis in range(2):
            shift = torch.zeros(2, dtype=torch.float64)
            shift[axis] = step
            ahead, behind = field(coords + shift), field(coords - shift)
            slope = (ahead - behind) / (2 * step)
            torch.testing.assert_close(
                found.gradient[:, :, axis], slope, rtol=0, atol=1e-6 * float(slope.abs().max())
            )
            bend += (ahead - 2 * field(coords) + behind) / step**2
    torch.testing.assert_close(found.laplacian, bend, rtol=0, atol=1e-5 * float(bend.abs().max()))


def test_a_module_that_ignores_its_points_is_flat():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, coords):
            return self.level.expand(len(coords), 1)

    found = field_derivatives(Constant(), points(5).coords)
    assert not found.gradient.any()
    assert not found.laplacian.any()


def test_luminance_is_linear():
    field = make_field("tanh", 2, 3, width=4, depth=1)
    found = field_derivatives(field, points(9).coords).luminance()
    with torch.no_grad():
        last = field.maps[-1]
        weights = torch.tensor([[0.299, 0.587, 0.114]], dtype=torch.float64)
        grey = make_field("tanh", 2, 1, width=4, depth=1)
        grey.maps[0].load_state_dict(field.maps[0].state_dict())
        grey.maps[1].weight.copy_(weights @ last.weight)
        grey.maps[1].bias.copy_(weights @ last.bias)
    expected = field_derivatives(grey, points(9).coords)
    for kind in ("values", "gradient", "laplacian"):
        assert_same(getattr(found, kind), getattr(expected, kind))


# The grid's.


@pytest.mark.parametrize("dims", [1, 2])
def test_differences_of_a_parabola_are_exact(dims):
    axes = [torch.linspace(-1, 1, count, dtype=torch.float64) for count in (9, 6)[:dims]]
    coords = torch.cartesian_prod(*axes).reshape(-1, dims)
    factors = torch.tensor([2.0, -3.0], dtype=torch.float64)[:dims]
    values = torch.stack([coords.square() @ factors, coords @ factors], dim=1)
    shape = tuple(len(axis) for axis in axes)
    spacings = grid_spacings(Signal(coords, values, shape=shape))
    assert spacings == pytest.approx([0.25, 0.4][:dims])
    found = grid_derivatives(values, shape, spacings)
    assert_same(found.gradient[:, 0], 2 * factors * coords)
    assert_same(found.gradient[:, 1], factors.expand(len(coords), dims))
    assert_same(found.laplacian[:, 0], (2 * factors.sum()).expand(len(coords)), roundings=1e4)
    assert_same(found.laplacian[:, 1], torch.zeros(len(coords)).double(), scale=1e3)


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (points(30), "signal must fill a grid"),
        (replace(points(30), shape=(30,)), "signal must fill a grid"),
        (replace(points(30), shape=(5, 5)), "signal must fill a grid"),
        (replace(points(30), shape=(5, 6)), "signal must have equal spacings, axis 0 has not"),
        (load_signal("camera", 2), "at least 3 points along each axis"),
    ],
)
def test_what_is_no_grid_is_refused(signal, message):
    with pytest.raises(UsageError, match=message):
        grid_spacings(signal)


# Along a run.


def test_errors_are_root_mean_squares(run):
    result = measure_derivatives(run)
    assert (result.step, result.shape) == (4, (7, 7))
    model, signal = run.model(4), run.signal()
    with torch.no_grad():
        residual = (model(signal.coords) - signal.values).numpy()
    assert result.errors["values"].error == pytest.approx(np.sqrt((residual**2).mean()))
    image = signal.values.numpy().reshape(7, 7, 3)
    row = (image[2:, 1:-1] - image[:-2, 1:-1]) / (2 / 3)
    column = (image[1:-1, 2:] - image[1:-1, :-2]) / (2 / 3)
    target = np.stack([row, column], axis=-1)
    assert result.errors["gradient"].target == pytest.approx(np.sqrt((target**2).mean()))
    ours = result.field.gradient.numpy().reshape(7, 7, 3, 2)[1:-1, 1:-1]
    assert result.errors["gradient"].error == pytest.approx(np.sqrt(((ours - target) ** 2).mean()))
    centre = image[1:-1, 1:-1]
    neighbours = image[2:, 1:-1] + image[:-2, 1:-1] + image[1:-1, 2:] + image[1:-1, :-2]
    bend = (neighbours - 4 * centre) * 9
    assert result.errors["laplacian"].target == pytest.approx(np.sqrt((bend**2).mean()))
    assert result.errors["values"].sampled_error == result.errors["values"].error
    assert not result.failures


def test_a_field_between_points_is_told_from_one_on_them(tmp_path):
    # sin 2πx with one more wave that vanishes at every point of the grid.
    coords = torch.linspace(-1, 1, 9, dtype=torch.float64).unsqueeze(1)
    signal = Signal(coords, torch.sin(2 * math.pi * coords), shape=(9,))

    class Wave(nn.Module):
        def __init__(self):
            super().__init__()
            self.size = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x):
            return torch.sin(2 * math.pi * x) + self.size * torch.sin(4 * math.pi * x)

    setup = Setup(steps=0, optimizer="sgd")
    run = train(setup, out=tmp_path / "run", model=Wave(), signal=signal)
    slope = measure_derivatives(load_run(run.path, model=Wave())).errors["gradient"]
    # Central differences at a quarter of the wave: 2π cos(2πx) is seen as 4 cos(2πx).
    assert slope.sampled_error == pytest.approx(0, abs=1e-12)
    seen = (2 * math.pi - 4) * np.cos(2 * math.pi * coords.numpy()[1:-1])
    gap = seen + 4 * math.pi * np.cos(4 * math.pi * coords.numpy()[1:-1])
    assert slope.error == pytest.approx(np.sqrt((gap**2).mean()))


def test_the_file_holds_both_on_the_grid(run):
    result = measure_derivatives(run, 2)
    with np.load(run.path / "derivatives.npz") as arrays:
        assert int(arrays["step"]) == 2
        assert arrays["gradient"].shape == arrays["target_gradient"].shape == (7, 7, 3, 2)
        assert arrays["laplacian"].shape == (7, 7, 3)
        assert arrays["values"].reshape(49, 3) == pytest.approx(result.field.values.numpy())
        target = run.signal().values.numpy()
        assert arrays["target_values"].reshape(49, 3) == pytest.approx(target)


def test_single_precision_training_is_differentiated_in_double(tmp_path):
    run = train(replace(FIELD, dtype="float32"), out=tmp_path / "run")
    result = measure_derivatives(run)
    expected = field_derivatives(run.model(4).double(), run.signal().coords.double())
    assert result.field.gradient.dtype == torch.float64
    assert torch.equal(result.field.laplacian, expected.laplacian)
    assert not result.failures


def test_a_step_without_checkpoint_is_refused(run):
    with pytest.raises(UsageError, match=r"step must be a checkpoint \(0, 1, 2, 3, 4\), got 9"):
        measure_derivatives(run, 9)
    assert not (run.path / "derivatives.npz").exists()


def test_two_processes_do_not_write_into_one_directory(run):
    with locked(run.path), pytest.raises(UsageError, match="out must not be in use"):
        measure_derivatives(run)


def test_a_checkpoint_that_is_not_finite_fails_its_check(run):
    result = measure_derivatives(damaged(run))
    assert "step 4: gradient of the field are not finite" in result.failures


def test_luminance_of_one_channel_is_itself():
    one = Derivatives(torch.rand(4, 1), torch.rand(4, 1, 2), torch.rand(4, 1))
    assert torch.equal(one.luminance().gradient, one.gradient)
