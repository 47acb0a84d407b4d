import copy
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from hessian_lab.errors import NonFiniteError
from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.losses import bce, mse
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.hessian import dense_ggn, dense_hessian
from hessian_lab.probe.layers import layer_blocks
from hessian_lab.probe.linearized import LinearizedField
from hessian_lab.probe.operators import require_symmetric
from hessian_lab.probe.vectors import gaussian
from tests.reference import assert_same, points, small_field

OPERATORS = [HessianOperator, GGNOperator]
SIGNAL = points(num_points=36)
DATA = SIGNAL.coords, SIGNAL.values
SEQUENCES = torch.linspace(-1, 1, 8 * 5, dtype=torch.float64).view(8, 5, 1), SIGNAL.values[:8]


def sequential(seed=0):
    torch.manual_seed(seed)
    maps = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(3, 1)
    return nn.Sequential(maps[0], nn.Tanh(), maps[1], nn.Sigmoid(), maps[2]).double()


BOTH = pytest.mark.parametrize("make", [small_field, sequential], ids=["field", "module"])
EACH = pytest.mark.parametrize("operator", OPERATORS, ids=["hessian", "ggn"])


def graded(model, value):
    """Return the gradient [n] of a scalar with its graph."""
    leaves = [leaf for leaf in model.parameters() if leaf.requires_grad]
    if not value.requires_grad:
        return torch.cat([torch.zeros_like(leaf).flatten() for leaf in leaves])
    options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
    parts = torch.autograd.grad(value, leaves, **options)
    return torch.cat([part.flatten() for part in parts])


def reference_hessian(model, loss, inputs, targets):
    """Return the Hessian [n, n] by differentiating the model itself twice; nothing of ours."""
    with sdpa_kernel(SDPBackend.MATH):
        value = loss(model(inputs), targets)
    return torch.stack([graded(model, entry) for entry in graded(model, value)]).detach()


def reference_ggn(model, loss, inputs, targets):
    """Return Jᵀ (∇²_f L) J [n, n], each factor by autograd."""
    with sdpa_kernel(SDPBackend.MATH):
        outputs = model(inputs)
    jacobian = torch.stack([graded(model, output) for output in outputs.flatten()]).detach()
    curvature = torch.autograd.functional.hessian(
        lambda flat: loss(flat.view(outputs.shape), targets), outputs.detach().flatten()
    )
    return jacobian.T @ curvature @ jacobian


REFERENCES = {HessianOperator: reference_hessian, GGNOperator: reference_ggn}


class Doubled(CoordinateMLP):
    """A subclass that computes something else."""

    def forward(self, coords):
        return 2 * super().forward(coords)


def doubled():
    plain = small_field()
    model = Doubled(2, 1, plain.activation, width=5, depth=2, dtype=torch.float64)
    model.load_state_dict(plain.state_dict())
    return model


def patched():
    """A field whose instance computes something else."""
    model = small_field()
    model.forward = lambda coords: 2 * CoordinateMLP.forward(model, coords)
    return model


def hooked():
    model = sequential()
    model[0].register_forward_hook(lambda _layer, _inputs, output: output**2)
    model[1].register_forward_pre_hook(lambda _layer, inputs: (1.5 * inputs[0],))
    model[2].register_full_backward_hook(lambda *_: None)
    return model


def tied():
    model = small_field(depth=3)
    model.layers[2].weight = model.layers[1].weight
    return model


def frozen(make=small_field):
    model = make()
    next(iter(model.parameters())).requires_grad_(False)
    return model


class Cubed(nn.Module):
    def forward(self, weight):
        return weight**3


def parametrized(make=sequential):
    model = make()
    layer = model.layers[1] if isinstance(model, CoordinateMLP) else model[2]
    nn.utils.parametrize.register_parametrization(layer, "weight", Cubed())
    return model


def reordered():
    """A field whose layer lists its bias first, as after ``prune.remove`` too."""
    model = parametrized(small_field)
    nn.utils.parametrize.remove_parametrizations(model.layers[1], "weight")
    return model


def spectral():
    """A field with an attribute that ``deepcopy`` does not take."""
    model = small_field()
    nn.utils.spectral_norm(model.layers[1])
    model(SIGNAL.coords)
    return model.eval()


def biasless():
    model = small_field()
    model.layers[0] = nn.Linear(2, 5, bias=False, dtype=torch.float64)
    nn.init.constant_(model.layers[0].weight, 0.01)
    return model


