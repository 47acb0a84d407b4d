import dataclasses
import logging
import math

import numpy as np
import pytest
import torch

from hessian_lab.errors import ResourceError
from hessian_lab.probe.spectrum import SCALARS, Spectrum, asymmetry, pooled, spectrum
from tests.reference import assert_same

EPS = torch.finfo(torch.float64).eps


def with_eigenvalues(values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=torch.float64)
    noise = torch.randn(len(values), len(values), dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(noise).Q
    matrix = basis @ torch.diag(values) @ basis.T
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_eigenvalues_are_those_prescribed_at_every_scale(scale):
    prescribed = scale * torch.linspace(-2, 5, 30, dtype=torch.float64)
    assert_same(spectrum(with_eigenvalues(prescribed)).values, prescribed)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_rescaling_changes_no_count(scale):
    values = [-3.0, -1e-20, 0.0, 1e-18, 1e-6, 2.0]
    one = spectrum(scale * torch.diag(torch.tensor(values, dtype=torch.float64)))
    assert (one.numerical_zeros, one.structural_zeros, one.negative) == (3, 1, 1)
    assert one.condition_number == pytest.approx(1 / (6 * EPS), rel=1e-12)
    assert not one.condition_number_resolved
    assert one.effective_condition_number == pytest.approx(3e6, rel=1e-12)


def test_fields_follow_their_definitions():
    values = torch.tensor([-4.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    one = Spectrum(values)
    assert (one.lambda_min, one.lambda_max) == (-4.0, 2.0)
    assert one.tolerance == 4 * EPS * 4
    assert one.smallest_magnitude == 0.5
    assert one.smallest_magnitude_resolved
    assert one.condition_number == one.effective_condition_number == 8
    assert one.condition_number_resolved
    assert one.trace == -2.5
    assert one.frobenius_norm == pytest.approx(math.sqrt(21.25))
    assert one.effective_rank == pytest.approx(7.5**2 / 21.25)
    assert one.negative == 2


def test_trace_and_norm_are_those_of_the_matrix():
    matrix = with_eigenvalues(torch.linspace(-1, 3, 40))
    one = spectrum(matrix)
    assert one.trace == pytest.approx(float(matrix.trace()), rel=1e-12)
    assert one.frobenius_norm == pytest.approx(float(torch.linalg.matrix_norm(matrix)), rel=1e-12)


def test_effective_rank_of_a_projector_is_its_rank():
    assert spectrum(with_eigenvalues([0.0] * 7 + [1.0] * 5)).effective_rank == pytest.approx(5)


def test_ladder_counts_shares_below_each_rung():
    one = Spectrum(torch.tensor([1e-12, 1e-8, 1e-4, 1.0], dtype=torch.float64))
    assert one.shares_below[1e-3] == 0.75
    assert one.shares_below[1e-9] == 0.25
    assert one.shares_below[1e-13] == 0.0
    assert len(one.shares_below) == 11


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_low_rank_matrices_have_exactly_the_nullity_they_have(rank):
    values = [0.0] * (20 - rank) + [float(10**k) for k in range(rank)]
    assert spectrum(with_eigenvalues(values)).numerical_zeros == 20 - rank


def test_rows_of_zeros_give_eigenvalues_that_are_exactly_zero():
    core = with_eigenvalues([-1.0, 1.0, 2.0])
    matrix = torch.zeros(6, 6, dtype=torch.float64)
    alive = torch.tensor([0, 3, 5])
    matrix[alive.unsqueeze(1), alive] = core
    one = spectrum(matrix)
    assert one.structural_zeros == int((one.values == 0).sum()) == 3
    assert one.numerical_zeros == 3
    assert_same(one.values[one.values != 0], torch.tensor([-1.0, 1.0, 2.0], dtype=torch.float64))


def test_zeros_of_dead_rows_stand_in_their_place():
    matrix = torch.diag(torch.tensor([3.0, 0.0, -2.0, 0.0, 1.0], dtype=torch.float64))
    assert spectrum(matrix).values.tolist() == [-2.0, 0.0, 0.0, 1.0, 3.0]


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_norms_neither_overflow_nor_vanish(scale):
    one = Spectrum(scale * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    assert one.effective_rank == pytest.approx(3)
    assert one.frobenius_norm == pytest.approx(scale * math.sqrt(3))


def test_a_rung_counts_what_lies_on_it():
    one = Spectrum(torch.tensor([1e-3, 1.0], dtype=torch.float64))
    assert one.shares_below[1e-3] == 0.5


def test_zero_matrix_says_what_it_cannot_say():
    one = spectrum(torch.zeros(4, 4, dtype=torch.float64))
    assert (one.numerical_zeros, one.structural_zeros, one.negative) == (4, 4, 0)
    assert one.tolerance == one.effective_rank == 0
    assert math.isnan(one.condition_number)
    assert math.isnan(one.effective_condition_number)
    assert not one.condition_number_resolved


def test_single_precision_is_promoted_keeps_its_own_floor_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        one = spectrum(with_eigenvalues([1e-9, 1.0, 2.0]).float())
    assert one.values.dtype == torch.float64
    assert one.dtype == "float32"
    assert one.tolerance == pytest.approx(3 * torch.finfo(torch.float32).eps * 2)
    assert one.numerical_zeros == 1
    assert "promoted to float64" in caplog.text
    assert "float32" in str(one)


def test_takes_numpy_arrays():
    matrix = np.diag([1.0, 2.0])
    assert spectrum(matrix).values.tolist() == [1.0, 2.0]


def test_is_frozen_and_every_scalar_is_there():
    one = spectrum(torch.eye(3, dtype=torch.float64))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.structural_zeros = 1
    assert all(isinstance(getattr(one, name), int | float) for name in SCALARS)


def test_text_marks_an_unresolved_condition_number():
    text = str(spectrum(with_eigenvalues([0.0, 1.0, 2.0])))
    assert "effective 2" in text
    assert "≥" in text
    assert "≥" not in str(spectrum(with_eigenvalues([0.5, 1.0, 2.0])))


def test_pooled_shares_weigh_every_eigenvalue_once():
    first = Spectrum(torch.tensor([0.0, 1.0], dtype=torch.float64), structural_zeros=1)
    second = Spectrum(torch.tensor([-1.0, 1e-3], dtype=torch.float64))
    assert pooled([first, second]) == {
        "numerical_zero_share": 0.25,
        "structural_zero_share": 0.25,
        "negative_share": 0.25,
        "smallest_magnitude": 0.0,
    }


@pytest.mark.parametrize("size", [3, 1025, 2100])
def test_asymmetry_finds_one_entry_anywhere(size):
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix[size - 1, 1] = 0.25
    assert asymmetry(matrix) == 0.25


@pytest.mark.parametrize("size", [3, 1500])
def test_refuses_what_is_not_symmetric(size):
    matrix = torch.eye(size, dtype=torch.float64)
    matrix[-1, 0] = 1e-8
    with pytest.raises(ValueError, match=r"matrix must be symmetric, got max\|A - Aᵀ\| = 1e-08"):
        spectrum(matrix)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", [3, 1500])
def test_refuses_what_is_not_finite(bad, size):
    matrix = torch.eye(size, dtype=torch.float64)
    matrix[-1, -1] = bad
    with pytest.raises(ValueError, match="matrix must be finite, got NaN or Inf"):
        spectrum(matrix)


@pytest.mark.parametrize("shape", [(2, 3), (3,), (0, 0)])
def test_refuses_what_is_not_square(shape):
    with pytest.raises(ValueError, match="matrix must have shape"):
        spectrum(torch.zeros(shape, dtype=torch.float64))


def test_refuses_integers():
    with pytest.raises(TypeError, match=r"real and floating-point, got torch\.int64"):
        spectrum(torch.eye(3, dtype=torch.int64))


def test_refuses_what_does_not_fit(monkeypatch):
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _: 100)
    with pytest.raises(ResourceError, match=r"eigenvalue problem of size 10 .* 100 B are free"):
        spectrum(torch.eye(10, dtype=torch.float64))
