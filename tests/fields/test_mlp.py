import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from hessian_lab.fields import ACTIVATIONS
from hessian_lab.fields.activations import sine, tanh
from hessian_lab.fields.encoding import encode
from hessian_lab.fields.mlp import CoordinateMLP, make_field
from tests.reference import assert_same

NAMES = sorted(ACTIVATIONS)

# Written from the definitions with their default ω and σ.
FORMULAS = {
    "relu": lambda z: np.where(z > 0, z, 0),
    "relu_pe": lambda z: np.where(z > 0, z, 0),
    "sine": lambda z: np.sin(30 * z),
    "gaussian": lambda z: np.exp(-(z**2) / (2 * 0.1**2)),
    "wavelet": lambda z: np.cos(10 * z) * np.exp(-(z**2) / (2 * 0.0707**2)),
    "sinc": lambda z: np.sinc(10 * z / np.pi),
    "tanh": np.tanh,
}


def points(num_points, num_inputs):
    generator = torch.Generator().manual_seed(7)
    unit = torch.rand(num_points, num_inputs, dtype=torch.float64, generator=generator)
    return 2 * unit - 1


def flat(field):
    return torch.cat([value.detach().flatten() for value in field.parameters()])


def encoded_by_loops(coords, octaves):
    """Return [x, sin 2ˡπx, cos 2ˡπx] of every point, one number at a time."""
    rows = []
    for point in coords:
        row = list(point)
        for octave in range(octaves):
            row += [math.sin(2**octave * math.pi * x) for x in point]
            row += [math.cos(2**octave * math.pi * x) for x in point]
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(
    ("name", "given", "count"),
    [
        ("relu", {}, 881),
        ("sine", {}, 881),
        ("gaussian", {}, 881),
        ("relu_pe", {}, 1393),
        ("relu_pe", {"octaves": 8}, 1393),
        ("relu_pe", {"octaves": 4}, 1137),
        ("sine", {"depth": 0}, 3),
        ("relu_pe", {"depth": 0}, 35),
        ("sine", {"width": 32}, 3297),
        ("sine", {"width": 64}, 12737),
        ("sine", {"width": 256}, 198401),
    ],
)
def test_number_of_parameters(name, given, count):
    assert sum(value.numel() for value in make_field(name, 2, 1, **given).parameters()) == count


@pytest.mark.parametrize("depth", range(4))
def test_depth_counts_hidden_layers(depth):
    sizes = [2, *[5] * depth, 3]
    expected = [(fan_out, fan_in) for fan_in, fan_out in pairwise(sizes)]

    field = make_field("tanh", 2, 3, width=5, depth=depth)
    assert len(field.maps) == depth + 1
    assert [tuple(layer.weight.shape) for layer in field.maps] == expected


def test_parameters_go_map_by_map_weights_before_biases():
    names = [name for name, _ in make_field("sine", 2, 3, depth=2).named_parameters()]
    assert names == [
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.weight",
        "layers.1.bias",
        "layers.2.weight",
        "layers.2.bias",
    ]


@pytest.mark.parametrize("num_inputs", [1, 2, 3])
@pytest.mark.parametrize("octaves", [0, 1, 4, 8])
def test_encoding_goes_octave_by_octave_sines_before_cosines(num_inputs, octaves):
    coords = points(11, num_inputs)
    expected = torch.from_numpy(encoded_by_loops(coords.numpy(), octaves))

    assert encode(coords, octaves).shape == (11, num_inputs * (1 + 2 * octaves))
    # The argument 2ˡ π x is rounded: to half an eps of its size.
    assert_same(encode(coords, octaves), expected, roundings=4 * 2**octaves)


def test_encoding_keeps_the_precision_of_the_coordinates():
    assert encode(points(3, 2).float(), 4).dtype == torch.float32


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_forward_is_the_composition_of_affine_maps_and_activations(name, depth):
    coords = points(50, 2)
    field = make_field(name, 2, 3, depth=depth, width=7, seed=3)
    parameters = [value.detach().numpy() for value in field.parameters()]

    state = encoded_by_loops(coords.numpy(), 8 if name == "relu_pe" else 0)
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        state = FORMULAS[name](state @ weight.T + bias)
    expected = torch.from_numpy(state @ parameters[-2].T + parameters[-1])

    assert field(coords).shape == (50, 3)
    # Each hidden map can stretch a rounding by ω or 1/σ.
    assert_same(field(coords).detach(), expected, roundings=1e4)