class Busy(nn.Module):
    """Buffers, batch norm and dropout in evaluation mode, an unused part, a weight used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.outer, self.unused = nn.Linear(2, 4), nn.Linear(4, 1), nn.Linear(3, 2)
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.3)
        self.register_buffer("scale", torch.tensor(1.5))
        self.register_buffer("hidden", torch.tensor(0.5), persistent=False)
        self.norm.running_mean += 0.1
        self.double().eval()

    def forward(self, coords):
        hidden = self.drop(self.norm(self.inner(self.scale * coords + self.hidden)))
        return self.outer(hidden.sin()) * self.outer(hidden.cos())


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out = nn.Embedding(7, 3), nn.Linear(3, 4)
        self.double()

    def forward(self, words):
        return self.out(torch.tanh(self.words(words)))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.out = kind(1, 3, batch_first=True), nn.Linear(3, 1)
        self.double()

    def forward(self, sequences):
        return self.out(self.cell(sequences)[0][:, -1])


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out = nn.Linear(1, 4), nn.Linear(4, 1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.double().eval()

    def forward(self, sequences):
        hidden = self.inner(sequences)
        return self.out(self.attention(hidden, hidden, hidden, need_weights=False)[0][:, -1])


class Sloped(nn.Module):
    """A field with its own derivative by the coordinates, as in an eikonal loss."""

    def __init__(self):
        super().__init__()
        self.field = sequential()

    def forward(self, coords):
        coords = coords.detach().requires_grad_()
        values = self.field(coords)
        (slope,) = torch.autograd.grad(values.sum(), coords, create_graph=True)
        return torch.cat([values, slope], dim=1)


class Unused(nn.Module):
    """None of its parameters has any effect."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, coords):
        return coords.sum(dim=1, keepdim=True)


class Fixed(nn.Module):
    """Inputs that are no tensor, and a float32 buffer and frozen parameter beside the float64s."""

    def __init__(self):
        super().__init__()
        self.inner = sequential()
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("mask", torch.ones(1))

    def forward(self, inputs):
        return self.inner(inputs["coords"]) * self.mask * self.frozen


def coupled(predictions, values):
    return mse(predictions, values) + (predictions - values).mean().square()


def smooth(predictions, values):
    """The points as they stand on their 6×6 grid."""
    grid = predictions.view(6, 6)
    return mse(predictions, values) + (grid[1:] - grid[:-1]).square().mean()


WEIGHTS = torch.linspace(0, 1, 36, dtype=torch.float64).unsqueeze(1)
CLASSES = torch.arange(21) % 7, torch.arange(21) % 4
CASES = {
    "sequential": (sequential, mse, DATA),
    "mse_loss": (sequential, functional.mse_loss, DATA),
    "MSELoss": (sequential, nn.MSELoss(), DATA),
    "bce": (sequential, bce, DATA),
    "BCEWithLogits": (sequential, nn.BCEWithLogitsLoss(), DATA),
    "Huber": (sequential, nn.HuberLoss(delta=0.2), DATA),
    "callable": (sequential, lambda f, y: ((f - y) ** 4 + f.sin()).mean(), DATA),
    "coupled": (sequential, coupled, DATA),
    "coupled-field": (small_field, coupled, DATA),
    "rms-field": (small_field, lambda f, y: mse(f, y).sqrt(), DATA),
    "smooth": (sequential, smooth, DATA),
    "smooth-field": (small_field, smooth, DATA),
    "weighted": (sequential, lambda f, y: (WEIGHTS * (f - y).square()).mean(), DATA),
    "weighted-field": (small_field, lambda f, y: (WEIGHTS * (f - y).square()).mean(), DATA),
    "one-element": (sequential, lambda f, y: mse(f, y).view(1, 1), DATA),
    "linear-loss": (small_field, lambda f, y: (f - y).mean(), DATA),
    "subclass": (doubled, mse, DATA),
    "patched": (patched, mse, DATA),
    "hooked": (hooked, mse, DATA),
    "tied": (tied, mse, DATA),
    "frozen": (lambda: frozen(sequential), mse, DATA),
    "frozen-field": (frozen, mse, DATA),
    "parametrized": (parametrized, mse, DATA),
    "parametrized-field": (lambda: parametrized(small_field), mse, DATA),
    "reordered": (reordered, mse, DATA),
    "spectral": (spectral, mse, DATA),
    "biasless": (biasless, mse, DATA),
    "busy": (Busy, mse, DATA),
    "words": (Words, functional.cross_entropy, CLASSES),
    "weighted-words": (
        Words,
        nn.CrossEntropyLoss(weight=torch.arange(1.0, 5.0, dtype=torch.float64)),
        CLASSES,
    ),
    "rnn": (lambda: Recurrent(nn.RNN), mse, SEQUENCES),
    "lstm": (lambda: Recurrent(nn.LSTM), mse, SEQUENCES),
    "attention": (Attentive, mse, SEQUENCES),
    "sloped": (Sloped, mse, (DATA[0], torch.ones(36, 3, dtype=torch.float64))),
    "unused": (Unused, mse, DATA),
    "grid-field": (small_field, mse, (DATA[0].view(6, 6, 2), DATA[1].view(6, 6, 1))),
    "dictionary": (Fixed, mse, ({"coords": DATA[0]}, DATA[1])),
    "differentiable-inputs": (sequential, mse, (DATA[0].clone().requires_grad_(), DATA[1])),
}


