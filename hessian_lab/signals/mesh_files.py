"""Files of meshes: reading OBJ, PLY, STL and OFF, writing PLY and OBJ."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hessian_lab.errors import InputError
from hessian_lab.probe.memory import readable, require_bytes
from hessian_lab.signal import Source
from hessian_lab.signals.mesh_ply import parse_ply
from hessian_lab.signals.mesh_stl import parse_stl
from hessian_lab.signals.mesh_text import Polygons, parse_obj, parse_off
from hessian_lab.signals.meshes import Mesh, mesh_of_polygons

PARSERS: dict[str, Callable[[bytes], Polygons]] = {
    ".obj": parse_obj,
    ".ply": parse_ply,
    ".stl": parse_stl,
    ".off": parse_off,
}
MOST_BYTES = 1 << 30
# Memory per byte of a file while it is read, measured: a number of two letters becomes an object.
MEMORY_PER_BYTE = 72


def is_mesh_path(path: str | Path) -> bool:
    """Tell whether a path ends like a file of a mesh: .obj, .ply, .stl or .off."""
    return Path(path).suffix.lower() in PARSERS


def read_mesh(path: str | Path, *, name: str | None = None, attribution: str = "") -> Mesh:
    """Return the mesh of an OBJ, PLY, STL or OFF file, told apart by their endings.

    Polygons are cut into triangles, vertices at one place become one, degenerate faces are dropped
    and counted; colours, normals and textures are ignored. Files may come from anywhere: their
    size is bounded, and so is what their headers make us allocate.

    Args:
        path: The file.
        name: What messages and records call it; by default the file's name.
        attribution: Author and licence; by default ``file NAME``.

    Raises:
        InputError: If the file is missing, empty, truncated, of another format or larger than
            ``MOST_BYTES``, if a vertex is not finite or an index out of range, or if no face is
            left.
        ResourceError: If it does not fit in memory.
    """
    place = _expanded(path)
    if not is_mesh_path(place):
        raise InputError(f"mesh must be a file of {', '.join(PARSERS)}, got {place}.")
    data = _bytes(place)
    source = Source(
        name or place.name, attribution or f"file {place.name}", hashlib.sha256(data).hexdigest()
    )
    return mesh_of_bytes(data, place.suffix, source)


def mesh_of_bytes(data: bytes, ending: str, source: Source) -> Mesh:
    """Return the mesh that the bytes of a file hold.

    Args:
        data: The bytes.
        ending: A key of ``PARSERS``: the format.
        source: Where they come from.

    Raises:
        InputError: As ``read_mesh``.
    """
    kind = ending.lower()
    if not data.strip():
        raise InputError(f"mesh must be a file of {kind}, {source.name} is empty.")
    try:
        with np.errstate(all="ignore"):
            vertices, corners, sizes = PARSERS[kind](data)
    except ValueError as error:
        raise InputError(
            f"mesh must be a whole file of {kind}, {source.name} cannot be read: "
            f"{str(error).rstrip('.')}."
        ) from error
    return mesh_of_polygons(vertices, corners, sizes, source)


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"mesh must be a file, {path}: {error}") from None


def _bytes(path: Path) -> bytes:
    try:
        if not path.exists():
            raise InputError(f"mesh must be a file, {path} does not exist.")
        if not path.is_file():
            raise InputError(f"mesh must be a file, {path} is none.")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise InputError(
                f"mesh must be a file of at most {readable(MOST_BYTES)}, {path} has "
                f"{readable(size)}."
            )
        require_bytes(
            MEMORY_PER_BYTE * size,
            f"Reading {path.name}",
            device=torch.device("cpu"),
            cure="Take a mesh of fewer faces.",
        )
        with path.open("rb") as stream:
            return stream.read(MOST_BYTES)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"mesh must be a readable file, {path}: {reason}.") from error


def ply_bytes(mesh: Mesh) -> bytes:
    """Return a mesh as a binary PLY file, little-endian, with coordinates in double precision."""
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(mesh.vertices)}\n"
        "property double x\nproperty double y\nproperty double z\n"
        f"element face {len(mesh.faces)}\n"
        "property list uchar uint vertex_indices\nend_header\n"
    )
    faces = np.empty(len(mesh.faces), dtype=[("size", "u1"), ("corners", "<u4", 3)])
    faces["size"] = 3
    faces["corners"] = mesh.faces
    return header.encode() + mesh.vertices.astype("<f8").tobytes() + faces.tobytes()


def obj_bytes(mesh: Mesh) -> bytes:
    """Return a mesh as an OBJ file, with every digit of the coordinates."""
    lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in mesh.vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (mesh.faces + 1).tolist()]
    return ("\n".join(lines) + "\n").encode()


# Ending -> the bytes of a file of it, to be written whole: ``write_atomically``.
WRITERS: dict[str, Callable[[Mesh], bytes]] = {".ply": ply_bytes, ".obj": obj_bytes}
