"""Agreement with other libraries, where they are installed: ``pip install -e '.[compare]'``."""

import copy

import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.probe.closed_diagonal import exact_diagonal
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.density import spectral_measure
from hessian_lab.probe.diagonal import diagonal
from hessian_lab.probe.eigenpairs import extreme_eigenpairs
from hessian_lab.probe.hessian import dense_hessian, hessian_terms
from hessian_lab.probe.operators import as_operator
from hessian_lab.probe.trace import trace
from hessian_lab.probe.vectors import gaussian, rademacher
from hessian_lab.signal import Signal
from tests.reference import assert_same

# 37 points in batches of 16 leave one of 5.
NUM_POINTS, BATCH = 37, 16
NUM_OUTPUTS = 3


class PointMean(nn.Module):
    """``mse`` for curvlinops, which wants a module that says its reduction."""

    reduction = "mean"

    def forward(self, predictions, values):
        return mse(predictions, values)


@pytest.fixture(scope="module")
def signal():
    generator = torch.Generator().manual_seed(0)
    coords = 2 * torch.rand(NUM_POINTS, 2, dtype=torch.float64, generator=generator) - 1
    values = torch.rand(NUM_POINTS, NUM_OUTPUTS, dtype=torch.float64, generator=generator)
    return Signal(coords, values)


@pytest.fixture(scope="module")
def field():
    return make_field("sine", 2, NUM_OUTPUTS, width=6, depth=2, seed=1)


@pytest.fixture(scope="module")
def matrix(field, signal):
    return dense_hessian(field, mse, signal)


@pytest.fixture(scope="module")
def vectors(matrix):
    return gaussian(len(matrix), 5, seed=2, like=matrix)


@pytest.fixture(scope="module")
def curvlinops():
    return pytest.importorskip("curvlinops")


@pytest.fixture(scope="module")
def eigenthings():
    return pytest.importorskip("hessian_eigenthings")


def batches(signal, size):
    return list(zip(signal.coords.split(size), signal.values.split(size), strict=True))


def linear_operator(kind, model, loss, data):
    return kind(model, loss, list(model.parameters()), data)


def hessian_of_curvlinops(curvlinops, field, signal, size=NUM_POINTS):
    kind = curvlinops.HessianLinearOperator
    return linear_operator(kind, field, PointMean(), batches(signal, size))


@pytest.mark.parametrize("size", [NUM_POINTS, BATCH, 1])
@pytest.mark.parametrize("act", ["sine", "gaussian", "relu_pe"])
def test_curvlinops_multiplies_by_our_hessian(curvlinops, signal, act, size):
    model = make_field(act, 2, NUM_OUTPUTS, width=6, depth=2, octaves=2, seed=1)
    ours = dense_hessian(model, mse, signal)
    vectors = gaussian(len(ours), 5, seed=2, like=ours)
    theirs = hessian_of_curvlinops(curvlinops, model, signal, size) @ vectors
    assert_same(ours @ vectors, theirs)
    assert_same(HessianOperator(model, mse, signal) @ vectors, theirs)
    assert_same(HessianOperator(model, mse, batches(signal, size)) @ vectors, theirs)


@pytest.mark.parametrize("size", [NUM_POINTS, BATCH])
def test_curvlinops_multiplies_by_our_ggn(curvlinops, field, signal, vectors, size):
    data = batches(signal, size)
    theirs = linear_operator(curvlinops.GGNLinearOperator, field, PointMean(), data) @ vectors
    assert_same(hessian_terms(field, mse, signal).ggn @ vectors, theirs)
    assert_same(GGNOperator(field, mse, data) @ vectors, theirs)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCEWithLogitsLoss(), nn.HuberLoss(delta=0.3)])
def test_curvlinops_agrees_on_a_network_and_a_loss_of_ones_own(curvlinops, signal, loss):
    model = nn.Sequential(nn.Linear(2, 7), nn.GELU(), nn.Linear(7, NUM_OUTPUTS)).double()
    data = batches(signal, BATCH)
    theirs = linear_operator(curvlinops.HessianLinearOperator, model, loss, data)
    ours = HessianOperator(model, loss, data)
    vectors = gaussian(ours.size, 4, seed=2, like=ours)
    assert_same(ours @ vectors, theirs @ vectors)


@pytest.fixture(scope="module", params=["torch", "scipy"])
def foreign(request, curvlinops, field, signal):
    operator = hessian_of_curvlinops(curvlinops, field, signal, BATCH)
    return operator if request.param == "torch" else operator.to_scipy()


def test_a_curvlinops_operator_is_an_operator(foreign, matrix):
    assert_same(as_operator(foreign).dense(), matrix)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_traces_take_a_curvlinops_operator(foreign, matrix, method):
    theirs, ours = (
        trace(each, method=method, num_products=24, seed=3).mean for each in (foreign, matrix)
    )
    assert_same(*as_tensors(theirs, ours), scale=float(matrix.norm()))


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_diagonals_take_a_curvlinops_operator(foreign, matrix, method):
    theirs, ours = (
        diagonal(each, method=method, num_products=24, seed=3).mean for each in (foreign, matrix)
    )
    assert_same(theirs, ours, scale=float(matrix.norm()))


