"""Videos as signals: which frames of a clip are taken, and of what size."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hessian_lab.errors import InputError
from hessian_lab.probe.memory import require_bytes
from hessian_lab.signal import Signal, Source
from hessian_lab.signals.images import over_white
from hessian_lab.signals.kinds import RANGES, without_kind
from hessian_lab.signals.registry import located

CPU = torch.device("cpu")
CURE = "Take a shorter clip (--seconds), a lower --rate or a smaller --size."
# Of one frame, as it is stored.
MOST_PIXELS = 1 << 26
# What is read by Pillow; other files are read by PyAV.
PILLOW = (".gif", ".apng")

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video at a steady rate.

    Attributes:
        frames: [frames, rows, columns, 3], 8 bits.
        rate: Frames per second.
        source: What a record says of the data.
    """

    frames: Array
    rate: float
    source: Source


@dataclass(frozen=True)
class Cut:
    """Which part of a video is wanted, at which rate and size; None is all of it, as it is.

    Attributes:
        start: Second at which the clip begins.
        seconds: Its length at most.
        rate: Frames per second.
        size: Rows.
    """

    start: float | None = None
    seconds: float | None = None
    rate: float | None = None
    size: int | None = None

    @property
    def begin(self) -> float:
        """The second at which the clip begins."""
        return self.start or 0.0

    def times(self, length: float, own: float, what: object) -> Array:
        """Return the seconds at which frames are taken of a video of a length in seconds.

        Raises:
            InputError: If the video ends before the clip begins, or the clip has a single frame.
            ResourceError: If so many frames do not fit in memory, however small.
        """
        if not length > 0:
            raise InputError(f"signal must be a video of some length, {what} has {length:g} s.")
        if self.begin >= length:
            raise InputError(
                f"signal must be a video that is longer than its start, {what} has {length:.4g} s, "
                f"start is {self.begin:g} s."
            )
        rate = self.rate or own
        end = length if self.seconds is None else min(length, self.begin + self.seconds)
        count = round((end - self.begin) * rate)
        if count < 2:
            raise InputError(
                f"signal must have at least 2 frames, the clip of {what} has {max(1, count)}."
            )
        require_bytes(16 * count, f"The clip of {what}", device=CPU, cure=CURE)
        found: Array = self.begin + np.arange(count) / rate
        return found

    def shape(self, rows: int, columns: int, what: object) -> tuple[int, int]:
        """Return rows and columns of the clip of a video that has so many.

        Raises:
            InputError: If a frame has too few or too many pixels.
        """
        if rows * columns > MOST_PIXELS:
            raise InputError(
                f"signal must have at most {MOST_PIXELS} pixels per frame, {what} has "
                f"{rows}×{columns}."
            )
        size = self.size or rows
        found = size, round(size * columns / rows) if rows else 0
        if min(rows, *found) < 2:
            raise InputError(
                f"signal must have at least 2 pixels a side, the clip of {what} has "
                f"{found[0]}×{found[1]}."
            )
        return found

    def room(self, count: int, rows: int, columns: int, what: object) -> Array:
        """Return where the frames go [count, rows, columns, 3].

        Raises:
            ResourceError: If they do not fit in memory.
        """
        # A frame is held as it is stored, as real numbers and in its new size.
        one = 100 * rows * columns
        shape = (count, *self.shape(rows, columns, what), 3)
        require_bytes(
            int(np.prod(shape, dtype=object)) + one,
            f"The clip of {what}, {count} frames of {shape[1]}×{shape[2]},",
            device=CPU,
            cure=CURE,
        )
        return np.empty(shape, dtype=np.uint8)


def load_file(
    path: str | Path,
    start: float | None = None,
    seconds: float | None = None,
    rate: float | None = None,
    size: int | None = None,
) -> Signal:
    """Return a video file, or a folder of frames, as a signal: (t, y, x) in [-1, 1], RGB in [0, 1].

    Frames are not interpolated: at every time that of the video is taken which is shown then. Grey
    ones become RGB, transparent ones lie over white. Pillow reads GIF and animated PNG, and the PNG
    and JPEG files of a folder, in the order of the numbers in their names; other videos need PyAV,
    the extra ``video``.

    Args:
        path: The file or folder.
        start: Second at which the clip begins; by default 0.
        seconds: Length of the clip, which ends where the video does; by default all that follows.
        rate: Frames per second; by default the video's own. Of a folder every frame is taken, and
            this says what a second is.
        size: Rows of the clip, whose columns keep the aspect ratio; by default the video's own.

    Raises:
        InputError: If the file is missing, empty, truncated or no video, a frame is missing or of
            another size, or the video ends before the clip begins.
        ResourceError: If the clip does not fit in memory.
    """
    return signal_of(load_clip(str(path), Cut(start, seconds, rate, size)))


