"""Solids by name or path."""

from hessian_lab.signal import Signal
from hessian_lab.signals.kinds import is_path
from hessian_lab.signals.mesh_files import read_mesh
from hessian_lab.signals.meshes import Mesh
from hessian_lab.signals.occupancy import NUM_POINTS, occupancy
from hessian_lab.signals.registry import located
from hessian_lab.signals.terrain import terrain_mesh

TERRAIN = "terrain"


def load_shape(name: str, points: int | None = None) -> Signal:
    """Return the occupancy of a solid, as ``occupancy`` makes it.

    Args:
        name: ``terrain``, a shape of the data registry, or the path of an OBJ, PLY, STL or OFF
            file.
        points: How many; 100,000 by default.

    Raises:
        InputError: If there is no such mesh, or it cannot be told what is inside of it.
    """
    return occupancy(shape_mesh(name), points or NUM_POINTS)


def shape_mesh(name: str) -> Mesh:
    """Return the mesh of a solid, as it was drawn: not normalised.

    Raises:
        InputError: If there is no such mesh.
    """
    if name == TERRAIN:
        return terrain_mesh(name)
    if is_path(name):
        return read_mesh(name)
    entry, path = located(name)
    return read_mesh(path, name=name, attribution=entry.credit)
