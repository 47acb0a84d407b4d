"""The solid under a landscape: a shape that needs no file of its own."""

import hashlib
import io
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import matplotlib
import numpy as np

from hessian_lab.errors import InputError
from hessian_lab.signal import Source
from hessian_lab.signals.meshes import Mesh, mesh_of_polygons

Array = np.ndarray[Any, np.dtype[Any]]

FILE = Path("sample_data") / "jacksboro_fault_dem.npz"
ATTRIBUTION = (
    "Elevation around the Jacksboro fault, Tennessee, from matplotlib's sample data, heights "
    "exaggerated twelvefold"
)
METRES_PER_DEGREE = 111_195.0
# Of heights over lengths. 840 m on 32 km would be a sheet of paper.
EXAGGERATION = 12.0
# Of the rock below the lowest valley, over the range of heights.
BASE = 0.3


def terrain_mesh(name: str = "terrain") -> Mesh:
    """Return the solid under the elevations that matplotlib ships, as a watertight mesh.

    30 × 32 km of Tennessee at 344 × 403 points, 236 to 1,076 m high, twelve times exaggerated:
    x goes east, y north, z up, in metres; walls and a flat bottom close it.

    Raises:
        InputError: If this matplotlib has no sample data, or other than expected.
    """
    path = Path(matplotlib.get_data_path()) / FILE
    try:
        data = path.read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            heights = np.asarray(arrays["elevation"], dtype=np.float64)
            south, north = sorted(float(arrays[key]) for key in ("ymin", "ymax"))
            west, east = sorted(float(arrays[key]) for key in ("xmin", "xmax"))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise InputError(
            f"signal {name} must be in matplotlib's data folder, {path} is missing or damaged. "
            "Reinstall it with: pip install --force-reinstall matplotlib"
        ) from error
    middle = np.cos(np.radians((south + north) / 2))
    x = np.linspace(0, (east - west) * METRES_PER_DEGREE * middle, heights.shape[1])
    # The first row is the northernmost.
    y = np.linspace((north - south) * METRES_PER_DEGREE, 0, heights.shape[0])
    source = Source(name, ATTRIBUTION, hashlib.sha256(data).hexdigest())
    return solid_under(heights * EXAGGERATION, x, y, source=source)


def solid_under(heights: Array, x: Array, y: Array, *, source: Source | None = None) -> Mesh:
    """Return the solid between a height field and a flat bottom, as a watertight mesh.

    Two triangles per cell above, two per cell of the rim around, and a strip per row below: small
    bounds make inside tests fast.

    Args:
        heights: Heights [rows, columns], not all the same; three rows or more.
        x: Places of the columns [columns], ascending.
        y: Places of the rows [rows], descending.
        source: Where it comes from.

    Raises:
        ValueError: If there are fewer than three rows or two columns.
    """
    rows, columns = heights.shape
    if rows < 3 or columns < 2:
        raise ValueError(f"heights must have shape [3, 2] or more, got {[rows, columns]}.")
    top = np.stack([*np.meshgrid(x, y), heights], axis=-1).reshape(-1, 3)
    above = np.arange(rows * columns).reshape(rows, columns)
    # Anticlockwise seen from above, where x goes right and y up.
    rim = np.concatenate([above[:-1, 0], above[-1, :-1], above[:0:-1, -1], above[0, :0:-1]])
    bottom = top[rim]
    bottom[:, 2] = heights.min() - BASE * np.ptp(heights)
    below = np.full_like(above, -1)
    below.reshape(-1)[rim] = len(top) + np.arange(len(rim))
    low, after = below.reshape(-1)[rim], np.roll(rim, -1)
    quads = np.concatenate(
        [
            _quads(above[1:, :-1], above[1:, 1:], above[:-1, 1:], above[:-1, :-1]),
            _quads(low, np.roll(low, -1), after, rim),
            _quads(below[2:-1, 0], below[1:-2, 0], below[1:-2, -1], below[2:-1, -1]),
        ]
    )
    first = np.concatenate([below[1, :1], below[0], below[1, -1:]])
    last = np.concatenate([below[-2, -1:], below[-1, ::-1], below[-2, :1]])
    return mesh_of_polygons(
        np.concatenate([top, bottom]),
        np.concatenate([quads.reshape(-1), first, last]),
        np.array([4] * len(quads) + [len(first), len(last)]),
        source,
    )


def _quads(first: Array, second: Array, third: Array, fourth: Array) -> Array:
    """Return quadrilaterals [f, 4] from their four corners."""
    return np.stack([part.reshape(-1) for part in (first, second, third, fourth)], axis=-1)
