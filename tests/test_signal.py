import dataclasses
import re

import numpy as np
import pytest
import torch

from hessian_lab.losses import bce, mse
from hessian_lab.signal import Signal, Source

COORDS = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)
VALUES = torch.linspace(0, 1, 18, dtype=torch.float64).reshape(6, 3)


def test_points_are_counted_in_rows():
    assert Signal(COORDS, VALUES).num_points == 6


def test_the_loss_is_the_mean_squared_error_unless_given():
    assert Signal(COORDS, VALUES).loss is mse
    assert Signal(COORDS, VALUES, bce).loss is bce


def test_a_signal_of_ones_own_has_neither_grid_nor_source():
    signal = Signal(COORDS, VALUES)

    assert signal.shape is None
    assert signal.source is None


def test_a_signal_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Signal(COORDS, VALUES).values = COORDS


def test_values_may_have_any_number_and_any_size():
    assert torch.equal(Signal(COORDS, 1e30 * VALUES - 5).values, 1e30 * VALUES - 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_another_precision_rounds_coordinates_and_values(dtype):
    signal = Signal(COORDS, VALUES).to(dtype=dtype)

    assert torch.equal(signal.coords, COORDS.to(dtype))
    assert torch.equal(signal.values, VALUES.to(dtype))


def test_moving_keeps_loss_grid_and_source():
    source = Source("name", "author", "digest")
    signal = Signal(COORDS, VALUES, bce, (2, 3), source)
    moved = signal.to(dtype=torch.float32, device="cpu")

    assert (moved.loss, moved.shape, moved.source) == (bce, (2, 3), source)


def test_moving_nowhere_changes_nothing():
    signal = Signal(COORDS, VALUES).to()

    assert torch.equal(signal.coords, COORDS)
    assert torch.equal(signal.values, VALUES)
    assert signal.coords.dtype == torch.float64


def test_moving_leaves_the_original_alone():
    signal = Signal(COORDS, VALUES)
    signal.to(dtype=torch.float32)

    assert signal.coords.dtype == signal.values.dtype == torch.float64


@pytest.mark.parametrize(
    ("coords", "values", "message"),
    [
        (COORDS.long(), VALUES, "coords must be a floating-point tensor, got torch.int64."),
        (COORDS, VALUES > 0.5, "values must be a floating-point tensor, got torch.bool."),
        (
            COORDS.to(torch.complex128),
            VALUES,
            "coords must be a floating-point tensor, got torch.complex128.",
        ),
        (COORDS.tolist(), VALUES, "coords must be a floating-point tensor, got list."),
        (COORDS, VALUES.numpy(), "values must be a floating-point tensor, got float64."),
        (COORDS, None, "values must be a floating-point tensor, got NoneType."),
        (
            COORDS,
            VALUES.float(),
            "values must have the dtype of coords, torch.float64, got torch.float32.",
        ),
    ],
)
def test_refuses_types(coords, values, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        Signal(coords, values)


@pytest.mark.parametrize(
    ("coords", "values", "message"),
    [
        (COORDS[:, 0], VALUES, "coords must have shape [p, d], got [6]."),
        (COORDS[None], VALUES, "coords must have shape [p, d], got [1, 6, 2]."),
        (COORDS, VALUES[:, 0], "values must have shape [p, c], got [6]."),
        (COORDS[:0], VALUES[:0], "coords must have shape [p, d], got [0, 2]."),
        (COORDS, VALUES[:0], "values must have shape [p, c], got [0, 3]."),
        (COORDS[:, :0], VALUES, "coords must have shape [p, d], got [6, 0]."),
        (COORDS, VALUES[:, :0], "values must have shape [p, c], got [6, 0]."),
        (COORDS, VALUES[:5], "values must have one row per point, 6, got 5."),
        (COORDS[:1], VALUES, "values must have one row per point, 1, got 6."),
    ],
)
def test_refuses_shapes(coords, values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Signal(coords, values)


@pytest.mark.parametrize("name", ["coords", "values"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_refuses_numbers_that_are_not_finite(name, number):
    given = {"coords": COORDS.clone(), "values": VALUES.clone()}
    given[name][4, 1] = number

    with pytest.raises(ValueError, match=rf"^{name} must be finite, got NaN or Inf\.$"):
        Signal(**given)


def test_refuses_a_precision_in_which_the_values_overflow():
    with pytest.raises(ValueError, match=r"values must be finite, got NaN or Inf\."):
        Signal(COORDS, 1e6 * VALUES).to(dtype=torch.float16)
