"""K-FAC and EKFAC against the dense Gauss–Newton matrix and the points' own Jacobians."""

import gc
import io
import weakref

import pytest
import torch
from torch import nn

from hessian_lab.errors import DivergenceError
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import bce, mse
from hessian_lab.optim.kfac import EKFAC, KFAC
from hessian_lab.optim.kronecker import places_of
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.hessian import dense_ggn
from tests.reference import assert_same, points, small_field

LOSSES = {
    "mse": mse,
    "mean": nn.MSELoss(),
    "sum": nn.MSELoss(reduction="sum"),
    "bce": bce,
}
OPTIMIZERS = {"kfac": KFAC, "ekfac": EKFAC}


def closure_of(model, signal, loss=mse):
    def closure():
        outputs = model(signal.coords)
        return loss(outputs, signal.values), outputs

    return closure


def vector(tensors):
    return torch.cat([value.detach().flatten() for value in tensors])


def stepped(kind, model, signal, loss=mse, *, steps=1, lr=1e-100, **options):
    """Return an optimizer after steps too short to move, with its closure."""
    options = {"update_every": 1, "inverse_every": 1, "damping": 1e-3} | options
    optimizer = kind(model, lr, **options)
    for _ in range(steps):
        optimizer.step(closure_of(model, signal, loss))
    return optimizer


def layer_places(model):
    """Return where each layer's matrix, the bias as its last column, stands in the flat order."""
    parameters = list(model.parameters())
    parts = places_of(parameters, range(len(parameters)))
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [torch.cat([weight, bias[:, None]], dim=1).flatten() for weight, bias in pairs]


def undamped(optimizer, model):
    """Return the block-diagonal matrix that the factors stand for [n, n]."""
    size = sum(value.numel() for value in model.parameters())
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for places, layer in zip(layer_places(model), model.maps, strict=True):
        state = optimizer.state[layer.weight]
        if isinstance(optimizer, EKFAC):
            basis = torch.kron(state["left_basis"], state["right_basis"])
            block = basis @ torch.diag(state["moments"].flatten()) @ basis.T
        else:
            block = torch.kron(state["left"], state["right"])
        matrix[places[:, None], places] = block
    return matrix


def block_diagonal(matrix, model):
    out = torch.zeros_like(matrix)
    for places in layer_places(model):
        out[places[:, None], places] = matrix[places[:, None], places]
    return out


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_one_point_gives_the_exact_blocks(kind, loss, num_outputs):
    model, signal = small_field(num_outputs=num_outputs), points(1, num_outputs=num_outputs)
    optimizer = stepped(kind, model, signal, loss)
    assert_same(undamped(optimizer, model), block_diagonal(dense_ggn(model, loss, signal), model))


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("loss", ["mse", "mean", "sum"])
@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_one_linear_layer_is_the_exact_matrix(kind, loss, num_outputs):
    model, signal = small_field(depth=0, num_outputs=num_outputs), points(num_outputs=num_outputs)
    optimizer = stepped(kind, model, signal, LOSSES[loss])
    assert_same(undamped(optimizer, model), dense_ggn(model, LOSSES[loss], signal))


