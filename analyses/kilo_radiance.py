"""Is KiloNeRF trained faster, and better, by L-BFGS than by Adam?

P1 §5.3, Table 1 and Fig. 8: small fields for the cells of a radiance field, here those in which a
trained field is not empty, each fitted to what that field tells at points of its cell (the first
stage of KiloNeRF). Views that were held out are rendered from all of them. The papers' thousands of
fields at 10,000 points want a GPU: there take ``cells=16, points=10_000`` and a field of 8×256.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.kilo_fields import METHODS, best_adam, ratios
from analyses.study import Answer, Row, Study, Verdict, main
from analyses.words import bootstrap_mean, bootstrap_median, spread
from hessian_lab.fields.kilo_radiance import KiloRadiance
from hessian_lab.fields.stack import FieldStack, make_stack
from hessian_lab.measures.radiance import rendered
from hessian_lab.optim.stacked_lbfgs import StackedLBFGS
from hessian_lab.signals.radiance import load_scene
from hessian_lab.signals.scenes import Scene
from hessian_lab.training.cells import Cells, occupied_cells
from hessian_lab.training.loop import train
from hessian_lab.training.quality import psnr
from hessian_lab.training.setup import Setup
from hessian_lab.training.stacked_objective import StackedObjective

# Steps between two entries of a curve of losses, and entries at which views are rendered.
EVERY, SHOWN = 5, 6
# Fields whose curves are kept, from all over the scene, and views that are rendered.
MOST_CURVES, NUM_VIEWS = 64, 2
# P1 Table 1 and Fig. 8: how many times as fast, and decibels after equal seconds.
PRINTED_SPEED, PRINTED_GAIN = 6.0, 23.31 - 19.95


@dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        scenes: Named scenes.
        seeds: Of the trained field and of the small ones.
        size: Rows of the pictures.
        teacher: What trains the field.
        cells: Along each axis.
        points: Of every cell.
        shape: Layers and units of a small field.
        omega: Its angular frequency.
        steps: Of L-BFGS; Adam takes ``adam_factor`` times as many.
    """

    scenes: tuple[str, ...] = ("torus-nerf", "spot-nerf")
    seeds: tuple[int, ...] = (0, 1)
    size: int = 40
    teacher: tuple[tuple[str, Any], ...] = (
        ("act", "gaussian"),
        ("sigma", 0.3),
        ("width", 32),
        ("depth", 3),
        ("points", 4000),
        ("samples", 24),
        ("steps", 80),
        ("checkpoint_every", 80),
        ("dtype", "float32"),
    )
    cells: int = 6
    points: int = 512
    shape: tuple[int, int] = (2, 32)
    omega: float = 10.0
    steps: int = 100
    adam_factor: int = 3


FULL = Config()
QUICK = replace(
    FULL,
    scenes=("torus-nerf",),
    seeds=(0,),
    size=12,
    teacher=(
        *FULL.teacher[:2],
        ("width", 8),
        ("depth", 2),
        ("points", 200),
        ("samples", 8),
        ("steps", 15),
        ("checkpoint_every", 15),
    ),
    cells=3,
    points=60,
    shape=(1, 6),
    steps=15,
)


def cells(config: Config) -> list[Row]:
    """Return every scene with every seed."""
    return [{"scene": scene, "seed": seed} for scene in config.scenes for seed in config.seeds]


def measure(config: Config, cell: Row) -> list[Row]:
    """Train a field, distil it by every method; nothing of a scene that is not here."""
    if cell["scene"] != "torus-nerf" and not _is_here(cell["scene"]):
        return [{"method": "none", "missing": True}]
    scene = load_scene(cell["scene"], config.size)
    setup = Setup(signal=cell["scene"], size=config.size, seed=cell["seed"], **dict(config.teacher))
    with tempfile.TemporaryDirectory() as place:
        run = train(setup, out=Path(place) / "run")
        teacher: Any = run.model(run.steps[-1])
    found = occupied_cells(teacher, config.cells, config.points)
    own = _seen(teacher, scene)
    values = found.values(0, found.num_tiles).float()
    rows = []
    for method, rate in METHODS.items():
        row = _distilled(config, cell["seed"], found, values, scene, rate)
        rows.append({"method": method, "teacher_psnr": round(own, 3), **row})
    return rows


def _is_here(scene: str) -> bool:
    from hessian_lab.errors import InputError

    try:
        load_scene(scene, 4)
    except InputError:
        return False
    return True


