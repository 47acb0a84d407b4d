"""Frames of animated pictures, and of folders of pictures, by Pillow."""

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hessian_lab.errors import InputError
from hessian_lab.probe.memory import require_bytes
from hessian_lab.signals.images import decode, read_bytes, scaled
from hessian_lab.signals.video import CPU, CURE, MOST_PIXELS, Cut, fitted_frame, natural_order, told

# Those of an animation must be decoded one after the other, up to the end of the clip: so many
# frames at most, and so many pixels in all.
MOST_FRAMES, MOST_DECODED = 100_000, 1 << 33
# Of files in a folder.
ENDINGS = (".png", ".jpg", ".jpeg")
# No other format is tried, whatever a file claims to be: some are programs.
ANIMATED, STILL = ("GIF", "PNG"), ("PNG", "JPEG")
# Frames of a folder per second where nothing says how many.
FOLDER_RATE = 25.0
# What lasts no time is shown for a tenth of a second, as browsers do it.
NO_TIME = 0.1
# What ends a GIF file, with the padding that some programs add.
GIF_END, PADDING = b";", b"\0\r\n "

Array = np.ndarray[Any, np.dtype[Any]]


def read_animation(path: Path, cut: Cut) -> tuple[Array, float]:
    """Return the frames [frames, rows, columns, 3] of a GIF or PNG in 8 bits, and their rate.

    It is decoded from the beginning to the end of the clip, twice: its frames build on each other,
    and their times must be known before there is room for them.

    Raises:
        InputError: If the file is no picture with several frames, damaged or truncated.
        ResourceError: If the clip does not fit in memory.
    """
    with _opened(path) as image:
        columns, rows = image.size
        cut.shape(rows, columns, path)
        require_bytes(32 * rows * columns, f"A frame of {path}", device=CPU, cure="Shrink it.")
        end = np.inf if cut.seconds is None else cut.begin + cut.seconds
        begun, length = _begins(image, path, end)
    own = len(begun) / length
    times = cut.times(length, own, path)
    # Half a thousandth: times of frames are whole ones.
    places = np.searchsorted(begun, times + 5e-4, side="right") - 1
    found = cut.room(len(times), rows, columns, path)
    with _opened(path) as image:
        for place in range(places[-1] + 1):
            image.seek(place)
            image.load()
            if place in places:
                pixels = np.asarray(image.convert("RGBA"))
                found[places == place] = fitted_frame(pixels, found.shape[1], found.shape[2])
    return found, cut.rate or own


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; what Pillow says of a damaged one becomes a sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=ANIMATED) as image:
                yield image
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(
            f"signal must have at most {MOST_PIXELS} pixels per frame, {path} has more."
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
        reason = "its format is unknown" if "identify" in str(error) else told(error)
        raise InputError(
            f"signal must be a video, {path} cannot be read as one: {reason}."
        ) from error


def _begins(image: Image.Image, path: Path, end: float) -> tuple[Array, float]:
    """Return the seconds at which frames begin, up to ``end``, and when the last of them ends."""
    begun: list[float] = []
    second = 0.0
    most = min(MOST_FRAMES, max(2, MOST_DECODED // (image.width * image.height)))
    while second < end:
        if len(begun) == most:
            raise InputError(
                f"signal must have at most {most} frames before the end of the clip, {path} has "
                "more. Take an earlier and shorter clip (--start, --seconds)."
            )
        try:
            image.seek(len(begun))
        except EOFError:
            _require_end(image, path, len(begun))
            break
        image.load()
        begun.append(second)
        second += (image.info.get("duration") or 1000 * NO_TIME) / 1000
    return np.array(begun), second


def _require_end(image: Image.Image, path: Path, count: int) -> None:
    """Check that the file goes on to its end, and that it is a video at all."""
    whole = True
    if image.format == "GIF":
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 64))
            whole = stream.read().rstrip(PADDING).endswith(GIF_END)
    promised = getattr(image, "n_frames", count)
    if not whole or promised > count:
        raise InputError(f"signal must be a whole video, {path} ends after {count} frames.")
    if count < 2:
        raise InputError(
            f"signal must have at least 2 frames, {path} has {count}. Save it as PNG to fit a "
            "picture."
        )


def read_folder(folder: Path, cut: Cut) -> tuple[Array, float, str]:
    """Return the frames of a folder in 8 bits, their rate, and the SHA-256 of their files.

    Raises:
        InputError: If there is none, one is missing, unreadable, of another size, or elsewhere.
        ResourceError: If the clip does not fit in memory.
    """
    paths = _paths(folder)
    rate = cut.rate or FOLDER_RATE
    times = cut.times(len(paths) / rate, rate, folder)
    first = round(cut.begin * rate)
    # Half a frame of the clip may be cut off at the end.
    chosen = paths[first : first + len(times)]
    if len(chosen) < 2:
        raise InputError(
            f"signal must have at least 2 frames, the clip of {folder} has {len(chosen)}."
        )
    digest = hashlib.sha256()
    found: Array | None = None
    size: tuple[int, ...] = ()
    for place, path in enumerate(chosen):
        data = _checked(path)
        digest.update(data)
        pixels = scaled(decode(data, path), path)
        there = pixels.shape[:2]
        if found is None:
            size = there
            found = cut.room(len(chosen), there[0], there[1], folder)
        if there != size:
            raise InputError(
                f"signal must have frames of one size, {chosen[0]} has {size[0]}×{size[1]}, "
                f"{path} has {there[0]}×{there[1]}."
            )
        found[place] = fitted_frame(pixels, found.shape[1], found.shape[2])
    assert found is not None
    return found, rate, digest.hexdigest()


def _checked(path: Path) -> bytes:
    """Return the bytes of a picture that is small enough to be decoded."""
    try:
        stored = path.stat().st_size
    except OSError as error:
        raise InputError(f"signal must have readable frames, {path}: {error.strerror}.") from None
    require_bytes(2 * stored, f"The frame {path}", device=CPU, cure=CURE)
    data = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=STILL) as image:
                columns, rows = image.size
    except Image.DecompressionBombError:
        columns = rows = MOST_PIXELS
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"signal must have readable frames, {path} is no picture.") from error
    if rows * columns > MOST_PIXELS:
        raise InputError(
            f"signal must have at most {MOST_PIXELS} pixels per frame, {path} has more."
        )
    require_bytes(100 * rows * columns, f"The frame {path}", device=CPU, cure="Shrink the frames.")
    return data


