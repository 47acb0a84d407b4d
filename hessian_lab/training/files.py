"""Files that are whole or absent, and a directory that one process writes at a time."""

import errno
import fcntl
import json
import math
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hessian_lab.errors import InputError, ResourceError, UsageError
from hessian_lab.probe.scratch import NO_ROOM

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file through a neighbour and a rename: a reader sees the old or the new one, whole.

    Raises:
        ResourceError: If the disk is full; the old file is intact.
    """
    neighbour = path.with_name(f".{path.name}.tmp")
    try:
        with room_for(path), neighbour.open("wb") as stream:
            write(stream)
        neighbour.replace(path)
    except BaseException:
        neighbour.unlink(missing_ok=True)
        raise


def write_json(path: Path, entries: object) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    text = json.dumps(finite(entries), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return a JSON object from a file.

    Raises:
        InputError: If the file is missing or no JSON object.
    """
    try:
        entries = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{what} must exist, {path} is missing.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{what} must be readable JSON, {path} is not: {error}.") from error
    if not isinstance(entries, dict):
        raise InputError(f"{what} must hold a JSON object, {path} does not.")
    return entries


def finite(entries: Any) -> Any:
    """Return JSON data with every number that is not finite replaced by None."""
    if isinstance(entries, dict):
        return {key: finite(value) for key, value in entries.items()}
    if isinstance(entries, list | tuple):
        return [finite(value) for value in entries]
    if isinstance(entries, float) and not math.isfinite(entries):
        return None
    return entries


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn "no space left on device" into an error that says what to do.

    Raises:
        ResourceError: In its place.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise ResourceError(
            f"{path.name} must fit on the disk: {error.strerror} in {path.parent}. "
            "Free some space; what was saved is intact."
        ) from error
    except RuntimeError as error:
        # torch.save reports a full disk as a failure of its archive writer.
        if not any(hint in str(error) for hint in ("PytorchStreamWriter", "unexpected pos")):
            raise
        raise ResourceError(
            f"{path.name} must fit on the disk: writing in {path.parent} failed. "
            "Free some space; what was saved is intact."
        ) from error


def make_directory(path: Path) -> None:
    """Make a directory and its parents.

    Raises:
        UsageError: If there is a file in its place, or it may not be written.
    """
    try:
        with room_for(path):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"out must be a directory to write in, {path}: {error.strerror}."
        ) from None


@contextmanager
def locked(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a directory for this process; the lock goes with the process, however it ends.

    Args:
        directory: What to hold, also against processes of other machines that share it.
        wait: Whether to wait for another process that holds it.

    Raises:
        UsageError: If another live process holds it and shall not be waited for, or its file system
            has no locks.
    """
    here = f" on {platform.node()[:64]}"
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.read(descriptor, 128).decode().removesuffix(here) or "unknown"
            raise UsageError(
                f"out must not be in use, another process (pid {holder}) is writing {directory}. "
                "Wait for it, or use another directory."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise UsageError(
                f"out must be on a file system with locks, that of {directory} refuses them "
                f"({error.strerror}). Mount it with them (Lustre: -o flock), or write elsewhere."
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}{here}".encode())
        yield
    finally:
        os.close(descriptor)
