import pytest
import torch

from hessian_lab.probe.sketch import Basis, Probing, looks_diagonal
from tests.probe.estimates import (
    PRECISIONS,
    SIZE,
    Counting,
    drawn,
    field_like,
    low_rank,
    with_spectrum,
)
from tests.reference import assert_same

DOUBLE = torch.float64


def probing_of(matrix, **options):
    return Probing(Counting(matrix), **{"seed": 0, "distribution": "rademacher"} | options)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_draws_the_same_vectors_at_once_and_bit_by_bit(dtype):
    matrix = field_like().to(dtype)
    at_once = probing_of(matrix, seed=4).draw(40)
    probing = probing_of(matrix, seed=4)
    parts = [probing.draw(num) for num in (1, 0, 17, 22)]
    for ours, expected in zip(zip(*parts, strict=True), at_once, strict=True):
        assert_same(torch.cat(ours, dim=1).to(dtype), expected.to(dtype))
        assert expected.dtype == DOUBLE
    assert at_once[0].equal(drawn(SIZE, 40, seed=4))


def test_knows_the_frobenius_norm_of_a_matrix_whose_columns_it_took():
    probing = probing_of(field_like())
    columns = torch.cat([block for _, block in probing.columns()], dim=1)
    assert_same(columns, field_like())
    assert_same(torch.tensor(probing.norm(), dtype=DOUBLE), field_like().norm())


def test_knows_about_the_frobenius_norm_of_its_products():
    probing = probing_of(field_like())
    probing.draw(100)
    assert abs(probing.norm() / field_like().norm() - 1) < 0.2


# Of the second sketch all but a billionth lies in the first.
STEP = torch.cat([torch.ones(8), torch.full((30,), 1e-9), torch.zeros(SIZE - 38)]).double()


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("matrix", [field_like(), low_rank(14), with_spectrum(STEP)])
def test_a_basis_stays_orthonormal_as_it_grows_and_spans_the_products(matrix, dtype):
    probing = probing_of(matrix.to(dtype))
    basis = Basis(probing)
    products = [probing.draw(10)[1] for _ in range(3)]
    for part in products:
        basis.extend(part)
    num = basis.vectors.shape[1]
    assert_same(basis.vectors.T @ basis.vectors, torch.eye(num, dtype=DOUBLE))
    every = torch.cat(products, dim=1)
    rest = every - basis.vectors @ (basis.vectors.T @ every)
    assert rest.abs().max() < 100 * probing.eps * every.abs().max()
    images = matrix @ basis.vectors
    assert_same(basis.products.to(dtype), images.to(dtype), scale=float(matrix.norm()))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_basis_takes_in_no_rounding_noise(dtype):
    probing = probing_of(low_rank(7).to(dtype))
    basis = Basis(probing)
    for _ in range(3):
        basis.extend(probing.draw(10)[1])
    assert basis.vectors.shape == (SIZE, 7)
    assert probing.num_products == 37


def test_signs_look_at_whether_a_matrix_is_diagonal():
    vectors = drawn(SIZE, 8)
    diagonal = torch.linspace(-1, 1, SIZE, dtype=DOUBLE).diag()
    almost = diagonal.clone()
    almost[3, 4] = almost[4, 3] = 1e-9
    for matrix, expected in [(diagonal, True), (0 * diagonal, True), (almost, False)]:
        assert looks_diagonal(vectors, matrix @ vectors, eps=1e-14) == expected
    one = vectors[:, :1]
    assert not looks_diagonal(one, diagonal @ one, eps=1e-14)
    normal = drawn(SIZE, 8, distribution="gaussian")
    assert not looks_diagonal(normal, diagonal @ normal, eps=1e-14)
