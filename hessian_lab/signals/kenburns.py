"""A camera that moves over a photograph: a video that needs no file, and whose motion is exact."""

import hashlib
import math
from functools import cache
from typing import Any

import numpy as np
from scipy import ndimage

from hessian_lab.signal import Signal, Source
from hessian_lab.signals.bundled import image_file
from hessian_lab.signals.images import decode, read_bytes
from hessian_lab.signals.video import Clip, Cut, signal_of

PHOTOGRAPH = "chelsea"
# Length, and what it is where nothing else is asked for.
SECONDS, RATE, ROWS = 4.0, 16.0, 90
ASPECT = 16 / 9
# Centre (row, column) and width of what is seen, in shares of the photograph's width, at first
# and at last. The centre moves at a steady speed, and so does the logarithm of the width.
FIRST = (0.33, 0.5, 0.98)
LAST = (0.25, 0.42, 0.36)
# Deviation of the Gaussian that is laid over the photograph, in pixels of the frame.
BLUR = 0.4

Array = np.ndarray[Any, np.dtype[Any]]


def load_kenburns(
    name: str,
    start: float | None = None,
    seconds: float | None = None,
    rate: float | None = None,
    size: int | None = None,
) -> Signal:
    """Return a slow pan and zoom over a photograph, 16:9; by default 4 s at 16 frames per second.

    Raises:
        InputError: If the clip begins after the end.
        ResourceError: If it does not fit in memory.
    """
    return signal_of(kenburns_clip(name, Cut(start, seconds, rate, size)))


def kenburns_clip(name: str, cut: Cut) -> Clip:
    """Return frames of the pan and zoom: cubic splines, blurred where pixels are skipped."""
    times = cut.times(SECONDS, RATE, name)
    rows = cut.size or ROWS
    found = cut.room(len(times), rows, round(rows * ASPECT), name)
    photograph, attribution, digest = _photograph()
    for place, time in enumerate(times):
        found[place] = _frame(photograph, *view(time), *found.shape[1:3])
    moved = f"{attribution}; a camera moved over it by hessian-lab: no film"
    return Clip(found, cut.rate or RATE, Source(name, moved, digest))


def view(time: float) -> tuple[float, float, float]:
    """Return row and column of the centre, and the width of what is seen at a second."""
    share = time / SECONDS
    centre = [(1 - share) * one + share * other for one, other in zip(FIRST, LAST, strict=True)]
    width = FIRST[2] * (LAST[2] / FIRST[2]) ** share
    return centre[0], centre[1], width


@cache
def _photograph() -> tuple[Array, str, str]:
    path, attribution = image_file(PHOTOGRAPH)
    data = read_bytes(path)
    motion = f"{FIRST} {LAST} {SECONDS} {BLUR}".encode()
    digest = hashlib.sha256(hashlib.sha256(data).digest() + motion).hexdigest()
    return decode(data, path) / 255, attribution, digest


def _frame(
    photograph: Array, row: float, column: float, width: float, rows: int, columns: int
) -> Array:
    """Return a frame [rows, columns, 3] in 8 bits, centred at a row and column."""
    unit = photograph.shape[1]
    step = width * unit / columns
    # Of the first pixel, whose centre is half a step inside.
    corner = [
        centre * unit - step * (count - 1) / 2 - 0.5
        for centre, count in ((row, rows), (column, columns))
    ]
    blurred = photograph
    if step > 1:
        blurred = ndimage.gaussian_filter(photograph, BLUR * step, axes=(0, 1), mode="nearest")
    margin = math.ceil(step) + 12
    parts, offsets = [], []
    for first, count, length in zip(corner, (rows, columns), photograph.shape, strict=False):
        low = max(0, math.floor(first) - margin)
        parts.append(slice(low, min(length, math.ceil(first + step * count) + margin)))
        offsets.append(first - low)
    seen = blurred[parts[0], parts[1]]
    channels = [
        ndimage.affine_transform(
            seen[..., place], (step, step), offsets, (rows, columns), order=3, mode="nearest"
        )
        for place in range(3)
    ]
    frame: Array = np.rint(255 * np.clip(np.stack(channels, -1), 0, 1)).astype(np.uint8)
    return frame
