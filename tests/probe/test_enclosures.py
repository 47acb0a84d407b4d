"""Enclosures against matrices of known condition number, and against mpmath."""

import math

import mpmath
import numpy as np
import pytest

from hessian_lab.probe import enclosures
from hessian_lab.probe.conditioning import ConditionEnclosure
from hessian_lab.probe.enclosures import (
    SCALINGS,
    UndecidedError,
    arb,
    arb_mat,
    condition_enclosures,
    ctx,
    norm_enclosure,
)

# Digits of the reference, far below any radius.
DIGITS = 120


@pytest.fixture(autouse=True)
def digits():
    with mpmath.workdps(DIGITS), ctx.workprec(400):
        yield


def indefinite(size=12, seed=0, decades=30):
    """Return a full symmetric matrix of integers over a power of two, badly scaled, as rows."""
    generator = np.random.default_rng(seed)
    core = generator.standard_normal((size, size))
    core = core + core.T
    scale = 2.0 ** np.round(np.linspace(0, -decades * 3.32 / 2, size))
    return (scale[:, None] * core * scale).tolist()


def magnitudes(rows):
    """Return all |λ|, ascending, by mpmath."""
    return sorted(abs(value) for value in mpmath.eigsy(mpmath.matrix(rows), eigvals_only=True))


def scaled(rows, name):
    """Return ``D^{-1/2} A D^{-1/2}`` by mpmath."""
    matrix = mpmath.matrix(rows)
    size = len(rows)
    if name == "identity":
        return matrix
    scale = [
        mpmath.norm(matrix[place, :]) if name == "equilibrated" else abs(matrix[place, place])
        for place in range(size)
    ]
    roots = [mpmath.sqrt(entry) if entry else mpmath.mpf(1) for entry in scale]
    return mpmath.matrix(
        [[matrix[i, j] / roots[i] / roots[j] for j in range(size)] for i in range(size)]
    )


def exact_log10(rows, name="identity"):
    found = magnitudes(scaled(rows, name).tolist())
    return mpmath.log10(found[-1] / found[0])


def holds(ball, number):
    """Tell whether a ball holds a number of mpmath."""
    middle, radius = (mpmath.mpf(part.str(80, radius=False)) for part in (ball.mid(), ball.rad()))
    return abs(number - middle) <= radius


# The norm.


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [1.0, 2.0**-900, 2.0**900])
def test_a_norm_lies_in_its_ball(seed, factor):
    rows = indefinite(seed=seed)
    ball = norm_enclosure(arb_mat(rows) * arb(factor))
    assert holds(ball / factor, magnitudes(rows)[-1])
    assert float((ball.rad() / ball.mid()).log()) < math.log(1e-12)


def test_norms_beyond_double_precision_are_enclosed():
    factor = arb(10) ** 500
    ball = norm_enclosure(arb_mat(indefinite()) * factor) / factor
    assert holds(ball, magnitudes(indefinite())[-1])


def test_a_ball_holds_the_norms_of_all_matrices_within_the_entries():
    generator = np.random.default_rng(1)
    middle = generator.standard_normal((6, 6))
    middle = middle + middle.T
    radius = 1e-3
    ball = norm_enclosure(arb_mat([[arb(entry, radius) for entry in row] for row in middle]))
    for _ in range(50):
        moved = generator.choice([-radius, radius], size=(6, 6))
        moved = np.tril(moved) + np.tril(moved, -1).T
        assert ball.contains(arb(float(np.linalg.norm(middle + moved, 2))))
    # The largest is reached by signs that follow the leading eigenvector, the all-ones one at most.
    vector = np.linalg.eigh(middle)[1][:, np.abs(np.linalg.eigvalsh(middle)).argmax()]
    signs = np.sign(np.outer(vector, vector))
    for sign in (-1, 1):
        assert ball.contains(arb(float(np.linalg.norm(middle + sign * radius * signs, 2))))
    assert float(ball.rad()) < 3 * 6 * radius


@pytest.mark.parametrize("noise", [1e-12, 1e-6, 1e-2])
def test_nothing_is_assumed_of_lapack(monkeypatch, noise):
    """With wrong eigenvectors the ball is wider, and still holds the norm."""
    honest, generator = np.linalg.eigh, np.random.default_rng(0)

    def sloppy(matrix):
        values, vectors = honest(matrix)
        values = values * (1 + noise * generator.standard_normal(values.shape))
        return values, vectors + noise * generator.standard_normal(vectors.shape)

    monkeypatch.setattr(enclosures.np.linalg, "eigh", sloppy)
    rows = indefinite()
    ball = norm_enclosure(arb_mat(rows))
    assert holds(ball, magnitudes(rows)[-1])
    assert float(ball.rad()) > 0.1 * noise * float(ball.mid())


def test_short_eigenvectors_make_no_short_residuals(monkeypatch):
    """The residual of half a unit vector, 0.2, is that of an eigenvalue 0.4 away."""
    monkeypatch.setattr(
        enclosures.np.linalg, "eigh", lambda _matrix: (np.array([0.6]), np.array([[0.5]]))
    )
    assert norm_enclosure(arb_mat([[1]])).contains(arb(1))


def test_eigenvectors_that_span_no_space_are_no_proof(monkeypatch):
    monkeypatch.setattr(
        enclosures.np.linalg, "eigh", lambda matrix: (np.ones(len(matrix)), np.ones_like(matrix))
    )
    with pytest.raises(UndecidedError, match="do not span"):
        norm_enclosure(arb_mat(indefinite()))


def test_a_zero_matrix_has_norm_zero():
    assert norm_enclosure(arb_mat(3, 3)).is_zero()


