"""Pinhole cameras: where they stand, and the rays through their pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hessian_lab.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

# Focal lengths in pixels with which directions can be told from each other.
FOCAL = (1e-6, 1e12)
# How far the axes of a camera may be from orthonormal: poses are written with few digits.
RIGID = 1e-3


@dataclass(frozen=True, eq=False)
class Cameras:
    """Cameras with one lens, looking along their own -z, with x to the right and y up (OpenGL).

    Attributes:
        poses: From the camera's axes to the world's [v, 3, 4]: rotation, and the camera's place.
        shape: Rows and columns of the pictures.
        focal: Focal length in pixels.

    Raises:
        InputError: If a pose is not finite or no rigid motion, or the focal length out of range.
    """

    poses: Array
    shape: tuple[int, int]
    focal: float

    def __post_init__(self) -> None:
        poses = np.ascontiguousarray(self.poses, dtype=np.float64)
        object.__setattr__(self, "poses", poses)
        check_poses(poses)
        if not FOCAL[0] <= self.focal <= FOCAL[1]:
            raise InputError(
                f"focal length must be between {FOCAL[0]:g} and {FOCAL[1]:g} pixels, got "
                f"{self.focal:g}."
            )

    @property
    def places(self) -> Array:
        """Where the cameras stand [v, 3]."""
        return self.poses[:, :, 3]

    def directions(self) -> Array:
        """Return the directions [rows, columns, 3] through the pixels' middles in a camera's axes.

        Their z is -1: a multiple of them by t reaches the depth t.
        """
        rows, columns = self.shape
        down, across = np.meshgrid(np.arange(rows) + 0.5, np.arange(columns) + 0.5, indexing="ij")
        right, up = (across - columns / 2) / self.focal, (rows / 2 - down) / self.focal
        return np.stack([right, up, np.full_like(right, -1)], axis=-1)

    def rays(self, views: Array, pixels: Array) -> tuple[Array, Array]:
        """Return origins and directions [r, 3] of rays in the world; directions have depth 1.

        Args:
            views: The view of each ray [r].
            pixels: Its pixel [r], in row-major order.
        """
        local = self.directions().reshape(-1, 3)[pixels]
        turned = np.einsum("rij,rj->ri", self.poses[views][:, :, :3], local)
        return self.places[views], turned


def check_poses(poses: Array) -> None:
    """Check that poses [v, 3, 4] are rigid motions.

    Raises:
        InputError: If one is not.
    """
    if poses.ndim != 3 or poses.shape[1:] != (3, 4) or not len(poses):
        raise InputError(f"poses must have shape [v, 3, 4], got {list(poses.shape)}.")
    for number, pose in enumerate(poses):
        if not np.isfinite(pose).all():
            raise InputError(f"poses must be finite, that of view {number} has NaN or Inf.")
        turn = pose[:, :3]
        large = np.abs(turn).max() > 2
        if large or np.abs(turn.T @ turn - np.eye(3)).max() > RIGID or np.linalg.det(turn) < 0:
            raise InputError(
                f"poses must be rigid motions, the axes of view {number} are not orthonormal and "
                "right-handed."
            )


def looking_at(places: Array, target: Array, up: Array) -> Array:
    """Return the poses [v, 3, 4] of cameras at some places that look at one point.

    Args:
        places: Where they stand [v, 3].
        target: What is in the middle of their pictures [3].
        up: What is up in them [3].

    Raises:
        ValueError: If a camera stands at the target, or straight above or below it.
    """
    back = places - target
    lengths = np.linalg.norm(back, axis=1, keepdims=True)
    right = np.cross(up, back)
    widths = np.linalg.norm(right, axis=1, keepdims=True)
    if not (widths > 1e-9 * np.maximum(lengths, 1e-300)).all():
        raise ValueError("places must be apart from the target, and not straight above it.")
    back, right = back / lengths, right / widths
    return np.stack([right, np.cross(back, right), back, places], axis=2)