@EACH
@pytest.mark.parametrize("case", CASES)
def test_any_module_and_any_mean_loss(operator, case):
    make, loss, data = CASES[case]
    model = make()
    expected = REFERENCES[operator](model, loss, *data)
    ours = operator(model, loss, data)
    scale = float(expected.abs().max())
    assert_same(ours.dense(), expected, scale=scale)
    assert_same(operator(model, loss, data, check=False).dense(), expected, scale=scale)
    assert ours.num_points == len(data[1])


@pytest.mark.parametrize("answer", [dict, tuple, torch.Tensor.mean], ids=["dict", "tuple", "loss"])
def test_the_hessian_takes_predictions_of_any_kind(answer):
    class Answers(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = sequential()

        def forward(self, coords):
            values = self.inner(coords)
            if answer is dict:
                return {"values": values}
            return (values, coords) if answer is tuple else (values**2).mean()

    def loss(predictions, values):
        if answer is dict:
            return mse(predictions["values"], values)
        return mse(predictions[0], values) if answer is tuple else predictions

    expected = reference_hessian(Answers(), loss, *DATA)
    assert_same(HessianOperator(Answers(), loss, DATA).dense(), expected)
    if answer in (dict, tuple):
        with pytest.raises(TypeError, match=f"must return a tensor .* got {answer.__name__}"):
            GGNOperator(Answers(), loss, DATA)


@EACH
def test_parameters_without_effect_have_a_zero_matrix(operator):
    blocks = layer_blocks(operator(Busy(), mse, DATA))
    assert not blocks["unused"].dense().any()
    assert not operator(Busy(), mse, DATA, parameters="unused.*").dense().any()
    assert blocks["inner"].dense().any()


@EACH
@pytest.mark.parametrize("make", [small_field, sequential])
def test_a_constant_loss_has_a_zero_matrix(operator, make):
    assert not operator(make(), lambda _, values: values.mean(), DATA).dense().any()


@EACH
@BOTH
@pytest.mark.parametrize("num", [1, 2, 16, 17, 40])
def test_products_of_blocks_in_any_layout(operator, make, num):
    matrix = operator(make(), mse, DATA)
    dense = matrix.dense()
    assert_same(dense, dense.T, scale=float(dense.abs().max()))
    wide = gaussian(2 * matrix.size, 2 * num, seed=0, like=matrix)
    block = wide[: matrix.size, :num]
    expected = dense @ block
    rows = block.T.contiguous()
    for layout in (block, rows.T, block.contiguous(), wide[: matrix.size, ::2][:, :num]):
        assert_same(matrix @ layout, dense @ layout)
    assert_same(matrix @ wide[::2, 0], dense @ wide[::2, 0])
    assert_same(matrix @ block[:, :1].expand(-1, num), expected[:, :1].expand(-1, num))
    assert_same(matrix @ block[:, -1], expected[:, -1])
    assert torch.equal(block, wide[: matrix.size, :num])
    assert (matrix @ block[:, :0]).shape == (matrix.size, 0)
    assert not (matrix @ block.clone().requires_grad_()).requires_grad


@EACH
@BOTH
@pytest.mark.parametrize(("chunk_size", "passes"), [(None, 0), (10, 4)])
def test_only_chunks_are_linearized_anew_in_every_product(operator, make, chunk_size, passes):
    calls = []

    def loss(predictions, values):
        calls.append(1)
        return mse(predictions, values)

    matrix = operator(make(), loss, DATA, chunk_size=chunk_size)
    for num in (1, 40):
        calls.clear()
        matrix @ torch.ones(matrix.size, num, dtype=torch.float64)
        assert len(calls) == passes


@EACH
@BOTH
def test_float32_agrees_with_float64(operator, make):
    model = make()
    exact = operator(model, mse, DATA).dense()
    single = operator(model.float(), mse, tuple(part.float() for part in DATA))
    assert single.dtype == torch.float32
    assert (single.dense() - exact).abs().max() < 2e-5 * exact.abs().max()


# Batches and chunks.


def batches(*sizes):
    return list(zip(DATA[0].split(sizes), DATA[1].split(sizes), strict=True))


@EACH
@BOTH
@pytest.mark.parametrize(
    "data",
    [
        batches(35, 1),
        batches(9, 1, 13, 13),
        batches(*[1] * 36),
        DataLoader(TensorDataset(*DATA), batch_size=16),
        DataLoader(TensorDataset(*DATA), batch_size=7, shuffle=True),
    ],
    ids=["35+1", "ragged", "ones", "loader", "shuffled"],
)
def test_batches_are_weighed_by_their_points(operator, make, data):
    model = make()
    whole = operator(model, mse, DATA)
    ours = operator(model, mse, data)
    assert ours.num_points == 36
    block = gaussian(whole.size, 3, seed=0, like=whole)
    expected = whole @ block
    assert (ours @ block - expected).abs().max() <= 1e-12 * expected.abs().max()
    recomputed = operator(model, mse, data, chunk_size=5) @ block
    assert (recomputed - expected).abs().max() <= 1e-12 * expected.abs().max()


@EACH
@BOTH
@pytest.mark.parametrize("chunk_size", [1, 7, 35, 36, 37, 1000])
def test_chunks_do_not_change_products(operator, make, chunk_size):
    model = make()
    whole = operator(model, mse, DATA)
    chunked = operator(model, mse, DATA, chunk_size=chunk_size)
    assert chunked.chunk_size == (chunk_size if chunk_size < 36 else None)
    block = gaussian(whole.size, 3, seed=0, like=whole)
    assert_same(chunked @ block, whole @ block)
    unchecked = operator(model, mse, DATA, chunk_size=chunk_size, check=False)
    assert_same(unchecked @ block, whole @ block)


@pytest.mark.parametrize(
    "loss",
    [coupled, lambda f, y: mse(f, y).sqrt(), lambda f, y: (f - y).std()],
    ids=["coupled", "rms", "std"],
)
@pytest.mark.parametrize("options", [{"chunk_size": 10}, {}], ids=["chunks", "batches"])
def test_warns_where_a_loss_depends_on_how_its_points_are_cut(loss, options):
    data = DATA if options else batches(18, 18)
    with pytest.warns(UserWarning, match="loss is no mean over points"):
        HessianOperator(small_field(), loss, data, **options)


@pytest.mark.parametrize("options", [{"chunk_size": 10}, {}], ids=["chunks", "batches"])
def test_warns_where_predictions_depend_on_how_points_are_cut(options):
    # Without running statistics a batch norm takes those of the batch in evaluation mode too.
    model = with_part(nn.BatchNorm1d(4, track_running_stats=False)).eval()
    with pytest.warns(UserWarning, match="loss is no mean over points"):
        HessianOperator(model, mse, DATA if options else batches(18, 18), **options)


@EACH
def test_the_sum_over_float32_batches_is_taken_in_double_precision(operator):
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    inputs = torch.full((301, 1), 1e-4)
    inputs[0] = 1.0
    data = list(zip(inputs.split(1), torch.zeros(301, 1).split(1), strict=True))
    product = operator(model, mse, data, check=False) @ torch.ones(1)
    exact = inputs.double().square().mean()
    assert product.dtype == torch.float32
    assert abs(float(product) / float(exact) - 1) < 3e-7


# What moves and what does not.


def train(model):
    """Change all that can be changed of a model without another shape."""
    loss = mse(model(SIGNAL.coords), SIGNAL.values)
    torch.optim.SGD(model.parameters(), lr=0.3).zero_grad()
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.3).step()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.mul_(1.5).add_(0.3)
    scaled = {name: 1.2 * value for name, value in model.state_dict().items() if value.ndim}
    model.load_state_dict(scaled, strict=False)
    model.train()
    model.requires_grad_(False)
    model.float()


