import pytest
import torch
from torch import nn

from hessian_lab.errors import ResourceError
from hessian_lab.fields import ACTIVATIONS
from hessian_lab.fields.mlp import CoordinateMLP, make_field
from hessian_lab.losses import bce, mse
from hessian_lab.probe import hessian as hessian_module
from hessian_lab.probe import kept_graph
from hessian_lab.probe.closed_diagonal import exact_diagonal
from hessian_lab.probe.closed_form import temporary_numbers
from hessian_lab.probe.closed_rows import exact_row_norms
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.hessian import dense_hessian, has_closed_form, hessian_terms
from hessian_lab.probe.kept_graph import hessian_rows, symmetrize
from tests.reference import assert_same, autograd_hessian, points, small_field

# Agreement with torch.func.hessian to 1e-12 of the largest entry.
ROUNDINGS = 1e-12 / torch.finfo(torch.float64).eps


@pytest.mark.parametrize("depth", range(5))
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_closed_form_is_the_autograd_hessian(act, depth):
    num_outputs = 1 + depth % 3
    signal = points(num_outputs=num_outputs)
    model = small_field(act, num_outputs, depth)

    ours = dense_hessian(model, mse, signal, chunk_size=16)

    assert_same(ours, autograd_hessian(model, mse, signal), roundings=ROUNDINGS)
    assert torch.equal(ours, ours.T)


@pytest.mark.parametrize("width", [1, 2, 9, 17, 33])
def test_closed_form_holds_at_every_width(width):
    signal, model = points(num_points=11), small_field(width=width, depth=3)
    assert_same(
        dense_hessian(model, mse, signal), autograd_hessian(model, mse, signal), roundings=ROUNDINGS
    )


@pytest.mark.parametrize(
    "loss",
    [
        bce,
        nn.MSELoss(),
        nn.MSELoss(reduction="sum"),
        nn.BCEWithLogitsLoss(),
        nn.HuberLoss(delta=0.3),
        nn.SmoothL1Loss(),
        nn.L1Loss(),
        lambda f, y: ((f - y).abs() ** 3).mean() + (f[:, :1] * f[:, 1:]).mean(),
    ],
    ids=["bce", "MSE", "MSE-sum", "BCEWithLogits", "Huber", "SmoothL1", "L1", "callable"],
)
def test_closed_form_takes_any_mean_over_points(loss, monkeypatch):
    monkeypatch.setattr(hessian_module, "hessian_rows", None)
    signal, model = points(num_outputs=2), small_field("gaussian", 2)
    assert_same(
        dense_hessian(model, loss, signal),
        autograd_hessian(model, loss, signal),
        roundings=ROUNDINGS,
    )


class Doubled(CoordinateMLP):
    """A subclass that computes something else."""

    def forward(self, coords):
        return 2 * super().forward(coords)


def doubled():
    plain = small_field()
    model = Doubled(2, 1, plain.activation, width=5, depth=2, dtype=torch.float64)
    model.load_state_dict(plain.state_dict())
    return model


class Cubed(nn.Module):
    def forward(self, weight):
        return weight**3


def hooked():
    model = small_field()
    model.layers[1].register_forward_hook(lambda _layer, _inputs, output: output**2)
    return model


def reparametrized():
    model = small_field()
    nn.utils.parametrize.register_parametrization(model.layers[1], "weight", Cubed())
    return model


def tied():
    model = small_field(depth=3)
    model.layers[2].weight = model.layers[1].weight
    return model


@pytest.mark.parametrize("make", [doubled, hooked, reparametrized])
def test_a_field_that_was_changed_has_no_closed_form(make):
    model, signal = make(), points()
    assert not has_closed_form(model)
    expected = autograd_hessian(model, mse, signal)
    assert_same(dense_hessian(model, mse, signal), expected, roundings=ROUNDINGS)


