"""Meshes with closed forms, and the winding number as a sum of solid angles: nothing of ours."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from hessian_lab.signals.meshes import Mesh

CUBE = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
# Anticlockwise seen from outside.
SQUARES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def box(*lengths):
    """Return a box around the origin: 8 vertices, 12 faces."""
    faces = [part for a, b, c, d in SQUARES for part in ((a, b, c), (a, c, d))]
    return Mesh(CUBE * np.array(lengths) / 2, np.array(faces))


def icosphere(subdivisions=2, radius=1.0):
    """Return an icosahedron, subdivided, with its vertices on a sphere."""
    golden = (1 + 5**0.5) / 2
    signs = list(itertools.product((-1, 1), repeat=2))
    vertices = [np.roll([0, a, b * golden], turn) for turn in range(3) for a, b in signs]
    vertices = [tuple(vertex / np.linalg.norm(vertex)) for vertex in vertices]
    near = 1.1 * min(np.linalg.norm(np.subtract(vertices[0], other)) for other in vertices[1:])
    faces = []
    for triple in itertools.combinations(range(12), 3):
        a, b, c = (np.array(vertices[place]) for place in triple)
        if max(np.linalg.norm(a - b), np.linalg.norm(b - c), np.linalg.norm(c - a)) < near:
            outward = np.dot(np.cross(b - a, c - a), a) > 0
            faces.append(triple if outward else triple[::-1])
    for _ in range(subdivisions):
        middles = {}

        def middle(i, j, middles=middles):
            key = (min(i, j), max(i, j))
            if key not in middles:
                place = np.add(vertices[i], vertices[j])
                vertices.append(tuple(place / np.linalg.norm(place)))
                middles[key] = len(vertices) - 1
            return middles[key]

        cut = []
        for a, b, c in faces:
            ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
            cut += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        faces = cut
    return Mesh(radius * np.array(vertices), np.array(faces))


def torus(large=0.6, small=0.25, around=48, across=24):
    """Return a torus around the z axis."""
    u, v = np.meshgrid(
        2 * np.pi * np.arange(around) / around,
        2 * np.pi * np.arange(across) / across,
        indexing="ij",
    )
    ring = large + small * np.cos(v)
    places = np.stack([ring * np.cos(u), ring * np.sin(u), small * np.sin(v)], axis=-1)
    number = np.arange(around * across).reshape(around, across)
    right, above = np.roll(number, -1, axis=0), np.roll(number, -1, axis=1)
    far = np.roll(right, -1, axis=1)
    faces = [np.stack([number, right, far], -1), np.stack([number, far, above], -1)]
    return Mesh(places.reshape(-1, 3), np.concatenate(faces).reshape(-1, 3))


def joined(*meshes):
    """Return several meshes as one."""
    starts = np.cumsum([0, *(len(one.vertices) for one in meshes[:-1])])
    faces = [one.faces + start for one, start in zip(meshes, starts, strict=True)]
    return Mesh(np.concatenate([one.vertices for one in meshes]), np.concatenate(faces))


def turned(mesh):
    """Return the mesh inside out."""
    return Mesh(mesh.vertices, mesh.faces[:, ::-1])


def rotation(seed=0):
    """Return a rotation [3, 3] in general position."""
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    return matrix * np.sign(np.linalg.det(matrix))


def winding_numbers(mesh, points):
    """Return the winding numbers [p] as sums of the faces' solid angles.

    A. Van Oosterom and J. Strackee, The solid angle of a plane triangle, 1983.
    """
    numbers = []
    for point in points:
        a, b, c = np.moveaxis(mesh.vertices[mesh.faces] - point, 1, 0)
        x, y, z = (np.linalg.norm(corner, axis=1) for corner in (a, b, c))
        above = (a * np.cross(b, c)).sum(axis=1)
        below = x * y * z + (a * b).sum(1) * z + (b * c).sum(1) * x + (c * a).sum(1) * y
        numbers.append(2 * np.arctan2(above, below).sum() / (4 * np.pi))
    return np.array(numbers)


def data_file(name):
    """Return a file of ``HESSIAN_LAB_DATA``, or skip the test."""
    path = Path(os.environ.get("HESSIAN_LAB_DATA", "")) / name
    if "HESSIAN_LAB_DATA" not in os.environ or not path.exists():
        pytest.skip(f"needs {name} in HESSIAN_LAB_DATA")
    return path
