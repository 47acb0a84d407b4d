"""STL: triangles without shared vertices. Parsers raise ValueError with the rest of a sentence."""

import numpy as np

from hessian_lab.signals.mesh_text import Polygons

HEADER_BYTES = 84
FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def parse_stl(data: bytes) -> Polygons:
    """Return the triangles of an STL file, each with three vertices of its own.

    A file is binary if it is as long as its number of facets says; else it must begin with
    ``solid``. Normals are ignored: the order of the corners tells them.

    Raises:
        ValueError: If it is neither, or truncated.

    References:
        3D Systems, StereoLithography interface specification, 1989.
    """
    if len(data) >= HEADER_BYTES:
        num_facets = int.from_bytes(data[80:HEADER_BYTES], "little")
        there = (len(data) - HEADER_BYTES) // FACET.itemsize
        if num_facets == there and (len(data) - HEADER_BYTES) % FACET.itemsize == 0:
            return _binary(data, num_facets)
    if data[:256].lstrip()[:5].lower() == b"solid":
        return _text(data)
    if len(data) < HEADER_BYTES:
        raise ValueError("it is shorter than a header, and does not begin with 'solid'")
    if num_facets > there:
        raise ValueError(f"its header says {num_facets} facets, and {there} follow")
    return _binary(data, num_facets)


def _binary(data: bytes, num_facets: int) -> Polygons:
    facets = np.frombuffer(data, FACET, count=num_facets, offset=HEADER_BYTES)
    return _triangles(facets["corners"].astype(np.float64))


def _text(data: bytes) -> Polygons:
    corners: list[list[float]] = []
    num_facets, ended = 0, False
    for line in data.splitlines():
        words = line.lower().split()
        mark = words[0] if words else b""
        if mark == b"vertex":
            corners.append(_numbers(words[1:4]))
        num_facets += mark == b"endfacet"
        ended = ended or mark == b"endsolid"
    if not ended:
        raise ValueError("it ends before 'endsolid'")
    if len(corners) != 3 * num_facets:
        raise ValueError(f"it has {len(corners)} corners in {num_facets} facets, not three in each")
    return _triangles(np.array(corners, dtype=np.float64).reshape(-1, 3, 3))


def _numbers(words: list[bytes]) -> list[float]:
    try:
        x, y, z = (float(word) for word in words)
    except ValueError:
        raise ValueError("each of its vertices must have three numbers") from None
    return [x, y, z]


def _triangles(corners: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> Polygons:
    number = len(corners)
    return (
        corners.reshape(-1, 3),
        np.arange(3 * number, dtype=np.int64),
        np.full(number, 3, dtype=np.int64),
    )
