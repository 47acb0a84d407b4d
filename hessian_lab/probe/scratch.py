"""Tensors in memory-mapped files, for what is larger than memory.

The blocks of a file are reserved before it is mapped: a full disk is an error then and there,
where a write into a mapping would end the process. Pages are the kernel's to keep and to drop; what
is mapped takes memory that is free, and no other.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from hessian_lab.errors import ResourceError, UsageError
from hessian_lab.probe.memory import fits, readable, require_bytes

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CPU = torch.device("cpu")
# File systems that lie in memory themselves.
IN_MEMORY = ("tmpfs", "ramfs")
MOUNTS = Path("/proc/self/mountinfo")
# What helps where memory is too small.
CURE = "Or name a scratch directory (scratch=, --scratch): a file there holds it."
# Bytes that a disk is timed on.
PROBE_BYTES = 64 << 20


@dataclass(frozen=True)
class DiskRates:
    """Bytes per second that a disk writes, and reads through a mapping, its cache emptied."""

    write: float
    read: float


def check_scratch(directory: Path, device: torch.device = CPU) -> None:
    """Check that temporary files can be made in a directory, and that they would lie on a disk.

    Raises:
        UsageError: If not, or if what they are for is on another device than the CPU.
    """
    if device.type != "cpu":
        raise UsageError(f"scratch must be used on the CPU, got {device}.")
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            number = os.fstat(file.fileno()).st_dev
    except OSError as error:
        raise UsageError(
            f"scratch must be a directory to write in, {directory}: {error.strerror}."
        ) from None
    kind = _file_system(number)
    if kind in IN_MEMORY:
        raise UsageError(
            f"scratch must lie on a disk, {directory} is a {kind}: it takes memory itself."
        )


def _file_system(number: int) -> str:
    """Return the kind of the file system of a device number; empty where nothing tells."""
    name = f"{os.major(number)}:{os.minor(number)}"
    with contextlib.suppress(OSError):
        for line in MOUNTS.read_text().splitlines():
            mount, _, rest = line.partition(" - ")
            if mount.split()[2] == name:
                return rest.split()[0]
    return ""


def require_disk(directory: Path, needed: int, what: str, *, cure: str) -> None:
    """Check that ``needed`` bytes are free on the disk of a directory.

    Raises:
        ResourceError: If they are not: with the bytes needed, the bytes there, and the cure.
    """
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ResourceError(
            f"{what} must fit on the disk: it needs {readable(needed)} ({needed} bytes), "
            f"and {readable(free)} are free in {directory}. {cure}"
        )


def temporary(shape: tuple[int, ...], *, dtype: torch.dtype, directory: Path, what: str) -> Tensor:
    """Return a tensor of zeros in a file without a name: it goes with the tensor or the process.

    Raises:
        UsageError: If the directory does not take files, or lies in memory.
        ResourceError: If the disk is too small, before anything is written.
    """
    check_scratch(directory)
    needed = prod(shape) * dtype.itemsize
    require_disk(directory, needed, what, cure="Free some space, or use another scratch.")
    with tempfile.TemporaryFile(dir=directory) as file:
        return _mapped(file.fileno(), shape, dtype, what=what)[0]


@contextmanager
def whole_file(path: Path, shape: tuple[int, ...], *, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield a tensor of zeros in a file that takes its name when the block ends without an error.

    It stays mapped: what is written later is in the file. Read it back with
    ``torch.from_file(path, shared=False, size=…, dtype=…).view(shape)`` or ``np.memmap``.

    Raises:
        UsageError: If the directory does not take files, the path is that of a directory, or
            another process is writing the same file.
        ResourceError: If the disk is too small, before anything is written.
    """
    neighbour = path.with_name(f".{path.name}.tmp")
    what = f"{path.name} {list(shape)}"
    file = _reserved(neighbour, path)
    try:
        with file:
            needed = prod(shape) * dtype.itemsize
            require_disk(path.parent, needed, what, cure="Free some space, or write elsewhere.")
            tensor, mapping = _mapped(file.fileno(), shape, dtype, what=what)
            yield tensor
            mapping.flush()
        neighbour.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            neighbour.unlink(missing_ok=True)
        raise