def test_a_field_with_tied_weights_has_no_closed_form():
    model = tied()
    assert not has_closed_form(model)
    size = sum(value.numel() for value in model.parameters())
    assert dense_hessian(model, mse, points()).shape == (size, size)


@pytest.mark.parametrize("other", range(1, 12))
def test_a_term_that_ties_two_points_is_noticed(other):
    def tied_ends(predictions, values):
        return mse(predictions, values) + (predictions[0] - predictions[other]).square().sum()

    signal, model = points(num_points=12), small_field()
    expected = autograd_hessian(model, tied_ends, signal)
    assert_same(dense_hessian(model, tied_ends, signal), expected, roundings=ROUNDINGS)


def test_loss_that_couples_points_takes_the_kept_graph_and_is_right():
    def coupled(predictions, values):
        return (predictions - values).square().mean().sqrt()

    signal, model = points(), small_field()
    ours = dense_hessian(model, coupled, signal)
    assert_same(ours, autograd_hessian(model, coupled, signal), roundings=ROUNDINGS)
    with pytest.raises(ValueError, match="loss must be a mean over points"):
        hessian_terms(model, coupled, signal)


@pytest.mark.parametrize("chunk_size", [1, 7, 36, 37, 38, 1000])
def test_chunks_do_not_change_the_hessian(chunk_size):
    signal, model = points(), small_field(depth=3)
    whole = dense_hessian(model, mse, signal, chunk_size=37)
    assert_same(dense_hessian(model, mse, signal, chunk_size=chunk_size), whole, roundings=100)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_terms_sum_to_the_hessian_and_each_is_symmetric(act):
    signal, model = points(num_outputs=2), small_field(act, 2, depth=3)
    terms = hessian_terms(model, mse, signal)
    for term in (terms.ggn, terms.activation, terms.cross):
        assert torch.equal(term, term.T)
    whole = dense_hessian(model, mse, signal)
    assert_same(terms.ggn + terms.activation + terms.cross, whole, roundings=100)


@pytest.mark.parametrize("act", ["sine", "wavelet", "sinc"])
def test_layers_of_their_own_omega_have_the_hessian_of_autograd(act):
    signal, model = points(num_outputs=2), small_field(act, 2, depth=3, omega=(11.0, 2.0, 5.0))
    expected = autograd_hessian(model, mse, signal)
    assert_same(dense_hessian(model, mse, signal), expected)
    assert_same(HessianOperator(model, mse, signal).dense(), expected)
    assert_same(exact_diagonal(model, mse, signal), expected.diagonal())
    assert_same(exact_row_norms(model, mse, signal), expected.norm(dim=1))


def test_ggn_is_the_jacobian_around_the_curvature_of_the_loss():
    signal, model = points(num_outputs=2), small_field("tanh", 2, depth=3)
    parameters = dict(model.named_parameters())
    jacobian = torch.func.jacrev(
        lambda named: torch.func.functional_call(model, named, (signal.coords,))
    )(parameters)
    rows = torch.cat([part.flatten(2) for part in jacobian.values()], dim=2).flatten(0, 1).detach()
    for loss, weight in (
        (mse, torch.ones_like(rows[:, 0])),
        (bce, (p := torch.sigmoid(model(signal.coords)).detach().flatten()) * (1 - p)),
    ):
        expected = rows.T @ (weight.unsqueeze(1) * rows) / signal.num_points
        assert_same(hessian_terms(model, loss, signal).ggn, expected)


@pytest.mark.parametrize("act", ["sine", "gaussian", "tanh"])
def test_freezing_every_second_derivative_takes_the_activation_term_away(act):
    class Frozen(nn.Module):
        """The field with φ replaced by its tangent at the present pre-activations."""

        def __init__(self, model):
            super().__init__()
            self.layers, self.jet = model.layers, model.activation.jet

        def forward(self, coords):
            state = coords
            for layer in self.layers[:-1]:
                z = layer(state)
                value, slope, _ = self.jet(z.detach())
                state = value + slope * (z - z.detach())
            return self.layers[-1](state)

    signal, model = points(), small_field(act, depth=3)
    terms = hessian_terms(model, mse, signal)
    assert_same(hessian_rows(Frozen(model), mse, signal), terms.ggn + terms.cross)