@pytest.mark.parametrize("name", NAMES)
def test_default_activation_has_the_documented_omega_and_sigma(name):
    z = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
    expected = torch.from_numpy(FORMULAS[name](z.numpy()))

    assert_same(make_field(name, 2, 1).activation.value(z), expected, roundings=100)


@pytest.mark.parametrize(
    ("name", "given", "formula"),
    [
        ("sine", {"omega": 5.0}, lambda z: np.sin(5 * z)),
        ("sinc", {"omega": 5.0}, lambda z: np.sinc(5 * z / np.pi)),
        ("gaussian", {"sigma": 0.3}, lambda z: np.exp(-(z**2) / 0.18)),
        ("wavelet", {"omega": 5.0}, lambda z: np.cos(5 * z) * np.exp(-(z**2) / (2 * 0.0707**2))),
        ("wavelet", {"sigma": 0.3}, lambda z: np.cos(10 * z) * np.exp(-(z**2) / 0.18)),
    ],
)
def test_given_omega_and_sigma_reach_the_activation(name, given, formula):
    z = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
    expected = torch.from_numpy(formula(z.numpy()))

    assert_same(make_field(name, 2, 1, **given).activation.value(z), expected, roundings=100)


@pytest.mark.parametrize(
    ("name", "init"),
    [(name, "siren" if name == "sine" else "kaiming") for name in NAMES],
)
def test_default_initialisation(name, init):
    assert torch.equal(flat(make_field(name, 2, 1)), flat(make_field(name, 2, 1, init=init)))


def test_defaults_are_four_hidden_layers_of_sixteen_in_double_precision_from_seed_zero():
    field = make_field("sine", 2, 1)
    explicit = make_field("sine", 2, 1, depth=4, width=16, seed=0, dtype=torch.float64)

    assert flat(field).dtype == torch.float64
    assert torch.equal(flat(field), flat(explicit))


def test_no_octave_leaves_relu_pe_a_relu_field():
    coords = points(20, 2)
    encoded = make_field("relu_pe", 2, 1, octaves=0, seed=1)

    assert torch.equal(encoded(coords), make_field("relu", 2, 1, seed=1)(coords))


def test_hyperparameters_that_a_field_does_not_have_are_ignored():
    given = make_field("relu", 2, 1, omega=-5.0, sigma=0.0, octaves=-3)

    assert torch.equal(flat(given), flat(make_field("relu", 2, 1)))
    assert torch.equal(given(points(9, 2)), make_field("relu", 2, 1)(points(9, 2)))


def test_parameters_require_gradients():
    assert all(value.requires_grad for value in make_field("sine", 2, 1).parameters())


def test_a_network_of_ones_own_takes_any_activation():
    network = CoordinateMLP(2, 1, tanh(), width=5, depth=1, dtype=torch.float64)
    with torch.no_grad():
        for value in network.parameters():
            value.fill_(0.5)
    coords = torch.tensor([[0.2, 0.4]], dtype=torch.float64)

    expected = torch.tensor([[2.5 * math.tanh(0.8) + 0.5]], dtype=torch.float64)
    assert_same(network(coords).detach(), expected, roundings=10)


def test_every_hidden_layer_has_the_omega_of_its_own():
    coords = points(40, 2)
    field = make_field("sine", 2, 2, depth=3, width=7, omega=(40.0, 3.0, 11.0), seed=2)
    parameters = [value.detach().numpy() for value in field.parameters()]

    state = coords.numpy()
    for omega, weight, bias in zip((40, 3, 11), parameters[::2], parameters[1::2], strict=False):
        state = np.sin(omega * (state @ weight.T + bias))
    expected = torch.from_numpy(state @ parameters[-2].T + parameters[-1])
    assert_same(field(coords).detach(), expected, roundings=1e4)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_one_omega_for_all_is_that_omega_for_each(depth):
    coords, kinds = points(9, 2), {"depth": depth, "seed": 4}
    one, each = (make_field("wavelet", 2, 1, omega=o, **kinds) for o in (7.0, [7] * depth))

    assert torch.equal(flat(one), flat(each))
    assert torch.equal(one(coords), each(coords))
    assert depth == 0 or each.activation is each.activations[-1]


