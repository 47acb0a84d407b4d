"""Downloads of registered files: only when asked for, whole and checked, or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from hessian_lab.errors import InputError
from hessian_lab.signals.registry import Entry, cache_directory, directories, fault_of, place_of

REJECTED = ".rejected"
# Seconds without a byte after which a download is given up.
TIMEOUT = 30


def download(entry: Entry) -> tuple[Path, bool]:
    """Return where a registered file lies, and whether it was downloaded now.

    It goes to ``HESSIAN_LAB_DATA`` where that may be written, else to the cache directory. What is
    not the registered file is kept beside it as ``FILE.rejected``, and never used.

    Raises:
        InputError: If it cannot be downloaded, with what to do by hand, or is another file.
    """
    path = place_of(entry)
    if path is not None and not fault_of(entry, path):
        return path, False
    directory = _directory()
    target = directory / entry.file
    if path is not None and path != target:
        raise InputError(
            f"data {entry.name} must be the file that was registered, {path} is not: "
            f"{fault_of(entry, path)}. Replace or remove it: it goes before any download."
        )
    neighbour = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with _made(entry, directory):
        try:
            _fetch(entry, target, neighbour)
            fault = fault_of(entry, neighbour)
            place = target.with_name(target.name + REJECTED) if fault else target
            neighbour.replace(place)
        finally:
            neighbour.unlink(missing_ok=True)
    if fault:
        raise InputError(
            f"data {entry.name} must be the file that was registered, what {entry.url} sent is "
            f"not: {fault}. It is kept as {place} and not used."
        )
    return target, True


def by_hand(entry: Entry, directory: Path) -> str:
    """Return how to get a file without this program."""
    return (
        f"By hand: download {entry.url} as {directory / entry.file} "
        f"({entry.bytes} bytes, SHA-256 {entry.sha256}; make the directory if there is none), "
        f"then: hessian-lab data verify {entry.name}"
    )


def _directory() -> Path:
    """Return the directory to download to, which may not be there yet."""
    first = directories()[0]
    return first if first.is_dir() and os.access(first, os.W_OK) else cache_directory()


@contextlib.contextmanager
def _made(entry: Entry, directory: Path) -> Iterator[None]:
    """Make a directory and its parents; take away those that are left empty."""
    new = [each for each in (directory, *directory.parents) if not each.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"data {entry.name} must have a directory to go to, {directory}: {error.strerror}. "
            "Name another in HESSIAN_LAB_DATA."
        ) from None
    try:
        yield
    finally:
        for each in new:
            with contextlib.suppress(OSError):
                each.rmdir()


def _fetch(entry: Entry, target: Path, neighbour: Path) -> None:
    """Download into a file, no more bytes than were registered and one."""
    try:
        from pooch import HTTPDownloader
    except ImportError:
        raise InputError(
            f"data {entry.name} needs pooch to be downloaded: pip install 'hessian-lab[data]'. "
            f"{by_hand(entry, target.parent)}"
        ) from None
    try:
        with neighbour.open("wb") as stream:
            HTTPDownloader(timeout=TIMEOUT)(entry.url, _Bounded(stream, entry.bytes), None)
    except _TooLongError:
        # The file is kept as far as it goes, and rejected by its size.
        return
    except (OSError, ValueError) as error:
        raise InputError(
            f"data {entry.name} could not be downloaded: {_reason(error, entry.url)}. "
            f"{by_hand(entry, target.parent)}"
        ) from error


def _reason(error: Exception, url: str) -> str:
    if getattr(error, "errno", None):
        return str(getattr(error, "strerror", error))
    host, response = urlsplit(url).netloc, getattr(error, "response", None)
    if response is not None:
        return f"{host} answers {response.status_code}"
    return f"{host} sends nothing, or not all ({type(error).__name__})"


class _TooLongError(Exception):
    """More bytes came than were registered."""


class _Bounded:
    """A stream to write to that takes one byte too many, and then no more."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self.stream = stream
        self.left = most + 1

    def write(self, data: bytes) -> int:
        """Write as much as there is room for."""
        self.stream.write(data[: self.left])
        self.left -= len(data)
        if self.left <= 0:
            raise _TooLongError
        return len(data)

    def flush(self) -> None:
        """Write what is buffered."""
        self.stream.flush()