@pytest.mark.parametrize("act", ["relu", "relu_pe"])
def test_activation_term_of_a_piecewise_linear_field_is_zero(act):
    assert not hessian_terms(small_field(act), mse, points()).activation.any()


def test_cross_term_of_one_layer_is_zero_and_diagonal_blocks_hold_none():
    assert not hessian_terms(small_field(depth=0), mse, points()).cross.any()
    cross = hessian_terms(small_field(depth=2, width=5), mse, points()).cross
    assert not cross[:15, :15].any()
    assert not cross[15:45, 15:45].any()
    assert cross[15:45, :15].any()


def test_dead_units_leave_rows_that_are_exactly_zero():
    model = small_field("relu", depth=2)
    with torch.no_grad():
        model.layers[1].bias[2] = -100.0
    hessian = dense_hessian(model, mse, points())
    dead = [15 + 2 * 5 + unit for unit in range(5)] + [15 + 25 + 2, 45 + 2]
    assert not hessian[dead].any()


def test_float32_model_gives_a_float32_hessian():
    signal = points().to(dtype=torch.float32)
    model = small_field(dtype=torch.float32)
    hessian = dense_hessian(model, mse, signal)
    assert hessian.dtype == torch.float32
    double = dense_hessian(model.double(), mse, signal.to(dtype=torch.float64))
    assert_same(hessian, double.float(), roundings=1e3)


