"""Triangles seen from afar: a depth buffer and two lamps."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from hessian_lab.plots.style import ORANGE
from hessian_lab.signals.raster import face_normals, nearest_faces, unit, vertex_normals

Array = np.ndarray[Any, np.dtype[Any]]

# Of the outside; the inside of a surface, seen where it is torn or turned over, is orange.
OUTSIDE = (0.70, 0.77, 0.84)
# Directions to the lamps in the viewer's axes (right, up, towards), and their strengths.
LAMPS = (((-0.6, 0.8, 0.45), 0.85), ((0.9, 0.0, 0.4), 0.15))
AMBIENT = 0.12
# Cosine of the angle between a face and its neighbours from which their edge is drawn sharp.
CREASE = 0.85
# Rays per pixel and side.
SAMPLES = 2
UPS = ("y", "z")


@dataclass(frozen=True)
class View:
    """From where a surface is seen, without perspective.

    Attributes:
        azimuth: Degrees that the viewer walks around the upright axis, anticlockwise from above.
        elevation: Degrees that the viewer rises.
        up: The upright axis of the coordinates: y or z.
        reach: Half the side of the square that is seen.
    """

    azimuth: float = 30.0
    elevation: float = 20.0
    up: str = "y"
    reach: float = 1.0

    def __post_init__(self) -> None:
        if self.up not in UPS:
            raise ValueError(f"up must be one of {', '.join(UPS)}, got {self.up!r}.")
        if not 0 < self.reach < math.inf:
            raise ValueError(f"reach must be positive and finite, got {self.reach:g}.")

    @property
    def axes(self) -> Array:
        """The viewer's axes in those of the surface [3, 3]: right, up, towards the viewer."""
        turn, rise = math.radians(self.azimuth), math.radians(self.elevation)
        right = np.array([math.cos(turn), 0, -math.sin(turn)])
        towards = np.array([math.sin(turn), 0, math.cos(turn)]) * math.cos(rise)
        towards[1] = math.sin(rise)
        axes = np.stack([right, np.cross(towards, right), towards])
        # As if z were the depth of a picture laid on its back.
        return axes if self.up == "y" else axes @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])


def shade(vertices: Array, faces: Array, *, view: View, size: int = 400) -> Array:
    """Return a picture [size, size, 4] of a surface around the origin, with transparent ground.

    Normals are those of the vertices, averaged over their faces and interpolated, except across
    sharp edges: smooth surfaces look smooth. About a second for 70,000 faces at 500 pixels.

    Args:
        vertices: Places [v, 3].
        faces: Indices of vertices [f, 3], anticlockwise seen from outside.
        view: From where.
        size: Pixels per side.

    Raises:
        ValueError: If ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    rays = size * SAMPLES
    seen = vertices @ view.axes.T
    normals = vertex_normals(seen, faces)
    places = (seen / view.reach + 1) / 2 * rays - 0.5
    face, weights = nearest_faces(places[faces], rays)
    hit = face >= 0
    picture = np.zeros((rays * rays, 4))
    flat = unit(face_normals(seen[faces[face[hit]]]))
    around = normals[faces[face[hit]]]
    smooth = (around * flat[:, None]).sum(axis=2, keepdims=True) > CREASE
    across = (weights[hit, :, None] * np.where(smooth, around, flat[:, None])).sum(axis=1)
    picture[hit, :3] = _lit(across, flat[:, 2] > 0)
    picture[hit, 3] = 1
    blocks = picture.reshape(size, SAMPLES, size, SAMPLES, 4)
    cover = blocks[..., 3].sum(axis=(1, 3))
    colours = blocks[..., :3].sum(axis=(1, 3)) / np.maximum(cover, 1)[..., None]
    return np.concatenate([colours, cover[..., None] / SAMPLES**2], axis=-1)[::-1]


def _lit(across: Array, outside: Array) -> Array:
    """Return colours [p, 3] of places with normals ``across`` [p, 3] in the viewer's axes."""
    # A surface is lit on the side that is seen.
    across = unit(across) * np.where(outside, 1, -1)[:, None]
    light = np.full(len(across), AMBIENT)
    for direction, strength in LAMPS:
        towards = np.array(direction) / np.linalg.norm(direction)
        light += strength * np.maximum(across @ towards, 0)
    colours = np.where(outside[:, None], OUTSIDE, to_rgb(ORANGE))
    # Light adds up linearly; the eye, and sRGB, do not.
    lit: Array = np.clip(colours**2.2 * light[:, None] * 1.25, 0, 1) ** (1 / 2.2)
    return lit
