"""Errors of the papers in networks, their parameters, activations and derivatives."""

import math
from itertools import pairwise

import mpmath
import pytest
import torch
from torch.func import functional_call, hessian, jacrev

from hessian_lab.fields.activations import gaussian, sine
from hessian_lab.fields.encoding import encode
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.training.quality import psnr
from tests.errata.states import camera, relative, trained
from tests.reference import assert_same, points, small_field


def count(model):
    return sum(value.numel() for value in model.parameters())


def test_e26_parameters_include_biases():
    sizes = [2, 16, 16, 16, 16, 3]
    pairs = list(pairwise(sizes))
    found = count(make_field("sine", 2, 3, width=16, depth=4))
    assert found == sum(out * (fan_in + 1) for fan_in, out in pairs) == 915
    assert sum(out * fan_in for fan_in, out in pairs) == 848


def test_e27_a_layer_trains_a_matrix_and_a_bias():
    for fan_in, fan_out in ((2, 16), (16, 3), (16, 16)):
        layer = torch.nn.Linear(fan_in, fan_out)
        assert count(layer) == fan_out * (fan_in + 1)
        assert (count(layer) == (fan_out + 1) * fan_in) == (fan_in == fan_out)


def compose(model, coords, *, last):
    """Return the network of eq. (8), with or without a nonlinearity after its last map."""
    state = coords
    for layer in model.maps[:-1]:
        state = model.activation.value(state @ layer.weight.T + layer.bias)
    state = state @ model.maps[-1].weight.T + model.maps[-1].bias
    return model.activation.value(state) if last else state


def test_e28_the_last_map_has_no_activation():
    model, signal = small_field("sine"), points()
    parameters = list(model.parameters())
    gradients = {}
    for last in (False, True):
        loss = mse(compose(model, signal.coords, last=last), signal.values)
        gradients[last] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    loss = mse(model(signal.coords), signal.values)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    assert_same(gradients[False], expected)
    assert relative(gradients[True], expected) > 0.5


def test_e29_lemma_4_1_is_not_the_gradient():
    generator = torch.Generator().manual_seed(0)
    size, depth = 5, 4
    weights = [
        torch.randn(size, size, generator=generator, dtype=torch.float64) / 2 for _ in range(depth)
    ]
    weights = [weight.requires_grad_() for weight in weights]
    start, target = torch.randn(2, size, 1, generator=generator, dtype=torch.float64)
    # The states F_0 … F_4; as the lemma's own matrices have it, the last map is affine.
    states, slopes = [start], [None]
    for place, weight in enumerate(weights, 1):
        below = weight @ states[-1]
        states.append(torch.tanh(below) if place < depth else below)
        slopes.append(1 - torch.tanh(below).square())
    loss = (states[-1] - target).square().sum() / 2
    truth = torch.autograd.grad(loss, weights)

    states = [state.detach() for state in states]
    slopes = [None, *(slope.detach() for slope in slopes[1:])]
    weights = [weight.detach() for weight in weights]
    residual = states[-1] - target
    for layer in (1, 2, 3):
        expected = truth[layer - 1]
        for neighbour, least in ((layer + 1, 0.9), (layer - 1, 0.3)):
            printed = lemma(layer, states[neighbour], weights, slopes, residual)
            # Entry (i, j) may stand in either order.
            errors = [relative(each, expected) for each in (printed, printed.T)]
            assert min(errors) > least
    delta = residual
    for layer in (4, 3, 2, 1):
        assert_same(delta @ states[layer - 1].T, truth[layer - 1])
        if layer > 1:
            delta = slopes[layer - 1] * (weights[layer - 1].T @ delta)


def lemma(layer, state, weights, slopes, residual):
    """Return eqs (11) and (12) of P1 for one sample, as a matrix [5, 5]."""
    depth, identity = len(weights), torch.eye(len(residual), dtype=torch.float64)
    product = identity
    for j in range(1, depth - layer):
        product = product @ weights[depth - j - 1].T @ torch.diag(slopes[depth - j][:, 0])
    vector = torch.kron(identity, state) @ product @ weights[-1].T @ residual
    return vector.view(len(residual), -1)


def test_e30_the_hessian_of_a_scalar_is_square():
    model, signal = small_field("sine", num_outputs=3), points(num_outputs=3)
    size = count(model)
    found = dense_hessian(model, mse, signal)
    assert found.shape == (size, size)
    # n_L p × p is the shape of the Hessian of the outputs.
    parameters = dict(model.named_parameters())
    name = "layers.2.bias"

    def outputs(bias):
        return functional_call(model, {**parameters, name: bias}, (signal.coords[:1],))[0]

    assert hessian(outputs)(parameters[name].detach()).shape == (3, 3, 3)


