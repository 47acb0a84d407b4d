"""Animated GIF files: clips that every browser plays."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# GIF counts hundredths of a second; browsers slow down what is shown for less than two.
TICKS, LEAST = 100, 2

Array = np.ndarray[Any, np.dtype[Any]]


def gif_bytes(frames: Array, rate: float) -> bytes:
    """Return a clip as a GIF that plays again and again, each frame in 256 colours of its own.

    Times are rounded to hundredths of a second, whose error does not add up; frames that would be
    shown for less than two of them are left out.

    Args:
        frames: [frames, rows, columns, 3] in 8 bits.
        rate: Frames per second.
    """
    kept, durations = timing(len(frames), rate)
    pictures = [
        Image.fromarray(np.ascontiguousarray(frames[place])).quantize(256) for place in kept
    ]
    stream = io.BytesIO()
    pictures[0].save(
        stream,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=[1000 * ticks // TICKS for ticks in durations],
        loop=0,
        optimize=False,
    )
    return stream.getvalue()


def read_gif(path: Path, count: int, rate: float) -> Array:
    """Return what a GIF of ours shows in the middle of each of its clip's frames, 8 bits."""
    found = []
    with Image.open(path) as image:
        place, end = 0, image.info.get("duration", 0)
        last = getattr(image, "n_frames", 1)
        for frame in range(count):
            while end <= 1000 * (frame + 0.5) / rate and place + 1 < last:
                place += 1
                image.seek(place)
                end += image.info.get("duration", 0)
            found.append(np.asarray(image.convert("RGB")))
    return np.stack(found)


def timing(count: int, rate: float) -> tuple[list[int], list[int]]:
    """Return which of some frames a GIF shows, and for how many hundredths of a second."""
    ticks = [round(TICKS * place / rate) for place in range(count + 1)]
    kept = [0]
    for place in range(1, count):
        if ticks[place] - ticks[kept[-1]] >= LEAST:
            kept.append(place)
    ends = [*(ticks[place] for place in kept[1:]), ticks[-1]]
    begins = (ticks[place] for place in kept)
    durations = [max(1, end - begin) for begin, end in zip(begins, ends, strict=True)]
    return kept, durations
