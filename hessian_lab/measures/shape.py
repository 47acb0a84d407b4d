"""How well a field that was fitted to a solid tells its inside, and the surface that it makes."""

from dataclasses import dataclass
from pathlib import Path

from hessian_lab.errors import InputError
from hessian_lab.signals import kind_of
from hessian_lab.signals.mesh_files import ply_bytes
from hessian_lab.signals.meshes import Mesh, normalised
from hessian_lab.signals.occupancy import RESOLUTION, held_out_grid
from hessian_lab.signals.shapes import TERRAIN, shape_mesh
from hessian_lab.signals.surface import field_mesh, logits
from hessian_lab.training.files import write_atomically
from hessian_lab.training.quality import iou
from hessian_lab.training.run import Run

SURFACE = "fitted.ply"


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted solid.

    Attributes:
        iou: Intersection over union with the solid on ``resolution``³ points that were not fitted.
        resolution: Points per axis.
        true: The solid, in the box of the fit.
        surface: Where the field's logit is 0; None where it is nowhere.
    """

    iou: float
    resolution: int
    true: Mesh
    surface: Mesh | None

    @property
    def up(self) -> str:
        """The axis that points up: z of a landscape, y of most models."""
        return "z" if self.true.source is not None and self.true.source.name == TERRAIN else "y"


def is_shape(run: Run) -> bool:
    """Tell whether a run was fitted to a solid that it can be asked for by name or path."""
    return kind_of(run.setup.signal) == "shape" and run.setup.points is not None


def measure_shape(run: Run, *, resolution: int = RESOLUTION) -> Fitted:
    """Compare the field at the last checkpoint with its solid, and find its surface.

    Writes the surface beside the trajectory as ``fitted.ply``. About two million evaluations.

    Raises:
        InputError: If the mesh is no longer there, or the module was a user's own.
        ResourceError: If the disk is full.
    """
    mesh, model = shape_mesh(run.setup.signal), run.model(run.steps[-1])
    grid = held_out_grid(mesh, resolution).to(
        dtype=next(model.parameters()).dtype, device=run.device
    )
    found = iou(logits(model, grid.coords), grid.values)
    try:
        surface = field_mesh(model)
    except InputError:
        return Fitted(found, resolution, normalised(mesh), None)
    write_atomically(run.path / SURFACE, lambda stream: stream.write(ply_bytes(surface)))
    return Fitted(found, resolution, normalised(mesh), surface)


def surface_path(run: Run) -> Path:
    """Return where the surface of a fitted solid lies."""
    return run.path / SURFACE
