"""A depth buffer: which triangle is seen along every ray of a picture."""

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

# Pairs of a face and a ray that are looked at together.
PAIRS = 1 << 18


def nearest_faces(triangles: Array, rays: int) -> tuple[Array, Array]:
    """Return the nearest face of every ray of a square picture, and where in the face it is hit.

    Ray (column, row) goes through the place (column, row), and what is higher is nearer: depth may
    be any quantity that is linear on the picture, so in perspective the reciprocal of distance.

    Args:
        triangles: Corners [f, 3, 3]: column, row and height of each.
        rays: Per side of the picture.

    Returns:
        Faces [rays²] in row-major order, -1 where there is none, and the weights [rays², 3] of
        their corners on the picture.
    """
    depth = np.full(rays * rays, -np.inf)
    found = np.full(rays * rays, -1)
    shares = np.zeros((rays * rays, 3))
    for face, column, row in _pairs(triangles, rays):
        corners = triangles[face]
        weights = _weights(corners, column, row)
        near = (weights >= 0).all(axis=1)
        place = (row * rays + column)[near]
        height = (weights[near] * corners[near, :, 2]).sum(axis=1)
        np.maximum.at(depth, place, height)
        first = np.flatnonzero(height == depth[place])
        found[place[first]] = face[near][first]
        shares[place[first]] = weights[near][first]
    return found, shares


def _weights(corners: Array, column: Array, row: Array) -> Array:
    """Return the barycentric weights [p, 3] of rays in the triangles they are paired with."""
    ray = np.stack([column, row], axis=1)
    from_ray = corners[..., :2] - ray[:, None]
    after, before = np.roll(from_ray, -1, axis=1), np.roll(from_ray, 1, axis=1)
    parts = after[..., 0] * before[..., 1] - after[..., 1] * before[..., 0]
    total = parts.sum(axis=1, keepdims=True)
    return np.where(total != 0, parts / np.where(total != 0, total, 1), -1)


def _pairs(triangles: Array, rays: int) -> Iterator[tuple[Array, Array, Array]]:
    """Yield every face with the rays in it, and some on its edges: face, column and row."""
    heights = triangles[..., 1]
    low = np.ceil(np.clip(heights.min(axis=1), 0, rays)).astype(np.int64)
    high = np.floor(np.clip(heights.max(axis=1), -1, rays - 1)).astype(np.int64)
    for row, face in _ranges(low, high + 1):
        left, right = _span(triangles[face], row, rays)
        for column, place in _ranges(left, right + 1):
            yield face[place], column, row[place]


def _span(triangles: Array, row: Array, rays: int) -> tuple[Array, Array]:
    """Return the first and last column of each triangle in a row."""
    starts, ends = triangles, np.roll(triangles, -1, axis=1)
    rise = ends[..., 1] - starts[..., 1]
    share = (row[:, None] - starts[..., 1]) / np.where(rise != 0, rise, np.nan)
    meets = (share >= 0) & (share <= 1)
    cut = starts[..., 0] + share * (ends[..., 0] - starts[..., 0])
    left = np.where(meets, cut, np.inf).min(axis=1)
    right = np.where(meets, cut, -np.inf).max(axis=1)
    return (
        np.ceil(np.clip(left, 0, rays)).astype(np.int64),
        np.floor(np.clip(right, -1, rays - 1)).astype(np.int64),
    )


def _ranges(begin: Array, end: Array) -> Iterator[tuple[Array, Array]]:
    """Yield the numbers from ``begin[i]`` to ``end[i]`` with their i, ``PAIRS`` at a time."""
    sizes = np.maximum(end - begin, 0)
    totals = np.cumsum(sizes)
    offsets = totals - sizes
    for first in range(0, int(totals[-1]) if len(totals) else 0, PAIRS):
        flat = np.arange(first, min(first + PAIRS, int(totals[-1])))
        of = np.searchsorted(totals, flat, side="right")
        yield begin[of] + flat - offsets[of], of


def face_normals(triangles: Array) -> Array:
    """Return vectors [f, 3] across triangles [f, 3, 3], twice as long as they are large."""
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


def vertex_normals(vertices: Array, faces: Array) -> Array:
    """Return unit vectors along the sum of the faces' normals around each vertex [v, 3]."""
    across = face_normals(vertices[faces])
    sums = [
        np.bincount(faces.reshape(-1), np.repeat(part, 3), minlength=len(vertices))
        for part in across.T
    ]
    return unit(np.stack(sums, axis=1))


def unit(vectors: Array) -> Array:
    """Return vectors [p, 3] at length 1; those of length 0 stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
