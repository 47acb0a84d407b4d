"""OBJ and OFF: meshes as lines of text. Parsers raise ValueError with the rest of a sentence."""

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
# Vertices [v, 3], corners of polygons [k] one after another, corners per polygon [f].
Polygons = tuple[Array, Array, Array]

OFF_KINDS = ("OFF", "COFF", "NOFF", "CNOFF")


def parse_obj(data: bytes) -> Polygons:
    """Return the polygons of a Wavefront OBJ file; all but its ``v`` and ``f`` lines is ignored.

    Raises:
        ValueError: If a vertex has no three numbers, or a corner of a face is no index.

    References:
        Wavefront, Advanced Visualizer manual, appendix B1.
    """
    vertices: list[tuple[float, float, float]] = []
    corners: list[int] = []
    sizes: list[int] = []
    for number, words in _lines(data.replace(b"\\\r\n", b" ").replace(b"\\\n", b" ")):
        if words[0] == b"v":
            vertices.append(_place(words[1:], number))
        elif words[0] == b"f":
            face = [_index(word, len(vertices), number) for word in words[1:]]
            corners += face
            sizes.append(len(face))
    return _arrays(vertices, corners, sizes)


def parse_off(data: bytes) -> Polygons:
    """Return the polygons of an OFF file; normals, colours and edges are ignored.

    Raises:
        ValueError: If it is no OFF file in text, or has fewer lines than its header says.

    References:
        Geomview manual, OFF files.
    """
    lines = list(_lines(data))
    counts = _off_counts(lines)
    num_vertices, num_faces = counts
    if num_vertices + num_faces > len(lines):
        raise ValueError(
            f"its header says {num_vertices} vertices and {num_faces} faces, and {len(lines)} "
            "lines follow"
        )
    vertices = [_place(words, number) for number, words in lines[:num_vertices]]
    corners: list[int] = []
    sizes: list[int] = []
    for number, words in lines[num_vertices : num_vertices + num_faces]:
        size = _integer(words[0], number)
        if not 0 <= size < len(words):
            raise ValueError(f"line {number} says {size} corners and has {len(words) - 1}")
        corners += [_integer(word, number) for word in words[1 : 1 + size]]
        sizes.append(size)
    return _arrays(vertices, corners, sizes)


def _off_counts(lines: list[tuple[int, list[bytes]]]) -> tuple[int, int]:
    """Take the header off the lines, and return the numbers of vertices and faces."""
    head = lines.pop(0)[1] if lines else [b""]
    for kind in OFF_KINDS:
        # Some writers put the counts right behind the word.
        rest = head[0].removeprefix(kind.encode())
        if rest != head[0] and (not rest or rest.isdigit()):
            counts = ([rest] if rest else []) + head[1:]
            break
    else:
        raise ValueError(f"it does not begin with one of {', '.join(OFF_KINDS)}")
    if not counts:
        counts = lines.pop(0)[1] if lines else []
    if len(counts) < 2 or not all(word.isdigit() for word in counts[:2]):
        raise ValueError("its header has no numbers of vertices and faces")
    return int(counts[0]), int(counts[1])


def _lines(data: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the lines that say something, with their numbers, in words, without comments."""
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        words = line.partition(b"#")[0].split()
        if words:
            yield number, words


def _place(words: list[bytes], number: int) -> tuple[float, float, float]:
    try:
        x, y, z = (float(word) for word in words[:3])
    except ValueError:
        raise ValueError(f"line {number} must have three coordinates") from None
    return x, y, z


def _integer(word: bytes, number: int) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"line {number} must have whole numbers") from None


def _index(word: bytes, num_vertices: int, number: int) -> int:
    """Return the place of a corner ``a``, ``a/b``, ``a//c`` or ``a/b/c``; -1 is the last vertex."""
    index = _integer(word.partition(b"/")[0], number)
    if index == 0 or index < -num_vertices:
        raise ValueError(f"line {number} has a face of vertex {index}, which there is not")
    return index - 1 if index > 0 else num_vertices + index


def _arrays(
    vertices: list[tuple[float, float, float]], corners: list[int], sizes: list[int]
) -> Polygons:
    try:
        return (
            np.array(vertices, dtype=np.float64).reshape(-1, 3),
            np.array(corners, dtype=np.int64),
            np.array(sizes, dtype=np.int64),
        )
    except OverflowError:
        raise ValueError("a face is of a vertex beyond all numbers") from None