def test_logistic_regression_at_zero_is_the_exact_matrix():
    model, signal = small_field(depth=0, num_outputs=3), points(num_outputs=3)
    for value in model.parameters():
        nn.init.zeros_(value)
    optimizer = stepped(KFAC, model, signal, bce)
    assert_same(undamped(optimizer, model), dense_ggn(model, bce, signal), roundings=1e5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_corrected_eigenvalues_are_the_blocks_diagonal_in_the_basis(loss):
    model, signal = small_field(num_outputs=3), points(num_outputs=3)
    optimizer = stepped(EKFAC, model, signal, loss)
    exact = dense_ggn(model, loss, signal)
    for places, layer in zip(layer_places(model), model.maps, strict=True):
        state = optimizer.state[layer.weight]
        basis = torch.kron(state["left_basis"], state["right_basis"])
        block = exact[places[:, None], places]
        assert_same(state["moments"].flatten(), (basis.T @ block @ basis).diagonal())


def test_ekfac_is_nearer_to_the_blocks_than_kfac():
    signal = points()
    errors = []
    for kind in (KFAC, EKFAC):
        model = small_field()
        exact = block_diagonal(dense_ggn(model, mse, signal), model)
        errors.append((undamped(stepped(kind, model, signal), model) - exact).norm())
    assert errors[1] < errors[0]


def test_factors_are_moments_of_inputs_and_slopes():
    """Against the Jacobian of every pre-activation, by torch.func."""
    model, signal = small_field(num_outputs=3), points(num_outputs=3)
    optimizer = stepped(KFAC, model, signal)
    first, second, last = model.maps
    hidden = torch.sin(30 * first(signal.coords)).detach()
    rest = lambda state: last(torch.sin(30 * state))  # noqa: E731
    jacobians = torch.stack([torch.func.jacrev(rest)(second(point)) for point in hidden]).detach()
    state = optimizer.state[second.weight]
    extended = torch.cat([hidden, torch.ones(len(hidden), 1, dtype=hidden.dtype)], dim=1)
    assert_same(state["right"], extended.T @ extended / len(hidden))
    assert_same(state["left"], torch.einsum("pci,pcj->ij", jacobians, jacobians) / len(hidden))


def test_empirical_factors_are_those_of_the_points_own_gradients():
    model, signal = small_field(num_outputs=3), points(num_outputs=3)
    kfac = stepped(KFAC, model, signal, fisher="empirical")
    ekfac = stepped(EKFAC, model, signal, fisher="empirical")
    gradients = []
    for coords, values in zip(signal.coords, signal.values, strict=True):
        loss = mse(model(coords[None]), values[None])
        gradients.append(vector(torch.autograd.grad(loss, list(model.parameters()))))
    fisher = torch.stack(gradients).T @ torch.stack(gradients) / len(gradients)
    for places, layer in zip(layer_places(model), model.maps, strict=True):
        block = fisher[places[:, None], places]
        state = ekfac.state[layer.weight]
        basis = torch.kron(state["left_basis"], state["right_basis"])
        assert_same(state["moments"].flatten(), (basis.T @ block @ basis).diagonal())
        # The bias's own entries of the block are Σ δ δᵀ alone.
        rows = places.view(layer.out_features, -1)[:, -1]
        assert_same(kfac.state[layer.weight]["left"], fisher[rows[:, None], rows])


def test_drawn_factors_are_exact_in_mean_and_the_same_again():
    model, signal = small_field(num_outputs=3), points(num_outputs=3)
    exact = stepped(KFAC, model, signal)
    drawn = stepped(KFAC, model, signal, steps=400, fisher="mc", ema=0.0)
    sums = [0.0] * len(model.maps)
    means = KFAC(model, 1e-100, fisher="mc", ema=0.0, update_every=1, inverse_every=1)
    for _ in range(400):
        means.step(closure_of(model, signal))
        for place, layer in enumerate(model.maps):
            sums[place] = sums[place] + means.state[layer.weight]["left"] / 400
    for place, layer in enumerate(model.maps):
        expected = exact.state[layer.weight]["left"]
        assert (sums[place] - expected).norm() < 0.1 * expected.norm()
        same = drawn.state[layer.weight]["left"]
        assert_same(same, means.state[layer.weight]["left"], roundings=1e8)
        assert (same - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize("fisher", ["ggn", "empirical"])
@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_step_is_by_the_inverse_of_the_preconditioner(kind, fisher):
    model, signal = small_field(num_outputs=3), points(num_outputs=3)
    start = vector(model.parameters())
    optimizer = kind(model, 0.25, fisher=fisher, damping=0.1)
    optimizer.step(closure_of(model, signal))
    gradient = vector(value.grad for value in model.parameters())
    root = optimizer.preconditioner(model).inverse_sqrt
    moved = vector(model.parameters()) - start
    assert_same(moved, -0.25 * (root @ (root @ gradient)), roundings=1e5)
    assert optimizer.diagnostics()["step_length"] == pytest.approx(float(moved.norm()))
    dense = root.dense()
    assert_same(dense, dense.T)
    assert float(torch.linalg.eigvalsh(dense)[0]) > 0


def test_damping_is_split_by_the_mean_eigenvalues():
    model, signal = small_field(num_outputs=3), points(num_outputs=3)
    optimizer = stepped(KFAC, model, signal, damping=0.09)
    state = optimizer.state[model.maps[1].weight]
    left, right = state["left"], state["right"]
    pi = ((right.trace() / len(right)) / (left.trace() / len(left))).sqrt()
    expected = left + 0.3 / pi * torch.eye(len(left)).double()
    assert_same(torch.linalg.inv(state["left_inverse"]), expected, roundings=1e6)
    expected = right + 0.3 * pi * torch.eye(len(right)).double()
    assert_same(torch.linalg.inv(state["right_inverse"]), expected, roundings=1e6)
    dense = optimizer.preconditioner().inverse_sqrt.dense()
    places = layer_places(model)[1]
    both = torch.kron(state["left_inverse"], state["right_inverse"])
    assert_same((dense @ dense)[places[:, None], places], both, roundings=1e5)


def test_preconditioned_matrix_of_one_layer_is_the_identity():
    model, signal = small_field(depth=0), points()
    optimizer = stepped(EKFAC, model, signal, damping=1e-9)
    whitened = optimizer.preconditioner(model).precondition(dense_ggn(model, mse, signal))
    eye = torch.eye(whitened.size, dtype=torch.float64)
    torch.testing.assert_close(whitened.dense(), eye, rtol=0, atol=1e-6)


def test_order_is_that_of_the_model():
    """A module whose layers are registered in another order than they are called."""
    torch.manual_seed(0)

    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 1, bias=False)
            self.first = nn.Linear(2, 4)

        def forward(self, x):
            return self.last(torch.tanh(self.first(x)))

    model, signal = Reversed().double(), points()
    optimizer = KFAC(model, 0.1)
    start = vector(model.parameters())
    optimizer.step(closure_of(model, signal))
    gradient = vector(value.grad for value in model.parameters())
    root = optimizer.preconditioner(model).inverse_sqrt
    assert_same(vector(model.parameters()) - start, -0.1 * (root @ (root @ gradient)))


def test_factors_are_averaged_and_updated_every_few_steps():
    model, signal = small_field(), points()
    optimizer = KFAC(model, 0.01, damping=0.1, ema=0.75, update_every=2, inverse_every=4)
    weight = model.maps[1].weight
    fresh, kept, inverses = [], [], []
    for _ in range(6):
        fresh.append(stepped(KFAC, model, signal).state[weight]["left"])
        optimizer.step(closure_of(model, signal))
        kept.append(optimizer.state[weight]["left"].clone())
        inverses.append(optimizer.state[weight]["left_inverse"].clone())
    assert_same(kept[0], fresh[0])
    assert torch.equal(kept[1], kept[0])
    assert_same(kept[2], 0.75 * kept[1] + 0.25 * fresh[2], roundings=1e7)
    assert torch.equal(inverses[0], inverses[3])
    assert not torch.equal(inverses[3], inverses[4])
    assert torch.equal(inverses[4], inverses[5])
    assert optimizer.diagnostics()["curvature_updates"] == 3


def test_clip_bounds_the_divergence():
    model, signal = small_field(), points()
    start = vector(model.parameters())
    optimizer = KFAC(model, 10.0, kl_clip=1e-3)
    optimizer.step(closure_of(model, signal))
    moved = vector(model.parameters()) - start
    inverse = torch.linalg.inv(optimizer.preconditioner().inverse_sqrt.dense())
    assert float((inverse @ moved).square().sum()) == pytest.approx(1e-3, rel=1e-6)


def test_momentum_and_weight_decay_are_those_of_sgd_before_the_preconditioner():
    model, signal = small_field(), points()
    optimizer = KFAC(model, 0.01, momentum=0.9, weight_decay=0.5, damping=0.1)
    mean = torch.zeros_like(vector(model.parameters()))
    for _ in range(4):
        start = vector(model.parameters())
        optimizer.step(closure_of(model, signal))
        mean = 0.9 * mean + vector(value.grad for value in model.parameters()) + 0.5 * start
        root = optimizer.preconditioner().inverse_sqrt
        moved = vector(model.parameters()) - start
        assert_same(moved, -0.01 * (root @ (root @ mean)), roundings=1e6)


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_analysis_between_steps_changes_nothing(kind):
    signal = points()
    ends = []
    for analysed in (False, True):
        model = small_field()
        optimizer = kind(model, 0.01, update_every=1, inverse_every=2, damping=0.1)
        for _ in range(5):
            optimizer.step(closure_of(model, signal))
            if analysed:
                before = {
                    name: value.clone()
                    for state in optimizer.state.values()
                    for name, value in state.items()
                }
                HessianOperator(model, mse, signal) @ vector(model.parameters())
                loss = mse(model(signal.coords), signal.values)
                torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
                after = {
                    name: value
                    for state in optimizer.state.values()
                    for name, value in state.items()
                }
                assert all(torch.equal(before[name], after[name]) for name in before)
        assert not any(module._forward_hooks for module in model.modules())
        ends.append(vector(model.parameters()))
    assert torch.equal(*ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fisher", ["ggn", "mc", "empirical"])
@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_resume_is_bit_identical(kind, fisher, dtype):
    signal = points().to(dtype=dtype)
    options = {"fisher": fisher, "update_every": 2, "inverse_every": 4, "momentum": 0.5}

    def begin():
        model = small_field().to(dtype)
        optimizer = kind(model, 0.01, damping=0.1, **options)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return model, optimizer, scheduler

    def advance(model, optimizer, scheduler, steps):
        for _ in range(steps):
            optimizer.step(closure_of(model, signal))
            scheduler.step()

    whole = begin()
    advance(*whole, 11)
    first = begin()
    advance(*first, 5)
    file = io.BytesIO()
    torch.save([each.state_dict() for each in first], file)
    file.seek(0)
    second = begin()
    for each, state in zip(second, torch.load(file, weights_only=True), strict=True):
        each.load_state_dict(state)
    advance(*second, 6)
    assert torch.equal(vector(whole[0].parameters()), vector(second[0].parameters()))
    assert whole[1].counters == second[1].counters


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_dropped_models_are_freed_without_the_collector(kind):
    signal = points()
    gc.collect()
    gc.disable()
    try:
        model = small_field()
        optimizer = stepped(kind, model, signal, steps=2)
        kept = [weakref.ref(value) for value in model.parameters()]
        del model, optimizer
        assert not [each for each in kept if each() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_it_descends_with_its_defaults(kind):
    model, signal = make_field("sine", 2, 1), points()
    optimizer = kind(model)
    losses = [float(optimizer.step(closure_of(model, signal))) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_loss_before_the_step_is_returned_and_the_gradient_left():
    model, signal = small_field(), points()
    expected, _ = closure_of(model, signal)()
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = KFAC(model, 0.1).step(closure_of(model, signal))
    assert loss.ndim == 0
    assert not loss.requires_grad
    assert_same(loss, expected.detach())
    for value, gradient in zip(model.parameters(), gradients, strict=True):
        assert_same(value.grad, gradient)
        assert not value.grad.requires_grad


def test_what_is_not_finite_is_skipped_and_then_stops():
    model, signal = small_field(), points()
    optimizer = KFAC(model, 0.1, update_every=1, inverse_every=1)
    closure = closure_of(model, signal)
    optimizer.step(closure)
    state = {name: value.clone() for name, value in optimizer.state[model.maps[0].weight].items()}
    start = vector(model.parameters())

    def spoiled():
        loss, outputs = closure()
        return loss * float("nan"), outputs

    for _ in range(9):
        optimizer.step(spoiled)
    assert torch.equal(vector(model.parameters()), start)
    for name, value in optimizer.state[model.maps[0].weight].items():
        assert torch.equal(value, state[name])
    assert optimizer.diagnostics()["skipped"] == 9
    with pytest.raises(DivergenceError, match="not finite in 10 steps in a row"):
        optimizer.step(spoiled)


def test_curvature_that_is_not_finite_is_skipped():
    model, signal = small_field(), points()

    def closure():
        outputs = model(signal.coords)
        # The square root of zero has an infinite slope, which zero times it makes NaN.
        return mse(outputs, signal.values) + 0 * (outputs - outputs.detach()).pow(
            1.5
        ).sum(), outputs

    optimizer = KFAC(model, 0.1)
    start = vector(model.parameters())
    assert torch.isfinite(optimizer.step(closure))
    assert torch.equal(vector(model.parameters()), start)
    assert optimizer.diagnostics()["skipped"] == 1
    with pytest.raises(ValueError, match="no preconditioner before its first step"):
        optimizer.preconditioner()


def test_closures_are_checked():
    model, signal = small_field(), points()
    closure = closure_of(model, signal)
    optimizer = KFAC(model, 0.1)
    with pytest.raises(TypeError, match=r"must return \(loss, outputs\), got Tensor"):
        optimizer.step(lambda: closure()[0])

    def cloned():
        loss, outputs = closure()
        return loss, outputs.clone()

    with pytest.raises(ValueError, match="outputs that its loss was computed from"):
        optimizer.step(cloned)

    def backward():
        loss, outputs = closure()
        loss.backward()
        return loss, outputs

    with pytest.raises(RuntimeError, match="not call backward"):
        optimizer.step(backward)
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_must_be_called_once():
    model, signal = small_field(), points()

    def twice():
        model(signal.coords)
        return closure_of(model, signal)()

    with pytest.raises(
        ValueError, match=r"every layer of the model once, got 2 calls of layers\.0"
    ):
        KFAC(model, 0.1).step(twice)


def test_points_must_not_interact():
    model, signal = small_field(), points()

    def mixed(outputs, values):
        return (outputs - values).sum().square()

    with pytest.raises(ValueError, match="a mean or a sum over points"):
        KFAC(model, 0.1).step(closure_of(model, signal, mixed))


@pytest.mark.parametrize("shape", [(8,), (2, 4, 1)])
def test_outputs_may_have_any_shape(shape):
    model, other, signal = small_field(), small_field(), points(8)

    def closure():
        outputs = model(signal.coords.view(*shape[: -1 if len(shape) > 1 else None], 2))
        outputs = outputs.view(shape)
        return (outputs - signal.values.view(shape)).square().sum() / 16, outputs

    optimizer, expected = KFAC(model, 0.1), KFAC(other, 0.1)
    optimizer.step(closure)
    expected.step(closure_of(other, signal))
    assert_same(vector(model.parameters()), vector(other.parameters()))


def test_a_frozen_bias_is_no_column():
    model, signal = small_field(), points()
    model.maps[0].bias.requires_grad_(False)
    optimizer = KFAC(model, 0.1)
    start, frozen = vector(optimizer.parameters), model.maps[0].bias.clone()
    optimizer.step(closure_of(model, signal))
    gradient = vector(value.grad for value in optimizer.parameters)
    root = optimizer.preconditioner(model).inverse_sqrt
    assert_same(vector(optimizer.parameters) - start, -0.1 * (root @ (root @ gradient)))
    assert torch.equal(model.maps[0].bias, frozen)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.scale = nn.Parameter(torch.ones(1))


def test_models_are_checked():
    model = Scaled()
    with pytest.raises(ValueError, match=r"nothing but them.* also trains scale"):
        KFAC(model, 0.1)
    model.scale.requires_grad_(False)
    assert len(KFAC(model, 0.1).parameters) == 2
    with pytest.raises(ValueError, match=r"nn\.Linear layers"):
        KFAC(nn.Tanh(), 0.1)
    with pytest.raises(ValueError, match=r"on one device, got DataParallel\. Pass model\.module"):
        KFAC(nn.DataParallel(model), 0.1)
    model._orig_mod = None
    with pytest.raises(ValueError, match=r"must not be compiled, got Scaled\. Pass the module"):
        KFAC(model, 0.1)
    del model._orig_mod
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="share a parameter"):
        KFAC(tied, 0.1)
    with pytest.raises(TypeError, match=r"must be an nn\.Module"):
        KFAC(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="one parameter group"):
        KFAC(model, 0.1).add_param_group({"params": [nn.Parameter(torch.ones(2))]})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0.0),
        ("damping", 0.0),
        ("damping", float("inf")),
        ("ema", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1.0),
        ("kl_clip", 0.0),
        ("update_every", 0),
        ("inverse_every", 15),
        ("fisher", "gnn"),
    ],
)
@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_options_are_checked(kind, option, value):
    with pytest.raises(ValueError, match=rf"^{option} must be .*, got"):
        kind(small_field(), **{"lr": 0.1, option: value})


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
@pytest.mark.parametrize("fisher", ["ggn", "mc", "empirical"])
def test_activations_that_work_in_place_change_nothing(kind, fisher):
    losses = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(inplace=inplace), nn.Linear(6, 1)).double()
        optimizer = kind(model, fisher=fisher, update_every=1, inverse_every=1)

        def closure(model=model):
            outputs = model(points().coords)
            return mse(outputs, points().values), outputs

        losses.append([float(optimizer.step(closure)) for _ in range(5)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_the_root_of_a_model_of_two_precisions_is_the_wider_ones(kind):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 1).double()

        def forward(self, coords):
            return self.last(torch.tanh(self.first(coords.float())).double())

    model = Mixed()
    optimizer = kind(model)

    def closure():
        outputs = model(points().coords)
        return mse(outputs, points().values), outputs

    optimizer.step(closure)
    root = optimizer.preconditioner().inverse_sqrt.dense()
    assert root.dtype == torch.float64
    torch.testing.assert_close(root, root.T, rtol=1e-5, atol=1e-6)
    assert float(torch.linalg.eigvalsh(root)[0]) > 0