@EACH
@pytest.mark.parametrize("chunk_size", [None, 10])
@pytest.mark.parametrize("make", [small_field, sequential, Busy, tied, frozen, doubled])
def test_training_afterwards_does_not_move_the_operator(operator, make, chunk_size):
    model = make()
    matrix = operator(model, mse, DATA, chunk_size=chunk_size)
    before = matrix.dense()
    train(model)
    assert torch.equal(matrix.dense(), before)
    assert all(part.training for part in model.modules())
    assert not any(value.requires_grad for value in model.parameters())


@EACH
@pytest.mark.parametrize("make", [small_field, sequential])
def test_changing_the_data_in_place_does_not_move_the_operator_unnoticed(operator, make):
    coords, values = (part.clone() for part in DATA)
    matrix = operator(make(), mse, (coords, values))
    before = matrix.dense()
    coords.mul_(2)
    values.add_(1)
    try:
        assert torch.equal(matrix.dense(), before)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017


@EACH
@pytest.mark.parametrize("chunk_size", [None, 10])
@pytest.mark.parametrize("make", [small_field, sequential, Busy, frozen])
def test_the_model_is_left_alone(operator, make, chunk_size):
    model = make()
    model.train(not any(isinstance(part, nn.Dropout) for part in model.modules()))
    state = copy.deepcopy(model.state_dict())
    identities = [id(value) for value in (*model.parameters(), *model.buffers())]
    flags = [value.requires_grad for value in model.parameters()]
    modes = [part.training for part in model.modules()]
    matrix = operator(model, mse, DATA, chunk_size=chunk_size)
    matrix @ torch.ones(matrix.size, 2, dtype=torch.float64)
    assert identities == [id(value) for value in (*model.parameters(), *model.buffers())]
    assert all(map(torch.equal, state.values(), model.state_dict().values()))
    assert flags == [value.requires_grad for value in model.parameters()]
    assert modes == [part.training for part in model.modules()]
    assert all(value.grad is None for value in model.parameters())
    assert all(part.grad is None for part in DATA)
    with pytest.raises(ZeroDivisionError):
        operator(model, lambda *_: 1 / 0, DATA)
    assert identities == [id(value) for value in (*model.parameters(), *model.buffers())]
    assert modes == [part.training for part in model.modules()]


