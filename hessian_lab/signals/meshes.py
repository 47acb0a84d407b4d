"""Triangle meshes: what they are, whether they enclose a solid, and where they lie."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hessian_lab.errors import InputError
from hessian_lab.signal import Source

Array = np.ndarray[Any, np.dtype[Any]]

# Coordinates whose products of four stay far from the end of floating point.
FARTHEST = 1e50
# Between a normalised mesh and the box [-1, 1]³: room for points near the surface on both sides.
MARGIN = 0.1


@dataclass(frozen=True)
class Edges:
    """How the faces of a mesh meet along its edges.

    Attributes:
        num_edges: Pairs of vertices that a face joins.
        num_open: Edges of an odd number of faces: of one, where the surface ends.
        num_nonmanifold: Edges of more than two faces.
        num_misoriented: Edges of an even number of faces that do not run through them equally
            often in both directions: neighbours disagree on which side is out.
    """

    num_edges: int
    num_open: int
    num_nonmanifold: int
    num_misoriented: int

    @property
    def watertight(self) -> bool:
        """Whether the surface has an inside: every line crosses it an even number of times."""
        return self.num_open == 0

    @property
    def oriented(self) -> bool:
        """Whether it has winding numbers too: a closed surface whose faces agree on their sides."""
        return self.watertight and self.num_misoriented == 0


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles in space.

    Attributes:
        vertices: Places [v, 3], in float64.
        faces: Indices of vertices [f, 3], in int64; anticlockwise seen from outside, by custom.
        source: Where it comes from.
        num_dropped: Degenerate faces that a file held and that were left out.

    Raises:
        InputError: If there is no face, an index is out of range, or a coordinate is not finite or
            beyond ``FARTHEST``.
        ValueError: If the arrays have other shapes.
    """

    vertices: Array
    faces: Array
    source: Source | None = None
    num_dropped: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("vertices", np.float64), ("faces", np.int64)):
            array = np.ascontiguousarray(getattr(self, name), dtype=kind)
            if array.ndim != 2 or array.shape[1] != 3:
                raise ValueError(f"{name} must have shape [n, 3], got {list(array.shape)}.")
            object.__setattr__(self, name, array)
        if not len(self.faces):
            raise InputError(f"mesh must have a face, {self.name} has none.")
        check_vertices(self.vertices, self.name)
        check_indices(self.faces, len(self.vertices), self.name)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.source.name if self.source else "mesh"

    @cached_property
    def triangles(self) -> Array:
        """The corners of the faces [f, 3, 3]."""
        corners: Array = self.vertices[self.faces]
        return corners

    @cached_property
    def normals(self) -> Array:
        """Vectors [f, 3] across the faces, twice as long as the faces are large."""
        first, second, third = np.moveaxis(self.triangles, 1, 0)
        return np.cross(second - first, third - first)

    @property
    def areas(self) -> Array:
        """The areas of the faces [f]."""
        lengths: Array = np.linalg.norm(self.normals, axis=1)
        return lengths / 2

    @property
    def volume(self) -> float:
        """The volume inside, by the divergence theorem: negative where faces point inwards.

        It means something where ``edges.oriented`` holds.
        """
        middle = (self.bounds[0] + self.bounds[1]) / 2
        heights = ((self.triangles[:, 0] - middle) * self.normals).sum(axis=1)
        return float(heights.sum()) / 6

    @property
    def bounds(self) -> Array:
        """The least and greatest coordinates [2, 3]."""
        return np.stack([self.vertices.min(axis=0), self.vertices.max(axis=0)])

    @cached_property
    def edges(self) -> Edges:
        """How the faces meet; a sort of 3f numbers."""
        ends = np.concatenate([self.faces, np.roll(self.faces, -1, axis=1)]).reshape(2, -1)
        low, high = ends.min(axis=0), ends.max(axis=0)
        _, edge = np.unique(low * len(self.vertices) + high, return_inverse=True)
        uses = np.bincount(edge)
        balance = np.bincount(edge, weights=np.sign(ends[1] - ends[0]))
        odd = uses % 2 == 1
        return Edges(
            num_edges=len(uses),
            num_open=int(odd.sum()),
            num_nonmanifold=int((uses > 2).sum()),
            num_misoriented=int((~odd & (balance != 0)).sum()),
        )


def check_vertices(vertices: Array, name: str) -> None:
    """Check that coordinates are numbers that can be computed with.

    Raises:
        InputError: If not.
    """
    if not np.isfinite(vertices).all():
        raise InputError(f"mesh must have finite vertices, {name} has NaN or Inf.")
    if len(vertices) and np.abs(vertices).max() > FARTHEST:
        raise InputError(
            f"mesh must have coordinates of at most {FARTHEST:g}, {name} has "
            f"{np.abs(vertices).max():.3g}."
        )


