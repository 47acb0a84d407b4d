"""Kinds of signals: what each may be asked for, and which file is of which kind."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath


@dataclass(frozen=True)
class Kind:
    """What signals of one kind have in common.

    Attributes:
        options: What a loader is told, each with what a run takes where it is not given. A loader
            is called with a name or path and all of them by keyword, None for "as it is".
        loader: Of a file by its path; none where there are no files of this kind.
        endings: Of the names of such files, in lower case.
    """

    options: Mapping[str, float | int | None] = field(default_factory=dict)
    loader: str | None = None
    endings: tuple[str, ...] = ()


KINDS = {
    # What has no ending of another kind is read as an image.
    "image": Kind({"size": 50}, "hessian_lab.signals.images:load_file"),
    "line": Kind({"size": 256}),
    "audio": Kind(
        {"start": 0.0, "seconds": 1.0, "rate": 8000},
        "hessian_lab.signals.audio:load_file",
        (".wav", ".flac", ".ogg", ".mp3"),
    ),
    "shape": Kind(
        {"points": 30_000},
        "hessian_lab.signals.shapes:load_shape",
        (".obj", ".ply", ".stl", ".off"),
    ),
    "video": Kind(
        {"start": 0.0, "seconds": 1.0, "rate": 16, "size": 90},
        "hessian_lab.signals.video:load_file",
        (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".apng"),
    ),
}
# Whatever a signal may be asked for: fields of ``Setup``, of which a kind has some.
OPTIONS = tuple(dict.fromkeys(name for kind in KINDS.values() for name in kind.options))

# The least and the most that an option may be.
RANGES: dict[str, tuple[float, float]] = {
    "size": (2, math.inf),
    "start": (0, math.inf),
    "points": (3, 1 << 31),
    "rate": (1, 1_000_000),
}


def check_options(given: Mapping[str, float | int | None]) -> None:
    """Check that the options of a signal make sense; None is not given.

    Raises:
        ValueError: For one out of range.
    """
    for name, value in given.items():
        least, most = RANGES.get(name, (-math.inf, math.inf))
        if value is None:
            continue
        if value < least:
            raise ValueError(f"{name} must be at least {least:g}, got {value:g}.")
        if value > most:
            raise ValueError(f"{name} must be at most {most:g}, got {value:g}.")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value:g}.")
        if name == "seconds" and value <= 0:
            raise ValueError(f"{name} must be positive, got {value:g}.")


def is_path(name: str) -> bool:
    """Tell whether ``--signal NAME`` names a file or folder: it has a '/', a '.' or a '~' in it."""
    return any(mark in name for mark in "/.~")


def kind_of_path(path: str) -> str:
    """Return the kind of a file by the ending of its name, or of a directory by what it holds."""
    ending = PurePath(path).suffix.lower()
    found = next((name for name, kind in KINDS.items() if ending in kind.endings), None)
    return found or _kind_of_directory(path) or "image"


def _kind_of_directory(path: str) -> str | None:
    """Return the kind of a directory that is there; None where there is none."""
    try:
        there = Path(path).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):
        return None
    return "video" if there else None
