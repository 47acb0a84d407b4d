import math

import numpy as np
import pytest
import torch
from skimage.metrics import (
    normalized_root_mse,
    peak_signal_noise_ratio,
    structural_similarity,
)
from torch import nn
from torch.func import functional_call, grad

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import LOSSES, bce
from hessian_lab.signal import Signal
from hessian_lab.training.quality import in_unit_range, iou, psnr, quality, snr, ssim
from tests.reference import assert_same


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, dtype=torch.float64, generator=generator)


def example(name="sine", channels=2):
    """Return a small field and a signal that it does not fit."""
    signal = Signal(2 * unit(30, 2) - 1, unit(30, channels, seed=1))
    return make_field(name, 2, channels, width=5, depth=2, seed=1), signal


def scalar(number):
    return torch.tensor(number, dtype=torch.float64)


@pytest.mark.parametrize("noise", [1e-6, 1e-3, 0.1, 3.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_is_that_of_scikit_image(noise, channels):
    values = unit(50, channels)
    predictions = values + noise * (unit(50, channels, seed=1) - 0.5)

    expected = peak_signal_noise_ratio(values.numpy(), predictions.numpy(), data_range=1)
    assert_same(scalar(psnr(predictions, values)), scalar(expected), scale=10.0, roundings=10)


def test_psnr_of_an_error_of_a_tenth_is_twenty_decibels():
    values = torch.full((4, 2), 0.5, dtype=torch.float64)
    assert psnr(values + 0.1, values) == pytest.approx(20, rel=1e-14)


def test_psnr_of_a_perfect_prediction_is_infinite():
    assert psnr(unit(5, 1), unit(5, 1)) == math.inf


@pytest.mark.parametrize("number", [0.0, 1.0])
def test_psnr_is_defined_at_both_ends_of_the_unit_interval(number):
    values = torch.full((4, 1), number, dtype=torch.float64)

    assert in_unit_range(values)
    assert psnr(values + 0.1, values) == pytest.approx(20, rel=1e-12)


@pytest.mark.parametrize("number", [-1e-9, 1 + 1e-9, -1.0, 255.0, math.nan])
def test_psnr_is_undefined_when_one_value_leaves_the_unit_interval(number):
    values = unit(5, 2)
    values[3, 1] = number

    assert not in_unit_range(values)
    assert math.isnan(psnr(unit(5, 2, seed=1), values))


def test_psnr_of_predictions_outside_the_unit_interval_is_defined():
    assert psnr(unit(5, 1) - 10, unit(5, 1)) == pytest.approx(-20, rel=1e-12)


def test_psnr_of_a_prediction_that_is_not_a_number_is_not_a_number():
    predictions = unit(5, 1)
    predictions[2] = math.nan

    assert math.isnan(psnr(predictions, unit(5, 1)))


def test_psnr_of_an_infinite_prediction_is_the_lowest():
    predictions = unit(5, 1)
    predictions[2] = math.inf

    assert psnr(predictions, unit(5, 1)) == -math.inf


@pytest.mark.parametrize("noise", [1e-6, 0.1, 30.0])
@pytest.mark.parametrize("channels", [1, 2])
def test_snr_is_the_root_mean_square_error_of_scikit_image_in_decibels(noise, channels):
    values = 2 * unit(60, channels) - 1
    predictions = values + noise * (unit(60, channels, seed=1) - 0.5)

    error = normalized_root_mse(values.numpy(), predictions.numpy(), normalization="euclidean")
    expected = -20 * math.log10(error)
    assert snr(predictions, values) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_snr_of_half_the_signal_is_six_decibels():
    values = 2 * unit(9, 1) - 1
    assert snr(values / 2, values) == pytest.approx(20 * math.log10(2), rel=1e-14)
    assert snr(torch.zeros_like(values), values) == 0
    assert snr(values, values) == math.inf


def test_silence_has_no_snr():
    silence = torch.zeros(4, 1, dtype=torch.float64)
    assert math.isnan(snr(silence + 0.1, silence))
    assert math.isnan(snr(silence, silence))
    assert math.isnan(snr(torch.full_like(silence, math.nan), silence + 1))


@pytest.mark.parametrize("noise", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("shape", [(11, 11, 1), (40, 17, 1), (24, 30, 3)])
def test_ssim_is_that_of_scikit_image(noise, shape):
    values = unit(*shape)
    predictions = values + noise * (unit(*shape, seed=1) - 0.5)

    expected = structural_similarity(
        *(predictions.numpy(), values.numpy()),
        **{"data_range": 1, "channel_axis": 2, "gaussian_weights": True, "sigma": 1.5},
        use_sample_covariance=False,
    )
    assert ssim(predictions, values) == pytest.approx(expected, rel=1e-12)


def test_ssim_tells_equal_images_and_those_without_a_range():
    image = unit(12, 13, 3)
    assert ssim(image, image) == pytest.approx(1, rel=1e-14)
    assert math.isnan(ssim(image, 2 * image))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((12, 12, 1), (12, 13, 1)), r"one shape .* got \[12, 12, 1\] and \[12, 13, 1\]"),
        (((12, 12), (12, 12)), r"\[rows, columns, channels\]"),
        (((10, 12, 1), (10, 12, 1)), r"at least 11 pixels a side, got \[10, 12\]"),
    ],
)
def test_ssim_refuses_other_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        ssim(*(unit(*shape) for shape in shapes))


