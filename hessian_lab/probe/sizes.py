"""How much to work on at a time: what a CPU's caches hold, or a share of a GPU's free memory.

On a CPU few numbers at a time are fast, because they stay near the core. On a GPU every call costs
the same few microseconds, whatever it does, and a product of a few rows leaves most of it idle.
"""

import torch

from hessian_lab.probe.memory import available_bytes

# The share of what is free on a GPU that the buffers of one pass may take together.
SHARE = 1 / 16
# Numbers of one buffer from which a GPU gains no more.
MOST_NUMBERS = 1 << 26
# Vectors of one block from which a GPU gains no more, and what a product holds of each.
MOST_COLUMNS = 128
VECTOR_COPIES = 8


def numbers_at_once(
    cached: int, *, device: torch.device, itemsize: int, num_buffers: int = 1
) -> int:
    """Return how many numbers each buffer of a pass is to have.

    Args:
        cached: What suits the caches of a CPU; elsewhere the least.
        device: Where the buffers are.
        itemsize: Bytes of a number.
        num_buffers: Buffers of that size that are alive at a time.
    """
    if device.type == "cpu":
        return cached
    return within(available_bytes(device), itemsize * num_buffers, least=cached, most=MOST_NUMBERS)


def columns_at_once(few: int, *, device: torch.device, size: int, itemsize: int) -> int:
    """Return how many vectors [size] to multiply at a time: ``few`` on the CPU, else up to 128.

    Args:
        few: How many on the CPU; elsewhere the least.
        device: Where they are.
        size: Numbers of a vector.
        itemsize: Bytes of a number.
    """
    if device.type == "cpu":
        return few
    each = VECTOR_COPIES * size * itemsize
    return within(available_bytes(device), each, least=few, most=MOST_COLUMNS)


def within(free: int | None, each: int, *, least: int, most: int) -> int:
    """Return how many things of ``each`` bytes the share of ``free`` bytes holds, within bounds."""
    fits = most if free is None else int(SHARE * free) // max(1, each)
    return max(least, min(most, fits))
