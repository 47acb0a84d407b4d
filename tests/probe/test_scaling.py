import pytest
import torch

from hessian_lab.probe.diagonal import diagonal
from hessian_lab.probe.norms import row_norms
from hessian_lab.probe.operators import ScaledOperator
from hessian_lab.probe.scaling import Scaling, equilibration, jacobi, scaling
from tests.probe.estimates import PRECISIONS, SCALES, SIZE, Counting, drawn, field_like
from tests.reference import assert_same

DOUBLE = torch.float64
SCALINGS = [equilibration, jacobi]


@pytest.fixture
def matrix():
    """A matrix whose row norms are far from its diagonal, which has both signs."""
    signs = torch.linspace(-1, 1, SIZE, dtype=DOUBLE)
    return field_like() + 0.1 * signs.diag()


def signed_products(matrix, num):
    vectors = drawn(SIZE, num)
    return vectors * (matrix @ vectors)


def apart(values, expected):
    """Return the median relative distance."""
    return float(((values - expected).abs() / expected).median())


def test_scales_are_those_of_the_dense_matrix_where_all_columns_are_in_reach(matrix):
    options = {"num_products": SIZE}
    assert_same(equilibration(matrix, **options).scale, matrix.norm(dim=1))
    assert_same(jacobi(matrix, **options).scale, matrix.diagonal().abs())


def test_equilibration_is_the_leave_one_out_estimate_of_row_norms(matrix):
    for options in ({}, {"method": "hutchinson", "num_products": 12, "seed": 3}):
        assert_same(equilibration(matrix, **options).scale, row_norms(matrix, **options).mean)
    assert_same(equilibration(matrix).scale, row_norms(matrix, method="leave-one-out").mean)


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_jacobi_is_the_magnitude_of_the_signed_mean(matrix, method):
    options = {"method": method, "num_products": 12, "seed": 3}
    expected = diagonal(matrix, **options).mean
    assert (expected < 0).any()
    assert_same(jacobi(matrix, **options).scale, expected.abs())


@pytest.mark.parametrize("num", [4, 30, 50])
def test_the_statistic_of_adahessian_is_equilibration(matrix, num):
    statistic = signed_products(matrix, num).square().mean(dim=1).sqrt()
    assert_same(equilibration(matrix, method="hutchinson", num_products=num).scale, statistic)


def test_the_statistic_of_adahessian_is_not_jacobi(matrix):
    # Over all signs of 4,000 vectors: row norms to 2 %, where |A_ii| is off by more than its size.
    statistic = signed_products(matrix, 4000).square().mean(dim=1).sqrt()
    assert apart(statistic, matrix.norm(dim=1)) < 0.02
    assert apart(statistic, matrix.diagonal().abs()) > 1


def test_a_mean_of_magnitudes_is_neither_scale(matrix):
    magnitudes = signed_products(matrix, 4000).abs().mean(dim=1)
    signed = signed_products(matrix, 4000).mean(dim=1).abs()
    assert apart(signed, matrix.diagonal().abs()) < 0.05
    assert apart(magnitudes, matrix.diagonal().abs()) > 0.5
    assert apart(magnitudes, matrix.norm(dim=1)) > 0.05


@pytest.mark.parametrize("find", SCALINGS)
def test_inverse_square_root_scales_an_operator(matrix, find):
    found = find(matrix, num_products=SIZE)
    dense = ScaledOperator(matrix, found.inverse_sqrt).dense()
    root = found.scale.sqrt()
    assert_same(dense, matrix / root / root.unsqueeze(1))
    unit = dense.diagonal().abs() if find is jacobi else None
    if unit is not None:
        assert_same(unit, torch.ones(SIZE, dtype=DOUBLE))


@pytest.mark.parametrize("find", SCALINGS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_rows_without_curvature_are_left_alone_and_counted(matrix, find, scale, dtype):
    dead = slice(5, 17)
    matrix[dead], matrix[:, dead] = 0, 0
    given = (scale * matrix).to(dtype)
    for num in (30, SIZE):
        found = find(given, num_products=num)
        assert found.num_unscaled == 12
        assert (found.scale[dead] == 1).all()
        assert (found.scale > 0).all()
        ScaledOperator(given, found.inverse_sqrt)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_magnitudes_below_the_rounding_floor_are_set_to_one(dtype):
    floor = 4 * torch.finfo(dtype).eps * 8
    values = torch.tensor([8, -3 * floor, 0.5 * floor, 0], dtype=DOUBLE)
    found = scaling(values, dtype=dtype)
    assert_same(found.scale, torch.tensor([8, 3 * floor, 1, 1], dtype=DOUBLE), roundings=0)
    assert found.num_unscaled == 2
    assert found.estimate is None
    assert scaling(values.to(dtype)).num_unscaled == 2


@pytest.mark.parametrize("find", SCALINGS)
def test_the_zero_matrix_is_left_alone(find):
    found = find(torch.zeros(SIZE, SIZE))
    assert found.num_unscaled == SIZE
    assert (found.scale == 1).all()


@pytest.mark.parametrize("find", SCALINGS)
def test_keeps_its_estimate_and_counts_its_products(matrix, find):
    operator = Counting(matrix)
    found = find(operator, num_products=20)
    assert found.estimate.num_products == operator.num_products == 20
    assert (found.estimate.standard_error > 0).all()


def test_passes_on_how_far_to_go(matrix):
    loose, tight = (
        equilibration(matrix, num_products=6, rtol=rtol, max_products=40).estimate
        for rtol in (0.3, 0.05)
    )
    assert loose.num_products < tight.num_products
    gaussian = equilibration(matrix, distribution="gaussian").scale
    assert not gaussian.equal(equilibration(matrix).scale)


def test_prints_what_a_person_needs():
    assert str(Scaling(torch.tensor([0.5, 2]))) == "scale in [0.5, 2], 0 of 2 unscaled"
    found = jacobi(torch.tensor([4.0, 0, -1]).diag())
    assert str(found) == "scale in [1, 4] ± 0.0% in norm, 1 of 3 unscaled"


def test_rejects_what_is_no_vector():
    with pytest.raises(ValueError, match=r"values must have shape \[n\], n > 0, got \[2, 2\]"):
        scaling(torch.eye(2))
    with pytest.raises(ValueError, match=r"values must have shape \[n\], n > 0, got \[0\]"):
        scaling(torch.empty(0))


@pytest.mark.parametrize("entry", [float("nan"), float("inf")])
def test_rejects_values_that_are_not_finite(entry):
    with pytest.raises(ValueError, match="values must be finite, got NaN or Inf"):
        scaling(torch.tensor([1.0, entry]))