def test_iou_counts_points_as_sets_do():
    one, other = (unit(50, 1, seed=seed)[:, 0] > 0.4 for seed in (0, 1))
    sets = [set(torch.nonzero(each)[:, 0].tolist()) for each in (one, other)]

    assert iou(one, other) == len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert iou(one, one) == 1
    assert iou(one, ~one) == 0
    assert iou(one & ~one, one & ~one) == 1


def test_iou_of_logits_is_that_of_their_signs():
    predictions = torch.tensor([[3.0], [0.1], [0.0], [-0.1], [2.0]])
    values = torch.tensor([[1.0], [1.0], [1.0], [0.0], [0.0]])
    assert iou(predictions, values) == 0.5
    assert iou(predictions, values.bool()) == 0.5


def test_iou_refuses_other_shapes_and_what_is_not_finite():
    with pytest.raises(ValueError, match=r"predictions must have the shape of values, \[3, 1\]"):
        iou(torch.zeros(3), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="predictions must be finite, got NaN or Inf"):
        iou(torch.tensor([math.nan]), torch.tensor([1.0]))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_quality_has_loss_and_psnr_of_the_whole_signal(loss):
    model, signal = example()
    predictions = model(signal.coords).detach()
    measured = quality(model, loss, signal)

    assert measured.keys() == {"loss", "psnr", "snr", "grad_norm"}
    assert measured["loss"] == float(loss(predictions, signal.values))
    if loss is bce:
        assert math.isnan(measured["psnr"])
        assert math.isnan(measured["snr"])
    else:
        assert measured["psnr"] == psnr(predictions, signal.values)
        assert measured["snr"] == snr(predictions, signal.values)
    assert all(type(number) is float for number in measured.values())


@pytest.mark.parametrize("name", ["sine", "relu", "gaussian"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_grad_norm_is_that_of_the_functional_gradient(loss, name):
    model, signal = example(name)
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def total(parameters):
        return loss(functional_call(model, parameters, (signal.coords,)), signal.values)

    flat = torch.cat([value.flatten() for value in grad(total)(parameters).values()])
    actual = quality(model, loss, signal)["grad_norm"]
    assert_same(scalar(actual), scalar(float(flat.norm())), roundings=100)


@pytest.mark.parametrize("chunk_size", [1, 7, 16])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_chunks_change_rounding_alone(loss, chunk_size):
    model, signal = example()
    whole = quality(model, loss, signal)
    cut = quality(model, loss, signal, chunk_size=chunk_size)
    for name, value in whole.items():
        if math.isnan(value):
            assert math.isnan(cut[name])
        else:
            assert_same(scalar(cut[name]), scalar(value), scale=10.0, roundings=100)


def test_a_loss_of_your_own_sees_all_points_at_once():
    model, signal = example()

    def worst(predictions, values):
        return (predictions - values).abs().max()

    expected = float(worst(model(signal.coords), signal.values).detach())
    assert quality(model, worst, signal, chunk_size=1)["loss"] == expected


def test_grad_norm_is_that_of_central_differences():
    model, signal = example("tanh", channels=1)
    loss, step = LOSSES["mse"], 1e-5
    slopes = []
    with torch.no_grad():
        for value in model.parameters():
            for entry in value.flatten().split(1):
                heights = []
                for sign in (1, -1):
                    entry += sign * step
                    heights.append(float(loss(model(signal.coords), signal.values)))
                    entry -= sign * step
                slopes.append((heights[0] - heights[1]) / (2 * step))

    # h² of truncation and eps / h of rounding.
    expected = np.linalg.norm(slopes)
    assert quality(model, loss, signal)["grad_norm"] == pytest.approx(expected, rel=1e-8)


def test_gradients_of_the_model_that_are_none_stay_none():
    model, signal = example()
    quality(model, LOSSES["mse"], signal)

    assert all(value.grad is None for value in model.parameters())


def test_gradients_of_the_model_that_are_there_stay_as_they_are():
    model, signal = example()
    for value in model.parameters():
        value.grad = torch.full_like(value, 7.0)
    kept = [value.grad for value in model.parameters()]
    quality(model, LOSSES["mse"], signal)

    for value, gradient in zip(model.parameters(), kept, strict=True):
        assert value.grad is gradient
        assert (gradient == 7).all()


def test_parameters_stay_as_they_are():
    model, signal = example()
    before = [value.detach().clone() for value in model.parameters()]
    quality(model, LOSSES["mse"], signal)

    for value, kept in zip(model.parameters(), before, strict=True):
        assert torch.equal(value, kept)


def test_quality_is_the_same_where_gradients_are_switched_off():
    model, signal = example()
    expected = quality(model, LOSSES["mse"], signal)

    with torch.no_grad():
        assert quality(model, LOSSES["mse"], signal) == expected
        assert not torch.is_grad_enabled()


def test_grad_norm_leaves_out_frozen_parameters():
    model, signal = example()
    first, *others = model.parameters()
    first.requires_grad_(False)
    loss = LOSSES["mse"](model(signal.coords), signal.values)
    flat = torch.cat([part.flatten() for part in torch.autograd.grad(loss, others)])

    actual = quality(model, LOSSES["mse"], signal)["grad_norm"]
    assert_same(scalar(actual), flat.norm(), roundings=10)


def test_a_parameter_that_is_not_used_adds_nothing_to_grad_norm():
    model, signal = example()
    expected = quality(model, LOSSES["mse"], signal)
    model.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))

    assert quality(model, LOSSES["mse"], signal) == expected
