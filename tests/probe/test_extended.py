"""Hessians in interval arithmetic against autograd, and against differences of 100 digits."""

import math
from itertools import pairwise

import mpmath
import pytest
import torch
from torch import nn

from hessian_lab import Signal, bce, load_signal, make_field, mse
from hessian_lab.errors import UsageError
from hessian_lab.fields.activations import gaussian
from hessian_lab.probe.enclosures import SCALINGS, UndecidedError, arb, ctx
from hessian_lab.probe.extended import Formula, exact_condition_numbers, interval_hessian
from hessian_lab.probe.hessian import dense_ggn
from tests.reference import assert_same, autograd_hessian, points

DIGITS = 100
FORMULAS = {
    "sine": Formula("sine", omega=3.0),
    "gaussian": Formula("gaussian", sigma=0.3),
    "wavelet": Formula("wavelet", omega=4.0, sigma=0.5),
    "tanh": Formula("tanh"),
    "relu": Formula("relu"),
    "relu_pe": Formula("relu_pe"),
}
SMOOTH = ("sine", "gaussian", "wavelet", "tanh")
ACTIVATIONS = {
    "sine": lambda z: mpmath.sin(3 * z),
    "gaussian": lambda z: mpmath.exp(-(z**2) / (2 * mpmath.mpf(0.3) ** 2)),
    "wavelet": lambda z: mpmath.cos(4 * z) * mpmath.exp(-(z**2) / (2 * mpmath.mpf(0.5) ** 2)),
    "tanh": mpmath.tanh,
}


@pytest.fixture(autouse=True)
def precision():
    with mpmath.workdps(DIGITS), ctx.workprec(320):
        yield


def field_of(act, *, depth=2, width=4, num_inputs=2, num_outputs=1, seed=1):
    formula = FORMULAS[act]
    return make_field(
        act,
        num_inputs,
        num_outputs,
        width=width,
        depth=depth,
        omega=formula.omega,
        sigma=formula.sigma,
        octaves=2,
        seed=seed,
    )


