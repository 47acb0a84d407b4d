"""Fields of solids on their way: cross-entropy, IoU and surface, by steps and seconds of steps."""

import math
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from analyses.study import Row
from hessian_lab.errors import DivergenceError, InputError
from hessian_lab.measures.surfaces import chamfer, num_components
from hessian_lab.optim.contract import Contract
from hessian_lab.signal import Signal
from hessian_lab.signals.meshes import Mesh, normalised
from hessian_lab.signals.occupancy import held_out_grid, occupancy
from hessian_lab.signals.shapes import shape_mesh
from hessian_lab.signals.surface import field_mesh, logits
from hessian_lab.training.loop import make_optimizer, using_threads
from hessian_lab.training.quality import iou
from hessian_lab.training.run import field_of
from hessian_lab.training.setup import Setup

# What a run that diverged has of its curves.
NOTHING: Row = {name: [] for name in ("step", "cpu", "bce", "iou", "components", "chamfer")}


@dataclass(frozen=True)
class Solid:
    """A solid to be fitted.

    Attributes:
        signal: Points in the box, in float32.
        grid: Points that are not fitted.
        mesh: Its surface in the box.
    """

    signal: Signal
    grid: Signal
    mesh: Mesh


@cache
def solid(name: str, points: int, resolution: int) -> Solid:
    """Return a solid by name, with so many points and a grid of so many cubes per side.

    Raises:
        InputError: If it is not here.
    """
    mesh = shape_mesh(name)
    signal, grid = occupancy(mesh, points), held_out_grid(mesh, resolution)
    return Solid(signal.to(dtype=torch.float32), grid.to(dtype=torch.float32), normalised(mesh))


def missing(name: str, points: int, resolution: int) -> str:
    """Return why a solid cannot be fitted here, or nothing."""
    try:
        solid(name, points, resolution)
    except InputError:
        return f"not here: hessian-lab data get {name}"
    return ""


def fitted(
    setup: Setup, *, resolution: int, checkpoints: int, surface: int = 0, apart: bool = False
) -> Row | None:
    """Train a field on a solid; return what it is worth along the way, or None if it diverged.

    ``cpu`` is the processor's seconds in steps alone, on one thread: what else runs on the machine
    does not count, nor do the checkpoints.

    Args:
        setup: Of the run, with ``points``; batches are drawn anew in every epoch.
        resolution: Cubes per side of the grid that the IoU is measured on.
        checkpoints: How many, beside the start.
        surface: Points per side of the grid of marching cubes; 0 looks for no surface.
        apart: Whether to measure the Chamfer distance of the surface too.
    """
    setup = setup.resolved()
    with using_threads(1):
        return _walk(setup, resolution, checkpoints, surface, apart)


def _walk(setup: Setup, resolution: int, checkpoints: int, surface: int, apart: bool) -> Row | None:
    asked = solid(setup.signal, setup.points or 0, resolution)
    model = field_of(setup, 3, 1)
    optimizer = make_optimizer(setup, model, asked.signal.num_points)
    every, seconds = max(1, setup.steps // checkpoints), 0.0
    row: Row = {"shape": f"{setup.depth}×{setup.width}"}
    row |= {name: [] for name in NOTHING}
    try:
        for step in range(setup.steps + 1):
            if step % every == 0 or step == setup.steps:
                if not _look(model, asked, row, surface, apart):
                    return None
                row["step"].append(step)
                row["cpu"].append(round(seconds, 3))
            if step < setup.steps:
                start = time.process_time()
                _advance(model, optimizer, asked.signal, _batch(setup, asked.signal, step))
                seconds += time.process_time() - start
    except DivergenceError:
        return None
    return row


def _batch(setup: Setup, signal: Signal, step: int) -> Tensor | slice:
    """Return which points a step sees: a function of seed and step alone."""
    size = setup.batch_size or signal.num_points
    if size >= signal.num_points:
        return slice(None)
    epoch, place = divmod(step, math.ceil(signal.num_points / size))
    order = _order(signal.num_points, setup.seed, epoch)
    return order[place * size : (place + 1) * size]


@cache
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))


