import math

import pytest
import torch
from torch import nn

from hessian_lab.fields import ACTIVATIONS
from hessian_lab.losses import bce, mse
from hessian_lab.probe.closed_bands import assemble_bands, largest_unit, split, sum_slab
from hessian_lab.probe.closed_form import Scratch, slots_of
from hessian_lab.probe.closed_slabs import Slab, divide
from hessian_lab.probe.hessian import dense_ggn, dense_hessian, output_derivatives
from tests.probe.test_closed_diagonal import coupled_channels
from tests.reference import assert_same, autograd_hessian, points, small_field

DENSE = {"hessian": dense_hessian, "ggn": dense_ggn}
# Roundings of the largest entry, times those of a few dozen points and maps.
FEW = 50


def by_slabs(model, loss, signal, *, numbers=1, matrix="hessian", chunk_size=None):
    """Return the matrix of slabs of at most so many numbers, in one full of NaN before."""
    slots = slots_of(model)
    size = slots[-1].bias.stop
    out = torch.full((size, size), math.nan, dtype=signal.coords.dtype)
    plan = divide(slots, residual=matrix == "hessian", numbers=numbers)
    assemble_bands(
        model,
        signal.coords,
        *output_derivatives(model, loss, signal.coords, signal.values),
        matrix=matrix,
        slabs=[bands for bands, _ in plan],
        out=out,
        chunk_size=chunk_size,
    )
    return out


@pytest.mark.parametrize("depth", range(5))
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_slabs_of_one_unit_are_the_autograd_hessian(act, depth):
    num_outputs = 1 + depth % 3
    signal, model = points(num_outputs=num_outputs), small_field(act, num_outputs, depth, width=4)
    ours = by_slabs(model, mse, signal, chunk_size=16)
    expected = autograd_hessian(model, mse, signal)
    assert_same(ours, expected, roundings=1e-12 / torch.finfo(torch.float64).eps)
    assert torch.equal(ours, ours.T)


@pytest.mark.parametrize("matrix", DENSE)
@pytest.mark.parametrize("numbers", [1, 300, 3000, 30_000, 10**9])
@pytest.mark.parametrize("width", [1, 2, 9, 17])
def test_any_slabs_are_the_whole(width, numbers, matrix):
    signal, model = points(num_points=11, num_outputs=3), small_field("tanh", 3, 4, width)
    ours = by_slabs(model, mse, signal, numbers=numbers, matrix=matrix)
    assert_same(ours, DENSE[matrix](model, mse, signal), roundings=FEW)
    assert torch.equal(ours, ours.T)


@pytest.mark.parametrize("matrix", DENSE)
@pytest.mark.parametrize("tile", [1, 1 << 14])
def test_tiles_and_steps_may_end_inside_bands(matrix, tile, monkeypatch):
    monkeypatch.setattr("hessian_lab.probe.closed_form.TILE_NUMBERS", tile)
    signal, model = points(num_points=60, num_outputs=9), small_field("tanh", 9, 3, width=20)
    ours = by_slabs(model, mse, signal, numbers=1 << 17, matrix=matrix, chunk_size=25)
    assert_same(ours, DENSE[matrix](model, mse, signal), roundings=FEW)
    assert torch.equal(ours, ours.T)


@pytest.mark.parametrize("matrix", DENSE)
@pytest.mark.parametrize(
    "loss",
    [bce, nn.HuberLoss(delta=0.3), nn.L1Loss(), coupled_channels],
    ids=["bce", "Huber", "L1", "coupled"],
)
def test_slabs_take_any_mean_over_points_and_precision(loss, matrix):
    signal, model = points(num_outputs=2), small_field("gaussian", 2, 3)
    for dtype in (torch.float64, torch.float32):
        some, field = signal.to(dtype=dtype), model.to(dtype)
        ours = by_slabs(field, loss, some, numbers=500, matrix=matrix)
        expected = DENSE[matrix](field, loss, some)
        assert ours.dtype == dtype
        # The GGN of an absolute error is zero.
        scale = max(float(expected.abs().max()), torch.finfo(dtype).tiny)
        assert_same(ours, expected, scale=scale, roundings=FEW)


@pytest.mark.parametrize("matrix", DENSE)
def test_sums_of_another_process_and_of_other_points_fill_a_slab(matrix):
    signal, model = points(num_outputs=2), small_field("sine", 2, 3)
    slots, residual = slots_of(model), matrix == "hessian"
    derivatives = output_derivatives(model, mse, signal.coords, signal.values)
    out = torch.full((slots[-1].bias.stop,) * 2, math.nan, dtype=torch.float64)
    for bands in split(slots, 3, residual=residual):
        received = Slab(slots, bands, residual=residual, space=Scratch(signal.coords))
        for rows in (slice(0, 20), slice(20, None)):
            parts = (part[rows] for part in (signal.coords, *derivatives))
            space = Scratch(signal.coords)
            sent = sum_slab(model, *parts, bands=bands, residual=residual, space=space)
            assert sent.sums.is_contiguous()
            received.sums += torch.from_numpy(sent.sums.numpy().copy())
        received.write(out)
    assert_same(out, DENSE[matrix](model, mse, signal), roundings=FEW)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 50, 10**4])
def test_a_split_is_even_and_has_every_unit_once(count, residual):
    slots = slots_of(small_field(depth=4, width=19, num_outputs=3))
    slabs = split(slots, count, residual=residual)
    units = [(band.index, unit) for slab in slabs for band in slab for unit in range(19)[band.rows]]
    assert sorted(units) == [
        (i, unit) for i, slot in enumerate(slots) for unit in range(slot.fan_out)
    ]
    assert len(slabs) <= count
    sizes = [sum(band.numbers(slots, residual=residual) for band in slab) for slab in slabs]
    # A map is cut into bands of equal height: never more than two units beyond an even share.
    unit = largest_unit(slots, residual=residual)
    assert max(sizes) <= 1.35 * sum(sizes) / min(count, len(units)) + 2 * unit


def test_a_split_needs_a_slab():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        split(slots_of(small_field()), 0, residual=True)


def test_model_is_left_alone_and_nothing_is_tracked():
    model, signal = small_field(), points()
    before = [value.clone() for value in model.parameters()]
    assert not by_slabs(model, mse, signal).requires_grad
    assert all(map(torch.equal, before, model.parameters()))
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("matrix", DENSE)
def test_slabs_of_a_gpu_are_written_on_the_host(matrix):
    signal, model = points(), small_field(depth=3)
    expected = DENSE[matrix](model, mse, signal)
    ours = by_slabs(model.cuda(), mse, signal.to(device="cuda"), numbers=3000, matrix=matrix)
    assert_same(ours, expected)
