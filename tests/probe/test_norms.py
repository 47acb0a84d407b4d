import re

import pytest
import torch
from scipy import stats
from scipy.sparse.linalg import aslinearoperator

from hessian_lab.errors import NonFiniteError, ResourceError
from hessian_lab.probe import leave_one_out as library
from hessian_lab.probe import memory
from hessian_lab.probe.estimate import skewness
from hessian_lab.probe.norms import frobenius_norm, row_norms
from hessian_lab.probe.operators import MatrixOperator
from tests.probe.estimates import (
    DISTRIBUTIONS,
    PRECISIONS,
    SCALES,
    SIZE,
    Broken,
    Counting,
    assert_exact,
    coverage,
    drawn,
    field_like,
    leave_one_out,
    low_rank,
    of_all,
    variance_of_mean,
    with_spectrum,
)
from tests.reference import assert_same

METHODS = ["hutchinson", "leave-one-out"]
FUNCTIONS = [row_norms, frobenius_norm]
DOUBLE = torch.float64


def norms_of(matrix, function):
    return matrix.double().norm(dim=1) if function is row_norms else matrix.double().norm()


def deflated_squares(matrix):
    """Return the squares of all rows: what a basis holds of them, and one product of the rest."""

    def values(vector, product, basis):
        images = matrix @ basis
        return images.square().sum(dim=1) + (product - images @ (basis.T @ vector)).square()

    return values


def assert_roots(estimate, squares, variance, *, roundings=1e5):
    """Assert an estimate to be the root of squares of this variance, by the delta method."""
    mean = torch.as_tensor(estimate.mean, dtype=DOUBLE)
    error = torch.as_tensor(estimate.standard_error, dtype=DOUBLE)
    assert_same(mean, squares.sqrt())
    assert_same(2 * mean * error, variance.sqrt(), scale=float(squares.max()), roundings=roundings)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("num", [2, 17, 40])
def test_hutchinson_averages_squares(num, distribution):
    matrix = field_like()
    vectors = drawn(SIZE, num, seed=3, distribution=distribution)
    squares = (matrix @ vectors).square()
    options = {"method": "hutchinson", "num_products": num, "distribution": distribution, "seed": 3}
    assert_same(row_norms(matrix, **options).mean, squares.mean(dim=1).sqrt())
    total = squares.sum(dim=0)
    whole = frobenius_norm(matrix, **options)
    assert_roots(whole, total.mean(), total.var() / num)
    assert_same(whole.samples, total)
    assert_same(torch.tensor(whole.skewness, dtype=DOUBLE), skewness(total), scale=1.0)


@pytest.mark.parametrize("num", [2, 30])
def test_squares_of_signs_know_the_share_of_the_diagonal(num):
    matrix = field_like()
    vectors = drawn(SIZE, num)
    products = matrix @ vectors
    share = (vectors * products).mean(dim=1).square() / products.square().mean(dim=1)
    estimate = row_norms(matrix, method="hutchinson", num_products=num)
    assert_same(num / estimate.dof, 1 - share**2, scale=1.0)
    assert_same(estimate.standard_error, estimate.mean / (2 * estimate.dof).sqrt())


def test_squares_of_gaussian_products_are_chi_squared():
    estimate = row_norms(field_like(), method="hutchinson", distribution="gaussian")
    assert (estimate.dof == 30).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("num", [4, 6, 20])
