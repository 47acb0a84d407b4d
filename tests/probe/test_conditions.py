"""Condition numbers before and after scaling, against matrices whose spectra are known."""

import math

import numpy as np
import pytest
import torch

from hessian_lab.probe.conditions import NAMES, conditions

EPS = np.finfo(np.float64).eps


def symmetric(values, seed=0):
    """Return a full matrix of these eigenvalues."""
    size = len(values)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q
    matrix = (basis * torch.tensor(values, dtype=torch.float64)) @ basis.T
    return (matrix + matrix.T) / 2


def by_numpy(matrix, scale):
    root = 1 / np.sqrt(scale)
    values = abs(np.linalg.eigvalsh(root[:, None] * matrix * root))
    return values.max() / values.min(), values.max() / np.quantile(values, 0.1)


def test_values_of_a_matrix_that_is_resolved():
    values = [3.0, -1.0, 1e-3, -0.1, 2.0, 0.5, 0.2, 0.7, -0.3, 1.5, 0.9]
    matrix = symmetric(values)
    found = conditions(matrix)
    assert list(found) == list(NAMES)
    assert found["identity"].kappa == pytest.approx(3e3)
    assert found["identity"].effective == pytest.approx(3e3)
    # Of eleven magnitudes the 10 % quantile is the second.
    assert found["identity"].eff10 == pytest.approx(30)
    dense = matrix.numpy()
    scales = {"equilibrated": np.linalg.norm(dense, axis=1), "jacobi": abs(np.diag(dense))}
    for name, scale in scales.items():
        kappa, tenth = by_numpy(dense, scale)
        assert found[name].kappa == pytest.approx(kappa)
        assert found[name].eff10 == pytest.approx(tenth)
    for one in found.values():
        assert (one.resolved, one.eff10_resolved, one.num_below) == (True, True, 0)


def test_what_lies_below_the_floor_is_a_bound():
    values = [1.0, -1e-3, 1e-18, -1e-19, 1e-20]
    one = conditions(torch.diag(torch.tensor(values, dtype=torch.float64)))["identity"]
    assert not one.resolved
    assert not one.eff10_resolved
    assert one.kappa == one.eff10 == pytest.approx(1 / (5 * EPS))
    assert one.effective == pytest.approx(1e3)
    assert one.num_below == 3


def test_the_quantile_may_be_resolved_where_the_smallest_is_not():
    values = [10.0**-place for place in range(11)] + [1e-18]
    one = conditions(torch.diag(torch.tensor(values, dtype=torch.float64)))["identity"]
    assert (one.resolved, one.eff10_resolved, one.num_below) == (False, True, 1)


def test_a_diagonal_matrix_is_scaled_to_its_signs():
    found = conditions(torch.diag(torch.tensor([1.0, -1e-9, 1e-6], dtype=torch.float64)))
    assert found["identity"].kappa == pytest.approx(1e9)
    for name in ("equilibrated", "jacobi"):
        assert found[name].kappa == pytest.approx(1)
        assert found[name].num_unscaled == 0


def test_entries_too_small_to_divide_by_are_counted():
    matrix = torch.diag(torch.tensor([1.0, 1e-17, 0.0, 2.0], dtype=torch.float64))
    matrix[1, 3] = matrix[3, 1] = 1.0
    found = conditions(matrix)
    assert [found[name].num_unscaled for name in NAMES] == [0, 1, 2]


def test_estimates_come_near_the_exact_scalings_with_many_products():
    matrix = symmetric(list(np.linspace(1, 3, 12)))
    found = conditions(matrix, estimated=400, seed=3)
    for name in ("equilibrated", "jacobi"):
        estimate = found[f"{name}_estimated"]
        assert estimate.kappa == pytest.approx(found[name].kappa, rel=0.2)
    assert conditions(matrix, estimated=5, seed=3) == conditions(matrix, estimated=5, seed=3)
    assert conditions(matrix, estimated=5, seed=4) != conditions(matrix, estimated=5, seed=3)


def test_a_zero_matrix_has_no_condition_number():
    for one in conditions(torch.zeros(3, 3, dtype=torch.float64)).values():
        assert math.isnan(one.kappa)
        assert math.isnan(one.eff10)
        assert one.num_below == 3


def test_a_matrix_that_is_not_finite_has_none_either():
    found = conditions(torch.full((3, 3), math.nan, dtype=torch.float64), estimated=4)
    for one in found.values():
        assert math.isnan(one.kappa)
        assert one.num_below == 0