def _advance(model: nn.Module, optimizer: Contract, signal: Signal, chosen: Tensor | slice) -> None:
    coords, values = signal.coords[chosen], signal.values[chosen]

    def closure() -> Tensor | tuple[Tensor, Tensor]:
        outputs = model(coords)
        loss = signal.loss(outputs, values)
        return (loss, outputs) if optimizer.takes_outputs else loss

    optimizer.step(closure)  # type: ignore[arg-type]


def _look(model: nn.Module, asked: Solid, row: Row, surface: int, apart: bool) -> bool:
    """Add what the field is worth now; tell whether it is finite."""
    value = float(asked.signal.loss(logits(model, asked.signal.coords), asked.signal.values))
    inside = logits(model, asked.grid.coords)
    if not (math.isfinite(value) and bool(inside.isfinite().all())):
        return False
    row["bce"].append(round(value, 5))
    row["iou"].append(round(iou(inside, asked.grid.values), 4))
    if surface:
        try:
            mesh = field_mesh(model, surface)
        except InputError:
            # Nothing is inside yet.
            row["components"].append(0)
            row["chamfer"].append(None)
            return True
        row["components"].append(num_components(mesh))
        row["chamfer"].append(round(chamfer(mesh, asked.mesh), 5) if apart else None)
    return True


@cache
def floor(name: str, points: int, resolution: int) -> float:
    """Return the Chamfer distance of a solid from itself: what its sampling cannot tell."""
    mesh = solid(name, points, resolution).mesh
    return round(chamfer(mesh, mesh), 5)


def reached(row: dict[str, Any], target: float, along: str = "cpu") -> float:
    """Return the seconds or steps at which a run's cross-entropy is at a target; inf if never."""
    values = np.minimum.accumulate(np.asarray(row["bce"], dtype=float))
    if not len(values) or values[-1] > target:
        return math.inf
    # Ascending, as np.interp wants it.
    return float(np.interp(-target, -values, np.asarray(row[along], dtype=float)))


def ratio(slow: dict[str, Any], fast: dict[str, Any], along: str = "cpu") -> float:
    """Return seconds or steps of one run over another's to the higher end of their entropies.

    A run that diverged takes a thousand times as long.
    """
    lowest = [min(row["bce"], default=math.inf) for row in (slow, fast)]
    target = max(lowest)
    if not math.isfinite(target):
        return {(True, False): 1e3, (False, True): 1e-3}.get(
            (math.isinf(lowest[0]), math.isinf(lowest[1])), 1.0
        )
    times = [reached(row, target, along) for row in (slow, fast)]
    return float(np.clip(times[0] / max(times[1], 1e-3), 1e-3, 1e3))


def at(row: dict[str, Any], quantity: str, seconds: float) -> float:
    """Return a quantity of a run's last checkpoint in so many seconds; NaN if it diverged."""
    clock = np.asarray(row["cpu"], dtype=float)
    if not len(clock):
        return math.nan
    return float(row[quantity][int(np.searchsorted(clock, seconds, side="right")) - 1])


def here(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose signal was here to be measured."""
    return rows[rows["skipped"].isna()] if "skipped" in rows else rows


def left_out(rows: pd.DataFrame, what: str) -> str:
    """Return which signals were not here, in the words of a verdict; nothing if all were."""
    gone = rows[rows["skipped"].notna()] if "skipped" in rows else rows[:0]
    names = ", ".join(dict.fromkeys(gone[what]))
    return f"; not here and left out: {names}" if names else ""


def edges(rows: pd.DataFrame, *labels: str) -> str:
    """Return which best rates are at which end of those tried, in the words of a verdict.

    Args:
        rows: With ``at_edge``, ``lr`` and ``rates``.
        labels: The columns that name a choice of a rate.
    """
    found: dict[str, list[str]] = {}
    for row in rows[rows["at_edge"].astype(bool)].to_dict("records"):
        side = "lowest" if row["lr"] == min(row["rates"]) else "highest"
        found.setdefault(side, []).append(" ".join(str(row[name]) for name in labels))
    told = [f"{side}: {', '.join(dict.fromkeys(names))}" for side, names in found.items()]
    return f"; best rate at the edge of those tried, {'; '.join(told)}" if told else ""