def _reserved(neighbour: Path, path: Path) -> BinaryIO:
    """Return a new file beside a path, which no other process takes while it is open."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with contextlib.suppress(FileNotFoundError), neighbour.open("rb") as former:
            fcntl.flock(former, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # That of a process that was killed holds space that may be needed.
            neighbour.unlink()
        file = neighbour.open("xb+")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"file must be written by one process at a time, another one is writing {path}. "
            "Wait for it, or write elsewhere."
        ) from None
    except OSError as error:
        raise UsageError(f"file must be a path to write to, {path}: {error.strerror}.") from None
    return file


def _mapped(
    descriptor: int, shape: tuple[int, ...], dtype: torch.dtype, *, what: str
) -> tuple[Tensor, mmap.mmap]:
    num_bytes = prod(shape) * dtype.itemsize
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise ResourceError(
            f"{what} must fit on the disk: reserving {readable(num_bytes)} failed, "
            f"{error.strerror}. Free some space, or write elsewhere."
        ) from error
    mapping = mmap.mmap(descriptor, num_bytes)
    return torch.frombuffer(mapping, dtype=dtype).view(shape), mapping


def roomy_empty(
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype,
    device: torch.device,
    extra: int,
    what: str,
    cure: str,
    scratch: Path | None,
) -> Tensor:
    """Return an uninitialized tensor in memory or, where it does not fit, in a file.

    Arguments and errors are those of ``require_room``.
    """
    in_file = require_room(
        prod(shape) * dtype.itemsize,
        device=device,
        extra=extra,
        what=what,
        cure=cure,
        scratch=scratch,
    )
    if in_file and scratch is not None:
        return temporary(shape, dtype=dtype, directory=scratch, what=what)
    return torch.empty(shape, dtype=dtype, device=device)


def require_room(
    needed: int,
    *,
    device: torch.device,
    extra: int,
    what: str,
    cure: str,
    scratch: Path | None,
) -> bool:
    """Return whether something must go to a file, after checking that there is room for it.

    Args:
        needed: Its bytes.
        device: Where it lies; with ``scratch`` the CPU.
        extra: Bytes that must fit in memory beside it, wherever it lies.
        what: Its name in errors.
        cure: What to do where it does not fit.
        scratch: A directory for the file; None if there must not be one.

    Raises:
        ResourceError: If it fits neither in memory nor, with ``scratch``, on the disk.
        UsageError: If ``scratch`` does not take files, or the device is another than the CPU.
    """
    if scratch is None:
        if device.type == "cpu":
            cure = f"{cure} {CURE}"
        require_bytes(needed + extra, what, device=device, cure=cure)
        return False
    check_scratch(scratch, device)
    if fits(needed + extra, device):
        return False
    require_bytes(extra, f"{what}, in a file, and what is done with it", device=device, cure=cure)
    require_disk(scratch, needed, what, cure="Free some space, or use another scratch.")
    return True


def disk_rates(directory: Path) -> DiskRates:
    """Return how fast the disk of a directory is, from 64 MiB that are written and read once.

    Raises:
        UsageError: If the directory does not take files, or lies in memory.
        ResourceError: If not even these fit.
    """
    check_scratch(directory)
    require_disk(directory, PROBE_BYTES, "What a disk is timed on", cure="Free some space.")
    with tempfile.TemporaryFile(dir=directory) as file:
        descriptor = file.fileno()
        tensor, mapping = _mapped(descriptor, (PROBE_BYTES,), torch.uint8, what="A probe")
        # Nothing that a disk could compress.
        noise = torch.empty_like(tensor).random_(generator=torch.Generator().manual_seed(0))
        start = time.perf_counter()
        tensor.copy_(noise)
        mapping.flush()
        write = PROBE_BYTES / (time.perf_counter() - start)
        del tensor, mapping
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        mapping = mmap.mmap(descriptor, PROBE_BYTES)
        start = time.perf_counter()
        torch.frombuffer(mapping, dtype=torch.int64).max()
        return DiskRates(write, PROBE_BYTES / (time.perf_counter() - start))
