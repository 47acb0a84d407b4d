from functools import cache

import mpmath
import pytest
import torch

from hessian_lab.fields import activations
from tests.reference import assert_same

PRECISIONS = (torch.float32, torch.float64)
# Roundings of φ, φ′, φ″: several each, and the argument ω z is rounded too.
ROUNDINGS = 16


def bell(z, sigma):
    return mpmath.exp(-(z**2) / (2 * mpmath.mpf(sigma) ** 2))


# The activation, the definition of mpmath numbers, and ω (0 where there is none).
CASES = {
    "relu": (activations.relu(), None, 0),
    "tanh": (activations.tanh(), mpmath.tanh, 0),
    "sine": (activations.sine(), lambda z: mpmath.sin(30 * z), 30),
    "sine ω=2.5": (activations.sine(omega=2.5), lambda z: mpmath.sin(2.5 * z), 2.5),
    "gaussian": (activations.gaussian(), lambda z: bell(z, 0.1), 0),
    "gaussian σ=0.05": (activations.gaussian(sigma=0.05), lambda z: bell(z, 0.05), 0),
    "gaussian σ=3": (activations.gaussian(sigma=3.0), lambda z: bell(z, 3), 0),
    "wavelet": (activations.wavelet(), lambda z: mpmath.cos(10 * z) * bell(z, 0.0707), 10),
    "wavelet ω=3 σ=0.5": (
        activations.wavelet(omega=3.0, sigma=0.5),
        lambda z: mpmath.cos(3 * z) * bell(z, 0.5),
        3,
    ),
    "sinc": (activations.sinc(), lambda z: mpmath.sinc(10 * z), 10),
    "sinc ω=0.7": (activations.sinc(omega=0.7), lambda z: mpmath.sinc(mpmath.mpf(0.7) * z), 0.7),
}
each_case = pytest.mark.parametrize("case", CASES)
each_smooth_case = pytest.mark.parametrize("case", [case for case in CASES if case != "relu"])
each_precision = pytest.mark.parametrize("dtype", PRECISIONS, ids=str)


def grid(omega, dtype):
    """Return 0, tiny and far points, a dense middle, and both sides of |ω z| = 1; symmetric."""
    radius = 1 / (omega or 1.0)
    eps = torch.finfo(dtype).eps
    positive = torch.cat(
        [
            torch.tensor([1e-30, 1e-12, 1e-8, 1e-6, 1e-4, 1e-3, 5.0, 20.0, 100.0]),
            torch.linspace(0.01, 3, 60, dtype=torch.float64),
            radius * (1 + eps * torch.arange(-4, 5, dtype=torch.float64)),
            radius * torch.linspace(0.8, 1.2, 9, dtype=torch.float64),
        ]
    ).to(dtype)
    return torch.cat([-positive, positive.new_zeros(1), positive])


@cache
def reference(case, dtype):
    """Return φ, φ′ and φ″ by mpmath at the rounded points, [3, p] in float64."""
    _, formula, omega = CASES[case]
    points = grid(omega, dtype).double()
    if case == "relu":
        return torch.stack([points.clamp(min=0), (points > 0).double(), 0 * points])
    with mpmath.workdps(40):
        rows = [
            [float(mpmath.diff(formula, mpmath.mpf(z), order)) for z in points.tolist()]
            for order in range(3)
        ]
    return torch.tensor(rows, dtype=torch.float64)


def assert_close_to_reference(actual, expected, z, omega):
    """Assert an error of ``ROUNDINGS`` eps of the largest value, more where ω z is large."""
    eps = torch.finfo(z.dtype).eps
    scale = float(expected.abs().max())
    allowed = ROUNDINGS * eps * scale * (1 + omega * z.double().abs())
    error = (actual.double() - expected).abs()
    assert (error <= allowed).all(), f"{(error / allowed).max():.3g} of what is allowed"


def autograd_jet(activation, z):
    z = z.clone().requires_grad_()
    value = activation.value(z)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    if slope.requires_grad:
        (curvature,) = torch.autograd.grad(slope.sum(), z)
    else:
        curvature = torch.zeros_like(z)
    return value.detach(), slope.detach(), curvature


@each_precision
@each_case
def test_jet_is_the_value_and_its_two_derivatives(case, dtype):
    activation, _, omega = CASES[case]
    z = grid(omega, dtype)
    jet = activation.jet(z)

    assert len(jet) == 3
    for actual, expected in zip(jet, reference(case, dtype), strict=True):
        assert_close_to_reference(actual, expected, z, omega)


