import math

import mpmath
import numpy as np
import pytest
import torch
from torch.func import grad, hessian

from hessian_lab.losses import LOSSES, bce, mse
from tests.reference import assert_same

GENERATOR = torch.Generator().manual_seed(0)
PREDICTIONS = torch.randn(7, 3, dtype=torch.float64, generator=GENERATOR)
VALUES = torch.rand(7, 3, dtype=torch.float64, generator=GENERATOR)
LARGE = [-1e4, -800.0, -40.0, -1.0, -1e-8, 0.0, 1e-8, 1.0, 40.0, 800.0, 1e4]


def scalar(number):
    return torch.tensor(number, dtype=torch.float64)


def cross_entropy(logits, values):
    """Return -y log σ(z) - (1 - y) log(1 - σ(z)) by numpy, stable at any logit."""
    return np.maximum(logits, 0) - logits * values + np.log1p(np.exp(-np.abs(logits)))


def test_names_of_the_losses():
    assert list(LOSSES.items()) == [("mse", mse), ("bce", bce)]


def test_mse_is_half_the_square_summed_over_channels_averaged_over_points():
    difference = PREDICTIONS.numpy() - VALUES.numpy()
    expected = 0.5 * (difference**2).sum(axis=1).mean(axis=0)

    assert_same(mse(PREDICTIONS, VALUES), scalar(expected), roundings=10)


def test_mse_by_hand():
    predictions = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    assert mse(predictions, torch.zeros_like(predictions)) == (1 + 4 + 9 + 16) / 4


def test_torch_mse_is_two_over_the_channels_of_ours():
    theirs = torch.nn.MSELoss()(PREDICTIONS, VALUES)
    assert_same(theirs, 2 / 3 * mse(PREDICTIONS, VALUES), roundings=10)


def test_bce_is_summed_over_channels_averaged_over_points():
    entropy = cross_entropy(PREDICTIONS.numpy(), VALUES.numpy())

    assert_same(bce(PREDICTIONS, VALUES), scalar(entropy.sum(axis=1).mean()), roundings=10)


def test_bce_by_hand():
    logits = torch.zeros(5, 3, dtype=torch.float64)
    assert_same(bce(logits, torch.ones_like(logits)), scalar(3 * math.log(2)), roundings=4)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("logit", LARGE)
def test_bce_of_one_number_is_its_definition(logit, value):
    with mpmath.workdps(40):
        z, y = mpmath.mpf(logit), mpmath.mpf(value)
        # -y log σ(z) - (1 - y) log σ(-z)
        expected = y * mpmath.log1p(mpmath.exp(-z)) + (1 - y) * mpmath.log1p(mpmath.exp(z))

    actual = bce(scalar([[logit]]), scalar([[value]]))
    assert_same(actual, scalar(float(expected)), scale=max(abs(logit), 1.0), roundings=4)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_is_the_mean_of_its_points(loss):
    each = torch.stack(
        [loss(PREDICTIONS[i : i + 1], VALUES[i : i + 1]) for i in range(len(VALUES))]
    )
    assert_same(loss(PREDICTIONS, VALUES), each.mean(), roundings=10)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_is_the_sum_of_its_channels(loss):
    each = torch.stack([loss(PREDICTIONS[:, [k]], VALUES[:, [k]]) for k in range(3)])
    assert_same(loss(PREDICTIONS, VALUES), each.sum(), roundings=10)


def test_gradient_of_mse_is_the_residual_over_the_points():
    actual = grad(mse)(PREDICTIONS, VALUES)
    assert_same(actual, (PREDICTIONS - VALUES) / 7, roundings=4)


def test_curvature_of_mse_is_the_identity_over_the_points():
    actual = hessian(mse)(PREDICTIONS, VALUES).reshape(21, 21)
    assert_same(actual, torch.eye(21, dtype=torch.float64) / 7, roundings=4)


def test_gradient_of_bce_is_the_probability_less_the_value_over_the_points():
    probability = 1 / (1 + np.exp(-PREDICTIONS.numpy()))
    expected = (torch.from_numpy(probability) - VALUES) / 7

    assert_same(grad(bce)(PREDICTIONS, VALUES), expected, roundings=10)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_curvature_of_bce_is_finite_and_that_of_the_definition_at_every_logit(value):
    logits = scalar(LARGE).reshape(-1, 1)
    with mpmath.workdps(40):
        # σ(z) σ(-z), whatever the value.
        expected = [float(1 / (2 + mpmath.exp(z) + mpmath.exp(-mpmath.mpf(z)))) for z in LARGE]

    curvature = hessian(bce)(logits, torch.full_like(logits, value))
    actual = curvature.reshape(len(LARGE), len(LARGE))
    assert_same(actual, torch.diag(scalar(expected)) / len(LARGE), roundings=10)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_curvature_of_bce_by_double_backward_is_that_by_forward_mode(value):
    logits = scalar(LARGE).reshape(-1, 1).requires_grad_()
    values = torch.full_like(logits, value).detach()
    (slope,) = torch.autograd.grad(bce(logits, values), logits, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), logits)

    expected = hessian(bce)(logits.detach(), values).reshape(len(LARGE), -1).sum(dim=1)
    assert_same(curvature.squeeze(1), expected, roundings=10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_has_the_precision_of_its_arguments(loss, dtype):
    result = loss(PREDICTIONS.to(dtype), VALUES.to(dtype))

    assert result.dtype == dtype
    assert result.shape == ()


def test_losses_vanish_where_they_should():
    certain = torch.where(VALUES > 0.5, 1e4, -1e4).double()

    assert mse(PREDICTIONS, PREDICTIONS) == 0
    assert bce(certain, (VALUES > 0.5).double()) == 0