def test_modules_are_evaluated_in_the_modes_that_they_had():
    model = Busy().train()
    model.norm.eval()
    model.drop.eval()
    expected = reference_hessian(model, mse, *DATA)
    matrix = HessianOperator(model, mse, DATA, chunk_size=10)
    model.train()
    assert_same(matrix.dense(), expected)


@EACH
@BOTH
@pytest.mark.parametrize("data", [DATA, batches(9, 9, 18)], ids=["pair", "batches"])
def test_global_generators_are_neither_read_nor_moved(operator, make, data):
    model, products = make(), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        states = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
        matrix = operator(model, mse, data, chunk_size=5)
        products.append(matrix @ torch.ones(matrix.size, dtype=torch.float64))
        assert torch.equal(states[0], torch.get_rng_state())
        assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(*products)


@EACH
@BOTH
@pytest.mark.parametrize("chunk_size", [None, 10])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(operator, make, context, chunk_size):
    model = make()
    outside = operator(model, mse, DATA, chunk_size=chunk_size)
    ones = torch.ones(outside.size, 2, dtype=torch.float64)
    expected = outside @ ones
    with context():
        signal = DATA[0].clone(), DATA[1].clone()
        inside = operator(model, mse, signal, chunk_size=chunk_size)
        assert torch.equal(outside @ torch.ones_like(ones), expected)
        assert torch.equal(inside @ torch.ones_like(ones), expected)
    assert torch.equal(inside @ ones, expected)


@EACH
@BOTH
def test_data_and_models_that_were_made_in_inference_mode(operator, make):
    expected = operator(make(), mse, DATA).dense()
    with torch.inference_mode():
        model, data = make(), tuple(part.clone() for part in DATA)
    assert torch.equal(operator(make(), mse, data).dense(), expected)
    assert torch.equal(operator(model, mse, DATA).dense(), expected)


@EACH
@BOTH
def test_a_default_device_is_no_matter(operator, make):
    expected = operator(make(), mse, DATA).dense()
    model = make()
    with torch.device("meta"):
        assert torch.equal(operator(model, mse, DATA).dense(), expected)


# Memory.


def live_tensors():
    return sum(type(it) is torch.Tensor for it in gc.get_objects())


