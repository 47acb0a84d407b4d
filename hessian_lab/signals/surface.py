"""What a fitted field takes for a solid: its logits, and the surface where they are zero."""

from typing import Any

import numpy as np
import torch
from skimage.measure import marching_cubes
from torch import Tensor, nn

from hessian_lab.errors import InputError
from hessian_lab.probe.memory import require_bytes
from hessian_lab.signal import Source
from hessian_lab.signals.meshes import Mesh, mesh_of_polygons

Array = np.ndarray[Any, np.dtype[Any]]

RESOLUTION = 128
# Points that go through a field at once.
CHUNK = 8192
# Memory of one point of a grid until its surface is found.
POINT_BYTES = 64


def logits(model: nn.Module, coords: Tensor, *, chunk_size: int = CHUNK) -> Tensor:
    """Return a field's values [p, c] at coordinates [p, d], without a graph, in chunks.

    Args:
        model: A module; points are brought to the precision and device of its parameters.
        coords: Coordinates, on any device.
        chunk_size: The most points at once.
    """
    like = next(model.parameters())
    with torch.no_grad():
        parts = [model(part.to(like)).to(coords) for part in coords.split(chunk_size)]
    return torch.cat(parts)


def field_mesh(
    model: nn.Module,
    resolution: int = RESOLUTION,
    *,
    level: float = 0.0,
    chunk_size: int = CHUNK,
    name: str = "field",
) -> Mesh:
    """Return the surface on which a field of the box [-1, 1]³ takes a level, by marching cubes.

    What is above the level is inside. The surface is closed: where the solid reaches the box, it is
    cut off there. Its vertices lie on lines between neighbours of the grid, where a linear
    interpolation is at the level.

    Args:
        model: A module from coordinates [p, 3] to logits [p, 1].
        resolution: Points per side of the grid, on the box's faces too.
        level: The logit of the surface; 0 is a probability of one half.
        chunk_size: The most points at once.
        name: Of the mesh.

    Raises:
        InputError: If the field is nowhere above the level, or not finite.
        ResourceError: If the grid does not fit in memory.
        ValueError: If ``resolution`` is below 2.

    References:
        T. Lewiner et al., Efficient implementation of marching cubes' cases, 2003 (scikit-image).
    """
    if resolution < 2:
        raise ValueError(f"resolution must be at least 2, got {resolution}.")
    require_bytes(
        POINT_BYTES * resolution**3,
        f"A grid of {resolution}³ points",
        device=torch.device("cpu"),
        cure="Take a lower resolution.",
    )
    return level_set(grid_logits(model, resolution, chunk_size=chunk_size), level, name=name)


def grid_logits(model: nn.Module, resolution: int, *, chunk_size: int = CHUNK) -> Array:
    """Return a field's first channel [r, r, r] on a grid of the box [-1, 1]³, ends included."""
    axis = torch.linspace(-1, 1, resolution, dtype=torch.float64)
    volume = torch.empty(resolution**3, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)
    for number, x in enumerate(axis):
        coords = torch.cat([x.expand(len(plane), 1), plane], dim=1)
        start = number * len(plane)
        volume[start : start + len(plane)] = logits(model, coords, chunk_size=chunk_size)[:, 0]
    return volume.reshape(resolution, resolution, resolution).numpy()


def level_set(volume: Array, level: float = 0.0, *, name: str = "field") -> Mesh:
    """Return the closed surface around what is above a level, of samples on the box [-1, 1]³.

    Args:
        volume: Samples [x, y, z] on a grid with its ends on the box's faces.
        level: Of the surface.
        name: Of the mesh.

    Raises:
        InputError: If no sample is above the level, or one is not finite.
    """
    if not np.isfinite(volume).all():
        raise InputError(f"mesh must come from finite logits, {name} has NaN or Inf.")
    above = volume > level
    if not above.any():
        raise InputError(f"mesh must enclose a volume, {name} is outside everywhere in the box.")
    # In units of the largest, for scikit-image's single precision. All around is below the level:
    # what closes the surface there is then pressed onto the box.
    heights = (volume - level) / np.abs(volume - level).max()
    padded = np.pad(heights, 1, constant_values=-1.0)
    places, faces, _, _ = marching_cubes(  # type: ignore[no-untyped-call]
        padded, 0.0, gradient_direction="ascent"
    )
    steps = 2 / (np.array(volume.shape) - 1)
    vertices = np.clip((places.astype(np.float64) - 1) * steps - 1, -1, 1)
    return mesh_of_polygons(
        vertices,
        faces.reshape(-1),
        np.full(len(faces), 3),
        Source(name, "marching cubes of a fitted field", ""),
    )
