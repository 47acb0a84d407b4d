"""Large images and videos in tiles, read one by one."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_lab.errors import InputError, UsageError
from hessian_lab.probe.memory import require_bytes
from hessian_lab.signal import Signal, Source
from hessian_lab.signals import is_path, kind_of
from hessian_lab.signals.bundled import image_file
from hessian_lab.signals.images import decode, expanded, over_white, read_bytes, scaled
from hessian_lab.signals.kenburns import kenburns_clip
from hessian_lab.signals.video import Cut, load_clip, registered_clip

Array = np.ndarray[Any, np.dtype[Any]]
# An image that is computed, of any size; this many pixels a side by default.
PROCEDURAL, PROCEDURAL_SIZE = "mandelbrot", 2048
MAX_SIDE = 1 << 20
ITERATIONS = 120
# Frames of a video in a tile where nothing else is asked for, and what its axes are called; an
# image has the last two.
TILE_FRAMES = 8
AXES = ("frame", "row", "column")


@dataclass(frozen=True, eq=False)
class Tiled:
    """An image or video in tiles of one size, of which the last along an axis may overlap others.

    Attributes:
        shape: Lengths of the axes, rows and columns or frames, rows and columns; then channels.
        sides: Pixels of a tile along each axis.
        window: Returns the pixels [*lengths, channels] of a box in [0, 1], by its first index along
            each axis, then its lengths.
        source: What a record says of the data.
        rate: Frames per second; None of an image.
    """

    shape: tuple[int, ...]
    sides: tuple[int, ...]
    window: Callable[..., Array]
    source: Source
    rate: float | None = None

    def __post_init__(self) -> None:
        what = "image" if len(self.sides) == 2 else "video"
        if not 2 <= self.tile <= min(self.shape[-3:-1]):
            raise UsageError(
                f"tile must be at least 2 and at most the {what}'s {min(self.shape[-3:-1])} "
                f"pixels, got {self.tile}."
            )
        if not 1 <= self.sides[0] <= self.shape[0]:
            raise UsageError(
                f"tile_frames must be at least 1 and at most the clip's {self.shape[0]} frames, "
                f"got {self.sides[0]}."
            )

    @property
    def tile(self) -> int:
        """Pixels per side of a tile in an image or frame."""
        return self.sides[-1]

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says beside the source."""
        found = {"tile": self.tile, "shape": list(self.shape), "grid": list(self.grid)}
        moving = {} if self.rate is None else {"tile_frames": self.sides[0], "rate": self.rate}
        return found | moving

    @property
    def axes(self) -> tuple[str, ...]:
        """What the axes are called."""
        return AXES[-len(self.sides) :]

    @property
    def grid(self) -> tuple[int, ...]:
        """Tiles along each axis."""
        return tuple(
            -(-length // side) for length, side in zip(self.shape, self.sides, strict=False)
        )

    @property
    def num_tiles(self) -> int:
        """How many tiles cover the image or video."""
        return math.prod(self.grid)

    @property
    def num_points(self) -> int:
        """The pixels of a tile."""
        return math.prod(self.sides)

    def corner(self, index: int) -> tuple[int, ...]:
        """Return the first index of a tile along each axis; the last axis is counted first."""
        corner: list[int] = []
        for number, side, length in zip(
            reversed(self.grid), reversed(self.sides), reversed(self.shape[:-1]), strict=True
        ):
            index, place = divmod(index, number)
            corner.append(min(place * side, length - side))
        return tuple(reversed(corner))

    def place(self, index: int) -> tuple[slice, ...]:
        """Return where in the image or video a tile lies."""
        pairs = zip(self.corner(index), self.sides, strict=True)
        return tuple(slice(first, first + side) for first, side in pairs)

    def values(self, start: int, stop: int) -> Tensor:
        """Return the pixels of some tiles [k, points, channels], in [0, 1]."""
        found = [self.window(*self.corner(index), *self.sides) for index in range(start, stop)]
        return torch.from_numpy(np.stack(found).reshape(stop - start, -1, self.shape[-1]))

    def coords(self) -> Tensor:
        """Return the coordinates of the pixels of a tile [points, d] in [-1, 1], ends included."""
        axes = [torch.linspace(-1, 1, side, dtype=torch.float64) for side in self.sides]
        return torch.cartesian_prod(*axes)


def load_tiles(
    name: str,
    tile: int,
    size: int | None = None,
    *,
    frames: int | None = None,
    start: float | None = None,
    seconds: float | None = None,
    rate: float | None = None,
) -> Tiled:
    """Return an image or video in tiles: a named one, a file by its path, or ``mandelbrot``.

    A file is held as it is stored, a video in 8 bits, and made into numbers in [0, 1] tile by tile;
    ``mandelbrot`` is computed tile by tile, at any size.

    Args:
        name: Of the image or video.
        tile: Pixels per side of a tile.
        size: Pixels per side of a centred square of the image, or rows of the video; by default
            all of it.
        frames: Frames of a video in a tile; 8 by default.
        start: Second at which the clip of a video begins.
        seconds: Its length; by default all that follows.
        rate: Its frames per second; by default the video's own.

    Raises:
        UsageError: For sizes that do not fit, or a name that is neither image nor video.
        InputError: For a file that is missing or is not what its name says.
        ResourceError: For a clip that does not fit in memory.
    """
    try:
        kind = kind_of(name)
        if kind not in ("image", "video"):
            raise UsageError(
                f"signal must be an image or a video to be cut in tiles, {name} is not."
            )
    except ValueError as error:
        raise UsageError(str(error)) from None
    if kind == "video":
        cut = Cut(start, seconds, rate, size)
        return _moving(name, cut, (TILE_FRAMES if frames is None else frames, tile, tile))
    if name == PROCEDURAL:
        return _procedural(tile, size or PROCEDURAL_SIZE)
    if is_path(name):
        path = expanded(name)
        return _stored(path, path.name, f"file {path.name}", tile, size)
    path, attribution = image_file(name)
    return _stored(path, name, attribution, tile, size)


def _moving(name: str, cut: Cut, sides: tuple[int, ...]) -> Tiled:
    if is_path(name):
        clip = load_clip(name, cut)
    else:
        clip = (kenburns_clip if name == "kenburns" else registered_clip)(name, cut)
    frames = clip.frames

    def window(*box: int) -> Array:
        place = tuple(
            slice(first, first + length) for first, length in zip(box[:3], box[3:], strict=True)
        )
        part: Array = frames[place] / 255
        return part

    return Tiled(frames.shape, sides, window, clip.source, clip.rate)


def _stored(path: Path, name: str, attribution: str, tile: int, size: int | None) -> Tiled:
    data = read_bytes(path)
    pixels = decode(data, path)
    if pixels.dtype not in (bool, np.uint8, np.uint16):
        # Whether 32 bits hold 16 is seen in all of them, not in one tile.
        pixels = scaled(pixels, path)
    if np.issubdtype(pixels.dtype, np.floating) and not 0 <= pixels.min() <= pixels.max() <= 1:
        raise InputError(f"signal must have values in [0, 1] to be cut in tiles, {path} has not.")
    rows, columns = pixels.shape[:2]
    top = left = 0
    if size is not None:
        if not tile <= size <= min(rows, columns):
            raise UsageError(
                f"size must be at least the tile's {tile} and at most the image's "
                f"{min(rows, columns)} pixels, got {size}."
            )
        top, left = (rows - size) // 2, (columns - size) // 2
        rows = columns = size

    def window(row: int, column: int, height: int, width: int) -> Array:
        first, second = top + row, left + column
        part = pixels[first : first + height, second : second + width]
        return over_white(scaled(part, path))

    channels = window(0, 0, 1, 1).shape[2]
    source = Source(name, attribution, hashlib.sha256(data).hexdigest())
    return Tiled((rows, columns, channels), (tile, tile), window, source)


def _procedural(tile: int, size: int) -> Tiled:
    if size > MAX_SIDE:
        raise UsageError(f"size must be at most {MAX_SIDE}, got {size}.")

    def window(row: int, column: int, height: int, width: int) -> Array:
        y, x = (
            -1.25 + 2.5 * (np.arange(first, first + count) + 0.5) / size
            for first, count in ((row, height), (column, width))
        )
        return _mandelbrot((x - 0.7)[None, :] + 1j * y[:, None])

    attribution = f"Mandelbrot set, computed at {size}×{size}"
    digest = hashlib.sha256(f"{attribution}, {ITERATIONS} iterations".encode()).hexdigest()
    source = Source(PROCEDURAL, attribution, digest)
    return Tiled((size, size, 3), (tile, tile), window, source)


def load_mandelbrot(_name: str, size: int | None) -> Signal:
    """Return the Mandelbrot set as a signal of ``size`` pixels a side, 256 by default."""
    size = size or 256
    require_bytes(
        100 * size**2,
        f"An image of {size}×{size} pixels",
        device=torch.device("cpu"),
        cure="Take a smaller --size.",
    )
    image = _procedural(2, size)
    rows, columns, channels = size, size, image.shape[-1]
    pixels = image.window(0, 0, rows, columns)
    axis = torch.linspace(-1, 1, rows, dtype=torch.float64)
    values = torch.from_numpy(pixels.reshape(-1, channels))
    return Signal(
        torch.cartesian_prod(axis, axis), values, shape=(rows, columns), source=image.source
    )


def _mandelbrot(c: Array) -> Array:
    """Return colours [rows, columns, 3] by the smooth number of iterations of z² + c."""
    z, count = np.zeros_like(c), np.zeros(c.shape)
    alive = np.ones(c.shape, dtype=bool)
    for _ in range(ITERATIONS):
        z[alive] = z[alive] ** 2 + c[alive]
        alive &= np.abs(z) <= 16
        count += alive
    radius = np.maximum(np.abs(z), 16.0)
    smooth = np.where(alive, ITERATIONS, count + 1 - np.log2(np.log(radius) / np.log(16.0)))
    shades = np.stack([np.cos(0.35 * np.sqrt(smooth) * 3 + phase) for phase in (3.0, 2.2, 1.4)], -1)
    colours: Array = np.where(alive[..., None], 0.0, 0.5 + 0.5 * shades)
    return colours