def _distilled(
    config: Config, seed: int, found: Cells, values: Tensor, scene: Scene, rate: float | None
) -> Row:
    """Train the fields of all cells, rendering what they show now and then."""
    stack = make_stack(
        "sine",
        len(values),
        3,
        4,
        width=config.shape[1],
        depth=config.shape[0],
        omega=config.omega,
        dtype=torch.float32,
        seed=1000 * seed,
    )
    taken = config.steps * (1 if rate is None else config.adam_factor)
    objective = StackedObjective(stack, found.coords().float(), values)
    shown = set(np.linspace(0, taken, SHOWN + 1).round().astype(int).tolist())
    seconds, begun = 0.0, time.process_time()
    losses, times, decibels = [], [], []
    for step, (parameters, now) in enumerate(_walk(objective, stack.parameters, rate, taken)):
        seconds += time.process_time() - begun
        losses.append(now)
        if step in shown:
            times.append(round(seconds, 3))
            decibels.append(round(_seen(_field(stack, parameters, found), scene), 3))
        begun = time.process_time()
    curves = -10 * torch.log10(2 * torch.stack(losses)[::EVERY] / values.shape[2])
    chosen = np.unique(np.linspace(0, len(values) - 1, MOST_CURVES).round().astype(int))
    return {
        "fields": len(values),
        "steps": taken,
        "wall": round(seconds, 3),
        "times": times,
        "held_out": decibels,
        "psnr": [[round(float(each), 2) for each in curves[:, place]] for place in chosen],
    }


def _walk(
    objective: StackedObjective, start: Tensor, rate: float | None, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the parameters and losses of all fields before every step and at the end."""
    if rate is None:
        optimizer = StackedLBFGS(objective, start)
        yield optimizer.parameters, optimizer.losses.clone()
        for _ in range(steps):
            optimizer.step()
            yield optimizer.parameters, optimizer.losses.clone()
        return
    together = torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([together], lr=rate)
    for step in range(steps + 1):
        losses, together.grad = objective(together.detach())
        yield together.detach(), losses
        if step < steps:
            adam.step()


def _field(stack: FieldStack, parameters: Tensor, found: Cells) -> KiloRadiance:
    names = torch.full((found.side,) * 3, -1)
    names[tuple(torch.from_numpy(found.occupied).T)] = torch.arange(len(found.occupied))
    own = replace(stack, parameters=parameters.clone())
    return KiloRadiance(own, names, samples=found.teacher.samples)


def _seen(model: Any, scene: Scene) -> float:
    """Return the mean PSNR of some views that were held out."""
    views = np.flatnonzero(scene.held_out)[:NUM_VIEWS]
    found = []
    for view in views:
        colours, _ = rendered(model, scene.picture_rays(int(view)))
        found.append(psnr(colours, torch.from_numpy(scene.pictures[view].reshape(-1, 3))))
    return float(np.mean(found))


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the curves say of C109 and C110."""
    rows = rows[rows["method"] != "none"]
    tuned, slow, gains, late = [], [], [], []
    for _, group in rows.groupby(["scene", "seed"], sort=False):
        methods: dict[str, dict[str, Any]] = {
            row["method"]: row for row in group.to_dict("records")
        }
        best = best_adam(methods)
        tuned += ratios(best, methods["lbfgs"])
        slow += ratios(methods["adam 1e-4"], methods["lbfgs"])
        gains.append(_gain(methods["lbfgs"], best))
        late.append(_gain(methods["lbfgs"], methods["adam 1e-4"]))
    settings = _settings(rows)
    return [_speed(tuned, slow, gains, settings), _equal_time(gains, late, settings)]


def _gain(fast: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the decibels between the views of two methods at the end of the shorter of them."""
    end = min(fast["times"][-1], other["times"][-1])
    ends = [np.interp(end, row["times"], row["held_out"]) for row in (fast, other)]
    return float(ends[0] - ends[1])


def _speed(tuned: list[float], slow: list[float], gains: list[float], settings: str) -> Verdict:
    center, low, high = bootstrap_median(tuned)
    middle = float(np.median(slow))
    holds = low <= PRINTED_SPEED <= high and min(gains) > 0
    under = middle >= PRINTED_SPEED / 2 or low > 1
    answer: Answer = "holds" if holds else "holds only under" if under else "does not hold"
    measured = (
        f"Adam's seconds over L-BFGS's to the lower end of a cell, median: {center:.2f} "
        f"[{low:.2f}, {high:.2f}] at Adam's best rate, {middle:.2f} at 1e-4; L-BFGS - Adam on "
        f"views held out, equal seconds, {spread(gains)} dB"
    )
    return Verdict("C109", answer, measured, settings)


def _equal_time(gains: list[float], late: list[float], settings: str) -> Verdict:
    center, low, high = bootstrap_mean(gains)
    holds = low <= PRINTED_GAIN <= high
    under = min(late) > 0
    answer: Answer = "holds" if holds else "holds only under" if under else "does not hold"
    measured = (
        f"L-BFGS - Adam on views held out after equal seconds: {center:+.2f} [{low:+.2f}, "
        f"{high:+.2f}] dB at Adam's best rate, {spread(late)} at 1e-4 (printed "
        f"{PRINTED_GAIN:+.2f})"
    )
    return Verdict("C110", answer, measured, settings)


def _settings(rows: pd.DataFrame) -> str:
    fields = rows["fields"].astype(int)
    return (
        f"distillation of a trained Gaussian field, {fields.min()} to {fields.max()} sine fields; "
        f"{', '.join(dict.fromkeys(rows['scene']))}, {rows['seed'].nunique()} seeds; one core"
    )


STUDY = Study(
    name="kilo_radiance",
    question="Is KiloNeRF trained faster, and better, by L-BFGS than by Adam?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