@EACH
@BOTH
@pytest.mark.parametrize(("chunk_size", "products"), [(None, 1000), (20, 100)])
def test_nothing_grows_over_many_products(operator, make, chunk_size, products):
    matrix = operator(make(), mse, DATA, chunk_size=chunk_size)
    vector = torch.ones(matrix.size, dtype=torch.float64)
    matrix @ vector
    before = live_tensors(), len(gc.get_objects())
    for _ in range(products):
        matrix @ vector
    assert live_tensors() == before[0]
    assert len(gc.get_objects()) - before[1] < 50


@pytest.fixture
def uncollected():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@EACH
@pytest.mark.parametrize("chunk_size", [None, 20])
@pytest.mark.parametrize("make", [small_field, sequential, Busy, tied])
@pytest.mark.usefixtures("uncollected")
def test_dropped_operators_die_at_once(operator, make, chunk_size):
    before = live_tensors()
    for _ in range(4):
        model = make()
        matrix = operator(model, mse, DATA, chunk_size=chunk_size)
        matrix @ torch.ones(matrix.size, dtype=torch.float64)
        leaves = [weakref.ref(leaf) for leaf in matrix._linearizer.leaves]
        references = [weakref.ref(model), weakref.ref(matrix), *leaves]
        del matrix, model
        assert [reference() for reference in references] == [None] * len(references)
    assert live_tensors() == before


STATM = Path("/proc/self/statm")


@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
@EACH
@pytest.mark.usefixtures("uncollected")
def test_a_hundred_dropped_models_leave_no_memory_behind(operator):
    def resident():
        return int(STATM.read_text().split()[1]) * 4096

    signal = points(num_points=1000)
    kept = 0
    for count in range(100):
        model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1)).double()
        matrix = operator(model, mse, signal)
        matrix @ torch.ones(matrix.size, dtype=torch.float64)
        del model, matrix
        if count == 10:
            kept = resident()
    # One activation is 0.5 MB: what leaked would be at least 45.
    assert resident() - kept < 22e6


# Refusals.


class Noisy(nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.inner, self.noise = sequential(), noise

    def forward(self, coords):
        return self.noise(self, self.inner(coords))


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = sequential()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, coords):
        self.calls += 1
        return self.inner(coords)


def with_part(part):
    return nn.Sequential(nn.Linear(2, 4), part, nn.Linear(4, 1)).double()


def stacked(dropout):
    return nn.LSTM(2, 3, num_layers=2, dropout=dropout).double()


@EACH
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_part(nn.Dropout(0.1)), r"1 \(Dropout\) drops units at random in training"),
        (lambda: with_part(nn.AlphaDropout(0.1)), r"1 \(AlphaDropout\) drops units"),
        (lambda: with_part(nn.BatchNorm1d(4)), r"1 \(BatchNorm1d\) uses and changes batch stat"),
        (
            lambda: with_part(nn.BatchNorm1d(4, track_running_stats=False)),
            r"1 \(BatchNorm1d\) uses batch statistics in training mode\. Call model\.eval\(\)",
        ),
        (lambda: stacked(0.2), r"it \(LSTM\) drops units at random in training mode"),
    ],
)
def test_refuses_training_modes_with_the_reason(operator, make, message):
    with pytest.raises(ValueError, match=rf"model must be in evaluation mode: {message}"):
        operator(make(), mse, DATA, check=False)


@EACH
@pytest.mark.parametrize(
    "make", [lambda: with_part(nn.Dropout(0)), lambda: with_part(nn.LayerNorm(4)), small_field]
)
def test_training_mode_is_taken_where_it_is_no_matter(operator, make):
    model = make().train()
    assert_same(operator(model, mse, DATA).dense(), REFERENCES[operator](model, mse, *DATA))


@EACH
@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (lambda: with_part(nn.RReLU()), mse),
        (lambda: Noisy(lambda _, it: functional.dropout(it)), mse),
        (lambda: Noisy(lambda _, it: it + 1e-8 * torch.randn_like(it)), mse),
        (small_field, lambda f, y: mse(f, y) * torch.rand(())),
        (small_field, lambda f, y: mse(f, y + torch.randn_like(y))),
    ],
    ids=["rrelu", "dropout", "noise", "random-loss", "random-values"],
)
def test_refuses_what_changes_between_two_evaluations(operator, make, loss):
    with pytest.raises(
        ValueError, match=r"loss must be the same in two evaluations, got .* random"
    ):
        operator(make(), loss, DATA)


