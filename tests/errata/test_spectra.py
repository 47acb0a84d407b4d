"""Errors of the papers on eigenvalues, zeros and the parts of the Hessian."""

import torch

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.probe.hessian import dense_ggn, dense_hessian, hessian_terms
from hessian_lab.probe.spectrum import spectrum
from hessian_lab.probe.vectors import rademacher
from hessian_lab.signal import Signal
from hessian_lab.signals import load_signal
from tests.errata.states import camera, hessian_of, relative, trained
from tests.reference import assert_same, autograd_hessian, points, small_field

STEPS = (0, 20, 40)


def zero_share(matrix):
    found = spectrum(matrix)
    return found.numerical_zeros / len(matrix)


def test_e01_relu_has_more_zeros_than_with_its_encoding():
    shares = {
        act: [zero_share(hessian_of(act, step, octaves=4)) for step in STEPS]
        for act in ("relu", "relu_pe")
    }
    # 28 % and 45 %, as printed in P1s, would be the other way round.
    assert all(share > 0.4 for share in shares["relu"])
    assert all(0.18 < share < 0.42 for share in shares["relu_pe"])


def test_e02_no_threshold_tells_the_printed_zeros_from_the_others():
    none, many = (1e-12, 1e-18), 3e-14
    thresholds = [10.0**-power for power in range(3, 25)]
    assert not any(
        all(each > threshold for each in none) and many <= threshold for threshold in thresholds
    )
    found = spectrum(hessian_of("gaussian", sigma=0.05))
    assert found.tolerance > max(none)
    shares = found.shares_below
    assert shares[1e-3] > 10 * shares[1e-13]


def test_e03_one_hidden_layer_with_an_encoding_has_zeros_by_rank():
    signal = load_signal("camera", 10)
    for octaves, printed in ((1, 0.5556), (4, 0.8220)):
        model = make_field("relu_pe", 2, 1, width=64, depth=1, octaves=octaves, seed=1)
        matrix = dense_hessian(model, mse, signal)
        most = signal.num_points + 2 * 64
        found = spectrum(matrix)
        assert abs(found.numerical_zeros / len(matrix) - printed) < 5e-5
        assert found.numerical_zeros == len(matrix) - most

    def forced(channels, octaves):
        size = 512 * (2 + 4 * octaves + 1) + channels * 513
        return 1 - (2500 * channels + 2 * channels * 512) / size

    assert all(forced(1, octaves) > 0 for octaves in (1, 4, 8))
    assert forced(3, 1) < 0 < 0.06 < forced(3, 4) < 0.07
    assert 0.65 < forced(1, 4) < 0.66


def test_e04_the_smallest_eigenvalue_is_negative():
    found = spectrum(hessian_of("sine", 40))
    assert found.lambda_min < -0.01
    assert 0.05 <= found.negative / len(found.values) <= 0.52
    assert found.tolerance < found.smallest_magnitude < 5e-4


def test_e31_a_second_kind_of_term_has_first_derivatives_alone():
    signal = points()
    for act in ("sine", "relu"):
        model = small_field(act)
        terms = hessian_terms(model, mse, signal)
        whole = autograd_hessian(model, mse, signal)
        assert_same(terms.ggn + terms.activation + terms.cross, whole)
        assert relative(terms.ggn + terms.activation, whole) > 0.05
        assert (act == "relu") == (float(terms.activation.abs().max()) == 0)


def test_e32_the_hessian_of_relu_is_not_that_of_gauss_and_newton():
    # Z and θ of one layer: the derivative by both holds ψ′ itself.
    weight = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    state = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.relu(weight * state), weight, create_graph=True)
    assert float(torch.autograd.grad(slope, state)[0]) == 1

    signal = camera()
    for act in ("relu", "relu_pe"):
        terms = hessian_terms(trained(act, octaves=4), mse, signal)
        matrix = hessian_of(act, octaves=4)
        assert 0.7 < relative(terms.ggn, matrix) < 0.98
        assert_same(terms.ggn + terms.cross, matrix)
        late = hessian_of(act, 40, octaves=4)
        assert relative(dense_ggn(trained(act, 40, octaves=4), mse, signal), late) < 0.02


def test_e33_a_row_falls_where_its_unit_is_dead_on_every_point():
    signal = points(200)
    model = small_field("relu", width=6)
    for value in model.parameters():
        value.requires_grad_(False)
    slopes = model.activation.jet(model.layers[0](signal.coords))[1]
    assert bool((slopes == 0).any(dim=0).any())
    half = (slopes == 0).any(dim=0) & (slopes != 0).any(dim=0)
    matrix = dense_hessian(trainable(model), mse, signal)
    rows = zero_rows(model, matrix)
    # Zero at one point, none of a unit's rows falls.
    assert not any(rows["layers.0.weight"][unit].any() for unit in half.nonzero().flatten())

    model.layers[0].bias[0] = -10.0
    after = zero_rows(model, dense_hessian(trainable(model), mse, signal))
    fallen = {name: after[name] & ~rows[name] for name in rows}
    assert fallen["layers.0.weight"].nonzero()[:, 0].unique().tolist() == [0]
    assert fallen["layers.0.bias"].nonzero().flatten().tolist() == [0]
    assert bool(after["layers.1.weight"][:, 0].all())


