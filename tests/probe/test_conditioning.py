import math

import numpy as np
import pytest
import torch

from hessian_lab.errors import NonFiniteError
from hessian_lab.probe.conditioning import condition_number
from hessian_lab.probe.operators import MatrixOperator, ScaledOperator
from hessian_lab.probe.spectrum import spectrum
from hessian_lab.probe.vectors import gaussian
from tests.probe.test_lanczos import DTYPES, SCALES, Diagonal, operator_with

INDEFINITE = torch.cat(
    [
        torch.linspace(-1, -0.01, 40, dtype=torch.float64),
        torch.linspace(0.02, 7, 80, dtype=torch.float64),
    ]
)


def by_products(operator):
    """Return an operator that hides its matrix."""
    return ScaledOperator(operator, torch.ones(operator.size))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("wrap", [MatrixOperator, torch.as_tensor, np.asarray])
def test_of_a_dense_matrix_it_is_that_of_its_spectrum(wrap, scale):
    matrix = operator_with(scale * INDEFINITE).matrix
    found, expected = condition_number(wrap(matrix)), spectrum(matrix)
    assert found.value == float(found) == expected.condition_number
    assert found.value == pytest.approx(700, rel=1e-9)
    assert found.resolved
    assert (found.largest, found.smallest) == (
        expected.spectral_radius,
        expected.smallest_magnitude,
    )
    assert found.floor == expected.tolerance
    assert (found.residual, found.num_products) == (0, 0)
    assert str(found) == "700"


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_a_singular_matrix_it_is_a_bound(dtype):
    operator = operator_with(torch.cat([torch.zeros(5), INDEFINITE]), dtype)
    most = 1 / (125 * torch.finfo(dtype).eps)
    for found in (
        condition_number(operator),
        condition_number(by_products(operator), num_steps=125),
    ):
        assert not found.resolved
        assert found.value == pytest.approx(most, rel=1e-5)
        assert str(found) == f"≥ {most:.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_from_all_products_the_bound_is_the_value(dtype, scale):
    operator = by_products(operator_with(scale * INDEFINITE, dtype))
    found = condition_number(operator, num_steps=120)
    assert not found.resolved
    roundings = 1e3 * torch.finfo(dtype).eps
    assert found.value == pytest.approx(700, rel=100 * roundings)
    assert found.largest == pytest.approx(7 * scale, rel=roundings)
    assert found.smallest == pytest.approx(0.01 * scale, rel=100 * roundings)
    assert found.residual <= roundings * found.largest
    assert found.num_products == 122


@pytest.mark.parametrize("seed", range(10))
def test_from_products_it_is_a_lower_bound_that_grows_with_the_steps(seed):
    operator = by_products(operator_with(INDEFINITE))
    bounds = [condition_number(operator, num_steps=k, seed=seed) for k in (1, 5, 20, 60, 110)]
    values = [bound.value for bound in bounds]
    assert values == sorted(values)
    assert values[0] >= 1
    assert values[-1] <= 700 * (1 + 1e-9)
    assert values[-1] > 300
    assert all(bound.largest <= 7 * (1 + 1e-12) for bound in bounds)
    assert all(bound.smallest >= 0.01 * (1 - 1e-9) for bound in bounds)


def test_the_largest_may_be_negative():
    found = condition_number(by_products(operator_with(-INDEFINITE)), num_steps=60)
    assert found.largest == pytest.approx(7, rel=1e-9)
    assert found.residual <= 1e-6


def test_the_bound_is_that_of_the_best_vector_of_the_krylov_space():
    operator = operator_with(INDEFINITE)
    found = condition_number(by_products(operator), num_steps=12, seed=3)
    powers = [gaussian(120, 1, seed=3, like=operator)]
    for _ in range(11):
        powers.append(operator @ powers[-1] / 7)
    space = torch.linalg.qr(torch.cat(powers, dim=1)).Q
    shrunk = torch.linalg.svdvals(operator.matrix @ space)
    assert found.smallest == pytest.approx(float(shrunk[-1]), rel=1e-6)


def test_costs_what_it_says():
    operator = Diagonal(torch.linspace(1, 9, 300).double())
    assert condition_number(operator).num_products == sum(operator.widths) == 102


def test_of_the_zero_matrix_it_is_not_a_number():
    for operator in (torch.zeros(4, 4), Diagonal(torch.zeros(4))):
        found = condition_number(operator)
        assert math.isnan(found.value)
        assert not found.resolved
        assert str(found) == "≥ nan"


def test_of_one_number_it_is_one():
    assert condition_number(torch.tensor([[-3.0]]).double()).value == 1
    assert condition_number(Diagonal(torch.tensor([-3.0]).double())).value == pytest.approx(1)


def test_the_same_seed_gives_the_same_bound():
    operator = by_products(operator_with(INDEFINITE))
    one, same, other = (condition_number(operator, num_steps=9, seed=s).value for s in (1, 1, 2))
    assert one == same != other


def test_refuses_more_steps_than_rows():
    with pytest.raises(ValueError, match=r"num_steps must be in \[1, 9\], got 10\."):
        condition_number(Diagonal(torch.ones(9)), num_steps=10)


@pytest.mark.parametrize(("spoilt", "product"), [(4, 4), (6, 7)])
def test_names_the_product_that_is_not_finite(spoilt, product):
    operator = Diagonal(torch.linspace(1, 2, 30), spoilt=spoilt)
    with pytest.raises(NonFiniteError, match=rf"product {product} of the operator must be finite"):
        condition_number(operator, num_steps=5)