def test_siren_weights_reach_the_bound_of_their_own_omega():
    omegas = (3000.0, 300.0, 30.0)
    field = make_field("sine", 2, 90, width=150, depth=3, omega=omegas, seed=3)
    # The read-out has no sine, and takes the ω of the layer that feeds it.
    bounds = [1 / 2, *(math.sqrt(6 / 150) / omega for omega in (300, 30, 30))]

    for layer, bound in zip(field.maps, bounds, strict=True):
        largest = float(layer.weight.detach().abs().max())
        assert 0.98 * bound < largest <= bound
        variance = float(layer.weight.detach().square().mean())
        assert variance == pytest.approx(bound**2 / 3, rel=0.2)


def test_a_network_of_ones_own_takes_one_activation_for_each_layer():
    network = CoordinateMLP(1, 1, [tanh(), sine(2.0)], width=1, depth=2, dtype=torch.float64)
    with torch.no_grad():
        for value in network.parameters():
            value.fill_(0.5)
    expected = 0.5 * math.sin(2 * (0.5 * math.tanh(0.5 * 0.2 + 0.5) + 0.5)) + 0.5

    found = network(torch.tensor([[0.2]], dtype=torch.float64)).item()
    assert found == pytest.approx(expected, rel=1e-15)
    with pytest.raises(ValueError, match="the same in all hidden layers, there are 2"):
        network.activation  # noqa: B018
    network.activation = tanh()
    assert len(network.activations) == 2


def weight_law(init, omega, index, fan_in, fan_out):
    """Return the distribution that a weight is drawn from, by scipy."""
    if init == "xavier_normal":
        return stats.norm(scale=math.sqrt(2 / (fan_in + fan_out)))
    if init == "kaiming":
        bound = math.sqrt(6 / ((1 + math.sqrt(5) ** 2) * fan_in))
    elif index == 0:
        bound = 1 / fan_in
    else:
        bound = math.sqrt(6 / fan_in) / omega
    return stats.uniform(-bound, 2 * bound)


INITIALISED = pytest.mark.parametrize(
    ("name", "given", "omega"),
    [
        ("sine", {}, 30),
        ("sine", {"omega": 5.0}, 5),
        ("sinc", {"init": "siren"}, 10),
        ("wavelet", {"init": "siren", "omega": 20.0}, 20),
        ("relu", {"init": "siren"}, 1),
        ("gaussian", {"init": "siren"}, 1),
        ("relu_pe", {"init": "siren"}, 1),
        ("sine", {"init": "kaiming"}, None),
        ("gaussian", {}, None),
        ("relu_pe", {}, None),
        ("sine", {"init": "xavier_normal"}, None),
        ("relu_pe", {"init": "xavier_normal"}, None),
    ],
)


@INITIALISED
def test_weights_follow_their_law(name, given, omega):
    init = given.get("init", "siren" if name == "sine" else "kaiming")
    field = make_field(name, 2, 100, width=150, depth=2, seed=5, **given)

    for index, layer in enumerate(field.maps):
        fan_out, fan_in = layer.weight.shape
        law = weight_law(init, omega, index, fan_in, fan_out)
        weights = layer.weight.detach().flatten().numpy()
        assert stats.kstest(weights, law.cdf).pvalue > 1e-3
        assert abs(weights.mean()) < 4 * law.std() / math.sqrt(len(weights))
        # The variance of a sample variance is (μ₄ - σ⁴) / n.
        spread = math.sqrt((law.moment(4) - law.var() ** 2) / len(weights))
        assert abs((weights**2).mean() - law.var()) < 4 * spread