def test_refuses_data_that_change():
    loader = DataLoader(TensorDataset(*DATA), batch_size=10, shuffle=True, drop_last=True)
    with pytest.raises(ValueError, match=r"in two evaluations, got .* fix the data"):
        HessianOperator(small_field(), mse, loader)

    class Shrinking:
        left = 10

        def __iter__(self):
            self.left -= 1
            return iter([DATA] * self.left)

    with pytest.raises(ValueError, match=r"whenever it is gone through, got \d+ points, then \d+"):
        HessianOperator(small_field(), mse, Shrinking())

    class Once:
        """Can be gone through once, and hides it."""

        def __init__(self):
            self.batches = iter([DATA])

        def __iter__(self):
            return (batch for batch in self.batches)

    for check in (True, False):
        with pytest.raises(ValueError, match=r"must be the same whenever|at least one batch"):
            HessianOperator(small_field(), mse, Once(), check=check)


@EACH
def test_refuses_modules_that_change_their_buffers(operator):
    model = Counter()
    with pytest.raises(ValueError, match=r"must not change in its forward pass, but buffer calls"):
        operator(model, mse, DATA)
    assert not model.calls


def test_buffers_may_be_nan():
    model = sequential()
    model.register_buffer("unset", torch.tensor(float("nan")))
    assert HessianOperator(model, mse, DATA).size


@EACH
@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (nn.MSELoss(reduction="none"), r"\[\d+, 1\]"),
        (lambda f, y: (f - y).square()[:, 0], r"\[\d+\]"),
        (lambda *_: 1.0, "float"),
        (lambda *_: None, "NoneType"),
    ],
    ids=["none", "vector", "number", "nothing"],
)
@pytest.mark.parametrize("make", [small_field, sequential])
def test_refuses_losses_that_are_no_scalar(operator, make, loss, shape):
    with pytest.raises(
        ValueError, match=rf"loss must return the mean .* scalar, got {shape}\. Use"
    ):
        operator(make(), loss, DATA)


@pytest.mark.parametrize("make", [small_field, sequential])
@pytest.mark.parametrize("num_points", [36, 500])
def test_warns_of_losses_that_are_sums(make, num_points):
    signal, loss = points(num_points=num_points), nn.MSELoss(reduction="sum")
    message = "is no mean over points: with every point twice it is 2 times as large"
    with pytest.warns(UserWarning, match=message) as caught:
        matrix = HessianOperator(make(), loss, signal)
    assert [Path(each.filename).name for each in caught] == [Path(__file__).name]
    assert_same(matrix.dense(), dense_hessian(make(), loss, signal))


def test_warns_of_a_sum_that_is_zero_at_first():
    def loss(predictions, values):
        return (predictions - predictions.detach()).sum() if len(values) == 36 else values.sum()

    with pytest.warns(UserWarning, match="is no mean over points"):
        HessianOperator(sequential(), loss, DATA)


def test_means_are_not_warned_of():
    signal = points(num_points=500)
    for loss in (mse, bce, coupled, nn.MSELoss(), nn.HuberLoss(), functional.mse_loss):
        HessianOperator(small_field(), loss, signal)
        HessianOperator(sequential().float(), loss, signal.to(dtype=torch.float32))


def test_check_can_be_left_out():
    calls = []

    def loss(predictions, values):
        calls.append(1)
        return mse(predictions, values)

    HessianOperator(small_field(), loss, DATA, check=False)
    assert len(calls) == 1


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_refuses_other_precisions_with_the_cure(operator, dtype):
    with pytest.raises(TypeError, match=rf"float32 or float64, got {dtype}\. Convert .*\.float\("):
        operator(nn.Linear(2, 1, dtype=dtype), mse, DATA)


def mixed(**options):
    model = sequential()
    model[0].to(**options)
    return model


