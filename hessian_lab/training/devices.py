"""Which device a name means here: ``auto``, the device of a process among several, what works."""

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch

from hessian_lab.errors import UsageError
from hessian_lab.training.setup import Setup

AUTO = "auto"
NAMES = "auto, cpu, cuda or cuda:N"
# What a launcher such as torchrun tells each of its processes.
LOCAL_RANK, WORLD_SIZE = "LOCAL_RANK", "WORLD_SIZE"

logger = logging.getLogger(__name__)


def named_device(name: str) -> str:
    """Return the name that a record keeps: ``cuda`` or ``cpu`` for ``auto``, others as they are.

    ``auto`` is ``cuda`` where torch sees a CUDA device that works; what it is and why is logged.
    """
    if name != AUTO:
        return name
    count, told = _count_devices()
    if not count:
        logger.info("device auto: cpu, torch sees no CUDA device%s", told)
        return "cpu"
    device = _own_device()
    if fault := _fault(device):
        logger.warning("device auto: cpu, %s cannot be used: %s", device, fault)
        return "cpu"
    logger.info("device auto: %s, %s", device, torch.cuda.get_device_name(device))
    return "cuda"


def usable_device(name: str) -> torch.device:
    """Return the device of a name, after an allocation on it.

    Where a launcher has started several processes (``LOCAL_RANK`` is set and ``WORLD_SIZE`` above
    1), ``cuda`` and ``auto`` are the device of this one, ``cuda:LOCAL_RANK``.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` as ``named_device`` has it.

    Raises:
        UsageError: If there is no such device here, or it cannot be used. Nothing is ever put on
            the CPU in place of a CUDA device that was asked for.
    """
    known = named_device(name)
    try:
        device = torch.device(known)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device must be {NAMES}, got {name!r}.")
    if device.type == "cpu":
        return device
    device = _own_device() if device.index is None else device
    count, told = _count_devices()
    if (device.index or 0) >= count:
        raise UsageError(
            f"device must be available, got {name!r}{_rank_told(device, known)}: torch sees "
            f"{count} CUDA devices here{told}. Use --device cpu."
        )
    if fault := _fault(device):
        raise UsageError(
            f"device must be usable, {device} is there but is not: {fault}. "
            "Try hessian-lab doctor, or use --device cpu."
        )
    return device


def named_devices(setups: Sequence[Setup]) -> list[Setup]:
    """Return setups with the names that their records keep; two that become one stand once."""
    names = {name: named_device(name) for name in dict.fromkeys(one.device for one in setups)}
    named = [replace(one, device=names[one.device]) for one in setups]
    return list({repr(one): one for one in named}.values())


def _own_device() -> torch.device:
    """Return ``cuda``, or the device of this process where a launcher has started several."""
    if int(os.environ.get(WORLD_SIZE) or 1) > 1 and os.environ.get(LOCAL_RANK):
        return torch.device("cuda", int(os.environ[LOCAL_RANK]))
    return torch.device("cuda")


def _rank_told(device: torch.device, name: str) -> str:
    if str(device) == name:
        return ""
    return f", which is {device} for the process with {LOCAL_RANK}={device.index}"


def _count_devices() -> tuple[int, str]:
    """Return how many CUDA devices torch sees, and what it says where there is none."""
    if not torch.backends.cuda.is_built():
        return torch.cuda.device_count(), " (it is built without CUDA)"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        count = torch.cuda.device_count()
    return count, f" ({_first_line(told[0].message)})" if told else ""


def _fault(device: torch.device) -> str:
    """Return why nothing can be put on a CUDA device, or nothing if it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.ones(1, device=device).add_(1).item()
    # A torch without CUDA asserts.
    except (RuntimeError, AssertionError) as error:
        return _first_line(error)
    return ""


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
