"""What operators know without products, and ``method="exact"`` of every estimator."""

import pytest
import torch
from torch import nn

from hessian_lab.errors import NonFiniteError
from hessian_lab.losses import bce, mse
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.diagonal import diagonal
from hessian_lab.probe.layers import layer_blocks
from hessian_lab.probe.norms import frobenius_norm, row_norms
from hessian_lab.probe.operators import MatrixOperator, ScaledOperator
from hessian_lab.probe.scaling import equilibration, jacobi
from hessian_lab.probe.trace import trace
from tests.reference import assert_same, points, small_field

OPERATORS = [HessianOperator, GGNOperator]
QUANTITIES = {
    trace: torch.trace,
    diagonal: torch.diagonal,
    row_norms: lambda matrix: matrix.norm(dim=1),
    frobenius_norm: torch.linalg.matrix_norm,
}


@pytest.fixture(params=QUANTITIES.items(), ids=lambda item: item[0].__name__)
def quantity(request):
    return request.param


def double(value):
    return torch.as_tensor(value, dtype=torch.float64)


def loader(signal, size):
    return list(zip(signal.coords.split(size), signal.values.split(size), strict=True))


def assert_exact(quantity, operator, *, num_products=0):
    """Assert that the method says the truth of the dense matrix, and what it cost."""
    find, dense = quantity
    estimate = find(operator, method="exact")
    assert_same(double(estimate.mean), dense(operator.dense()))
    assert estimate.num_products == num_products
    assert not double(estimate.standard_error).any()
    low, high = map(double, estimate.interval())
    truth = dense(operator.dense())
    assert ((low <= truth) & (truth <= high)).all()
    assert (high - low).max() < 1e-10 * operator.dense().norm() * operator.size**0.5


def test_matrices_are_read(quantity):
    matrix = torch.randn(30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_exact(quantity, MatrixOperator(matrix + matrix.T))


@pytest.mark.parametrize("loss", [mse, bce, nn.HuberLoss(delta=0.2)])
@pytest.mark.parametrize("kind", OPERATORS)
def test_fields_have_closed_forms(kind, loss, quantity):
    assert_exact(quantity, kind(small_field("gaussian", 2), loss, points(num_outputs=2)))


@pytest.mark.parametrize("options", [{}, {"chunk_size": 7}, {"chunk_size": "auto"}])
@pytest.mark.parametrize("kind", OPERATORS)
def test_batches_are_weighed_by_their_points(kind, options, quantity):
    data = loader(points(num_points=40), 16)
    assert_exact(quantity, kind(small_field(), mse, data, **options))


@pytest.mark.parametrize("kind", OPERATORS)
def test_the_diagonal_is_that_of_the_chosen_parameters(kind):
    operator = kind(small_field(), mse, points(), parameters=["layers.1.weight", "layers.0.bias"])
    for find in (trace, diagonal):
        assert_exact((find, QUANTITIES[find]), operator)
    for find in (row_norms, frobenius_norm):
        assert_exact((find, QUANTITIES[find]), operator, num_products=operator.size)


def test_columns_are_multiplied_out_where_nothing_is_known(quantity):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    operator = HessianOperator(model, mse, points())
    assert_exact(quantity, operator, num_products=operator.size)
    mixing = HessianOperator(small_field(), lambda f, y: (f - y).mean() ** 2, points())
    assert_exact(quantity, mixing, num_products=mixing.size)


def test_a_scaled_matrix_keeps_its_diagonal_known():
    whole = HessianOperator(small_field(), mse, points())
    scale = torch.linspace(0.5, 2, whole.size, dtype=torch.float64)
    assert_exact((diagonal, torch.diagonal), ScaledOperator(whole, scale))
    full = ScaledOperator(whole, MatrixOperator(torch.diag(scale)))
    assert_exact((diagonal, torch.diagonal), full, num_products=whole.size)


def test_layers_keep_their_diagonals_known():
    blocks = layer_blocks(HessianOperator(small_field(depth=3), mse, points()))
    for block in (blocks, *blocks.values()):
        assert_exact((diagonal, torch.diagonal), block)


@pytest.mark.parametrize(("find", "dense"), [(equilibration, "row_norms"), (jacobi, "diagonal")])
def test_preconditioners_are_exact_too(find, dense):
    operator = HessianOperator(small_field(), mse, points())
    values = QUANTITIES[{"row_norms": row_norms, "diagonal": diagonal}[dense]](operator.dense())
    scaling = find(operator, method="exact")
    assert_same(scaling.scale, values.abs())
    assert scaling.estimate.num_products == 0


def test_later_training_does_not_move_what_is_known(quantity):
    find, dense = quantity
    model = small_field()
    operator = HessianOperator(model, mse, points())
    expected = dense(operator.dense())
    with torch.no_grad():
        model.layers[0].weight += 1
    with torch.inference_mode():
        assert_same(double(find(operator, method="exact").mean), expected)


def test_what_is_known_in_float32_says_its_rounding(quantity):
    find, dense = quantity
    model, signal = small_field("sine"), points()
    truth = dense(HessianOperator(model, mse, signal).dense())
    single = HessianOperator(model.float(), mse, signal.to(dtype=torch.float32))
    low, high = map(double, find(single, method="exact").interval())
    assert ((low <= truth) & (truth <= high)).all()


def test_what_is_not_finite_is_told_by_its_product(quantity):
    matrix = torch.diag(torch.tensor([1.0, float("nan"), 2.0]).double())
    with pytest.raises(NonFiniteError, match="product 1 of the operator"):
        quantity[0](MatrixOperator(matrix, check=False), method="exact")