@EACH
@pytest.mark.parametrize(
    ("make", "data", "error", "message"),
    [
        (
            lambda: sequential().float(),
            DATA,
            TypeError,
            r"inputs must have .*float32, got .*float64",
        ),
        (
            sequential,
            (DATA[0], DATA[1].float()),
            TypeError,
            r"targets must have the dtype .* got torch\.float32\. Convert the data",
        ),
        (lambda: mixed(dtype=torch.float32), DATA, TypeError, r"of one dtype, got .*32, torch\.fl"),
        (lambda: mixed(device="meta"), DATA, TypeError, "of one device, got cpu, meta"),
        (lambda: mse, DATA, TypeError, r"must be a torch\.nn\.Module, got function"),
        (lambda: nn.ReLU(), DATA, ValueError, "parameters that require gradients, got none"),
        (lambda: sequential().requires_grad_(False), DATA, ValueError, "gradients, got none"),
        (sequential, [], ValueError, "data must hold at least one batch, got none"),
        (sequential, (DATA[0][:0], DATA[1][:0]), ValueError, "at least one point, got none"),
        (sequential, (DATA[0], DATA[1][1:]), ValueError, "36 inputs and 35 targets"),
        (sequential, iter([DATA]), TypeError, "data must be re-iterable, got a list_iterator"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_refuses_what_does_not_fit(operator, make, data, error, message, check):
    with pytest.raises(error, match=message):
        operator(make(), mse, data, check=check)


@EACH
@BOTH
def test_refuses_what_is_not_finite(operator, make):
    model, cure = make(), r"loss must be finite at the model's parameters, got "
    with pytest.raises(NonFiniteError, match=cure + "inf"):
        operator(model, lambda f, y: mse(f, y) + float("inf"), DATA)
    nn.init.constant_(next(iter(model.parameters())), float("nan"))
    with pytest.raises(NonFiniteError, match=cure + "nan"):
        operator(model, mse, DATA)


@pytest.mark.parametrize("loss", ["mse", None])
def test_refuses_losses_that_cannot_be_called(loss):
    with pytest.raises(TypeError, match="loss must be callable, got"):
        HessianOperator(small_field(), loss, DATA)


class Lopsided(torch.autograd.Function):
    """x y with a derivative that forgets that it depends on y."""

    @staticmethod
    def forward(context, x, y):
        context.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(context, gradient):
        x, y = context.saved_tensors
        return gradient * y.detach(), gradient * x


class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(2, 1), nn.Linear(2, 1)
        self.double()

    def forward(self, coords):
        return Lopsided.apply(self.left(coords), self.right(coords))


def test_refuses_operations_with_a_wrong_second_derivative():
    with pytest.raises(ValueError, match=r"twice differentiable: .* wrong second derivative"):
        HessianOperator(Wrong(), mse, DATA)
    wrong = HessianOperator(Wrong(), mse, DATA, check=False)
    with pytest.raises(ValueError, match="must be symmetric"):
        require_symmetric(wrong)
    with pytest.raises(ValueError, match=r"triangle differ\. One of their operations has a wrong"):
        dense_hessian(Wrong(), mse, points())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_refuses_the_weight_norm_of_torch_whose_second_derivative_is_wrong(dtype):
    torch.manual_seed(0)
    layers = nn.utils.parametrizations.weight_norm(nn.Linear(2, 5)), nn.Tanh(), nn.Linear(5, 1)
    model, data = nn.Sequential(*layers).to(dtype), points().to(dtype=dtype)
    for curvature in (HessianOperator, dense_hessian):
        with pytest.raises(ValueError, match="wrong second derivative"):
            curvature(model, mse, data)


class Overwriting(nn.Module):
    """Changes what its derivative needs; autograd refuses to differentiate it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 1).double()

    def forward(self, coords):
        hidden = self.inner(coords).exp()
        once = 1.0 * hidden
        hidden.mul_(2)
        return once + hidden


@EACH
def test_autograd_still_refuses_to_differentiate_what_was_overwritten(operator):
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        operator(Overwriting(), mse, DATA)
    dense = {HessianOperator: dense_hessian, GGNOperator: dense_ggn}[operator]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        dense(Overwriting(), mse, SIGNAL)


def test_fields_take_the_fast_way_and_others_the_general_one():
    for operator in OPERATORS:
        for make in (small_field, frozen):
            kept = operator(make(), mse, DATA, parameters="*")._kept[0]
            assert isinstance(getattr(kept, "whole", kept), LinearizedField)
        for make in (doubled, tied, sequential, biasless):
            assert not isinstance(operator(make(), mse, DATA)._kept[0], LinearizedField)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@EACH
@pytest.mark.parametrize("make", [small_field, sequential, Busy])
@pytest.mark.parametrize("chunk_size", [None, 10])
def test_everything_stays_on_the_gpu(operator, make, chunk_size):
    expected = operator(make(), mse, DATA).dense()
    model = make().cuda()
    for data in (DATA, [tuple(part.cuda() for part in batch) for batch in batches(20, 16)]):
        matrix = operator(model, mse, data, chunk_size=chunk_size)
        assert matrix.device.type == "cuda"
        ours = matrix.dense()
        assert ours.is_cuda
        assert_same(ours.cpu(), expected)
        assert (layer_blocks(matrix) @ ours[:, 0]).is_cuda