@pytest.mark.parametrize("entry", [arb(math.nan), arb(math.inf), arb(0, math.inf)])
def test_entries_that_are_not_finite_are_undecided(entry):
    with pytest.raises(UndecidedError, match="not finite"):
        norm_enclosure(arb_mat([[entry]]))


def test_a_ball_of_zero_has_a_norm_within_its_radius():
    ball = norm_enclosure(arb_mat([[arb(0, 0.5)]]))
    assert ball.contains(arb(0.5))
    assert ball.contains(arb(0))
    assert ball.upper() < 0.501


# Condition numbers.


def test_a_diagonal_matrix_of_condition_number_1e40():
    rows = [[0.0] * 5 for _ in range(5)]
    for place, value in enumerate((1.0, -3.0, 7e-10, 1e20, 1e-20)):
        rows[place][place] = value
    found = condition_enclosures(lambda: arb_mat(rows))
    # 1e20 is exact in double precision, 1e-20 is not.
    exact = math.log10(1e20) - float(mpmath.log10(mpmath.mpf(1e-20)))
    assert found["identity"].lower <= exact <= found["identity"].upper
    assert found["identity"].upper - found["identity"].lower < 1e-12
    for name in ("equilibrated", "jacobi"):
        assert 0 <= found[name].lower <= found[name].upper < 1e-12


def test_the_hilbert_matrix():
    size = 30
    found = condition_enclosures(
        lambda: arb_mat([[arb(1) / (i + j + 1) for j in range(size)] for i in range(size)])
    )
    rows = [[mpmath.mpf(1) / (i + j + 1) for j in range(size)] for i in range(size)]
    for name in SCALINGS:
        assert found[name].lower <= exact_log10(rows, name) <= found[name].upper
    assert 43 < found["identity"].log10 < 45


@pytest.mark.parametrize("seed", range(4))
def test_condition_numbers_of_indefinite_matrices_before_and_after_scaling(seed):
    rows = indefinite(seed=seed)
    found = condition_enclosures(lambda: arb_mat(rows))
    assert list(found) == list(SCALINGS)
    for name, one in found.items():
        assert one.lower <= exact_log10(rows, name) <= one.upper
        assert one.upper - one.lower <= math.log10(1 + 1e-6)
        assert (one.known, one.singular, one.num_unscaled, one.bits) == (True, False, 0, 320)
    # A diagonal congruence is what Jacobi takes away whole, and equilibration half of it.
    assert found["jacobi"].upper < found["equilibrated"].lower < found["identity"].lower - 10


def test_entries_of_the_scale_that_are_zero_are_set_to_one_and_counted():
    rows = [[0.0, 2.0, 0.0], [2.0, 1.0, 1.0], [0.0, 1.0, 4.0]]
    found = condition_enclosures(lambda: arb_mat(rows))
    assert [found[name].num_unscaled for name in SCALINGS] == [0, 0, 1]
    for name in SCALINGS:
        assert found[name].lower <= exact_log10(rows, name) <= found[name].upper


def test_precision_is_raised_until_the_interval_is_tight():
    asked = []

    def assemble():
        asked.append(ctx.prec)
        return arb_mat([[1, arb(1)], [arb(1), 1 + arb(2) ** -500]])

    one = condition_enclosures(assemble, scalings=["identity"])["identity"]
    # κ is (2 + …) / det with det 2^-500, up to parts of 2^-500.
    assert one.lower <= float(mpmath.log10(mpmath.mpf(4) * mpmath.mpf(2) ** 500)) <= one.upper
    assert asked == [320, 800]
    assert one.bits == 800


def test_wide_entries_give_a_wide_interval_that_is_told():
    wide = condition_enclosures(
        lambda: arb_mat([[arb(1, 1e-3), 0], [0, arb(10)]]), scalings=["identity"], precisions=[64]
    )["identity"]
    assert wide.lower < 1 < wide.upper
    assert 1e-4 < wide.upper - wide.lower < 1e-2


def test_a_row_of_zeros_proves_a_matrix_singular():
    rows = [[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [2.0, 0.0, 1.0]]
    found = condition_enclosures(lambda: arb_mat(rows))
    for name in SCALINGS:
        assert (found[name].singular, found[name].lower) == (True, math.inf)
        assert found[name].log10 == math.inf
    assert [found[name].num_unscaled for name in SCALINGS] == [0, 1, 1]


def test_another_singular_matrix_is_not_enclosed():
    found = condition_enclosures(lambda: arb_mat([[1, 1], [1, 1]]), precisions=(64, 128))
    for one in found.values():
        assert (one.known, one.singular, one.bits) == (False, False, 128)
        assert (one.lower, one.upper) == (0, math.inf)
        assert math.isnan(one.log10)


def test_what_is_undecided_is_asked_again():
    asked = []

    def assemble():
        asked.append(ctx.prec)
        if ctx.prec < 800:
            raise UndecidedError("not yet")
        return arb_mat([[1, 0], [0, 2]])

    one = condition_enclosures(assemble)["identity"]
    assert asked == [320, 800]
    assert one.lower <= math.log10(2) <= one.upper


def test_the_working_precision_comes_back():
    before = ctx.prec
    condition_enclosures(lambda: arb_mat([[1, 1], [1, 1]]), precisions=(64,))
    assert ctx.prec == before


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (ConditionEnclosure(3.0, 3.0), "1e3.0000"),
        (ConditionEnclosure(math.inf, math.inf, singular=True), "∞"),
        (ConditionEnclosure(0, math.inf), "not enclosed"),
    ],
)
def test_it_prints(one, text):
    assert str(one) == text
