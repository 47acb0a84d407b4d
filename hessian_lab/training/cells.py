"""A radiance field distilled into a grid of small fields, each trained on its own cell."""

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_lab.errors import InputError, UsageError
from hessian_lab.fields.kilo_radiance import KiloRadiance, targets
from hessian_lab.fields.radiance import RadianceField
from hessian_lab.probe.memory import require_bytes
from hessian_lab.signal import Source
from hessian_lab.training.devices import named_device, usable_device
from hessian_lab.training.files import locked, make_directory, write_atomically
from hessian_lab.training.loop import using_threads
from hessian_lab.training.run import Run, field_of, fill, flat
from hessian_lab.training.setup import Setup, digest, identity, setup_from_json
from hessian_lab.training.tile_files import claim, read_tiles
from hessian_lab.training.tiles import TileRun, Watch, check_setup, train_blocks

TEACHER = "teacher.npy"
# Of a cell that light passes: its largest optical thickness along a side, at its points.
EMPTY = 0.01
# Points that go through the teacher at once.
CHUNK = 1 << 16
MOST_CELLS = 128

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Cells:
    """The occupied cells of a radiance field, and what small fields are to be there.

    Attributes:
        teacher: The field that is distilled; without a head.
        side: Cells along each axis of the box.
        num_points: Points of each cell, at the same places in all.
        occupied: Cells in which the teacher is not empty [k, 3].
        source: What a record says of the data.
    """

    teacher: RadianceField
    side: int
    num_points: int
    occupied: Array
    source: Source
    axes = ("x", "y", "z")
    sides = (1, 1, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along the axes, and channels."""
        return self.side, self.side, self.side, 4

    @property
    def num_tiles(self) -> int:
        """How many cells are occupied."""
        return len(self.occupied)

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says beside the source."""
        return {"shape": list(self.shape), "num_points": self.num_points}

    def corner(self, index: int) -> tuple[int, ...]:
        """Return which cell the ``index``-th occupied one is, along x, y and z."""
        return tuple(int(number) for number in self.occupied[index])

    def coords(self) -> Tensor:
        """Return the points of a cell [p, 3], evenly spread over [-1, 1]³, in float64."""
        return cell_points(self.num_points)

    def values(self, start: int, stop: int) -> Tensor:
        """Return what the fields of some cells are to be at their points [k, p, 4]."""
        outputs = teacher_outputs(self.teacher, self.occupied[start:stop], self.side, self.coords())
        return targets(outputs.flatten(0, 1)).view_as(outputs).double().cpu()


@dataclass(frozen=True, eq=False)
class CellRun(TileRun):
    """Small fields of the cells of a radiance field, on disk; complete without their teacher's run.

    The attributes are those of ``TileRun``: ``table`` has the place of every cell along x, y and z,
    and a ``psnr`` of its targets for a range of 1.
    """

    def image(self) -> Cells:  # type: ignore[override]
        """Return what was fitted.

        Raises:
            InputError: If the teacher is no longer the one that was distilled.
        """
        cells = occupied_cells(self.teacher(), self.record["shape"][0], self.record["num_points"])
        if cells.source.sha256 != self.record["data"]["sha256"]:
            raise InputError(
                f"run must hold the teacher that was distilled, {self.path / TEACHER} is another."
            )
        return cells

    def teacher(self) -> RadianceField:
        """Return the field that was distilled.

        Raises:
            InputError: If its parameters are missing or damaged.
        """
        setup = setup_from_json(self.record["teacher"]["setup"])
        model = field_of(replace(setup, device=self.setup.device), 10, 3)
        assert isinstance(model, RadianceField)
        try:
            parameters = np.load(self.path / TEACHER, allow_pickle=False)
            fill(model, torch.from_numpy(parameters))
        except (EOFError, OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"run must hold its teacher, {self.path / TEACHER} is missing or damaged."
            ) from error
        return model

    def field(self) -> KiloRadiance:
        """Return the small fields as one, with the strata of the teacher's rays."""
        side, count = int(self.record["shape"][0]), len(self.table)
        places = torch.from_numpy(self.table[["x", "y", "z"]].to_numpy(dtype=np.int64))
        cells = torch.full((side, side, side), -1)
        cells[places[:, 0], places[:, 1], places[:, 2]] = torch.arange(count)
        samples = int(self.record["teacher"]["setup"]["samples"])
        return KiloRadiance(self.stack(0, count), cells, samples=samples)


def train_cells(
    setup: Setup,
    teacher: Run,
    *,
    cells: int = 8,
    points: int = 1000,
    block: int = 256,
    out: str | Path | None = None,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> CellRun:
    """Train a small field for every cell of a radiance field that is not empty, and keep them all.

    The first stage of KiloNeRF: each field is fitted to what the teacher tells at points of its
    cell, all fields of a block together. A killed run loses the block in flight; the same call
    continues.

    Args:
        setup: What the fields are and how they are trained, by ``lbfgs`` or ``adam``; its signal is
            that of the teacher, whatever it says.
        teacher: A trained radiance field, whose colours do not depend on the direction of view; its
            last checkpoint is distilled.
        cells: Along each axis of the box [-1, 1]³.
        points: Of every cell.
        block: Cells that are trained together.
        out: The directory; by default ``runs/cells-<hash>``.
        overwrite: Start anew even if the directory holds such a run.
        watch: Called after every block with the number of cells and the table so far.

    Raises:
        UsageError: For values out of range, an optimizer that stacks have not, a directory that
            holds something else.
        InputError: If the run holds no such field, or it is empty everywhere.
        ResourceError: If a block does not fit in memory, or the parameters on the disk.

    References:
        Reiser et al. (2021), https://arxiv.org/abs/2103.13744; *Curvature-Aware Training for
        Coordinate Networks* (2023), §5.3.
    """
    for name, value, most in (("cells", cells, MOST_CELLS), ("points", points, 1 << 24)):
        if not 1 <= value <= most:
            raise UsageError(f"{name} must be in [1, {most}], got {value}.")
    if block < 1:
        raise UsageError(f"block must be at least 1, got {block}.")
    model = _taught(teacher)
    known = {name: getattr(teacher.setup, name) for name in ("signal", "size", "points", "samples")}
    setup = replace(setup, **known, views=None, directions=None).resolved()
    setup = replace(setup, device=named_device(setup.device))
    check_setup(setup)
    model = model.to(usable_device(setup.device))
    found = occupied_cells(model, cells, points)
    mark = identity(setup, {"data": found.source.sha256, **found.facts})
    path = Path(out).expanduser() if out else Path("runs") / f"cells-{digest(mark)}"
    make_directory(path)
    more = {"teacher": {"id": teacher.record["id"], "setup": teacher.setup.to_json()}}
    with locked(path), using_threads(setup.threads or torch.get_num_threads()):
        claim(path, setup, found, mark, overwrite=overwrite, more=more)
        parameters = flat(model).cpu().numpy()
        write_atomically(path / TEACHER, lambda stream: np.save(stream, parameters))
        train_blocks(path, setup, found, block, watch)
    return load_cell_run(path)


def load_cell_run(path: str | Path) -> CellRun:
    """Return a run of cells from its directory, as far as it is done.

    Raises:
        InputError: If the directory holds none, or one of a newer format.
    """
    directory = Path(path).expanduser()
    record, table = read_tiles(directory)
    if "teacher" not in record:
        raise InputError(f"run must be one of cells, {directory} is one of tiles.")
    return CellRun(directory, setup_from_json(record["setup"]), 1, None, record, table)


def occupied_cells(teacher: RadianceField, side: int, num_points: int) -> Cells:
    """Return the cells in which light meets something; the teacher is asked at every point of all.

    Raises:
        InputError: If there is none.
        ResourceError: If the grid does not fit in memory.
    """
    network = teacher.field
    units = 2 * max(one.out_features for one in network.maps) + 3 * network.maps[0].in_features
    require_bytes(
        8 * (5 * side**3 + CHUNK * units + 20 * max(num_points, CHUNK)),
        f"A grid of {side}³ cells",
        device=torch.device("cpu"),
        cure="Take fewer --cells or --points.",
    )
    axes = np.meshgrid(*[np.arange(side)] * 3, indexing="ij")
    every = np.stack(axes, axis=-1).reshape(-1, 3)
    coords = cell_points(num_points)
    step = max(1, CHUNK // num_points)
    thick = []
    for start in range(0, len(every), step):
        outputs = teacher_outputs(teacher, every[start : start + step], side, coords)
        density = teacher.density(outputs[..., 0])
        thick.append(density.amax(dim=1).cpu() * 2 / side)
    occupied = every[(torch.cat(thick) > EMPTY).numpy()]
    if not len(occupied):
        raise InputError("run must hold a field that is not empty everywhere: train it longer.")
    parameters = flat(teacher).cpu().double().numpy().tobytes()
    text = f"{side} {num_points} {EMPTY} {hashlib.sha256(parameters).hexdigest()}"
    source = Source(
        f"{side}³ cells", "Cells of a radiance field", hashlib.sha256(text.encode()).hexdigest()
    )
    return Cells(teacher, side, num_points, occupied, source)


@torch.no_grad()
def teacher_outputs(teacher: RadianceField, cells: Array, side: int, coords: Tensor) -> Tensor:
    """Return a network's outputs [k, p, 4] at points [p, 3] of some cells [k, 3]."""
    like = next(teacher.parameters())
    middles = torch.from_numpy((cells + 0.5) * (2 / side) - 1)
    places = middles[:, None] + coords / side
    parts = [teacher.field(part.to(like)) for part in places.flatten(0, 1).split(CHUNK)]
    return torch.cat(parts).view(*places.shape[:2], 4)


def cell_points(count: int) -> Tensor:
    """Return evenly spread points [count, 3] of [-1, 1]³, by the R₃ sequence.

    References:
        M. Roberts (2018), The Unreasonable Effectiveness of Quasirandom Sequences.
    """
    # The root of g⁴ = g + 1.
    ratio = 1.2207440846057596
    steps = torch.tensor([ratio**-power for power in (1, 2, 3)], dtype=torch.float64)
    numbers = torch.arange(1, count + 1, dtype=torch.float64)[:, None]
    return 2 * ((0.5 + numbers * steps) % 1) - 1


def _taught(teacher: Run) -> RadianceField:
    model = teacher.model(teacher.steps[-1])
    if not isinstance(model, RadianceField) or model.head is not None:
        raise InputError(
            f"run must hold a radiance field whose colours do not depend on the direction of view, "
            f"{teacher.path} does not: train one with --signal torus-nerf."
        )
    if not math.isfinite(float(flat(model).abs().sum())):
        raise InputError(f"run must hold a field of finite parameters, {teacher.path} does not.")
    return model