def test_e35_each_term_of_the_chain_rule_has_one_second_derivative():
    # In one dimension, where products need no order.
    maps = [mpmath.sin, mpmath.exp, mpmath.atan]
    with mpmath.workdps(30):
        place = mpmath.mpf("0.7")
        inner = [place, maps[0](place), maps[1](maps[0](place))]
        first = [mpmath.diff(each, at) for each, at in zip(maps, inner, strict=True)]
        second = [mpmath.diff(each, at, 2) for each, at in zip(maps, inner, strict=True)]
        truth = mpmath.diff(lambda x: maps[2](maps[1](maps[0](x))), place, 2)
        outer = second[2] * (first[1] * first[0]) ** 2 + first[2] * first[1] * second[0]
        right = outer + first[2] * second[1] * first[0] ** 2
        printed = outer + first[2] * second[1] * second[1] * first[0]
        assert abs(right / truth - 1) < 1e-12
        assert abs(printed / truth - 1) > 0.1

    # In several, with Df_{k-1} … Df_1 on both sides of D²f_k.
    generator = torch.Generator().manual_seed(0)
    mixes = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    start = torch.randn(4, generator=generator, dtype=torch.float64)

    def layer(place):
        return lambda x: torch.sin(mixes[place] @ x)

    inner = [start, layer(0)(start), layer(1)(layer(0)(start))]
    total, below = torch.zeros(4, 4, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    above = [torch.eye(4, dtype=torch.float64)]
    for place in (2, 1):
        above.insert(0, above[0] @ jacrev(layer(place))(inner[place]))
    for place in range(3):
        curved = hessian(layer(place))(inner[place])
        total += torch.einsum("ab,bcd,ci,dj->aij", above[place], curved, below, below)
        below = jacrev(layer(place))(inner[place]) @ below
    expected = hessian(lambda x: layer(2)(layer(1)(layer(0)(x))))(start)
    assert_same(total, expected)


def test_e36_the_rows_of_a_flattened_layer_belong_to_its_units():
    generator = torch.Generator().manual_seed(0)
    units, inputs, samples = 2, 3, 4
    weight = torch.randn(units, inputs, generator=generator, dtype=torch.float64)
    data = torch.randn(inputs, samples, generator=generator, dtype=torch.float64)
    rows = jacrev(lambda matrix: torch.tanh(matrix @ data).flatten())(weight)
    for i in range(1, units * samples + 1):
        touched = rows[i - 1].abs().sum(dim=1).nonzero().flatten().tolist()
        assert touched == [math.ceil(i / samples) - 1]
    # θ^i of the text exists for the first two of the eight rows, and is right for one.
    with pytest.raises(IndexError):
        weight[units * samples - 1]


def test_e38_a_gaussian_without_its_sign_overflows():
    generator = torch.Generator().manual_seed(0)
    places = 2 * torch.rand(100_000, generator=generator) - 1
    printed = torch.exp(places.square() / (2 * 0.05**2))
    assert float(printed.isinf().double().mean()) == pytest.approx(0.333, abs=0.01)
    right = gaussian(sigma=0.05).value(places)
    assert float(right.max()) <= 1
    assert float(right.min()) >= 0


def test_e39_a_smaller_sigma_is_a_higher_frequency():
    line = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    steepest = [float(gaussian(sigma=sigma).jet(line)[1].abs().max()) for sigma in (0.5, 0.05)]
    assert steepest == pytest.approx([math.exp(-0.5) / 0.5, math.exp(-0.5) / 0.05], rel=1e-6)

    def printed(sigma):
        return float((sigma**2 * line * torch.exp(-(sigma**2) * line.square() / 2)).abs().max())

    assert printed(0.5) == pytest.approx(10 * printed(0.05), rel=1e-6)
    # Its derivatives are right with σ → 1/σ.
    with mpmath.workdps(30):
        for order in (0, 1, 2):
            truth = mpmath.diff(lambda x: mpmath.exp(-(x**2) / (2 * 0.3**2)), 0.2, order)
            found = gaussian(sigma=0.3).jet(torch.tensor(0.2, dtype=torch.float64))[order]
            assert float(found) == pytest.approx(float(truth), rel=1e-12)


def test_e40_two_pi_omega_is_another_network():
    line = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    printed = torch.sin(2 * math.pi * 30 * line)
    assert relative(sine(30.0).value(line), printed) > 1
    assert_same(sine(2 * math.pi * 30).value(line), printed, roundings=1e5)

    signal = camera()
    reached = {}
    for omega in (30.0, 2 * math.pi * 30):
        model = trained("sine", 40, omega=omega)
        with torch.no_grad():
            reached[omega] = psnr(model(signal.coords), signal.values)
    right, other = reached.values()
    assert right > other + 8


def test_e41_the_encoding_has_d_plus_2_d_l_numbers():
    coords = points(num_inputs=2).coords
    for octaves in (4, 8):
        width = encode(coords, octaves).shape[1]
        assert width == 2 + 2 * 2 * octaves
        assert width != 2 + octaves
    assert count(make_field("relu_pe", 2, 3, width=256, depth=4, octaves=8)) == 207_107
    assert count(make_field("relu", 2, 3, width=256, depth=4)) == 198_915
