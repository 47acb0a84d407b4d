"""The lens that a file of transforms tells."""

import math
from pathlib import Path
from typing import Any, TypeGuard

from hessian_lab.errors import InputError

# How far, as a share, a lens may be from the ideal one.
NEAR = 0.005
# Of a name in a message.
MOST_LETTERS = 60


def focal(lens: dict[str, Any], columns: int, folder: Path) -> float:
    """Return the focal length in pixels of pictures with so many columns.

    Raises:
        InputError: If there is none, or the lens is not that of a pinhole.
    """
    angle, length, width = (lens.get(name) for name in ("camera_angle_x", "fl_x", "w"))
    _require_pinhole(lens, folder)
    if _is_number(angle) and 0 < angle < math.pi:
        half = math.tan(angle / 2)
        return columns / 2 / half if half > 0 else math.inf
    if angle is None and _is_number(length) and _is_number(width):
        try:
            return float(length) * columns / float(width) if width > 0 else 0.0
        except OverflowError:
            return math.inf
    found = "has none" if angle is None else f"has {brief(angle)}"
    raise InputError(
        f"transforms must have camera_angle_x, an angle between 0 and π (or fl_x and w, in pixels),"
        f" {folder} {found}."
    )


def require_one_lens(lens: dict[str, Any], other: dict[str, Any], folder: Path) -> None:
    """Check that pictures to train and to test with were taken alike.

    Raises:
        InputError: If not.
    """
    names = [name for name in ("camera_angle_x", "fl_x") if lens.get(name) != other.get(name)]
    if names:
        raise InputError(
            f"pictures must be taken with one lens, those of {folder} have {names[0]} "
            f"{brief(lens.get(names[0]))} to train and {brief(other.get(names[0]))} to test."
        )


def _require_pinhole(lens: dict[str, Any], folder: Path) -> None:
    """Refuse what a pinhole with square pixels and its axis in the middle has not."""
    bent = [name for name in ("k1", "k2", "k3", "k4", "p1", "p2") if lens.get(name, 0) != 0]
    for name, other, share in (("fl_y", "fl_x", 1.0), ("cx", "w", 0.5), ("cy", "h", 0.5)):
        wanted, found = _float(lens.get(other)), _float(lens.get(name))
        if wanted is None or lens.get(name) is None:
            continue
        if found is None or abs(found - share * wanted) > NEAR * abs(wanted):
            bent.append(name)
    if bent:
        raise InputError(
            f"pictures must be those of a pinhole with square pixels and its axis in the middle, "
            f"the transforms of {folder} have {bent[0]} {brief(lens[bent[0]])}: undistort them."
        )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: object) -> float | None:
    """Return a number as one of floating point, if it is one, and infinity if it is beyond."""
    try:
        return float(value) if _is_number(value) else None
    except OverflowError:
        return math.inf


def brief(value: object) -> str:
    """Return what a file says, on one line and not all of it if it is long."""
    try:
        text = value if isinstance(value, str) and value.isprintable() else repr(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}…"
