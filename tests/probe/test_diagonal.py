import re

import pytest
import torch
from scipy import stats
from scipy.sparse.linalg import aslinearoperator

from hessian_lab.errors import NonFiniteError, ResourceError
from hessian_lab.probe import leave_one_out as library
from hessian_lab.probe import memory
from hessian_lab.probe.diagonal import diagonal
from hessian_lab.probe.operators import MatrixOperator
from tests.probe.estimates import (
    DISTRIBUTIONS,
    PRECISIONS,
    SCALES,
    SIZE,
    Broken,
    Counting,
    assert_exact,
    basis_without,
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

METHODS = ["hutchinson", "xdiag"]
DOUBLE = torch.float64


def deflated_diagonal(matrix):
    """Return the values of one vector of signs, as Epperly, Tropp & Webber define them."""

    def values(vector, product, basis):
        projected = basis @ (basis.T @ matrix)
        return projected.diagonal() + vector * (product - basis @ (basis.T @ product))

    return values


@pytest.mark.parametrize("num", [2, 16, 17, 40])
def test_hutchinson_is_the_mean_of_its_samples(num):
    matrix = field_like()
    vectors = drawn(SIZE, num, seed=3)
    samples = vectors * (matrix @ vectors)
    estimate = diagonal(matrix, num_products=num, seed=3)
    assert_same(estimate.mean, samples.mean(dim=1))
    assert_same(estimate.standard_error, samples.std(dim=1) / num**0.5)
    assert estimate.dof == num - 1


@pytest.mark.parametrize("num", [2, 17, 40])
def test_hutchinson_regresses_on_gaussian_vectors(num):
    matrix = field_like()
    vectors = drawn(SIZE, num, seed=3, distribution="gaussian")
    products = matrix @ vectors
    estimate = diagonal(matrix, num_products=num, distribution="gaussian", seed=3)
    for i in (0, 31, SIZE - 1):
        column = vectors[i].unsqueeze(1)
        slope, residual, *_ = torch.linalg.lstsq(column, products[i], driver="gelsd")
        error = (residual / (num - 1) / column.square().sum()).sqrt()
        assert_same(estimate.mean[i], slope[0], scale=1.0)
        assert_same(estimate.standard_error[i], error[0], scale=1.0)


@pytest.mark.parametrize("num", [4, 6, 20])
def test_xdiag_is_its_definition_with_the_variance_of_all_pairs(num):
    matrix = field_like()
    single, double = leave_one_out(matrix, drawn(SIZE, num // 2), deflated_diagonal(matrix))
    own, whole = variance_of_mean(single, double)
    estimate = diagonal(matrix, method="xdiag", num_products=num)
    assert_same(estimate.mean, single.mean(dim=0))
    assert_same(estimate.standard_error**2, torch.maximum(whole, own), roundings=1e5)
    assert estimate.dof == num // 2 - 1


def test_xdiag_weighs_gaussian_vectors_by_their_squares():
    matrix, vectors = field_like(), drawn(SIZE, 10, distribution="gaussian")
    products, total = matrix @ vectors, torch.zeros(SIZE, dtype=DOUBLE)
    for i in range(10):
        basis, vector = basis_without(products, i), vectors[:, i]
        projected = basis @ (basis.T @ matrix)
        rest = products[:, i] - basis @ (basis.T @ products[:, i])
        total += vector**2 * (projected.diagonal() + rest / vector)
    estimate = diagonal(matrix, method="xdiag", num_products=20, distribution="gaussian")
    assert_same(estimate.mean, total / vectors.square().sum(dim=1), roundings=1e5)


def test_xdiag_does_not_depend_on_the_rows_worked_on_at_once(monkeypatch):
    at_once = diagonal(field_like(), method="xdiag")
    monkeypatch.setattr(library, "ROWS", 7)
    for ours, expected in zip(
        of_all(diagonal(field_like(), method="xdiag")), of_all(at_once), strict=True
    ):
        assert_same(ours, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num", [4, 17, 30, 59])
def test_tells_how_many_products_it_took_in_blocks(method, num):
    operator = Counting(with_spectrum(torch.linspace(-1, 2, SIZE, dtype=DOUBLE)))
    estimate = diagonal(operator, method=method, num_products=num)
    spent = num if method == "hutchinson" else num // 2 * 2
    assert estimate.num_products == operator.num_products == spent
    assert operator.widest <= 16
    assert estimate.samples is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_scales_with_the_matrix_in_both_precisions(method, scale, dtype):
    matrix = field_like()
    unit = diagonal(matrix, method=method)
    scaled = diagonal((scale * matrix).to(dtype), method=method)
    assert scaled.mean.dtype == DOUBLE
    for ours, expected in zip(of_all(scaled), of_all(unit), strict=True):
        assert_same((ours / scale).to(dtype), expected.to(dtype), scale=float(matrix.norm()))


@pytest.mark.parametrize("method", METHODS)
def test_seeds_repeat_and_differ(method):
    first, again, other = (diagonal(field_like(), method=method, seed=s).mean for s in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize("method", METHODS)
def test_takes_foreign_operators(method):
    matrix = field_like()
    expected = diagonal(matrix, method=method).mean
    for foreign in (matrix.numpy(), aslinearoperator(matrix.numpy())):
        assert_same(diagonal(foreign, method=method).mean, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("num", [1, 4, 30])
def test_is_exact_where_all_columns_are_in_reach(method, distribution, num):
    for size in {1, num}:
        matrix = field_like(size)
        operator = Counting(matrix)
        estimate = diagonal(operator, method=method, distribution=distribution, num_products=num)
        assert_exact(estimate, matrix.diagonal(), scale=matrix.norm())
        assert estimate.num_products == operator.num_products == size


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("rank", [1, 7, 14])
def test_xdiag_is_exact_below_the_rank_of_its_sketch(rank, distribution, scale):
    matrix = scale * low_rank(rank)
    for seed in range(5):
        estimate = diagonal(matrix, method="xdiag", distribution=distribution, seed=seed)
        assert_exact(estimate, matrix.diagonal(), scale=matrix.norm())


@pytest.mark.parametrize(
    ("method", "distribution"),
    [("hutchinson", "rademacher"), ("hutchinson", "gaussian"), ("xdiag", "rademacher")],
)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_diagonal_matrix_comes_out_exactly(method, distribution, dtype):
    entries = torch.linspace(-1, 3, SIZE, dtype=dtype)
    estimate = diagonal(entries.diag(), method=method, distribution=distribution)
    assert_exact(estimate, entries.double(), scale=entries.norm(), dtype=dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_zero_matrix_has_none(method, distribution):
    estimate = diagonal(torch.zeros(SIZE, SIZE), method=method, distribution=distribution)
    assert all((part == 0).all() for part in of_all(estimate))


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_zeros_are_known_to_be_zero(method):
    matrix = field_like()
    matrix[10:30], matrix[:, 10:30] = 0, 0
    estimate = diagonal(matrix, method=method)
    assert (estimate.mean[10:30] == 0).all()
    assert (estimate.standard_error[10:30] == 0).all()
    assert (estimate.standard_error[:10] > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_goes_on_until_the_error_is_small(method):
    operator = Counting(field_like(400))
    estimate = diagonal(operator, method=method, num_products=20, rtol=0.4)
    assert estimate.relative_error <= 0.4
    assert 20 < estimate.num_products == operator.num_products < 400


@pytest.mark.parametrize("method", METHODS)
def test_stops_at_the_most_products_and_reuses_them(method):
    operator = Counting(field_like(400))
    grown = diagonal(operator, method=method, num_products=20, rtol=1e-9, max_products=70)
    assert grown.num_products == operator.num_products == 70
    at_once = diagonal(operator, method=method, num_products=70)
    for ours, expected in zip(of_all(grown), of_all(at_once), strict=True):
        assert_same(ours, expected, roundings=1e6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_is_unbiased(method, distribution):
    matrix = field_like()
    operator = MatrixOperator(matrix)
    options = {"method": method, "distribution": distribution, "num_products": 12}
    means = torch.stack([diagonal(operator, seed=seed, **options).mean for seed in range(120)])
    studentized = (means.mean(dim=0) - matrix.diagonal()) / (means.std(dim=0) / 120**0.5)
    # Four standard errors, for any of 60 entries.
    assert studentized.abs().max() < stats.norm.isf(3e-5 / SIZE)


# 4,800 entries, of which those of one seed go together: the share is known to 1 %.
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_intervals_cover_every_entry(method, distribution):
    matrix = field_like()
    share = coverage(
        diagonal, matrix, matrix.diagonal(), num_seeds=80, method=method, distribution=distribution
    )
    assert 0.92 < share < 0.98


def test_deflation_pays_where_eigenvalues_decay():
    plain, deflated = (diagonal(field_like(), method=method) for method in METHODS)
    assert deflated.relative_error < plain.relative_error / 1.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_stays_on_its_device(method):
    estimate = diagonal(field_like().cuda(), method=method)
    expected = diagonal(field_like(), method=method)
    for ours, theirs in zip(of_all(estimate), of_all(expected), strict=True):
        assert ours.is_cuda
        assert_same(ours.cpu(), theirs, roundings=1e6)


def test_rejects_an_unknown_method():
    message = re.escape("method must be one of hutchinson, xdiag, exact, got 'xtrace'.")
    with pytest.raises(ValueError, match=message):
        diagonal(field_like(), method="xtrace")


@pytest.mark.parametrize(("method", "num", "least"), [("hutchinson", 1, 2), ("xdiag", 3, 4)])
def test_rejects_too_few_products_to_know_the_error(method, num, least):
    message = f"num_products must be at least {least} for {method} to know its error, got {num}"
    with pytest.raises(ValueError, match=message):
        diagonal(field_like(), method=method, num_products=num)


@pytest.mark.parametrize("method", METHODS)
def test_tells_which_product_is_not_finite(method):
    with pytest.raises(NonFiniteError, match="product 18 of the operator must be finite"):
        diagonal(Broken(field_like(), 18), method=method)


def test_tells_when_the_vectors_do_not_fit(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda _: 1000)
    with pytest.raises(ResourceError, match="The vectors of xdiag at size 60 must fit"):
        diagonal(Counting(field_like()), method="xdiag")
    diagonal(Counting(field_like()))
