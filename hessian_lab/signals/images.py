"""Images as signals: reading, cropping, resizing."""

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hessian_lab.errors import InputError
from hessian_lab.probe.memory import require_bytes
from hessian_lab.signal import Signal, Source
from hessian_lab.signals.png16 import is_deep_colour, read_deep_colour

TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

Array = np.ndarray[Any, np.dtype[Any]]


def load_file(
    path: str | Path, size: int | None, *, name: str | None = None, attribution: str = ""
) -> Signal:
    """Return an image file as a signal.

    Grey or RGB, 8 or 16 bits, as values in [0, 1], or floating point, as it is; alpha is
    composited over white; the first frame where there are several.

    Raises:
        InputError: If the file is missing, empty, truncated, no image, or has NaN or Inf in it.
    """
    path = expanded(path)
    data = read_bytes(path)
    pixels = over_white(scaled(decode(data, path), path))
    pixels = _resize(_crop(pixels, path), size)
    rows, columns, channels = pixels.shape
    axes = [torch.linspace(-1, 1, count, dtype=torch.float64) for count in (rows, columns)]
    coords = torch.cartesian_prod(*axes)
    values = torch.from_numpy(np.ascontiguousarray(pixels.reshape(-1, channels)))
    source = Source(
        name or path.name, attribution or f"file {path.name}", hashlib.sha256(data).hexdigest()
    )
    return Signal(coords, values, shape=(rows, columns), source=source)


def read_bytes(path: Path) -> bytes:
    """Return the bytes of an image file, or say in a sentence why there are none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"signal must be an image file, {path} does not exist.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"signal must be a readable image file, {path}: {reason}.") from error
    if not data:
        raise InputError(f"signal must be an image file, {path} is empty.")
    return data


def expanded(path: str | Path) -> Path:
    """Return a path with the home directory for a leading ``~``."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"signal must be an image file, {path}: {error}") from None


def decode(data: bytes, path: Path) -> Array:
    """Return the pixels [rows, columns, channels] as stored, colours as RGB."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if data[:4] in TIFF_MARKS:
                pixels = _tiff(data)
            elif is_deep_colour(data):
                pixels = read_deep_colour(data)
            else:
                pixels = _pillow(data)
    except Exception as error:
        raise InputError(
            f"signal must be an image file, {path} cannot be read as one: {_reason(error)}."
        ) from error
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or pixels.shape[2:] > (4,):
        raise InputError(
            f"signal must be a grey or RGB image, {path} has shape {list(pixels.shape)}."
        )
    return pixels.reshape(*pixels.shape[:2], -1)


def _pillow(data: bytes) -> Array:
    """Return what Pillow reads, upright, with any transparency as a last channel."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode == "PA" or "transparency" in upright.info:
        upright = upright.convert("LA" if upright.mode in ("1", "L") else "RGBA")
    elif upright.mode in ("P", "CMYK", "YCbCr", "HSV", "LAB"):
        upright = upright.convert("RGB")
    return np.asarray(upright)


def _tiff(data: bytes) -> Array:
    """Return the first page of a TIFF file."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        pixels: Array = page.asarray()
        photometric = tifffile.PHOTOMETRIC(page.photometric)  # type: ignore[union-attr]
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        if photometric == tifffile.PHOTOMETRIC.PALETTE:
            return np.moveaxis(_colours(page.colormap)[:, pixels], 0, -1)  # type: ignore[union-attr, arg-type]
        if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            return ~pixels if pixels.dtype == bool else np.iinfo(pixels.dtype).max - pixels
    if photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
        raise ValueError(f"its colours are {photometric.name}, not grey or RGB")
    return pixels


def _colours(table: Array) -> Array:
    """Return a palette in the depth it was made in: 8 bits are often stored as their upper half."""
    return table if (table % 256).any() else (table >> 8).astype(np.uint8)


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return "its format is unknown"
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def scaled(pixels: Array, path: Path) -> Array:
    """Return the pixels in float64; integers as a share of the largest that their bits hold."""
    if pixels.dtype == bool:
        return pixels.astype(np.float64)
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels.astype(np.float64) / np.iinfo(pixels.dtype).max
    if pixels.dtype == np.int32 and pixels.min() >= 0 and pixels.max() <= 65535:
        # Some versions of Pillow hold 16-bit grey in 32-bit integers.
        return pixels.astype(np.float64) / 65535
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(
            f"signal must have 8-bit, 16-bit or real pixels, {path} has {pixels.dtype}."
        )
    if not np.isfinite(pixels).all():
        raise InputError(f"signal must have finite pixels, {path} has NaN or Inf.")
    return pixels.astype(np.float64)


def over_white(pixels: Array) -> Array:
    """Return pixels composited over white where there is transparency."""
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
    require_bytes(
        4 * 8 * size**2 * pixels.shape[2],
        f"An image of {size}×{size} pixels",
        device=torch.device("cpu"),
        cure="Take a smaller --size.",
    )
    return resized(pixels, (size, size))


def resized(pixels: Array, shape: tuple[int, int]) -> Array:
    """Return pixels [rows, columns, channels] at another size, with anti-aliasing."""
    from skimage.transform import resize

    found: Array = resize(  # type: ignore[no-untyped-call]
        pixels, shape, anti_aliasing=True, preserve_range=True
    )
    return found