def test_eigenpairs_take_a_curvlinops_operator(foreign, matrix):
    found = extreme_eigenpairs(foreign, num=3, which="both", rtol=1e-9)
    values = torch.linalg.eigvalsh(matrix).flip(0)
    expected = torch.cat([values[:3], values[-3:]])
    assert_same(found.values, expected, scale=float(values.abs().max()))


def test_densities_take_a_curvlinops_operator(foreign, matrix):
    theirs, ours = (
        spectral_measure(each, num_probes=2, num_steps=12, seed=3) for each in (foreign, matrix)
    )
    for order in range(1, 6):
        scale = ours.radius**order
        assert_same(theirs.moment(order), ours.moment(order), scale=scale)


def as_tensors(*numbers):
    return [torch.tensor([number], dtype=torch.float64) for number in numbers]


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_curvlinops_estimates_our_trace_from_our_probes(curvlinops, matrix, monkeypatch, method):
    module = {"hutchinson": "trace.hutchinson", "xtrace": "trace.epperly2024xtrace"}[method]
    hand_out_ours(monkeypatch, f"curvlinops.{module}", matrix, seed=3)
    estimate = {"hutchinson": curvlinops.hutchinson_trace, "xtrace": curvlinops.xtrace}[method]
    theirs = estimate(matrix, 24)
    ours = trace(matrix, method=method, num_products=24, seed=3).mean
    assert_same(*as_tensors(ours, float(theirs)), scale=float(matrix.norm()))


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_curvlinops_estimates_our_diagonal_from_our_probes(curvlinops, matrix, monkeypatch, method):
    module = {"hutchinson": "diagonal.hutchinson", "xdiag": "diagonal.epperly2024xtrace"}[method]
    hand_out_ours(monkeypatch, f"curvlinops.{module}", matrix, seed=3)
    estimate = {"hutchinson": curvlinops.hutchinson_diag, "xdiag": curvlinops.xdiag}[method]
    theirs = estimate(matrix, 24)
    ours = diagonal(matrix, method=method, num_products=24, seed=3).mean
    assert_same(ours, theirs, scale=float(matrix.norm()))


def hand_out_ours(monkeypatch, module, matrix, *, seed):
    """Let a function of curvlinops draw our probes instead of its own."""
    drawn = iter(rademacher(len(matrix), 24, seed=seed, like=matrix).T)
    monkeypatch.setattr(f"{module}.random_vector", lambda *_: next(drawn))


def test_hessian_eigenthings_has_our_quadrature(eigenthings, field, signal, matrix):
    ours = spectral_measure(matrix, num_probes=2, num_steps=9, seed=3, settle=False)
    loss = eigenthings.supervised_loss(mse)
    operator = eigenthings.HessianOperator(field, batches(signal, NUM_POINTS), loss)
    starts = rademacher(len(matrix), 2, seed=3, like=matrix)
    for row, start in enumerate(starts.T):
        steps = eigenthings.lanczos_tridiagonal(operator, start, 9, reorthogonalize=True)
        tridiagonal = steps.alphas.diag() + steps.betas.diag(1) + steps.betas.diag(-1)
        nodes, vectors = torch.linalg.eigh(tridiagonal)
        assert_same(ours.nodes[row], nodes)
        assert_same(ours.weights[row], vectors[0] ** 2, scale=1.0)


def diagonal_by_backpack(model, signal):
    """Return the diagonal of the Hessian of ``mse`` of a ``Sequential``."""
    backpack = pytest.importorskip("backpack")
    extensions = pytest.importorskip("backpack.extensions")
    twin, loss = backpack.extend(copy.deepcopy(model)), backpack.extend(nn.MSELoss())
    with backpack.backpack(extensions.DiagHessian()):
        loss(twin(signal.coords), signal.values).backward()
    # nn.MSELoss averages over channels too, and has no ½.
    return torch.cat([value.diag_h.flatten() for value in twin.parameters()]) * NUM_OUTPUTS / 2


# BackPACK hooks modules whose inputs need no gradient.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("act", [nn.Tanh, nn.Sigmoid, nn.ReLU, nn.ELU])
def test_backpack_has_the_diagonal_of_our_hessian(signal, act):
    maps = nn.Linear(2, 6), nn.Linear(6, 5), nn.Linear(5, NUM_OUTPUTS)
    model = nn.Sequential(maps[0], act(), maps[1], act(), maps[2]).double()
    theirs = diagonal_by_backpack(model, signal)
    assert_same(dense_hessian(model, mse, signal).diagonal(), theirs)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_backpack_has_our_exact_diagonal(signal):
    field = make_field("tanh", 2, NUM_OUTPUTS, width=6, depth=3, seed=1)
    *hidden, last = field.maps
    layers = [part for layer in hidden for part in (layer, nn.Tanh())]
    theirs = diagonal_by_backpack(nn.Sequential(*layers, last), signal)
    assert_same(exact_diagonal(field, mse, signal), theirs)


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_scipy_finds_the_eigenvalues_through_our_operator(field, signal, matrix, which):
    values = torch.linalg.eigvalsh(matrix)
    order = {"LA": -values, "SA": values, "LM": -values.abs()}[which].argsort()[:3]
    expected = values[order].sort().values
    for operator in (as_operator(matrix), HessianOperator(field, mse, signal)):
        found = eigsh(operator.to_scipy(), k=3, which=which, return_eigenvectors=False)
        assert_same(torch.as_tensor(found).sort().values, expected, scale=float(values.abs().max()))
