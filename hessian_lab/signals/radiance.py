"""Radiance fields by name or path: scenes that we render, and folders of posed pictures."""

import hashlib
import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from hessian_lab.probe.memory import require_bytes
from hessian_lab.signal import Signal, Source
from hessian_lab.signals.cameras import Cameras, looking_at
from hessian_lab.signals.kinds import is_path, without_kind
from hessian_lab.signals.meshes import Mesh
from hessian_lab.signals.posed_files import REACH, read_scene
from hessian_lab.signals.render import render, torus
from hessian_lab.signals.scenes import Scene
from hessian_lab.signals.shapes import TERRAIN, shape_mesh

Array = np.ndarray[Any, np.dtype[Any]]

TORUS = "torus-nerf"
# Shapes that a scene is rendered from: its name is theirs with this ending.
ENDING = "-nerf"
SIZE = 100
# Scenes of pictures up to this many pixels a side are kept, some ten megabytes each.
LARGEST_KEPT = 128
# As in the scenes of Mildenhall et al. (2020): the lens, and how far the cameras are from the
# middle of a box of half side 1.5, which is [-1, 1]³ here.
ANGLE = 0.6911112070083618
DISTANCE = 1 / REACH
# The radius of the ball that a mesh fills: all of it is in every picture.
RADIUS = 0.8
NUM_VIEWS, NUM_HELD_OUT = 24, 6
ATTRIBUTION = "Chequered torus, posed pictures rendered by hessian-lab"


def load_radiance(
    name: str,
    size: int | None = None,
    points: int | None = None,
    views: int | None = None,
) -> Signal:
    """Return rays through posed pictures; see ``Scene.signal``.

    Args:
        name: As ``load_scene`` takes it.
        size: Rows of the pictures.
        points: How many rays; 2,048 by default.
        views: Pictures that they are drawn from; all that are not held out by default.

    Raises:
        InputError: If there is no such scene, or it cannot be read.
        ResourceError: If pictures or rays do not fit in memory.
    """
    return load_scene(name, size).signal(points, views)


def load_scene(name: str, size: int | None = None) -> Scene:
    """Return a scene by its name or that of its folder.

    Args:
        name: ``torus-nerf``, ``spot-nerf`` or ``nefertiti-nerf``, which are rendered here, or the
            path of a folder with ``transforms_train.json`` or ``transforms.json`` (Blender,
            instant-ngp) or with ``poses_bounds.npy`` (LLFF).
        size: Rows of the pictures, at most those of the files; 100, or all of them, by default.

    Raises:
        InputError: If there is no such scene, or it cannot be read.
        ResourceError: If its pictures do not fit in memory.
    """
    if is_path(name):
        return read_scene(without_kind(name), size)
    mesh, size = _mesh(name), size or SIZE
    if size > LARGEST_KEPT:
        return rendered_scene(mesh, size, name=name)
    kept = _kept(name, size, mesh.source.sha256 if mesh.source else "")
    # Whoever asks may write into their own.
    return replace(kept, pictures=kept.pictures.copy())


@lru_cache(maxsize=4)
def _kept(name: str, size: int, _digest: str) -> Scene:
    """Return a scene that a training and its measurements ask for: rendering takes a second."""
    return rendered_scene(_mesh(name), size, name=name)


def _mesh(name: str) -> Mesh:
    return torus() if name == TORUS else shape_mesh(name.removesuffix(ENDING))


def rendered_scene(
    mesh: Mesh, size: int = SIZE, *, name: str = "mesh", num_views: int = NUM_VIEWS
) -> Scene:
    """Return square pictures of a mesh over white, from all around and above.

    Training views lie evenly on the upper half of a sphere, held-out ones on a circle at 30 degrees
    of elevation.

    Args:
        mesh: What is seen; it is scaled to a ball of radius 0.8.
        size: Pixels per side.
        name: Of the scene.
        num_views: Pictures to train with; six more are held out.

    Raises:
        ResourceError: If the pictures do not fit in memory.
    """
    require_bytes(
        (num_views + NUM_HELD_OUT) * 4 * 8 * size**2 + 9 * 20 * 8 * size**2,
        f"{num_views + NUM_HELD_OUT} pictures of {size}×{size} pixels",
        device=torch.device("cpu"),
        cure="Take a smaller --size.",
    )
    mesh = _in_ball(mesh, up="z" if name.startswith((TERRAIN, TORUS)) else "y")
    places = np.concatenate([_upper_half(num_views), circle(NUM_HELD_OUT)]) * DISTANCE
    cameras = cameras_at(places, (size, size))
    pictures = render(mesh, cameras)
    alpha = pictures[..., 3:]
    return Scene(
        cameras,
        pictures[..., :3] * alpha + (1 - alpha),
        np.arange(len(places)) >= num_views,
        background=1.0,
        source=_source(name, mesh, pictures),
    )


def cameras_at(places: Array, shape: tuple[int, int]) -> Cameras:
    """Return cameras with the lens of the rendered scenes that look at the middle of the box."""
    poses = looking_at(places, np.zeros(3), np.array([0.0, 0.0, 1.0]))
    return Cameras(poses, shape, shape[1] / 2 / math.tan(ANGLE / 2))


def circle(count: int, *, elevation: float = 30.0) -> Array:
    """Return evenly spaced places [count, 3] on a circle of the unit sphere."""
    turn, rise = 2 * np.pi * np.arange(count) / count, math.radians(elevation)
    level = np.full(count, math.sin(rise))
    return np.stack([np.cos(turn) * math.cos(rise), np.sin(turn) * math.cos(rise), level], axis=1)


def _upper_half(count: int) -> Array:
    """Return evenly spread places [count, 3] on the upper half of the unit sphere, not its pole."""
    height = (np.arange(count) + 0.5) / count * 0.95
    turn = np.pi * (3 - math.sqrt(5)) * np.arange(count)
    reach = np.sqrt(1 - height**2)
    return np.stack([reach * np.cos(turn), reach * np.sin(turn), height], axis=1)


def _in_ball(mesh: Mesh, *, up: str) -> Mesh:
    """Return a mesh in the ball of radius ``RADIUS``, standing upright along z."""
    vertices = mesh.vertices - mesh.bounds.mean(axis=0)
    if up == "y":
        vertices = vertices[:, [2, 0, 1]]
    return replace(mesh, vertices=vertices * RADIUS / np.linalg.norm(vertices, axis=1).max())


def _source(name: str, mesh: Mesh, pictures: Array) -> Source:
    digest = hashlib.sha256((pictures * 255).round().astype(np.uint8).tobytes()).hexdigest()
    if mesh.source is None:
        return Source(name, ATTRIBUTION, digest)
    return Source(name, f"{mesh.source.attribution}; pictures rendered by hessian-lab", digest)