def check_indices(indices: Array, num_vertices: int, name: str) -> None:
    """Check that indices name vertices.

    Raises:
        InputError: If not.
    """
    if len(indices) and not (indices.min() >= 0 and indices.max() < num_vertices):
        wrong = indices.max() if indices.max() >= num_vertices else indices.min()
        raise InputError(
            f"mesh must have faces of its own {num_vertices} vertices (from 0), {name} has a face "
            f"of vertex {wrong}."
        )


def mesh_of_polygons(
    vertices: Array, corners: Array, sizes: Array, source: Source | None = None
) -> Mesh:
    """Return the mesh of some polygons: what every reader ends with.

    Vertices at one place become one, polygons are cut into fans from their first corner, faces
    that name a vertex twice are dropped and counted, and so are vertices of no face. A fan of a
    flat polygon that is not convex has overlapping triangles, which cancel in every winding number.

    Args:
        vertices: Places [v, 3].
        corners: Indices of vertices [k], polygon after polygon.
        sizes: How many corners each polygon has [f].
        source: Where it comes from.

    Raises:
        InputError: If there is no face, every face is degenerate, an index is out of range, or a
            coordinate is not finite.
    """
    name = source.name if source else "mesh"
    vertices = np.asarray(vertices, dtype=np.float64).reshape(-1, 3)
    corners, sizes = (np.asarray(part, dtype=np.int64) for part in (corners, sizes))
    if not len(sizes):
        raise InputError(f"mesh must have a face, {name} has none.")
    check_vertices(vertices, name)
    check_indices(corners, len(vertices), name)
    vertices, place = _welded(vertices)
    faces = _fans(place[corners], sizes)
    whole = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    num_dropped = int((~whole).sum() + (sizes < 3).sum())
    faces = faces[whole]
    if not len(faces) or not _has_area(vertices, faces):
        raise InputError(
            f"mesh must have a face of some area, all {num_dropped + len(faces)} of {name} are "
            "degenerate."
        )
    used, inverse = np.unique(faces, return_inverse=True)
    return Mesh(vertices[used], inverse.reshape(-1, 3), source, num_dropped)


def _welded(vertices: Array) -> tuple[Array, Array]:
    """Return the distinct vertices in order of first mention, and the place of each among them."""
    order = np.lexsort(vertices.T)
    in_order = vertices[order]
    starts = np.ones(len(vertices), dtype=bool)
    starts[1:] = (in_order[1:] != in_order[:-1]).any(axis=1)
    # lexsort is stable: the first of its equals is the one that was mentioned first.
    firsts = order[starts]
    rank = np.empty(len(firsts), dtype=np.int64)
    rank[np.argsort(firsts)] = np.arange(len(firsts))
    place = np.empty(len(vertices), dtype=np.int64)
    place[order] = rank[np.cumsum(starts) - 1]
    return vertices[np.sort(firsts)], place


def _fans(corners: Array, sizes: Array) -> Array:
    """Return the triangles [t, 3] of polygons, each from its first corner."""
    numbers = np.maximum(sizes - 2, 0)
    first = np.repeat(np.cumsum(sizes) - sizes, numbers)
    within = np.arange(numbers.sum()) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    return np.stack([corners[first], corners[first + within + 1], corners[first + within + 2]], 1)


def _has_area(vertices: Array, faces: Array) -> bool:
    extent = np.ptp(vertices, axis=0).max()
    scaled = (vertices - vertices.min(axis=0)) / extent
    return bool((Mesh(scaled, faces).areas > 0).any())


def normalised(mesh: Mesh, *, margin: float = MARGIN) -> Mesh:
    """Return the mesh centred in the box [-1, 1]³ by its bounds, its proportions kept.

    Args:
        mesh: Any mesh.
        margin: Room between its longest side and the box, in [0, 1): the mesh then spans
            [-1 + margin, 1 - margin] along it.

    Raises:
        ValueError: If the margin is out of range.
    """
    if not 0 <= margin < 1:
        raise ValueError(f"margin must be in [0, 1), got {margin:g}.")
    low, high = mesh.bounds
    half = float((high - low).max()) / 2
    if half == 0:
        raise InputError(f"mesh must have an extent, {mesh.name} is one point.")
    vertices = (mesh.vertices - (low + high) / 2) / half * (1 - margin)
    return replace(mesh, vertices=vertices)
