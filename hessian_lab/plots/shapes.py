"""Shapes side by side: a mesh and what fields made of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hessian_lab.plots.shading import View, shade
from hessian_lab.plots.style import set_title, styled

Array = np.ndarray[Any, np.dtype[Any]]

INCHES = 2.6
DPI = 200
# Around what is seen, so that nothing touches the edge.
ROOM = 1.03


def plot_shapes(
    shapes: Mapping[str, tuple[Array, Array]],
    *,
    azimuth: float = 30.0,
    elevation: float = 20.0,
    up: str = "y",
    title: str | None = None,
) -> Figure:
    """Return pictures of surfaces in a row, all seen from one place at one scale.

    Args:
        shapes: What is written above -> vertices [v, 3] and faces [f, 3], around the origin.
        azimuth: Degrees that the viewer walks around the upright axis.
        elevation: Degrees that the viewer rises.
        up: The upright axis: y, as in most meshes of models, or z, as in landscapes.
        title: Of the figure.

    Raises:
        ValueError: If there is nothing to draw, or ``up`` is no axis of the two.
    """
    if not any(len(faces) for _, faces in shapes.values()):
        raise ValueError("shapes must hold a surface, got none.")
    view = View(azimuth, elevation, up)
    ends = [
        np.abs(vertices[faces] @ view.axes.T)[..., :2].max()
        for vertices, faces in shapes.values()
        if len(faces)
    ]
    view = View(azimuth, elevation, up, ROOM * float(max(ends)))
    with styled():
        figure = Figure(figsize=(INCHES * len(shapes), INCHES + 0.25), layout="constrained")
        panels = figure.subplots(1, len(shapes), squeeze=False)[0]
        for axes, (label, (vertices, faces)) in zip(panels, shapes.items(), strict=True):
            picture = shade(vertices, faces, view=view, size=int(INCHES * DPI))
            axes.imshow(picture, interpolation="antialiased")
            axes.set_title(label, loc="center")
            axes.set_axis_off()
        set_title(figure, title)
    return figure
