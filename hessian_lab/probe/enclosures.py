"""Condition numbers with proof: intervals that hold κ, from interval arithmetic of any precision.

Needs python-flint, the extra ``exact``.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hessian_lab.probe.conditioning import ConditionEnclosure
from hessian_lab.probe.watch import unheard

try:
    from flint import arb as arb
    from flint import arb_mat as arb_mat
    from flint import ctx as ctx
except ImportError:
    raise ImportError(
        "exact condition numbers need python-flint: pip install 'hessian-lab[exact]'"
    ) from None

ScalingName = Literal["identity", "equilibrated", "jacobi"]
SCALINGS: tuple[ScalingName, ...] = get_args(ScalingName)
# Working precisions, one after the other until every enclosure is tight.
PRECISIONS = (320, 800, 1600, 3200)
# Precision of the certificate of a norm, whose numbers have 53 bits each.
CERTIFICATE_BITS = 160


class UndecidedError(ArithmeticError):
    """The working precision does not tell what must be known; more bits may."""


def norm_enclosure(matrix: arb_mat) -> arb:
    """Return a ball that holds ``‖A‖₂`` for every symmetric matrix ``A`` within the entries' balls.

    Let ``M`` be a symmetric matrix of doubles near ``A``, and ``M V = V Λ + R`` an approximate
    eigendecomposition with ``G = Vᵀ V - I``, ``‖G‖ < 1``. Then ``V`` is invertible with
    ``‖V⁻¹‖ ≤ (1 - ‖G‖)^{-1/2}``, the eigenvalues of ``M`` are those of ``Λ + V⁻¹ R``, and for every
    ``λᵢ`` there is one of ``M`` within ``‖rᵢ‖ / ‖vᵢ‖``; so::

        | ‖A‖₂ - max|λᵢ| | ≤ ‖R‖_F (1 - ‖G‖_F)^{-1/2} + ‖A - M‖_F

    whose right side is computed in interval arithmetic. ``V`` and ``Λ`` come from LAPACK; nothing
    is assumed of them. Two products of matrices of doubles, and one decomposition.

    Raises:
        UndecidedError: If the entries are not finite.
    """
    size = matrix.nrows()
    norm = _bound(matrix.entries())
    if not norm.is_finite():
        raise UndecidedError("an entry is not finite")
    if norm.is_zero():
        return arb(0)
    # A power of two takes the largest entry near 1, without rounding.
    exponent = math.floor(float(norm.log() / arb(2).log()))
    scaled = matrix * arb((1, -exponent))
    doubles = np.array([float(entry) for entry in scaled.entries()]).reshape(size, size)
    doubles = (doubles + doubles.T) / 2
    values, vectors = np.linalg.eigh(doubles)
    with ctx.workprec(CERTIFICATE_BITS):
        near = arb_mat(doubles.tolist())
        error = _residual(near, values, vectors) + _bound((scaled - near).entries())
        return (arb(float(np.abs(values).max())) + arb(0, error.upper())) * arb((1, exponent))


def _residual(matrix: arb_mat, values: NDArray[np.float64], vectors: NDArray[np.float64]) -> arb:
    """Return a bound of how far eigenvalues of doubles are from those of an exact matrix."""
    basis = arb_mat(vectors.tolist())
    stretched = [
        arb(entry) * value
        for row in vectors.tolist()
        for entry, value in zip(row, values.tolist(), strict=True)
    ]
    products = (matrix * basis).entries()
    residual = _bound([a - b for a, b in zip(products, stretched, strict=True)])
    gram = basis.transpose() * basis - arb_mat(np.eye(len(values)).tolist())
    defect = 1 - _bound(gram.entries())
    if not defect > 0:
        raise UndecidedError("the approximate eigenvectors do not span the space")
    return residual / defect.sqrt()


def condition_enclosures(
    assemble: Callable[[], arb_mat],
    *,
    scalings: Iterable[ScalingName] = SCALINGS,
    rtol: float = 1e-6,
    precisions: Iterable[int] = PRECISIONS,
) -> dict[ScalingName, ConditionEnclosure]:
    """Return enclosures of ``κ(D^{-1/2} A D^{-1/2})`` for a symmetric matrix ``A`` and some ``D``.

    ``D`` is 1, the norms of the rows, or the magnitudes of the diagonal, of ``A`` itself. The
    inverse is an enclosure by FLINT, which proves ``A`` regular; ``κ = ‖B‖₂ ‖B⁻¹‖₂`` of the scaled
    ``B`` by ``norm_enclosure``, ``B⁻¹ = D^{1/2} A⁻¹ D^{1/2}`` from the one inverse. What is proven
    holds for the matrix that ``assemble`` encloses. An entry of ``D`` that is exactly zero is set
    to 1; none is dropped for being small, since nothing is rounded away here.

    Some seconds at 300 parameters, ``O(n³)`` operations at each working precision.

    Args:
        assemble: Returns balls that hold the entries [n, n], at the working precision of
            ``flint.ctx``; may raise ``UndecidedError`` to be asked again with more bits.
        scalings: Some of ``SCALINGS``.
        rtol: How wide an interval of κ may be, relative to κ.
        precisions: Working precisions in bits, tried in turn until every interval is so tight.

    Returns:
        One enclosure per scaling; one that is not known is as wide as [0, ∞).

    References:
        Johansson (2017), https://doi.org/10.1109/TC.2017.2690633.
    """
    found: dict[ScalingName, ConditionEnclosure] = {}
    waiting = list(scalings)
    for bits in precisions:
        # FLINT keeps Python's lock.
        with ctx.workprec(bits), unheard():
            found |= _enclose(assemble, waiting, bits)
        waiting = [name for name in waiting if not _tight(found[name], rtol)]
        if not waiting:
            break
    return found


def _tight(one: ConditionEnclosure, rtol: float) -> bool:
    return one.singular or one.upper - one.lower <= math.log10(1 + rtol)


def _enclose(
    assemble: Callable[[], arb_mat], names: Iterable[ScalingName], bits: int
) -> dict[ScalingName, ConditionEnclosure]:
    found = dict.fromkeys(names, ConditionEnclosure(0.0, math.inf, bits=bits))
    try:
        matrix = assemble()
        rows = matrix.tolist()
        singular = any(all(entry.is_zero() for entry in row) for row in rows)
        inverse = None if singular else matrix.inv()
    except (UndecidedError, ZeroDivisionError):
        return found
    for name in found:
        try:
            roots, num_unscaled = _scale(rows, name)
            if inverse is None:
                found[name] = ConditionEnclosure(math.inf, math.inf, True, num_unscaled, bits)
                continue
            kappa = norm_enclosure(_scaled(matrix, roots, inverse=True))
            kappa *= norm_enclosure(_scaled(inverse, roots, inverse=False))
        except UndecidedError:
            continue
        found[name] = _logarithm(kappa, num_unscaled, bits)
    return found


def _scale(rows: list[list[arb]], name: ScalingName) -> tuple[list[arb] | None, int]:
    """Return √D, or None for 1, and how many entries of D are exactly zero."""
    if name == "identity":
        return None, 0
    if name == "equilibrated":
        scale = [_frobenius(row) for row in rows]
    else:
        scale = [abs(row[place]) for place, row in enumerate(rows)]
    if not all(entry > 0 or entry.is_zero() for entry in scale):
        raise UndecidedError("an entry of D may be zero")
    roots = [arb(1) if entry.is_zero() else entry.sqrt() for entry in scale]
    return roots, sum(bool(entry.is_zero()) for entry in scale)


def _scaled(matrix: arb_mat, roots: list[arb] | None, *, inverse: bool) -> arb_mat:
    """Return ``√D A √D``, or ``A`` between the inverse roots."""
    if roots is None:
        return matrix
    factors = [1 / root for root in roots] if inverse else roots
    size = len(factors)
    entries = iter(matrix.entries())
    pairs = ((left, right) for left in factors for right in factors)
    return arb_mat(size, size, [left * right * next(entries) for left, right in pairs])


def _logarithm(kappa: arb, num_unscaled: int, bits: int) -> ConditionEnclosure:
    if not kappa.is_finite() or not kappa > 0:
        return ConditionEnclosure(0.0, math.inf, num_unscaled=num_unscaled, bits=bits)
    log = kappa.log() / arb(10).log()
    # The ends are rounded to the nearest double, so the next one is outside.
    lower = math.nextafter(float(log.lower()), -math.inf)
    upper = math.nextafter(float(log.upper()), math.inf)
    return ConditionEnclosure(max(0.0, lower), upper, num_unscaled=num_unscaled, bits=bits)


def _frobenius(entries: list[arb]) -> arb:
    total = arb(0)
    for entry in entries:
        total += entry * entry
    return total.sqrt()


def _bound(entries: list[arb]) -> arb:
    """Return an upper bound of the Frobenius norm, also of balls that hold zero."""
    return _frobenius([entry.abs_upper() for entry in entries])