class Shared(nn.Module):
    """Not a CoordinateMLP: two uses of one weight, an unused parameter, a frozen one."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(4, 2, dtype=torch.float64, generator=generator))
        self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
        self.last = nn.Parameter(torch.randn(1, 4, dtype=torch.float64, generator=generator))

    def forward(self, coords):
        hidden = torch.tanh((coords * self.frozen) @ self.first.T)
        return torch.sin(hidden @ self.last.T) + (hidden**2) @ self.last.T


def test_any_module_takes_the_kept_graph():
    model, signal = Shared(), points()
    hessian = dense_hessian(model, mse, signal)
    reference = autograd_hessian(model, mse, signal)
    trained = [*range(11), *range(13, 17)]
    assert_same(hessian, reference[trained][:, trained], roundings=ROUNDINGS)
    assert torch.equal(hessian, hessian.T)
    assert not hessian[8:11].any()


@pytest.mark.parametrize("loss", [mse, nn.MSELoss(), nn.HuberLoss()])
def test_kept_graph_is_the_closed_form(loss):
    model, signal = small_field("wavelet", 2, depth=3), points(num_outputs=2)
    assert_same(hessian_rows(model, loss, signal), dense_hessian(model, loss, signal))


def test_frozen_layers_of_a_field_are_left_out():
    model, signal = small_field(), points()
    whole = dense_hessian(model, mse, signal)
    model.layers[0].requires_grad_(False)
    assert_same(dense_hessian(model, mse, signal), whole[15:, 15:])


def test_linear_model_with_linear_loss_has_a_zero_hessian():
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 1, dtype=torch.float64))

        def forward(self, coords):
            return coords @ self.weight

    assert not dense_hessian(Line(), lambda f, y: (f - y).mean(), points()).any()


def test_operations_that_cannot_be_batched_are_taken_row_by_row():
    class Stubborn(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            context.save_for_backward(value)
            return value**3

        @staticmethod
        def backward(context, gradient):
            (value,) = context.saved_tensors
            float(gradient.detach().sum())  # no batching rule
            return 3 * value**2 * gradient

    class Cubic(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[0.5], [2.0]], dtype=torch.float64))

        def forward(self, coords):
            return Stubborn.apply(coords @ self.weight)

    class Plain(Cubic):
        def forward(self, coords):
            return (coords @ self.weight) ** 3

    signal = points()
    expected = autograd_hessian(Plain(), mse, signal)
    assert_same(dense_hessian(Cubic(), mse, signal), expected)


@pytest.mark.parametrize("block", [1, 16])
def test_blocks_of_rows_do_not_change_the_hessian(block, monkeypatch):
    monkeypatch.setattr(kept_graph, "BLOCK_RANGE", (block, block))
    model, signal = small_field(), points()
    assert_same(hessian_rows(model, mse, signal), dense_hessian(model, mse, signal))


@pytest.mark.parametrize("tile", [1, 3, 7, 100])
def test_symmetrizing_takes_the_mean_of_both_triangles(tile):
    matrix = torch.arange(49, dtype=torch.float64).view(7, 7)
    expected = (matrix + matrix.T) / 2
    symmetric = matrix.clone()
    assert symmetrize(symmetric, tile=tile) == float((matrix - matrix.T).abs().max())
    assert torch.equal(symmetric, expected)


def test_memory_is_asked_for_with_its_temporaries(monkeypatch):
    model, signal, asked = small_field(depth=3), points(), []
    size = sum(value.numel() for value in model.parameters())
    monkeypatch.setattr(
        hessian_module, "require_bytes", lambda needed, *_, **__: asked.append(needed)
    )
    dense_hessian(model, mse, signal)
    dense_hessian(model, mse, signal, chunk_size=5)
    hessian_terms(model, mse, signal)
    temporary = [temporary_numbers(model, 37, chunk) for chunk in (None, 5)]
    # Six panels of the widest layer's square, 5 + 1, for each point of a chunk.
    assert temporary[0] - temporary[1] == 6 * (37 - 5) * 36
    assert temporary[1] > size**2 / 2
    numbers = [size**2 + temporary[0], size**2 + temporary[1], 3 * size**2 + temporary[0]]
    assert asked == [8 * count for count in numbers]


def test_model_and_its_gradients_are_left_alone():
    model, signal = small_field(), points()
    before = [value.clone() for value in model.parameters()]
    dense_hessian(model, mse, signal)
    hessian_rows(model, mse, signal)
    assert all(map(torch.equal, before, model.parameters()))
    assert all(value.grad is None for value in model.parameters())
    assert signal.coords.grad_fn is None


def test_works_under_no_grad():
    model, signal = small_field(), points()
    with torch.no_grad():
        inside = dense_hessian(model, mse, signal), hessian_rows(model, mse, signal)
    assert_same(inside[1], inside[0])


def test_refuses_what_does_not_fit_before_allocating(monkeypatch):
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _: 10**6)
    model = make_field("sine", 2, 1, width=64, depth=4)
    with pytest.raises(
        ResourceError, match=r"12737 parameters .* needs .* GiB .* 977 KiB are free"
    ):
        dense_hessian(model, mse, points())


def test_refuses_mixed_precision():
    with pytest.raises(TypeError, match=r"signal must have the dtype .* got torch\.float32"):
        dense_hessian(small_field(), mse, points().to(dtype=torch.float32))


def test_refuses_models_without_trainable_parameters():
    with pytest.raises(ValueError, match="require gradients, got none"):
        dense_hessian(small_field().requires_grad_(False), mse, points())


def test_refuses_a_chunk_of_no_points():
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        dense_hessian(small_field(), mse, points(), chunk_size=0)


def test_terms_refuse_other_modules():
    with pytest.raises(TypeError, match="model must be a CoordinateMLP, got Shared"):
        hessian_terms(Shared(), mse, points())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_closed_form_on_a_gpu():
    signal, model = points(), small_field(depth=3)
    expected = dense_hessian(model, mse, signal)
    ours = dense_hessian(model.cuda(), mse, signal.to(device="cuda"))
    assert ours.is_cuda
    assert_same(ours.cpu(), expected)