def trainable(model):
    for value in model.parameters():
        value.requires_grad_(True)
    copy = make_field("relu", 2, 1, width=6, depth=2)
    copy.load_state_dict(model.state_dict())
    for value in model.parameters():
        value.requires_grad_(False)
    return copy


def zero_rows(model, matrix):
    """Return which rows of a Hessian are zero, by parameter."""
    named = dict(model.named_parameters())
    parts = (matrix == 0).all(dim=1).split([value.numel() for value in named.values()])
    return {
        name: part.view_as(value) for part, (name, value) in zip(parts, named.items(), strict=True)
    }


def test_e34_zero_entries_rank_smoothness_and_conditioning_are_four_things():
    identity = torch.eye(50, dtype=torch.float64)
    ones = torch.ones(50, 50, dtype=torch.float64)
    assert float((identity == 0).double().mean()) == 0.98
    assert torch.linalg.matrix_rank(identity) == 50
    assert float((ones == 0).double().mean()) == 0
    assert torch.linalg.matrix_rank(ones) == 1

    matrix = hessian_of("relu")
    entries = float((matrix == 0).double().mean())
    assert entries > zero_share(matrix) + 0.1

    # x² left of 0 and 2 x² right of it: a Hessian that jumps, and is 2 or 4 times the identity.
    def jumping(x):
        return torch.where(x > 0, 2 * x.square(), x.square()).sum()

    jumps = [
        torch.func.hessian(jumping)(torch.full((3,), place, dtype=torch.float64))
        for place in (-1e-9, 1e-9)
    ]
    assert relative(*jumps) == 0.5
    assert all(float(torch.linalg.cond(each)) == 1 for each in jumps)
    # A polynomial, as smooth as can be, and of any condition number.
    assert float(torch.linalg.cond(torch.diag(torch.tensor([1.0, 1e-12]).double()))) > 9e11


def test_e42_a_positive_probability_at_a_point_is_a_small_one_on_all_points():
    signal = load_signal("camera", 20)
    at_points, on_all, without = [], [], 0
    for seed in range(20):
        model = make_field("relu", 2, 1, width=16, depth=1, seed=seed)
        with torch.no_grad():
            slopes = model.activation.jet(model.layers[0](signal.coords))[1]
        dead = (slopes == 0).all(dim=0)
        at_points.append(float((slopes == 0).double().mean()))
        on_all.append(float(dead.double().mean()))
        without += not dead.any()
    assert 0.35 < sum(at_points) / 20 < 0.65
    assert 0 < sum(on_all) / 20 < 0.25
    assert without >= 2


def test_e43_a_product_can_have_one_entry_and_a_relu_field_none_that_is_zero():
    matrix = hessian_of("sine", 40)
    unit = torch.zeros(len(matrix), dtype=torch.float64)
    unit[100] = 1
    chosen = torch.linalg.solve(matrix, unit)
    product = matrix @ (chosen / torch.linalg.vector_norm(chosen))
    assert int((product.abs() > 1e-6 * product.abs().max()).sum()) == 1
    random = rademacher(len(matrix), 8, seed=0, like=matrix)
    assert int((matrix @ random == 0).sum()) == 0

    signal = load_signal("camera", 20)
    zeros = []
    for seed in range(20):
        model = make_field("relu", 2, 1, width=16, depth=1, seed=seed)
        curvature = dense_hessian(model, mse, signal)
        vectors = rademacher(len(curvature), 8, seed=0, like=curvature)
        zeros.append(int((curvature @ vectors == 0).sum()))
    assert zeros.count(0) >= 2
    assert max(zeros) > 0


def test_e44_a_zero_of_the_product_has_no_gradient_to_scale():
    signal = camera()
    for act, steps in (("relu", 0), ("relu", 40), ("relu_pe", 0), ("relu_pe", 40)):
        model = trained(act, steps, octaves=4)
        matrix = hessian_of(act, steps, octaves=4)
        loss = mse(model(signal.coords), signal.values)
        parts = torch.autograd.grad(loss, list(model.parameters()))
        gradient = torch.cat([part.flatten() for part in parts])
        product = (matrix @ rademacher(len(matrix), 8, seed=0, like=matrix)).abs().amax(dim=1)
        unscaled = product == 0
        assert int(unscaled.sum()) > 0
        assert float(gradient[unscaled].abs().max()) == 0
        assert bool((product[gradient != 0] > 0).all())


def test_e46_dense_products_do_not_make_a_well_conditioned_hessian():
    coords = torch.linspace(-1, 1, 100, dtype=torch.float64).unsqueeze(1)
    signal = Signal(coords, torch.sin(2 * torch.pi * coords) + torch.sin(6 * torch.pi * coords))
    model = make_field("gaussian", 1, 1, width=16, depth=2, sigma=0.1, seed=0)
    matrix = dense_hessian(model, mse, signal)
    product = matrix @ rademacher(len(matrix), 1, seed=0, like=matrix)
    assert int((product == 0).sum()) == 0
    found = spectrum(matrix)
    assert not found.condition_number_resolved
    assert found.numerical_zeros >= 30

    # A permutation has the sparsest products, and κ = 1.
    shift = torch.roll(torch.eye(321, dtype=torch.float64), 1, 0)
    assert float(torch.linalg.cond(shift)) < 1 + 1e-12
    assert float((shift @ torch.eye(321).double()[:, :1] == 0).double().mean()) > 0.99
