"""Frames of compressed videos, by PyAV."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessian_lab.errors import InputError
from hessian_lab.signals.video import MOST_PIXELS, Cut, check_rate, fitted_frame, told

if TYPE_CHECKING:
    import av

# Ending -> how the file is read. What a file itself claims to be does not matter: a playlist in
# disguise would name further files.
FORMATS = {
    ".mp4": "mov",
    ".m4v": "mov",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "matroska",
    ".avi": "avi",
}
# A frame that begins so many seconds after a time is shown at it: times are rounded in files.
ROUNDING = 1e-4

Array = np.ndarray[Any, np.dtype[Any]]


def read_film(path: Path, cut: Cut) -> tuple[Array, float]:
    """Return the frames [frames, rows, columns, 3] of a clip in 8 bits, and its rate.

    The file is decoded from the last key frame before the clip to its end, and no further.

    Raises:
        InputError: If PyAV is missing, or the file is no video, damaged or truncated.
        ResourceError: If the clip does not fit in memory.
    """
    try:
        import av
    except (ImportError, OSError):
        raise InputError(
            f"signal {path} needs PyAV to be read: pip install 'hessian-lab[video]'. "
            "GIF files and folders of frames need nothing."
        ) from None
    try:
        with av.open(
            str(path),
            format=FORMATS.get(path.suffix.lower(), "mov"),
            options={"protocol_whitelist": "file"},
        ) as container:
            return _clip(container, path, cut)
    except (av.FFmpegError, OverflowError) as error:
        raise InputError(
            f"signal must be a video, {path} cannot be read as one: {told(error)}."
        ) from error


def _clip(container: Any, path: Path, cut: Cut) -> tuple[Array, float]:
    # Of a codec that FFmpeg does not know there is no context, of a cut-off file no width.
    streams = [
        one for one in container.streams.video if one.codec_context and one.codec_context.width
    ]
    if not streams:
        raise InputError(f"signal must be a video, {path} has no video stream that can be read.")
    stream = streams[0]
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    check_rate(rate, path)
    times = cut.times(_length(container, stream, path), rate, path)
    context = stream.codec_context
    _require_upright(stream, path)
    found = cut.room(len(times), context.height, context.width, path)
    context.options = {"max_pixels": str(MOST_PIXELS)}
    shown = _shown(_decoded(container, stream, path, times[0]), times, path)
    former, kinds = None, 0
    for place, frame in enumerate(shown):
        kinds += frame is not former
        if frame is former:
            found[place] = found[place - 1]
        else:
            if getattr(frame, "rotation", 0):
                raise InputError(
                    f"signal must be an upright video, {path} is to be turned by "
                    f"{-frame.rotation:g} degrees. Turn it: ffmpeg -i {path.name} turned.mp4"
                )
            pixels = frame.to_ndarray(format="rgb24")
            found[place] = fitted_frame(pixels, *found.shape[1:3])
        former = frame
    if kinds < 2:
        raise InputError(f"signal must have at least 2 frames, the clip of {path} has {kinds}.")
    return found, cut.rate or rate


def _require_upright(stream: Any, path: Path) -> None:
    """Refuse pixels that are not square."""
    ratio = stream.sample_aspect_ratio
    if ratio and ratio != 1:
        raise InputError(
            f"signal must be a video of square pixels, {path} has some {ratio} as wide as high. "
            f"Convert it: ffmpeg -i {path.name} -vf scale=iw*sar:ih,setsar=1 square.mp4"
        )


def _length(container: Any, stream: Any, path: Path) -> float:
    """Return the seconds that a video is said to last."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return float(container.duration / 1e6)
    raise InputError(f"signal must be a video of known length, {path} does not tell its own.")


def _decoded(
    container: Any, stream: Any, path: Path, begin: float
) -> Iterator[tuple[float, "av.VideoFrame"]]:
    """Yield the second at which a frame begins, and the frame, from some way before ``begin``."""
    first = float((stream.start_time or 0) * stream.time_base)
    if begin > 0:
        container.seek(math.floor((begin + first) / stream.time_base), stream=stream)
    size = None
    for frame in container.decode(stream):
        size = size or (frame.width, frame.height)
        if (frame.width, frame.height) != size:
            raise InputError(
                f"signal must have frames of one size, {path} has {size[1]}×{size[0]} and "
                f"{frame.height}×{frame.width}."
            )
        if frame.is_corrupt or frame.time is None:
            raise InputError(f"signal must be a video, {path} has a damaged frame.")
        yield frame.time - first, frame


def _shown(
    frames: Iterator[tuple[float, "av.VideoFrame"]], times: Array, path: Path
) -> Iterator["av.VideoFrame"]:
    """Yield for every time the frame that is shown then."""
    waiting = list(times[::-1])
    former, begun, lasted = None, 0.0, 0.0
    for second, frame in frames:
        while waiting and former is not None and waiting[-1] < second - ROUNDING:
            waiting.pop()
            yield former
        if not waiting:
            return
        lasted = max(lasted, second - begun) if former is not None else 0.0
        former, begun = frame, second
    # The last frame is shown as long as it says, or as the longest before it, roughly.
    if former is not None and former.duration and former.time_base:
        lasted = max(lasted, float(former.duration * former.time_base) / 2)
    while waiting:
        if former is None or waiting[-1] > begun + 2 * lasted + ROUNDING:
            raise InputError(
                f"signal must be a whole video, {path} ends after {begun:.4g} s, the clip needs "
                f"{times[-1]:.4g} s."
            )
        waiting.pop()
        yield former
