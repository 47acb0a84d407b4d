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
        marks: Files of which one is in a folder that is such a signal.
        folders: Whether any other folder is one.
        of_field: Options that the field is told, and no loader.
    """

    options: Mapping[str, float | int | None] = field(default_factory=dict)
    loader: str | None = None
    endings: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    folders: bool = False
    of_field: tuple[str, ...] = ()

    @property
    def of_signal(self) -> tuple[str, ...]:
        """The options that a loader is told."""
        return tuple(name for name in self.options if name not in self.of_field)


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
        (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".apng"),
        folders=True,
    ),
    "radiance": Kind(
        {"size": 100, "points": 2048, "views": None, "samples": 32, "directions": 0},
        "hessian_lab.signals.radiance:load_radiance",
        marks=("transforms_train.json", "transforms.json", "poses_bounds.npy"),
        of_field=("samples", "directions"),
    ),
}
# Kinds of signals that may be folders.
FOLDERS = tuple(name for name, kind in KINDS.items() if kind.marks or kind.folders)
# Whatever a signal may be asked for: fields of ``Setup``, of which a kind has some.
OPTIONS = tuple(dict.fromkeys(name for kind in KINDS.values() for name in kind.options))

# The least and the most that an option may be.
RANGES: dict[str, tuple[float, float]] = {
    "size": (2, math.inf),
    "start": (0, math.inf),
    "points": (3, 1 << 31),
    "views": (1, math.inf),
    "samples": (1, 4096),
    "directions": (0, 1),
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
    """Tell whether ``--signal NAME`` is a file or folder: it has a '/', '.', '~' or ':' in it."""
    return any(mark in name for mark in "/.~:")


def kind_of_path(path: str) -> str:
    """Return the kind of a file by the ending of its name, of a folder by what is in it.

    ``radiance:PATH`` is of that kind wherever the folder may be now.
    """
    prefix = path.partition(":")[0]
    if prefix in FOLDERS:
        return prefix
    ending = PurePath(path).suffix.lower()
    found = (name for name, kind in KINDS.items() if ending in kind.endings)
    return next(found, None) or _kind_of_folder(path) or "image"


def with_kind(name: str) -> str:
    """Return a signal's name or path; that of a folder with its kind, ``radiance:PATH``."""
    if not is_path(name) or name.partition(":")[0] in FOLDERS:
        return name
    kind = _kind_of_folder(name)
    return f"{kind}:{name}" if kind else name


def without_kind(name: str) -> str:
    """Return the path of ``radiance:PATH``; any other name as it is."""
    prefix, _, path = name.partition(":")
    return path if prefix in FOLDERS else name


def _kind_of_folder(path: str) -> str | None:
    """Return the kind of a folder, or None where there is none."""
    try:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            return None
        marked = (
            name for name in FOLDERS if any((folder / mark).is_file() for mark in KINDS[name].marks)
        )
        return next(marked, None) or next(name for name in FOLDERS if KINDS[name].folders)
    except (OSError, RuntimeError, ValueError):
        return None
