"""How many points are linearized at a time, so that it fits."""

from typing import Literal

from hessian_lab.errors import ResourceError
from hessian_lab.probe.data import Points
from hessian_lab.probe.linearize import Linearizer
from hessian_lab.probe.memory import available_bytes, readable

# The share of what is free that stored activations may take; vectors and buffers need some too.
STORED_SHARE = 0.5


def chosen_chunk(
    linearizer: Linearizer,
    points: Points,
    num_points: int,
    chunk_size: int | Literal["auto"] | None,
) -> int | None:
    """Return the points per pass, or None to keep all of them linearized.

    Raises:
        ResourceError: If what was asked for does not fit.
    """
    if isinstance(chunk_size, int) and chunk_size >= num_points:
        chunk_size = None
    there = available_bytes(linearizer.device)
    if there is None:
        return None if chunk_size == "auto" else chunk_size
    each = linearizer.bytes_per_point(points)
    fits = int(STORED_SHARE * there / each) if each else num_points
    at_once = chunk_size if isinstance(chunk_size, int) else num_points
    if at_once <= fits:
        return chunk_size if isinstance(chunk_size, int) else None
    if chunk_size == "auto" and fits:
        return fits
    cure = (
        f'Pass chunk_size={fits}, or chunk_size="auto".' if fits else "Measure a smaller network."
    )
    raise ResourceError(
        f"Linearizing {at_once} points must fit in memory: it needs {readable(each * at_once)} "
        f"({round(each * at_once)} bytes) of the {readable(there)} that are free on "
        f"{linearizer.device}, of which it may take half. {cure}"
    )
