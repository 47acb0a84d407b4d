"""Solids as signals: points in the box [-1, 1]³, 1 inside and 0 outside, fitted with logits."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_lab.errors import InputError
from hessian_lab.losses import bce
from hessian_lab.probe.memory import require_bytes
from hessian_lab.signal import Signal
from hessian_lab.signals.inside import inside, inside_grid
from hessian_lab.signals.meshes import MARGIN, Mesh, normalised

Array = np.ndarray[Any, np.dtype[Any]]

# Points of a signal when no number is given: those of the papers' shape with L-BFGS. The papers'
# stochastic runs take a million (2025) and twelve (its preprint).
NUM_POINTS = 100_000
# Distances from the surface, in units of half the box: a third of the points for each.
SPREADS = (0.1, 0.01)
RESOLUTION = 64
# Memory of one point while its signal is made.
POINT_BYTES = 400


def occupancy(
    mesh: Mesh, num_points: int = NUM_POINTS, *, seed: int = 0, margin: float = MARGIN
) -> Signal:
    """Return which of some points are inside a mesh, as a signal for the cross-entropy.

    The mesh is normalised into the box [-1, 1]³ with a margin. One third of the points is uniform
    in the box (and what is left of a division by three); one third each lies near the surface:
    uniform on it by area, plus Gaussian noise of standard deviation 0.1 and 0.01 per coordinate,
    drawn again where it leaves the box. They come in this order.

    Args:
        mesh: A watertight mesh; any other needs the extra ``mesh``.
        num_points: How many points.
        seed: Of the points.
        margin: As ``normalised`` takes it.

    Returns:
        Coordinates [p, 3] and values [p, 1], 1 inside and 0 outside, with the loss ``bce``.

    Raises:
        InputError: If the mesh is not watertight, or no point is inside.
        ResourceError: If the points do not fit in memory.
        ValueError: If ``num_points`` is below 1.

    References:
        L. Mescheder et al., Occupancy Networks, 2019; *Preconditioners for the Stochastic Training
        of Neural Fields*, 2025, §5.2.
    """
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}.")
    require_bytes(
        POINT_BYTES * num_points,
        f"A signal of {num_points} points",
        device=torch.device("cpu"),
        cure="Take a smaller --size.",
    )
    mesh = normalised(mesh, margin=margin)
    generator = torch.Generator().manual_seed(seed)
    near = [_near_surface(mesh, num_points // 3, spread, generator) for spread in SPREADS]
    num_uniform = num_points - sum(map(len, near))
    coords = torch.cat([_uniform(num_uniform, 3, generator) * 2 - 1, *near])
    values = inside(mesh, coords.numpy())
    if not values.any():
        raise InputError(
            f"mesh must enclose a volume, none of {num_points} points of {mesh.name} is inside."
        )
    return Signal(coords, torch.from_numpy(values).double()[:, None], bce, source=mesh.source)


def held_out_grid(mesh: Mesh, resolution: int = RESOLUTION, *, margin: float = MARGIN) -> Signal:
    """Return the occupancy of the centres of a grid of cubes that fills the box [-1, 1]³.

    What an IoU is measured on: no point is one of a signal's, and all count alike.

    Args:
        mesh: The mesh that ``occupancy`` was given.
        resolution: Cubes per side.
        margin: As there.

    Returns:
        Coordinates [resolution³, 3] with the last one running fastest, and values [resolution³, 1].

    Raises:
        InputError: If the mesh is not watertight and the extra ``mesh`` is not installed.
        ResourceError: If the grid does not fit in memory.
        ValueError: If ``resolution`` is below 1.
    """
    if resolution < 1:
        raise ValueError(f"resolution must be at least 1, got {resolution}.")
    require_bytes(
        40 * resolution**3,
        f"A grid of {resolution}³ points",
        device=torch.device("cpu"),
        cure="Take a lower resolution.",
    )
    centres = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution * 2 - 1
    axis = centres.numpy()
    values = inside_grid(normalised(mesh, margin=margin), axis, axis, axis)
    return Signal(
        torch.cartesian_prod(centres, centres, centres).reshape(-1, 3),
        torch.from_numpy(values.reshape(-1, 1)).double(),
        bce,
        shape=values.shape,
        source=mesh.source,
    )


def _near_surface(mesh: Mesh, num_points: int, spread: float, generator: torch.Generator) -> Tensor:
    """Return points [p, 3] of the box beside places that are uniform on the surface."""
    places = on_surface(mesh, num_points, generator)
    points = torch.full_like(places, torch.inf)
    left = torch.arange(num_points)
    while len(left):
        noise = torch.randn(len(left), 3, dtype=torch.float64, generator=generator)
        points[left] = places[left] + spread * noise
        left = left[(points[left].abs() > 1).any(dim=1)]
    return points


def on_surface(mesh: Mesh, num_points: int, generator: torch.Generator) -> Tensor:
    """Return points [p, 3] on a mesh, uniform by area."""
    shares = np.cumsum(mesh.areas)
    drawn = _uniform(num_points, 3, generator).numpy()
    # Beyond the last face only by rounding.
    face = np.searchsorted(shares[:-1], drawn[:, 0] * shares[-1], side="right")
    root = np.sqrt(drawn[:, 1])
    weights = np.stack([1 - root, root * (1 - drawn[:, 2]), root * drawn[:, 2]], axis=1)
    return torch.from_numpy((weights[:, :, None] * mesh.triangles[face]).sum(axis=1))


def _uniform(num_points: int, num_columns: int, generator: torch.Generator) -> Tensor:
    return torch.rand(num_points, num_columns, dtype=torch.float64, generator=generator)
