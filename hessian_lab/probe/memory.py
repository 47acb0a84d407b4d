"""What fits: checked before anything large is allocated."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from hessian_lab.errors import ResourceError

CGROUP = Path("/sys/fs/cgroup")
# How many ranks of a job run on this machine, as launchers tell.
LOCAL_COUNT = "LOCAL_WORLD_SIZE"
_divided = ContextVar("divided", default=True)


def readable(num_bytes: float) -> str:
    """Return a byte count for people, in binary units: ``1.21 GiB``."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while num_bytes >= 1024 and len(units) > 1:
        num_bytes /= 1024
        del units[0]
    digits = f"{num_bytes:.0f}" if num_bytes >= 1000 else f"{num_bytes:.3g}"
    return f"{digits} {units[0]}"


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that can still be taken on a device, or None where nothing tells.

    Of a machine's own memory each of its ranks has its part, but for what is ``undivided``.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if device.type != "cpu":
        return None
    rooms = [room for room in (_system_bytes(), _cgroup_bytes()) if room is not None]
    return min(rooms) // _sharers() if rooms else None


@contextmanager
def undivided() -> Iterator[None]:
    """Count all of a machine's memory as one rank's, for what only one of them holds."""
    former = _divided.set(False)
    try:
        yield
    finally:
        _divided.reset(former)


def _sharers() -> int:
    """Return how many ranks share this machine's memory."""
    text = os.environ.get(LOCAL_COUNT, "1")
    return max(1, int(text)) if _divided.get() and text.isdigit() else 1


def fits(needed: int, device: torch.device) -> bool:
    """Tell whether ``needed`` bytes can be taken, as far as anything tells."""
    there = available_bytes(device)
    return there is None or needed <= there


def require_bytes(needed: int, what: str, *, device: torch.device, cure: str) -> None:
    """Check that ``needed`` bytes can be taken.

    Raises:
        ResourceError: If they cannot: with the bytes needed, the bytes there, and the cure.
    """
    there = available_bytes(device)
    if there is not None and needed > there:
        raise ResourceError(
            f"{what} must fit in memory: it needs {readable(needed)} ({needed} bytes), and "
            f"{readable(there)} are free on {device}. {cure}"
        )


def _system_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return _physical_bytes()
    entries = dict(line.split(":", 1) for line in lines)
    return int(entries["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in entries else None


def _physical_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _page_cache_bytes() -> int:
    """Return what a container holds of files and gives back when asked."""
    try:
        lines = (CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return int(dict(line.split() for line in lines).get("inactive_file", 0))


def _cgroup_bytes() -> int | None:
    """Return what a container's own limit leaves (cgroup v2)."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text()) - _page_cache_bytes()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)
