"""Signals that are files of others: what they are, where they come from, where they lie here.

``data/registry.toml`` lists them; the wheel holds it beside this module. Nothing is downloaded
unless ``hessian-lab data get`` asks for it, and nothing is used whose checksum is another.
"""

import hashlib
import os
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from hessian_lab.errors import InputError
from hessian_lab.names import known

VARIABLE = "HESSIAN_LAB_DATA"
INSTALLED = Path(__file__).with_name("registry.toml")
CHECKOUT = Path(__file__).parents[2] / "data" / "registry.toml"


@dataclass(frozen=True)
class Entry:
    """A file that can be downloaded.

    Attributes:
        name: What commands call it.
        kind: image, audio, video or shape.
        file: Its name in the data directory.
        url: Where it is public.
        bytes: Its size.
        sha256: The SHA-256 of its bytes, in hexadecimal digits.
        licence: Under which it may be used.
        attribution: Who made it, and where it is from.
    """

    name: str
    kind: str
    file: str
    url: str
    bytes: int
    sha256: str
    licence: str
    attribution: str

    @property
    def credit(self) -> str:
        """What a record says of the signal: author and licence."""
        return f"{self.attribution}, {self.licence}"


@cache
def entries() -> dict[str, Entry]:
    """Return the data registry, by name."""
    path = INSTALLED if INSTALLED.exists() else CHECKOUT
    with path.open("rb") as stream:
        return read(stream)


def read(stream: IO[bytes]) -> dict[str, Entry]:
    """Return the entries of a registry."""
    return {name: Entry(name=name, **fields) for name, fields in tomllib.load(stream).items()}


def entry_of(name: str) -> Entry:
    """Return an entry by name.

    Raises:
        ValueError: If there is none, with the nearest.
    """
    return entries()[known("data", name, entries())]


def cache_directory() -> Path:
    """Return where downloads go by default: the platform's cache directory, as pooch has it."""
    if sys.platform == "darwin":
        return Path("~/Library/Caches/hessian-lab").expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # What is relative is invalid by the specification of these directories.
    root = Path(base) if base and Path(base).is_absolute() else Path("~/.cache").expanduser()
    return root / "hessian-lab"


def directories() -> list[Path]:
    """Return where files are looked for, first one first: ``HESSIAN_LAB_DATA``, then the cache.

    Raises:
        InputError: If the variable names no directory.
    """
    own = os.environ.get(VARIABLE, "")
    if not own:
        return [cache_directory()]
    directory = Path(own).expanduser()
    if not directory.is_dir():
        raise InputError(f"{VARIABLE} must name a directory, {directory} is none.")
    return [directory, cache_directory()]


def place_of(entry: Entry) -> Path | None:
    """Return where a file lies here, whatever is in it, or None if it is not here."""
    paths = (directory / entry.file for directory in directories())
    return next((path for path in paths if path.is_file()), None)


def fault_of(entry: Entry, path: Path) -> str:
    """Return what is wrong with a file, or nothing if it is the one that was registered."""
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            return f"it has {size} bytes, not {entry.bytes}"
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return "" if found == entry.sha256 else f"its SHA-256 is {found}, not {entry.sha256}"


def located(name: str) -> tuple[Entry, Path]:
    """Return a registered file that is here and is the one that was registered.

    Raises:
        ValueError: For an unknown name.
        InputError: If the file is not here, or is another.
    """
    entry = entry_of(name)
    path = place_of(entry)
    if path is None:
        raise InputError(
            f"signal {name} must be downloaded once, {entry.file} is not in "
            f"{' or '.join(str(each) for each in directories())}: hessian-lab data get {name}"
        )
    if fault := fault_of(entry, path):
        raise InputError(
            f"signal {name} must be the file that was registered, {path} is not: {fault}. "
            f"Move it away, then: hessian-lab data get {name}"
        )
    return entry, path
