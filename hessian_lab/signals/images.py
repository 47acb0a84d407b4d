"""Images as signals: reading, cropping, resizing."""

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hessian_lab.errors import InputError
from hessian_lab.signal import Signal, Source

Array = np.ndarray[Any, np.dtype[Any]]


def load_file(
    path: str | Path, size: int | None, *, name: str | None = None, attribution: str = ""
) -> Signal:
    """Return an image file as a signal with values in [0, 1].

    Grey or RGB, 8 or 16 bits or floating point; alpha is composited over white; the first frame
    where there are several.

    Raises:
        InputError: If the file is missing, empty, truncated, no image, or has NaN or Inf in it.
    """
    path = Path(path).expanduser()
    data = _bytes(path)
    pixels = _over_white(_scaled(_decode(data, path), path))
    pixels = _resize(_crop(pixels, path), size)
    rows, columns, channels = pixels.shape
    axes = [torch.linspace(-1, 1, count, dtype=torch.float64) for count in (rows, columns)]
    coords = torch.cartesian_prod(*axes)
    values = torch.from_numpy(np.ascontiguousarray(pixels.reshape(-1, channels)))
    source = Source(
        name or path.name, attribution or f"file {path.name}", hashlib.sha256(data).hexdigest()
    )
    return Signal(coords, values, shape=(rows, columns), source=source)


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"signal must be an image file, {path} does not exist.") from None
    except OSError as error:
        raise InputError(
            f"signal must be a readable image file, {path}: {error.strerror}."
        ) from error
    if not data:
        raise InputError(f"signal must be an image file, {path} is empty.")
    return data


def _decode(data: bytes, path: Path) -> Array:
    """Return the pixels [rows, columns] or [rows, columns, channels] as stored."""
    import imageio.v3 as imageio
    import tifffile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                pixels = tifffile.imread(io.BytesIO(data))
            else:
                pixels = imageio.imread(io.BytesIO(data), index=0)
    except Exception as error:
        raise InputError(
            f"signal must be an image file, {path} cannot be read as one: {_first_line(error)}"
        ) from error
    if pixels.ndim == 4:
        pixels = pixels[0]
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or pixels.shape[2:] > (4,):
        raise InputError(
            f"signal must be a grey or RGB image, {path} has shape {list(pixels.shape)}."
        )
    return pixels.reshape(*pixels.shape[:2], -1)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _scaled(pixels: Array, path: Path) -> Array:
    """Return the pixels in float64; integers as a share of the largest their type holds."""
    if pixels.dtype == bool:
        return pixels.astype(np.float64)
    if np.issubdtype(pixels.dtype, np.unsignedinteger):
        return pixels.astype(np.float64) / np.iinfo(pixels.dtype).max
    if np.issubdtype(pixels.dtype, np.signedinteger):
        # Pillow holds 16-bit grey PNGs in 32-bit signed integers.
        if pixels.min() < 0 or pixels.max() > 65535:
            raise InputError(f"signal must hold 8- or 16-bit pixels, {path} has {pixels.dtype}.")
        return pixels.astype(np.float64) / 65535
    if not np.isfinite(pixels).all():
        raise InputError(f"signal must have finite pixels, {path} has NaN or Inf.")
    return pixels.astype(np.float64)


def _over_white(pixels: Array) -> Array:
    channels = pixels.shape[2]
    if channels in (1, 3):
        return pixels
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    composited: Array = colour * alpha + (1 - alpha)
    return composited


def _crop(pixels: Array, path: Path) -> Array:
    side = min(pixels.shape[:2])
    if side < 2:
        raise InputError(
            f"signal must have at least 2 pixels a side, {path} has {list(pixels.shape[:2])}."
        )
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _resize(pixels: Array, size: int | None) -> Array:
    if size is None or size == len(pixels):
        return pixels
    from skimage.transform import resize

    resized: Array = resize(  # type: ignore[no-untyped-call]
        pixels, (size, size), anti_aliasing=True, preserve_range=True
    )
    return resized