def middles(matrix):
    rows = [[float(entry) for entry in row] for row in matrix.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


# Every entry.


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("loss", [mse, bce])
@pytest.mark.parametrize("act", FORMULAS)
def test_the_matrix_is_the_hessian_of_autograd(act, loss, depth):
    model, signal = field_of(act, depth=depth, num_outputs=2), points(7, num_outputs=2)
    found = interval_hessian(model, loss, signal, FORMULAS[act])
    assert_same(middles(found), autograd_hessian(model, loss, signal))
    widths = [entry.rad() for entry in found.entries()]
    assert max(float(width) for width in widths) < 1e-80


@pytest.mark.parametrize("act", FORMULAS)
def test_the_gauss_newton_matrix_is_that_of_kept_products(act):
    model, signal = field_of(act, depth=2, num_outputs=2), points(7, num_outputs=2)
    own = nn.Sequential(*[model])
    found = interval_hessian(model, mse, signal, FORMULAS[act], matrix="ggn")
    assert_same(middles(found), dense_ggn(own, mse, signal))


@pytest.mark.parametrize("act", SMOOTH)
def test_the_balls_hold_the_second_differences_of_one_hundred_digits(act):
    """Differences of width 1e-25 are wrong by 1e-50; of 100 digits 50 cancel."""
    model, signal = field_of(act), points(3)
    found = interval_hessian(model, mse, signal, FORMULAS[act]).tolist()
    flat = [mpmath.mpf(entry) for value in model.parameters() for entry in value.flatten().tolist()]
    step = mpmath.mpf(10) ** -25
    for i, j in [(0, 0), (3, 5), (8, 11), (13, 2), (20, 9), (25, 25), (30, 14), (33, 28), (36, 0)]:
        corners = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
        total = sum(
            a * b * loss_of(moved(flat, {i: a * step}, {j: b * step}), model, signal, act)
            for a, b in corners
        )
        difference = total / (4 * step**2)
        ball = found[i][j]
        middle = mpmath.mpf(ball.mid().str(90, radius=False))
        # The differences' own error: h² times a fourth derivative, and 100 digits over h².
        assert abs(middle - difference) < mpmath.mpf(10) ** -40
        assert float(ball.rad()) < 1e-80


def moved(flat, *moves):
    copy = list(flat)
    for move in moves:
        for place, step in move.items():
            copy[place] += step
    return copy


def loss_of(flat, model, signal, act):
    """Return the loss at a vector of parameters, point by point in mpmath."""
    sizes = [layer.in_features for layer in model.maps] + [model.maps[-1].out_features]
    total = mpmath.mpf(0)
    for coords, (value,) in zip(signal.coords.tolist(), signal.values.tolist(), strict=True):
        state, start = [mpmath.mpf(coord) for coord in coords], 0
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            weights = flat[start : start + fan_in * fan_out]
            start += fan_in * fan_out
            biases = flat[start : start + fan_out]
            start += fan_out
            state = [
                mpmath.fdot(weights[unit * fan_in : (unit + 1) * fan_in], state) + biases[unit]
                for unit in range(fan_out)
            ]
            if layer < len(sizes) - 2:
                state = [ACTIVATIONS[act](z) for z in state]
        total += (state[0] - value) ** 2 / 2
    return total / len(signal.coords)


# Condition numbers.


@pytest.mark.parametrize("act", SMOOTH)
def test_intervals_hold_the_condition_numbers_of_mpmath(act):
    model, signal = field_of(act, width=3, num_inputs=1), points(9, num_inputs=1)
    with ctx.workprec(320):
        rows = interval_hessian(model, mse, signal, FORMULAS[act]).tolist()
    exact = [[mpmath.mpf(entry.mid().str(95, radius=False)) for entry in row] for row in rows]
    found = exact_condition_numbers(model, mse, signal, FORMULAS[act])
    size = len(exact)
    scales = {
        "identity": [mpmath.mpf(1)] * size,
        "equilibrated": [mpmath.norm(mpmath.matrix(row)) for row in exact],
        "jacobi": [abs(exact[place][place]) for place in range(size)],
    }
    for name in SCALINGS:
        roots = [mpmath.sqrt(entry) for entry in scales[name]]
        scaled = [[exact[i][j] / roots[i] / roots[j] for j in range(size)] for i in range(size)]
        values = [abs(value) for value in mpmath.eigsy(mpmath.matrix(scaled), eigvals_only=True)]
        log10 = float(mpmath.log10(max(values) / min(values)))
        # The reference is rounded to double precision.
        assert found[name].log10 == pytest.approx(log10, rel=1e-14, abs=1e-12)
        assert found[name].upper - found[name].lower < 1e-12
        assert found[name].known


@pytest.mark.parametrize(
    ("sigma", "seed", "known", "by_equilibration", "by_jacobi"),
    # The pilots of this experiment, 100 points, by a program of their own.
    [(0.1, 0, 31, -8.6, -11.5), (0.1, 1, 36, -12.6, -19.2), (0.3, 0, 31, -1.5, -1.6)],
)
def test_the_papers_field_is_as_the_pilots_found_it(
    sigma, seed, known, by_equilibration, by_jacobi
):
    model = make_field("gaussian", 1, 1, width=16, depth=2, sigma=sigma, seed=seed)
    found = exact_condition_numbers(
        model, mse, load_signal("sines", 100), Formula("gaussian", sigma=sigma)
    )
    kappa = found["identity"].log10
    assert round(kappa) == known
    assert found["equilibrated"].log10 - kappa == pytest.approx(by_equilibration, abs=0.06)
    assert found["jacobi"].log10 - kappa == pytest.approx(by_jacobi, abs=0.06)


def test_layers_of_their_own_omega_hold_the_hessian_of_autograd():
    omegas = (2.0, 5.0)
    model, signal = make_field("sine", 2, 1, width=3, depth=2, omega=omegas, seed=1), points(6)
    found = middles(interval_hessian(model, mse, signal, Formula("sine", omega=omegas)))
    assert_same(found, autograd_hessian(model, mse, signal))
    for wrong in ((5.0, 2.0), 2.0):
        with pytest.raises(ValueError, match="formula must be the activation of the model"):
            interval_hessian(model, mse, signal, Formula("sine", omega=wrong))
    with pytest.raises(ValueError, match="for each of 2, got 3"):
        interval_hessian(model, mse, signal, Formula("sine", omega=(2.0, 5.0, 1.0)))


def test_a_field_with_dead_units_is_proven_singular():
    model, signal = field_of("relu"), points(7)
    with torch.no_grad():
        model.maps[0].bias[1] = -100
    for one in exact_condition_numbers(model, mse, signal, Formula("relu")).values():
        assert one.singular


def test_a_gauss_newton_matrix_of_few_points_is_never_enclosed():
    model, signal = field_of("tanh"), points(3)
    found = exact_condition_numbers(
        model, mse, signal, Formula("tanh"), matrix="ggn", precisions=(64, 128)
    )
    assert not any(one.known for one in found.values())


def test_more_bits_decide_the_sign_of_a_relu():
    """A third of an input of 3, less 1, is 0 to 53 bits, and not for the double nearest 1/3."""
    model = make_field("relu", 1, 1, width=1, depth=1)
    with torch.no_grad():
        model.maps[0].weight.fill_(1 / 3)
        model.maps[0].bias.fill_(-1)
    signal = Signal(*(torch.full((1, 1), value, dtype=torch.float64) for value in (3.0, 0.5)))
    with ctx.workprec(20), pytest.raises(UndecidedError, match="sign of a ReLU"):
        interval_hessian(model, mse, signal, Formula("relu"))
    with ctx.workprec(200):
        interval_hessian(model, mse, signal, Formula("relu"))


def test_a_relu_at_zero_has_no_slope():
    assert [float(part) for part in Formula("relu").jet(arb(0))] == [0, 0, 0]


# Refusals.


def test_a_formula_of_another_field_is_refused():
    model, signal = field_of("gaussian"), points(7)
    for other in (Formula("gaussian", sigma=0.31), Formula("tanh")):
        with pytest.raises(ValueError, match="formula must be the activation of the model"):
            interval_hessian(model, mse, signal, other)


def test_formulas_without_sense_are_refused():
    with pytest.raises(ValueError, match="sigma must be given for gaussian, got None"):
        Formula("gaussian")
    with pytest.raises(ValueError, match=r"act must be one of sine, .*got 'sinc'"):
        Formula("sinc", omega=10.0)


@pytest.mark.parametrize(
    ("make", "loss", "signal", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 1)).double(), mse, points(4), "needs a CoordinateMLP"),
        (lambda: field_of("tanh"), nn.MSELoss(), points(4), "needs the loss mse or bce"),
        (lambda: field_of("tanh").float(), mse, points(4), "in float64"),
        (lambda: field_of("tanh"), mse, points(4).to(dtype=torch.float32), "in float64"),
    ],
)
def test_what_has_no_closed_form_in_balls_is_refused(make, loss, signal, message):
    with pytest.raises(UsageError, match=message):
        exact_condition_numbers(make(), loss, signal, Formula("tanh"))


def test_an_unknown_matrix_is_refused():
    with pytest.raises(ValueError, match="matrix must be one of hessian, ggn, got 'fisher'"):
        exact_condition_numbers(field_of("tanh"), mse, points(4), Formula("tanh"), matrix="fisher")


def test_activations_of_torch_are_those_of_balls():
    z = torch.linspace(-1, 1, 41, dtype=torch.float64)
    for expected, place in zip(gaussian(sigma=0.3).jet(z), range(3), strict=True):
        found = [float(Formula("gaussian", sigma=0.3).jet(arb(each))[place]) for each in z.tolist()]
        assert_same(torch.tensor(found, dtype=torch.float64), expected)
    assert math.isclose(float(Formula("gaussian", sigma=0.3).jet(arb(0.3))[0]), math.exp(-0.5))
