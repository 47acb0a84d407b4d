"""Posed pictures of one scene, and the rays through them as a signal."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_lab.errors import InputError
from hessian_lab.fields.volume import RAY
from hessian_lab.probe.memory import require_bytes
from hessian_lab.signal import Signal, Source
from hessian_lab.signals.cameras import Cameras

Array = np.ndarray[Any, np.dtype[Any]]

# Rays of a signal when no number is given: the papers' step.
NUM_RAYS = 2048
# Where samples lie within their strata: multiples of these by view, row and column of a pixel fill
# the unit interval evenly in every neighbourhood, so that errors of quadrature look like grain.
DITHER = (0.8191725133961645, 0.7548776662466927, 0.5698402909980532)

# The least slope towards -z of a ray that faces forward: beyond it its place in a box is rounding.
LEVEL = 1e-6


@dataclass(frozen=True, eq=False)
class Scene:
    """Pictures of a scene with their cameras, of which some are held out.

    Attributes:
        cameras: One per picture; the scene lies in the box [-1, 1]³ of their world.
        pictures: Colours in [0, 1] [v, rows, columns, 3].
        held_out: Whether a picture is for testing alone [v].
        background: The grey behind the scene: 1 of pictures over white.
        forward: The cameras face one way, and rays are those of the space behind their common near
            plane, bent into a box (normalised device coordinates).
        source: Where the pictures come from.
    """

    cameras: Cameras
    pictures: Array
    held_out: Array
    background: float
    source: Source
    forward: bool = False

    def rays(self, views: Array, pixels: Array) -> Tensor:
        """Return the coordinates of some rays [r, 10], in float64.

        Args:
            views: The view of each ray [r].
            pixels: Its pixel [r], in row-major order.
        """
        origins, directions = self.cameras.rays(views, pixels)
        if self.forward:
            origins, directions = to_device_coordinates(origins, directions, self.cameras)
            near, far = np.zeros(len(origins)), np.linalg.norm(directions, axis=1)
            directions = directions / far[:, None]
        else:
            directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
            near, far = through_box(origins, directions)
        row, column = np.divmod(pixels, self.cameras.shape[1])
        phase = np.stack([views, row, column], axis=1) @ np.array(DITHER) % 1
        grey = np.full(len(origins), self.background)
        return torch.from_numpy(np.column_stack([origins, directions, near, far, phase, grey]))

    def picture_rays(self, view: int) -> Tensor:
        """Return the rays of every pixel of one view [rows columns, 10], in row-major order."""
        pixels = np.arange(self.cameras.shape[0] * self.cameras.shape[1])
        return self.rays(np.full(len(pixels), view), pixels)

    def signal(self, num_rays: int | None = None, num_views: int | None = None) -> Signal:
        """Return rays of the views that are not held out, as a signal.

        Args:
            num_rays: How many, drawn without replacement and always the same; 2,048 by default,
                and all where there are fewer.
            num_views: Of how many views, evenly chosen; by default of all.

        Returns:
            Coordinates [r, 10] and colours [r, 3].

        Raises:
            ResourceError: If they do not fit in memory.
        """
        known = np.flatnonzero(~self.held_out)
        if num_views is not None and num_views < len(known):
            known = known[np.linspace(0, len(known) - 1, num_views).round().astype(int)]
        count = self.cameras.shape[0] * self.cameras.shape[1]
        wanted = min(num_rays or NUM_RAYS, len(known) * count)
        require_bytes(
            8 * (3 * wanted * (RAY + 3) + len(known) * count),
            f"A signal of {wanted} rays",
            device=torch.device("cpu"),
            cure="Take fewer --points, or a smaller --size.",
        )
        drawn = np.sort(np.random.default_rng(0).permutation(len(known) * count)[:wanted])
        place, pixels = np.divmod(drawn, count)
        colours = self.pictures.reshape(len(self.pictures), count, 3)[known[place], pixels]
        rays = self.rays(known[place], pixels)
        return Signal(rays, torch.from_numpy(colours), source=self.source)


def through_box(origins: Array, directions: Array) -> tuple[Array, Array]:
    """Return the distances [r] at which rays enter and leave the box [-1, 1]³; both 0 if they miss.

    A ray that starts inside enters at 0. Distances are in units of the directions' lengths.
    """
    # Along a side of the box a ray is between its two planes from -∞ to ∞, or never.
    steep = np.where(np.abs(directions) < 1e-300, 1e-300, directions)
    ends = np.stack([(-1 - origins) / steep, (1 - origins) / steep])
    near = np.maximum(ends.min(axis=0).max(axis=1), 0)
    far = ends.max(axis=0).min(axis=1)
    hit = far > near
    return np.where(hit, near, 0.0), np.where(hit, far, 0.0)


def to_device_coordinates(
    origins: Array, directions: Array, cameras: Cameras
) -> tuple[Array, Array]:
    """Return rays [r, 3] in normalised device coordinates, with the near plane z = -1.

    What a camera at the origin sees becomes the box [-1, 1]³, straight rays stay straight, and
    ``origin + t direction`` runs from the near plane at t = 0 to infinity at t = 1.

    Args:
        origins: Where rays start, before or behind the near plane.
        directions: Of any length, towards -z.
        cameras: Whose lens and pictures the box is made for.

    Raises:
        InputError: If a ray does not go towards -z.

    References:
        Mildenhall et al. (2020), https://arxiv.org/abs/2003.08934, appendix C.
    """
    if not (-directions[:, 2] > LEVEL * np.linalg.norm(directions, axis=1)).all():
        raise InputError("cameras that face forward must look along -z, one ray does not.")
    origins = origins - ((1 + origins[:, 2]) / directions[:, 2])[:, None] * directions
    rows, columns = cameras.shape
    scale = -2 * cameras.focal / np.array([columns, rows])
    depth, slope = origins[:, 2:], directions[:, 2:]
    flat = scale * origins[:, :2] / depth
    starts = np.concatenate([flat, 1 + 2 / depth], axis=1)
    moves = scale * (directions[:, :2] / slope - origins[:, :2] / depth)
    return starts, np.concatenate([moves, -2 / depth], axis=1)