@INITIALISED
def test_biases_are_uniform_within_the_inverse_root_of_the_inputs(name, given, omega):  # noqa: ARG001
    field = make_field(name, 2, 400, width=400, depth=2, seed=6, **given)

    for layer in field.maps:
        bound = 1 / math.sqrt(layer.in_features)
        biases = layer.bias.detach().numpy()
        assert stats.kstest(biases, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
        assert 0.97 * bound < np.abs(biases).max() <= bound


@pytest.mark.parametrize("init", ["siren", "kaiming"])
def test_uniform_weights_nearly_reach_their_bounds_on_both_sides(init):
    field = make_field("sine", 3, 100, width=150, depth=2, init=init, seed=2)

    for index, layer in enumerate(field.maps):
        weights = layer.weight.detach()
        fan_out, fan_in = weights.shape
        bound = weight_law(init, 30, index, fan_in, fan_out).support()[1]
        assert 0.98 * bound < weights.max() <= bound
        assert -bound <= weights.min() < -0.98 * bound


def test_no_number_is_drawn_twice():
    parameters = flat(make_field("sine", 2, 3, depth=3, init="xavier_normal"))
    assert len(parameters.unique()) == len(parameters)


@pytest.mark.parametrize("init", ["siren", "kaiming", "xavier_normal"])
def test_single_precision_is_double_precision_rounded(init):
    double = flat(make_field("sine", 2, 1, init=init, seed=9, dtype=torch.float64))
    single = flat(make_field("sine", 2, 1, init=init, seed=9, dtype=torch.float32))

    assert single.dtype == torch.float32
    assert torch.equal(single, double.float())
    # The numbers of double precision are drawn as such.
    assert (double != double.float()).double().mean() > 0.99


@pytest.mark.parametrize("init", ["siren", "kaiming", "xavier_normal"])
def test_one_seed_gives_one_network_and_another_seed_another(init):
    first, again, other = (
        flat(make_field("sine", 2, 1, init=init, seed=seed)) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert (first != other).all()


@pytest.mark.parametrize("name", ["sine", "relu_pe"])
def test_the_global_generator_is_neither_read_nor_moved(name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = make_field(name, 2, 1)
        assert torch.equal(torch.get_rng_state(), before)

        torch.manual_seed(2)
        assert torch.equal(flat(make_field(name, 2, 1)), flat(first))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "sin",
            {},
            "act must be one of relu, relu_pe, sine, gaussian, wavelet, sinc, tanh, got 'sin'. "
            "Did you mean",
        ),
        ("gausian", {}, "got 'gausian'. Did you mean gaussian?"),
        (
            "sine",
            {"init": "xavier"},
            "init must be one of siren, kaiming, xavier_normal, got 'xavier'. "
            "Did you mean xavier_normal?",
        ),
        ("sine", {"num_inputs": 0}, "num_inputs must be at least 1, got 0."),
        ("sine", {"num_outputs": 0}, "num_outputs must be at least 1, got 0."),
        ("sine", {"width": 0}, "width must be at least 1, got 0."),
        ("sine", {"depth": -1}, "depth must be at least 0, got -1."),
        ("sine", {"omega": 0.0}, "omega must be positive and finite, got 0.0."),
        ("sinc", {"omega": -1.0}, "omega must be positive and finite, got -1.0."),
        ("wavelet", {"omega": math.inf}, "omega must be positive and finite, got inf."),
        ("sine", {"omega": math.nan}, "omega must be positive and finite, got nan."),
        ("gaussian", {"sigma": 0.0}, "sigma must be positive and finite, got 0.0."),
        ("wavelet", {"sigma": -0.1}, "sigma must be positive and finite, got -0.1."),
        ("gaussian", {"sigma": math.nan}, "sigma must be positive and finite, got nan."),
        ("relu_pe", {"octaves": -1}, "octaves must be at least 0, got -1."),
        (
            "sine",
            {"omega": (30.0, 30.0, 30.0)},
            "omega must be one for all hidden layers, or one for each of 4, got 3.",
        ),
        ("sine", {"omega": (), "depth": 1}, "one for each of 1, got 0."),
        ("sine", {"omega": (30.0,), "depth": 0}, "one for each of 0, got 1."),
        ("sine", {"omega": (1.0, -2.0), "depth": 2}, "omega must be positive and finite, got -2.0"),
    ],
)
def test_refuses(name, given, message):
    arguments = {"num_inputs": 2, "num_outputs": 1, **given}
    with pytest.raises(ValueError, match=re.escape(message)):
        make_field(name, **arguments)
