"""Random vectors with identity covariance, each a function of its seed and its number alone."""

from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

Distribution = Literal["rademacher", "gaussian"]
DISTRIBUTIONS = ("rademacher", "gaussian")


class Like(Protocol):
    """What tells a vector its type and place."""

    @property
    def dtype(self) -> torch.dtype:
        """Its floating-point type."""

    @property
    def device(self) -> torch.device:
        """Its device."""


def rademacher(size: int, num: int, *, seed: int, like: Like, first: int = 0) -> Tensor:
    """Return vectors of independent signs ±1 [size, num], the same on every device.

    Column ``j`` depends on ``seed`` and ``first + j`` alone: asking for more vectors, or for some
    at a time, gives the same ones. Columns are contiguous.
    """
    rows = np.empty((num, size), dtype=np.int8)
    for row, generator in zip(rows, _generators(seed, first, num), strict=True):
        bits = np.frombuffer(generator.bytes(-(-size // 8)), dtype=np.uint8)
        row[:] = np.unpackbits(bits, count=size)
    signs = placed(torch.from_numpy(rows), like.device)
    return (2 * signs.to(like.dtype) - 1).T


def gaussian(size: int, num: int, *, seed: int, like: Like, first: int = 0) -> Tensor:
    """Return vectors of independent standard normal entries [size, num]; see ``rademacher``."""
    rows = np.empty((num, size))
    for row, generator in zip(rows, _generators(seed, first, num), strict=True):
        generator.standard_normal(out=row)
    return placed(torch.from_numpy(rows), like.device).to(like.dtype).T


def probes(
    size: int,
    num: int,
    *,
    seed: int,
    like: Like,
    distribution: Distribution = "rademacher",
    first: int = 0,
) -> Tensor:
    """Return vectors of either distribution [size, num].

    Raises:
        ValueError: For another distribution, or a seed out of range.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}."
        )
    draw = rademacher if distribution == "rademacher" else gaussian
    return draw(size, num, seed=seed, like=like, first=first)


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device; the host does not wait until it is there."""
    if device.type == "cpu":
        return tensor
    # Only a copy from pinned memory goes on beside the host.
    return tensor.pin_memory().to(device, non_blocking=True)


def _generators(seed: int, first: int, num: int) -> list[np.random.Generator]:
    if not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}.")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}.")
    return [
        np.random.Generator(np.random.Philox(key=np.array([seed, first + j], dtype=np.uint64)))
        for j in range(num)
    ]