def _paths(folder: Path) -> list[Path]:
    """Return the frames of a folder in their order, all of which lie in it."""
    try:
        names = [one.name for one in folder.iterdir() if one.suffix.lower() in ENDINGS]
    except OSError as error:
        raise InputError(f"signal must be a readable folder, {folder}: {error.strerror}.") from None
    names = natural_order(name for name in names if not name.startswith("."))
    if not names:
        raise InputError(f"signal must be a folder of PNG or JPEG frames, {folder} has none.")
    root = folder.resolve()
    for name in names:
        try:
            inside = (folder / name).resolve().is_relative_to(root)
        except (OSError, RuntimeError):
            inside = False
        if not inside:
            raise InputError(
                f"signal must have its frames in its folder, {folder / name} leads out of it."
            )
    _require_steady(folder, names)
    return [folder / name for name in names]


def _require_steady(folder: Path, names: list[str]) -> None:
    """Check that frames that are numbered are numbered in even steps.

    Raises:
        InputError: If one is missing, or there twice.
    """
    matches = [re.fullmatch(r"(.*?)([0-9]+)\.\w+", name) for name in names]
    if len(names) < 3 or len({match and match[1] for match in matches}) > 1 or not matches[0]:
        return
    numbers = [int(match[2]) for match in matches if match]
    steps = np.diff(np.array(numbers, dtype=object))
    step = min(steps)
    if step == max(steps):
        return
    if step == 0:
        double = numbers[int(np.argmin(steps))]
        raise InputError(f"signal must have every frame once, {folder} has {double} twice.")
    gap = next(place for place, each in enumerate(steps) if each > step)
    raise InputError(
        f"signal must have all of its frames, {folder} lacks number {numbers[gap] + step}, after "
        f"{names[gap]}."
    )
