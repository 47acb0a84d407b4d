import math

import numpy as np
import pytest
import torch
from scipy import stats

from hessian_lab.probe.estimate import MANY_DOF, Estimate, skewness
from tests.probe.estimates import SCALES
from tests.reference import assert_same

DOUBLE = torch.float64


def vector(*entries):
    return torch.tensor(entries, dtype=DOUBLE)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_interval_is_students_t(level):
    low, high = Estimate(2.0, 0.5, dof=9).interval(level)
    half = 0.5 * stats.t.isf((1 - level) / 2, 9)
    assert_same(vector(low, high), vector(2 - half, 2 + half))


def test_infinitely_many_degrees_of_freedom_are_a_normal_law():
    low, high = Estimate(2.0, 0.5).interval()
    assert_same(vector(low, high), 2 + 0.5 * stats.norm.isf(0.025) * vector(-1, 1))


@pytest.mark.parametrize("skew", [-9.0, -0.3, -1e-4, -1e-7, 0.0, 1e-7, 1e-4, 0.3, 9.0])
def test_ends_of_a_skewed_interval_solve_halls_cubic(skew):
    low, high = Estimate(1.0, 0.2, dof=15, skewness=skew).interval()
    quantile = stats.t.isf(0.025, 15)
    studentized, small = (1 - vector(high, low)) / 0.2, skew / math.sqrt(16)
    cubic = studentized + small * studentized**2 / 3 + small**2 * studentized**3 / 27 + small / 6
    assert_same(cubic, quantile * vector(-1, 1), roundings=1e8)
    assert (high + low - 2) * skew >= 0


@pytest.mark.parametrize("dof", [1.0, 30.0, 1e4, 0.99 * MANY_DOF, 1.01 * MANY_DOF, 1e9])
def test_interval_of_a_norm_is_chi_squared(dof):
    error = vector(3 / math.sqrt(2 * dof))
    ends = Estimate(vector(3.0), error, dof=vector(dof), law="root-chi2").interval()
    expected = 3 * np.sqrt(dof / stats.chi2.isf([0.025, 0.975], dof))
    assert_same(torch.cat(ends), torch.from_numpy(expected), roundings=1e6)


def test_interval_of_a_norm_known_exactly_is_a_point():
    exact = Estimate(vector(3, 0), vector(0, 0), dof=vector(math.inf, math.inf), law="root-chi2")
    for end in exact.interval():
        assert_same(end, vector(3, 0))


def test_interval_of_a_root_is_that_of_its_square():
    root = Estimate(3.0, 0.2, dof=9, skewness=0.7, law="root-t").interval()
    square = Estimate(9.0, 1.2, dof=9, skewness=0.7).interval()
    assert_same(vector(*root) ** 2, vector(*square))


def test_interval_of_a_norm_is_not_negative():
    for law in ("root-t", "root-chi2"):
        low, high = Estimate(1.0, 2.0, dof=2, law=law, rounding=1.5).interval()
        assert low == 0
        assert high > 2.5


@pytest.mark.parametrize("law", ["t", "root-t", "root-chi2"])
def test_rounding_widens_every_interval(law):
    narrow = Estimate(3.0, 0.2, dof=9, law=law).interval()
    wide = Estimate(3.0, 0.2, dof=9, law=law, rounding=0.125).interval()
    assert_same(vector(*wide), vector(*narrow) + vector(-0.125, 0.125))


def test_entries_of_a_vector_have_intervals_of_their_own():
    means, errors, skews = vector(1, -2, 0), vector(0.1, 0, 3), vector(0, 0.5, -2)
    for law in ("t", "root-t"):
        ends = Estimate(means, errors, dof=7, skewness=skews, law=law).interval()
        for i in range(3):
            one = Estimate(
                float(means[i]), float(errors[i]), dof=7, skewness=float(skews[i]), law=law
            )
            assert_same(torch.stack(ends)[:, i], vector(*one.interval()), scale=1.0)


@pytest.mark.parametrize("scale", SCALES)
def test_interval_scales_with_the_estimate(scale):
    unit = Estimate(3.0, 0.2, dof=9, skewness=1.0, rounding=0.01).interval()
    scaled = Estimate(3 * scale, 0.2 * scale, dof=9, skewness=1.0, rounding=0.01 * scale).interval()
    assert_same(vector(*scaled) / scale, vector(*unit))


def test_interval_keeps_the_precision_of_plain_numbers():
    low, high = Estimate(1.0, 1 / 3, dof=4).interval()
    assert_same(vector((high - low) / 2), vector(stats.t.isf(0.025, 4) / 3), roundings=4)


@pytest.mark.parametrize("scale", SCALES)
def test_skewness_is_that_of_the_samples(scale):
    samples = vector(*np.random.default_rng(0).exponential(size=20)).reshape(2, 10)
    centred = samples - samples.mean(dim=1, keepdim=True)
    expected = (centred**3).mean(dim=1) / samples.std(dim=1) ** 3
    assert_same(skewness(scale * samples), expected)


def test_skewness_of_equal_samples_is_zero():
    assert skewness(torch.full((5,), 3.0, dtype=DOUBLE)) == 0
    assert skewness(torch.zeros(5, dtype=DOUBLE)) == 0


def test_relative_error_is_in_the_norm():
    assert Estimate(-2.0, 0.5).relative_error == 0.25
    assert Estimate(vector(3, 4), vector(0, 1)).relative_error == 0.2
    assert Estimate(0.0, 0.0).relative_error == 0
    assert Estimate(0.0, 0.5).relative_error == math.inf


def test_prints_what_a_person_needs():
    number = Estimate(1234.5678, 0.5, dof=29, num_products=30)
    assert str(number) == "1234.57 ± 5.0e-01, 95 % in [1233.55, 1235.59] (30 products)"
    several = Estimate(vector(3, -4), vector(0, 1), num_products=30)
    assert str(several) == "2 entries in [-4, 3] ± 20.0% in norm (30 products)"


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda g, size: g.normal(size=size), 0.0),
        (lambda g, size: g.uniform(size=size), 0.5),
        (lambda g, size: g.exponential(size=size), 1.0),
        # One dominant eigenvalue: Student's t alone covers 91 %.
        (lambda g, size: g.chisquare(1, size=size), 1.0),
        (lambda g, size: -g.chisquare(1, size=size), -1.0),
    ],
)
def test_intervals_of_skewed_means_cover(draw, mean):
    samples = torch.from_numpy(draw(np.random.default_rng(1), (4000, 30)))
    error = samples.std(dim=1) / math.sqrt(30)
    estimate = Estimate(samples.mean(dim=1), error, dof=29, skewness=skewness(samples))
    low, high = estimate.interval()
    # The standard error of a share of 4,000 is 0.35 %.
    assert 0.935 < float(((low <= mean) & (mean <= high)).double().mean()) < 0.965


@pytest.mark.parametrize("level", [0, 1, -0.5, 95, math.nan])
def test_rejects_a_level_that_is_no_probability(level):
    with pytest.raises(ValueError, match=f"level must be between 0 and 1, got {level}"):
        Estimate(1.0, 0.1).interval(level)
