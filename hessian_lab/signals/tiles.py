"""Large images in tiles, read one by one."""

import hashlib
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

Array = np.ndarray[Any, np.dtype[Any]]
# An image that is computed, of any size; this many pixels a side by default.
PROCEDURAL, PROCEDURAL_SIZE = "mandelbrot", 2048
MAX_SIDE = 1 << 20
ITERATIONS = 120


@dataclass(frozen=True, eq=False)
class TiledImage:
    """An image in square tiles, of which the last in a row and column may overlap others.

    Attributes:
        shape: Rows, columns and channels of the image.
        tile: Pixels per side of a tile.
        window: Returns the pixels [rows, columns, channels] of a rectangle in [0, 1], by its first
            row, first column, rows and columns.
        source: What a record says of the data.
    """

    shape: tuple[int, int, int]
    tile: int
    window: Callable[[int, int, int, int], Array]
    source: Source

    def __post_init__(self) -> None:
        if not 2 <= self.tile <= min(self.shape[:2]):
            raise UsageError(
                f"tile must be at least 2 and at most the image's {min(self.shape[:2])} pixels, "
                f"got {self.tile}."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.shape[0] // self.tile), -(-self.shape[1] // self.tile)

    @property
    def num_tiles(self) -> int:
        """How many tiles cover the image."""
        return self.grid[0] * self.grid[1]

    def corner(self, index: int) -> tuple[int, int]:
        """Return the first row and column of a tile; tiles are numbered row by row."""
        place = divmod(index, self.grid[1])
        row, column = (
            min(number * self.tile, length - self.tile)
            for number, length in zip(place, self.shape, strict=False)
        )
        return row, column

    def values(self, start: int, stop: int) -> Tensor:
        """Return the pixels of some tiles [k, tile², channels], in [0, 1]."""
        found = [
            self.window(*self.corner(index), self.tile, self.tile) for index in range(start, stop)
        ]
        return torch.from_numpy(np.stack(found).reshape(stop - start, -1, self.shape[2]))

    def coords(self) -> Tensor:
        """Return (row, column) of the pixels of a tile [tile², 2] in [-1, 1], ends included."""
        axis = torch.linspace(-1, 1, self.tile, dtype=torch.float64)
        return torch.cartesian_prod(axis, axis)


def load_tiles(name: str, tile: int, size: int | None = None) -> TiledImage:
    """Return an image in tiles: a bundled one, a file by its path, or ``mandelbrot``.

    A file is held as it is stored, and made into numbers in [0, 1] tile by tile; ``mandelbrot`` is
    computed tile by tile, at any size.

    Args:
        name: Of the image.
        tile: Pixels per side of a tile.
        size: Pixels per side of a centred square of the image; by default all of it.

    Raises:
        UsageError: For sizes that do not fit, or a name that is no image.
        InputError: For a file that is missing or no image.
    """
    if name == PROCEDURAL:
        return _procedural(tile, size or PROCEDURAL_SIZE)
    if is_path(name):
        path = expanded(name)
        return _stored(path, path.name, f"file {path.name}", tile, size)
    try:
        if kind_of(name) != "image":
            raise UsageError(f"signal must be an image to be cut in tiles, {name} is not.")
    except ValueError as error:
        raise UsageError(str(error)) from None
    path, attribution = image_file(name)
    return _stored(path, name, attribution, tile, size)


def _stored(path: Path, name: str, attribution: str, tile: int, size: int | None) -> TiledImage:
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
    return TiledImage((rows, columns, channels), tile, window, source)


def _procedural(tile: int, size: int) -> TiledImage:
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
    return TiledImage((size, size, 3), tile, window, source)


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
    rows, columns, channels = image.shape
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