def test_leave_one_out_is_its_definition_with_the_variance_of_all_pairs(num, distribution):
    matrix = field_like()
    vectors = drawn(SIZE, num // 2, distribution=distribution)
    options = {"method": "leave-one-out", "num_products": num, "distribution": distribution}
    single, double = leave_one_out(matrix, vectors, deflated_squares(matrix))
    for function in FUNCTIONS:
        if function is frobenius_norm:
            single, double = single.sum(dim=1), double.sum(dim=2)
        own, whole = variance_of_mean(single, double)
        estimate = function(matrix, **options)
        assert_roots(estimate, single.mean(dim=0), torch.maximum(whole, 1.25 * own), roundings=1e7)
        lean = torch.as_tensor(estimate.skewness, dtype=DOUBLE)
        assert_same(lean, skewness(single.movedim(0, -1)), scale=1.0, roundings=1e7)
        assert estimate.dof == num // 2 - 1


def test_row_norms_do_not_depend_on_the_rows_worked_on_at_once(monkeypatch):
    at_once = row_norms(field_like())
    monkeypatch.setattr(library, "ROWS", 7)
    for ours, expected in zip(of_all(row_norms(field_like())), of_all(at_once), strict=True):
        assert_same(ours, expected, roundings=1e5)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num", [4, 17, 30, 59])
def test_tells_how_many_products_it_took_in_blocks(function, method, num):
    operator = Counting(with_spectrum(torch.linspace(-1, 2, SIZE, dtype=DOUBLE)))
    estimate = function(operator, method=method, num_products=num)
    spent = num if method == "hutchinson" else num // 2 * 2
    assert estimate.num_products == operator.num_products == spent
    assert operator.widest <= 16


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_scales_with_the_matrix_in_both_precisions(function, method, scale, dtype):
    matrix = field_like()
    unit = function(matrix, method=method)
    scaled = function((scale * matrix).to(dtype), method=method)
    for ours, expected in zip(of_all(scaled), of_all(unit), strict=True):
        assert_same(
            (ours / scale).to(dtype), expected.to(dtype), scale=float(matrix.norm()), roundings=1e4
        )


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_takes_foreign_operators(function, method):
    matrix = field_like()
    expected = of_all(function(matrix, method=method))
    for foreign in (matrix.numpy(), aslinearoperator(matrix.numpy())):
        for ours, theirs in zip(of_all(function(foreign, method=method)), expected, strict=True):
            assert_same(ours, theirs, roundings=1e5)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("num", [1, 4, 30])
def test_is_exact_where_all_columns_are_in_reach(function, method, distribution, num):
    for size in {1, num}:
        matrix = field_like(size)
        operator = Counting(matrix)
        estimate = function(operator, method=method, distribution=distribution, num_products=num)
        assert_exact(estimate, norms_of(matrix, function), scale=matrix.norm())
        assert estimate.num_products == operator.num_products == size


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("rank", [1, 7, 14])
def test_leave_one_out_is_exact_below_the_rank_of_its_sketch(function, rank, distribution, scale):
    matrix = scale * low_rank(rank)
    for seed in range(5):
        options = {"method": "leave-one-out", "distribution": distribution, "seed": seed}
        estimate = function(matrix, **options)
        assert_exact(estimate, norms_of(matrix, function), scale=matrix.norm())


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_signs_see_a_diagonal_matrix_exactly(function, method, dtype):
    matrix = torch.linspace(-1, 3, SIZE, dtype=dtype).diag()
    estimate = function(matrix, method=method)
    assert_exact(estimate, norms_of(matrix, function), scale=matrix.norm(), dtype=dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_zero_matrix_has_none(function, method, distribution):
    estimate = function(torch.zeros(SIZE, SIZE), method=method, distribution=distribution)
    assert all((part == 0).all() for part in of_all(estimate))


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_zeros_are_known_to_be_zero(method):
    matrix = field_like()
    matrix[10:30], matrix[:, 10:30] = 0, 0
    estimate = row_norms(matrix, method=method)
    assert (estimate.mean[10:30] == 0).all()
    assert (estimate.standard_error[10:30] == 0).all()
    assert (estimate.standard_error[:10] > 0).all()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_grows_until_the_error_is_small_or_products_run_out(function, method):
    matrix = field_like(400)
    enough = function(matrix, method=method, num_products=10, rtol=0.045)
    assert enough.relative_error <= 0.045
    assert 10 < enough.num_products < 400
    operator = Counting(matrix)
    grown = function(operator, method=method, num_products=20, rtol=1e-9, max_products=70)
    assert grown.num_products == operator.num_products == 70
    at_once = function(matrix, method=method, num_products=70)
    for ours, expected in zip(of_all(grown), of_all(at_once), strict=True):
        assert_same(ours, expected, roundings=1e7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_squares_are_unbiased(method, distribution):
    matrix = field_like()
    operator = MatrixOperator(matrix)
    options = {"method": method, "distribution": distribution, "num_products": 12}
    squares = torch.stack([row_norms(operator, seed=s, **options).mean ** 2 for s in range(120)])
    expected = matrix.square().sum(dim=1)
    studentized = (squares.mean(dim=0) - expected) / (squares.std(dim=0) / 120**0.5)
    # Four standard errors, for any of 60 entries.
    assert studentized.abs().max() < stats.norm.isf(3e-5 / SIZE)


# 4,800 entries, of which those of one seed go together: the share is known to 1.5 %.
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_intervals_cover_every_row(method, distribution):
    matrix = field_like()
    share = coverage(
        row_norms,
        matrix,
        matrix.norm(dim=1),
        num_seeds=80,
        method=method,
        distribution=distribution,
    )
    assert 0.91 < share < 0.98


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_intervals_of_diagonal_rows_are_not_too_wide(distribution):
    matrix = field_like() + 4 * torch.eye(SIZE, dtype=DOUBLE)
    options = {"method": "hutchinson", "num_seeds": 80, "distribution": distribution}
    share = coverage(row_norms, matrix, matrix.norm(dim=1), **options)
    assert 0.92 < share < 0.98


# The standard error of a share of 200 near 95 % is 1.5 %.
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_intervals_of_the_whole_norm_cover(method, distribution):
    matrix = field_like()
    share = coverage(
        frobenius_norm,
        matrix,
        matrix.norm(),
        num_seeds=200,
        method=method,
        distribution=distribution,
    )
    assert 0.92 - 0.03 < share < 0.97 + 0.03


def test_deflation_pays_where_eigenvalues_decay():
    for function in FUNCTIONS:
        plain, deflated = (function(field_like(), method=method) for method in METHODS)
        assert deflated.relative_error < plain.relative_error / 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_stays_on_its_device(method):
    estimate = row_norms(field_like().cuda(), method=method)
    expected = row_norms(field_like(), method=method)
    for ours, theirs in zip(of_all(estimate), of_all(expected), strict=True):
        assert ours.is_cuda
        assert_same(ours.cpu(), theirs, roundings=1e6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_rejects_an_unknown_method(function):
    message = re.escape("method must be one of hutchinson, leave-one-out, exact, got 'xtrace'.")
    with pytest.raises(ValueError, match=message):
        function(field_like(), method="xtrace")


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("method", "num", "least"), [("hutchinson", 1, 2), ("leave-one-out", 3, 4)]
)
def test_rejects_too_few_products_to_know_the_error(function, method, num, least):
    message = f"num_products must be at least {least} for {method} to know its error, got {num}"
    with pytest.raises(ValueError, match=message):
        function(field_like(), method=method, num_products=num)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_tells_which_product_is_not_finite(function, method):
    with pytest.raises(NonFiniteError, match="product 18 of the operator must be finite"):
        function(Broken(field_like(), 18), method=method)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_tells_when_the_vectors_do_not_fit(function, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda _: 1000)
    with pytest.raises(ResourceError, match="The vectors of leave-one-out at size 60 must fit"):
        function(Counting(field_like()), method="leave-one-out")
    function(Counting(field_like()), method="hutchinson")