def load_registered(
    name: str,
    start: float | None = None,
    seconds: float | None = None,
    rate: float | None = None,
    size: int | None = None,
) -> Signal:
    """Return a video of the data registry, which must have been downloaded."""
    return signal_of(registered_clip(name, Cut(start, seconds, rate, size)))


def registered_clip(name: str, cut: Cut) -> Clip:
    """Return a clip of a video of the data registry."""
    entry, path = located(name)
    return load_clip(str(path), cut, name=name, attribution=entry.credit)


def load_clip(path: str, cut: Cut, *, name: str | None = None, attribution: str = "") -> Clip:
    """Return a clip of a video file or of a folder of frames."""
    from hessian_lab.signals.film import read_film
    from hessian_lab.signals.frames import read_animation, read_folder

    found = _expanded(without_kind(path))
    if found.is_dir():
        frames, rate, digest = read_folder(found, cut)
    else:
        read = read_animation if found.suffix.lower() in PILLOW else read_film
        frames, rate = read(found, cut)
        with found.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    label = name or found.name or str(found)
    what = "frames in" if found.is_dir() else "file"
    return Clip(frames, rate, Source(label, attribution or f"{what} {label}", digest))


def signal_of(clip: Clip) -> Signal:
    """Return a clip as a signal.

    Raises:
        ResourceError: If it does not fit in memory as real numbers.
    """
    shape = clip.frames.shape[:3]
    count = int(np.prod(shape))
    require_bytes(
        8 * count * 12, f"The clip of {clip.source.name} of {count} pixels", device=CPU, cure=CURE
    )
    axes = [torch.linspace(-1, 1, length, dtype=torch.float64) for length in shape]
    values = torch.from_numpy(clip.frames.reshape(-1, 3)).double().div_(255)
    return Signal(torch.cartesian_prod(*axes), values, shape=shape, source=clip.source)


def fitted_frame(pixels: Array, rows: int, columns: int) -> Array:
    """Return a frame [·, ·, channels] of real numbers or 8 bits in 8 bits [rows, columns, 3].

    Resized with anti-aliasing where it has another size.
    """
    from PIL import Image

    if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
        real = pixels / 255 if pixels.dtype == np.uint8 else pixels
        colour = np.clip(over_white(real), 0, 1)
        pixels = np.rint(255 * np.broadcast_to(colour, (*pixels.shape[:2], 3))).astype(np.uint8)
    if pixels.shape[:2] == (rows, columns):
        return pixels
    small = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BICUBIC)
    return np.asarray(small)


def check_rate(rate: float, what: object) -> None:
    """Check that a video's own rate makes sense.

    Raises:
        InputError: If not.
    """
    least, most = RANGES["rate"]
    if not least / 1000 <= rate <= most:
        raise InputError(f"signal must have up to {most:g} frames per second, {what} has {rate:g}.")


def natural_order(names: Iterable[str]) -> list[str]:
    """Return names in the order of the numbers in them: frame2 before frame10."""

    def key(name: str) -> tuple[list[Any], str]:
        parts = re.split(r"([0-9]+)", name.lower())
        return [int(part) if place % 2 else part for place, part in enumerate(parts)], name

    return sorted(names, key=key)


def told(error: Exception) -> str:
    """Return what a library says of a file, in a line."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _expanded(path: str) -> Path:
    """Return a path to a folder, or to a file that is there and not empty."""
    try:
        found = Path(path).expanduser()
        if found.is_dir():
            return found
        size = found.stat().st_size
        found.open("rb").close()
    except FileNotFoundError:
        raise InputError(f"signal must be a video, {path} does not exist.") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"signal must be a readable video, {path}: {reason}.") from None
    if not size:
        raise InputError(f"signal must be a video, {path} is empty.")
    return found
