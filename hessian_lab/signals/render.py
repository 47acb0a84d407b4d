"""Pictures of a mesh from posed cameras: a scene whose radiance is known."""

from typing import Any

import numpy as np

from hessian_lab.errors import InputError
from hessian_lab.signals.cameras import Cameras
from hessian_lab.signals.meshes import Mesh
from hessian_lab.signals.raster import nearest_faces, vertex_normals

Array = np.ndarray[Any, np.dtype[Any]]

# Rays per pixel and side.
SAMPLES = 3
# Towards the lamp, and the share of light that comes from everywhere.
LAMP = np.array([0.4, -0.5, 0.77])
AMBIENT = 0.4
# Cells of the chequers per unit, and how dark every second one is.
CELLS, DARK = 3.0, 0.55


def render(mesh: Mesh, cameras: Cameras, *, samples: int = SAMPLES) -> Array:
    """Return pictures [v, rows, columns, 4] of a mesh: straight RGB, and coverage.

    A chequered solid in daylight: its colours vary with the place, one lamp and the sky light it
    (Lambert), and it looks the same from everywhere. A depth buffer in perspective.

    Args:
        mesh: Triangles around the origin, both of whose sides are lit alike.
        cameras: From where.
        samples: Rays per pixel and side.

    Raises:
        InputError: If a camera has part of the mesh behind it.
    """
    rows, columns = cameras.shape
    colours = _colours(mesh)
    pictures = np.zeros((len(cameras.poses), rows, columns, 4))
    for picture, pose in zip(pictures, cameras.poses, strict=True):
        face, weights = _seen(mesh, cameras, pose, samples)
        hit = face >= 0
        corners = mesh.faces[face[hit]]
        side = max(rows, columns) * samples
        fine = np.zeros((side * side, 4))
        places = (weights[hit, :, None] * mesh.vertices[corners]).sum(axis=1)
        light = (weights[hit, :, None] * colours[corners]).sum(axis=1)
        fine[hit, :3] = light * _chequers(places)[:, None]
        fine[hit, 3] = 1
        kept = fine.reshape(side, side, 4)[: rows * samples, : columns * samples]
        mean = kept.reshape(rows, samples, columns, samples, 4).mean(axis=(1, 3))
        cover = mean[..., 3:]
        picture[...] = np.concatenate([mean[..., :3] / np.where(cover, cover, 1), cover], axis=-1)
    return pictures


def _seen(mesh: Mesh, cameras: Cameras, pose: Array, samples: int) -> tuple[Array, Array]:
    """Return the face of every ray of the square around a picture, and weights on that face."""
    rows, columns = cameras.shape
    local = (mesh.vertices - pose[:, 3]) @ pose[:, :3]
    depth = -local[:, 2]
    if not (depth > 0).all():
        raise InputError(f"cameras must have all of {mesh.name} before them, one has not.")
    flat = local[:, :2] * (1, -1) / depth[:, None] * cameras.focal + (columns / 2, rows / 2)
    nearness = np.concatenate([flat * samples - 0.5, 1 / depth[:, None]], axis=1)
    face, weights = nearest_faces(nearness[mesh.faces], max(rows, columns) * samples)
    # Weights on the picture are those on the face times what is near.
    weights = weights / depth[mesh.faces[face]]
    return face, weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)


def _colours(mesh: Mesh) -> Array:
    """Return the lit colour of every vertex [v, 3]; hues turn around the middle."""
    outwards = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True).clip(1e-9)
    albedo = 0.55 + 0.4 * outwards
    across = vertex_normals(mesh.vertices, mesh.faces)
    lamp = LAMP / np.linalg.norm(LAMP)
    light = AMBIENT + (1 - AMBIENT) * np.maximum(across @ lamp, 0)
    lit: Array = np.clip(albedo * light[:, None], 0, 1)
    return lit


def _chequers(places: Array) -> Array:
    odd = np.floor(places * CELLS).astype(np.int64).sum(axis=1) % 2
    return np.where(odd == 1, DARK, 1.0)


def torus(*, rings: int = 64, sides: int = 32, thickness: float = 0.4) -> Mesh:
    """Return a torus around the z axis that fits the unit ball, as a watertight mesh.

    Args:
        rings: Cuts around the axis.
        sides: Corners of each cut.
        thickness: Radius of the tube over that of the ring that it goes around.
    """
    turn, tube = (2 * np.pi * np.arange(count) / count for count in (rings, sides))
    turn, tube = np.meshgrid(turn, tube, indexing="ij")
    reach = 1 + thickness * np.cos(tube)
    places = [reach * np.cos(turn), reach * np.sin(turn), thickness * np.sin(tube)]
    vertices = np.stack(places, axis=-1).reshape(-1, 3) / (1 + thickness)
    ring, side = np.meshgrid(np.arange(rings), np.arange(sides), indexing="ij")
    after, beside = (ring + 1) % rings * sides, (side + 1) % sides
    here = ring * sides
    corners = [here + side, after + side, after + beside, here + beside]
    quads = np.stack(corners, axis=-1).reshape(-1, 4)
    return Mesh(vertices, np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]))