@each_precision
@each_case
def test_autograd_of_the_value_is_the_jet(case, dtype):
    activation, _, omega = CASES[case]
    z = grid(omega, dtype)
    derivatives = autograd_jet(activation, z)

    for actual, expected in zip(derivatives, reference(case, dtype), strict=True):
        assert_close_to_reference(actual, expected, z, omega)


@each_precision
@each_case
def test_values_of_the_jet_are_the_value_itself(case, dtype):
    activation, _, omega = CASES[case]
    z = grid(omega, dtype)

    assert_same(activation.jet(z)[0], activation.value(z), roundings=4)


@each_precision
@each_case
def test_shape_and_precision_are_those_of_the_argument(case, dtype):
    activation, _, omega = CASES[case]
    z = grid(omega, dtype)[:6].reshape(3, 2)

    for result in (activation.value(z), *activation.jet(z)):
        assert result.shape == z.shape
        assert result.dtype == dtype


@each_precision
@pytest.mark.parametrize(
    ("name", "given", "at_zero"),
    [
        ("relu", {}, (0.0, 0.0, 0.0)),
        ("tanh", {}, (0.0, 1.0, 0.0)),
        ("sine", {"omega": 30.0}, (0.0, 30.0, 0.0)),
        ("gaussian", {"sigma": 0.5}, (1.0, 0.0, -4.0)),
        ("wavelet", {"omega": 2.0, "sigma": 0.5}, (1.0, 0.0, -8.0)),
        ("sinc", {"omega": 3.0}, (1.0, 0.0, -3.0)),
    ],
)
def test_value_slope_and_curvature_at_zero(name, given, at_zero, dtype):
    activation = getattr(activations, name)(**given)
    zero = torch.zeros(1, dtype=dtype)

    for jet in (activation.jet(zero), autograd_jet(activation, zero)):
        assert_same(torch.cat(jet), torch.tensor(at_zero, dtype=dtype), scale=1.0, roundings=8)


@each_smooth_case
def test_derivatives_by_central_differences(case):
    activation, _, omega = CASES[case]
    z = torch.linspace(-0.5, 0.5, 41, dtype=torch.float64)
    # h² φ‴ / 6 of truncation and eps φ / h of rounding; no derivative grows faster than by 100.
    step = 1e-6 if omega == 0 else 1e-5 / max(omega, 10)
    above, below = (activation.jet(z + sign * step) for sign in (1, -1))

    for order in (0, 1):
        quotient = (above[order] - below[order]) / (2 * step)
        expected = activation.jet(z)[order + 1]
        assert (quotient - expected).abs().max() < 1e-7 * expected.abs().max()


@each_precision
@pytest.mark.parametrize("omega", [0.3, 1.0, 10.0, 30.0])
def test_sinc_is_finite_everywhere_with_all_derivatives(omega, dtype):
    z = torch.cat([grid(omega, dtype), grid(None, dtype) * torch.finfo(dtype).tiny])
    activation = activations.sinc(omega)

    for result in (*activation.jet(z), *autograd_jet(activation, z)):
        assert result.isfinite().all()


@each_precision
@pytest.mark.parametrize("order", range(3))
def test_sinc_does_not_jump_where_the_series_ends(order, dtype):
    radius = torch.tensor(0.1, dtype=dtype)
    inside = torch.nextafter(radius, torch.zeros_like(radius)) * (1 - torch.finfo(dtype).eps)
    outside = torch.nextafter(radius, torch.ones_like(radius)) * (1 + torch.finfo(dtype).eps)
    jet = activations.sinc(10.0).jet(torch.stack([inside, outside]))[order]

    assert abs(jet[1] - jet[0]) < ROUNDINGS * torch.finfo(dtype).eps * 10.0**order


@each_precision
@pytest.mark.parametrize("name", ["gaussian", "wavelet"])
@pytest.mark.parametrize("z", [50.0, 1e5, 1e10, 1e20])
def test_bells_vanish_far_out_with_their_derivatives(name, z, dtype):
    far = torch.tensor([-z, z], dtype=dtype)
    activation = getattr(activations, name)()

    for result in (*activation.jet(far), *autograd_jet(activation, far)):
        assert (result == 0).all()


@pytest.mark.parametrize("name", ["tanh", "sine"])
def test_odd_functions_change_sign_exactly(name):
    z = torch.linspace(0, 3, 50, dtype=torch.float64)
    activation = getattr(activations, name)()

    assert torch.equal(activation.value(-z), -activation.value(z))


@pytest.mark.parametrize("name", ["gaussian", "wavelet", "sinc"])
def test_even_functions_do_not_change_sign(name):
    z = torch.linspace(0, 3, 50, dtype=torch.float64)
    activation = getattr(activations, name)()

    assert torch.equal(activation.value(-z), activation.value(z))
