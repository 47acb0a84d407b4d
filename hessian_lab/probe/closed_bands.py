"""The Hessian of a coordinate network slab by slab, into a matrix that may lie anywhere.

What ``closed_form.assemble`` sums at once, in as many parts as memory or processes ask for. A
process sums its own slabs, ``sum_slab(…).sums``; one that receives such sums copies them into a
``Slab`` of the same bands, and writes it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.probe.closed_form import (
    Scratch,
    Slot,
    default_chunk_size,
    run_pass,
    slots_of,
    widest_map,
)
from hessian_lab.probe.closed_slabs import NUM_PANELS, Band, Slab, divide, unit_numbers
from hessian_lab.probe.linearized import Matrix


def assemble_bands(
    model: CoordinateMLP,
    coords: Tensor,
    slope: Tensor,
    curvature: Tensor,
    *,
    matrix: Matrix,
    slabs: Sequence[list[Band]],
    out: Tensor,
    chunk_size: int | None = None,
) -> None:
    """Write the rows and columns of some bands of the Hessian, or of the GGN.

    All of ``split`` or ``divide`` fill the matrix, exactly symmetric. Each slab costs its share of
    ``assemble``, and once more the recursion from the read-out down to its lowest map: with four
    slabs of a 4×32 field a tenth of the time in all.

    Args:
        model: The network; its parameters are read, not changed.
        coords: Coordinates [p, d].
        slope: ∂L/∂f [p, c], the mean over points included.
        curvature: ∂²L/∂f² [p, c, c] of each point, likewise.
        matrix: ``"hessian"`` or ``"ggn"``.
        slabs: The bands of each slab, last map first.
        out: The matrix [n, n], of the dtype of ``coords``, on any device or in a file.
        chunk_size: Points per pass; see ``assemble``.
    """
    space = Scratch(coords)
    for bands in slabs:
        slab = sum_slab(
            model,
            coords,
            slope,
            curvature,
            bands=bands,
            residual=matrix == "hessian",
            space=space,
            chunk_size=chunk_size,
        )
        slab.write(out)


@torch.no_grad()  # type: ignore[untyped-decorator]
def sum_slab(
    model: CoordinateMLP,
    coords: Tensor,
    slope: Tensor,
    curvature: Tensor,
    *,
    bands: list[Band],
    residual: bool,
    space: Scratch,
    chunk_size: int | None = None,
) -> Slab:
    """Return the sums of some bands over points; see ``assemble_bands``."""
    slots, num_points = slots_of(model), len(coords)
    size = chunk_size or default_chunk_size(slots, num_points, like=coords)
    slab = Slab(slots, bands, residual=residual, space=space)
    weights = [layer.weight for layer in model.maps]
    for start in range(0, num_points, size):
        rows = slice(start, start + size)
        slab.add(run_pass(model, coords[rows], slope[rows], curvature[rows]), weights)
    return slab


def split(slots: list[Slot], count: int, *, residual: bool) -> list[list[Band]]:
    """Return at most ``count`` slabs of about as many numbers, and so of as many operations.

    Fewer where the network has fewer units than that.

    Raises:
        ValueError: If ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    # The least numbers per slab that do: ``low`` is one unit's too few, ``high`` is enough.
    high = sum(numbers for _, numbers in divide(slots, residual=residual, numbers=1))
    low = high // count - 1
    while high - low > 1:
        middle = (low + high) // 2
        if len(divide(slots, residual=residual, numbers=middle)) <= count:
            high = middle
        else:
            low = middle
    return [bands for bands, _ in divide(slots, residual=residual, numbers=high)]


def panel_numbers(
    slots: list[Slot], num_points: int, chunk_size: int | None = None, *, like: Tensor
) -> int:
    """Return how many numbers a pass over some points works in, beside the sums of a slab."""
    size = min(chunk_size or default_chunk_size(slots, num_points, like=like), num_points)
    return NUM_PANELS * size * widest_map(slots) ** 2


def largest_unit(slots: list[Slot], *, residual: bool) -> int:
    """Return how many numbers the smallest slab has that holds any one unit."""
    return max(unit_numbers(slots, i, residual=residual) for i in range(len(slots)))


def slab_needs(
    slots: list[Slot], num_points: int, chunk_size: int | None = None, *, like: Tensor
) -> tuple[int, int]:
    """Return the numbers of the smallest slab of a Hessian, and those that are kept beside one.

    These are the panels of a pass, or a unit's entries in the order in which they are written.
    """
    unit = largest_unit(slots, residual=True)
    return unit, max(panel_numbers(slots, num_points, chunk_size, like=like), 2 * unit)
