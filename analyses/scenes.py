"""Radiance fields on their way: PSNR of their rays and of pictures held out, by steps and time."""

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.study import Row
from hessian_lab.errors import DivergenceError, InputError
from hessian_lab.fields.radiance import RadianceField
from hessian_lab.measures.radiance import rendered
from hessian_lab.optim.contract import Contract
from hessian_lab.signal import Signal
from hessian_lab.signals.radiance import load_scene
from hessian_lab.training.loop import make_optimizer, using_threads
from hessian_lab.training.quality import WINDOW, psnr, ssim
from hessian_lab.training.run import field_of
from hessian_lab.training.setup import Setup

# What a run that diverged has of its curves.
NOTHING: Row = {
    name: [] for name in ("step", "evaluations", "cpu", "psnr", "held", "ssim", "error")
}
# What a run that never gets there, or never ends, takes over one that does.
NEVER = 1e3
# What a run that diverged is worth in dB: less than any that did not.
LOST = -100.0


@dataclass(frozen=True)
class Posed:
    """A scene to be fitted.

    Attributes:
        signal: Rays and their colours, in float32.
        shown: Numbers of those rays whose PSNR is followed.
        rays: Rays of pictures that are not fitted [v, rows columns, 10].
        pictures: What is seen along them [v, rows, columns, 3].
    """

    signal: Signal
    shown: Tensor
    rays: Tensor
    pictures: Tensor


@cache
def posed(name: str, size: int, points: int, views: int, shown: int) -> Posed:
    """Return a scene by name.

    Args:
        name: Of the scene.
        size: Pixels per side of its pictures.
        points: Rays that are fitted.
        views: Pictures that are not; evenly chosen of those that the scene holds out.
        shown: Of the fitted rays, how many are evaluated along the way; evenly chosen.

    Raises:
        InputError: If it is not here.
    """
    scene = load_scene(name, size)
    signal = scene.signal(points).to(dtype=torch.float32)
    held = np.flatnonzero(scene.held_out)
    held = held[np.linspace(0, len(held), views, endpoint=False).astype(int)]
    count = min(shown, signal.num_points)
    return Posed(
        signal,
        torch.linspace(0, signal.num_points - 1, count).long(),
        torch.stack([scene.picture_rays(int(view)) for view in held]),
        torch.from_numpy(scene.pictures[held]),
    )


def missing(name: str) -> str:
    """Return why a scene cannot be fitted here, or nothing."""
    try:
        load_scene(name, 1)
    except InputError:
        return f"not here: hessian-lab data get {name.removesuffix('-nerf')}"
    return ""


def fitted(
    setups: Sequence[Setup], *, views: int, shown: int, checkpoints: int
) -> list[Row | None]:
    """Train fields on scenes; return what each is worth along the way, None if it diverged.

    ``cpu`` is the processor's seconds in steps alone, on one thread: what else runs on the machine
    does not count, nor do the checkpoints. The runs take their steps in turns, so that whatever
    slows the processor down slows all of them. ``psnr`` is that of the rays followed; ``held``,
    ``ssim`` and the mean absolute ``error`` are means over the pictures held out.

    Args:
        setups: Of the runs, with ``size`` and ``points``; rays are drawn anew in every epoch.
        views: As ``posed`` takes it.
        shown: As ``posed`` takes it.
        checkpoints: How many, beside the start.
    """
    rows: list[Row | None] = [None] * len(setups)
    walks = {
        place: _walk(setup.resolved(), views, shown, checkpoints)
        for place, setup in enumerate(setups)
    }
    with using_threads(1):
        while walks:
            for place, walk in list(walks.items()):
                try:
                    next(walk)
                except StopIteration as end:
                    rows[place] = end.value
                    del walks[place]
    return rows


def _walk(
    setup: Setup, views: int, shown: int, checkpoints: int
) -> Generator[None, None, Row | None]:
    """Pause after every step; return the curves of a run, or None if it diverged."""
    asked = posed(setup.signal, setup.size or 1, setup.points or 1, views, shown)
    model = field_of(setup, 10, 3)
    assert isinstance(model, RadianceField)
    optimizer = make_optimizer(setup, model, asked.signal.num_points)
    every, seconds, evaluations = max(1, setup.steps // checkpoints), 0.0, 0
    row: Row = {"shape": f"{setup.depth}×{setup.width}"}
    row |= {name: [] for name in NOTHING}
    try:
        for step in range(setup.steps + 1):
            if step % every == 0 or step == setup.steps:
                if not _look(model, asked, row):
                    return None
                row["step"].append(step)
                row["evaluations"].append(evaluations)
                row["cpu"].append(round(seconds, 3))
            if step < setup.steps:
                start = time.process_time()
                _schedule(setup, optimizer, step)
                chosen = batch_of(setup, asked.signal.num_points, step)
                evaluations += _advance(model, optimizer, asked.signal, chosen)
                seconds += time.process_time() - start
                yield
    except DivergenceError:
        return None
    return row


def _schedule(setup: Setup, optimizer: Contract, step: int) -> None:
    """Set the rate of a step, exponential between the two ends."""
    if setup.lr is None or setup.lr_final is None:
        return
    share = step / max(1, setup.steps - 1)
    for group in optimizer.param_groups:
        group["lr"] = setup.lr * (setup.lr_final / setup.lr) ** share


def batch_of(setup: Setup, count: int, step: int) -> Tensor | slice:
    """Return which of so many rays a step sees: a function of seed and step alone."""
    size = setup.batch_size or count
    if size >= count:
        return slice(None)
    epoch, place = divmod(step, math.ceil(count / size))
    return _order(count, setup.seed, epoch)[place * size : (place + 1) * size]


@cache
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))


def _advance(
    model: RadianceField, optimizer: Contract, signal: Signal, chosen: Tensor | slice
) -> int:
    """Take a step; return how often it evaluated the loss."""
    rays, colours = signal.coords[chosen], signal.values[chosen]
    count = 0

    def closure() -> Tensor | tuple[Tensor, Tensor]:
        nonlocal count
        count += 1
        outputs = model(rays)
        loss = signal.loss(outputs, colours)
        return (loss, outputs) if optimizer.takes_outputs else loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return count


def _look(model: RadianceField, asked: Posed, row: Row) -> bool:
    """Add what the field is worth now; tell whether it is finite."""
    fit, _ = rendered(model, asked.signal.coords[asked.shown])
    seen, _ = rendered(model, asked.rays.flatten(0, 1))
    if not bool(fit.isfinite().all() and seen.isfinite().all()):
        return False
    pictures = seen.view_as(asked.pictures)
    pairs = list(zip(pictures, asked.pictures, strict=True))
    row["psnr"].append(round(psnr(fit, asked.signal.values[asked.shown].double()), 3))
    row["held"].append(round(float(np.mean([psnr(*pair) for pair in pairs])), 3))
    row["error"].append(round(float((pictures - asked.pictures).abs().mean()), 5))
    if min(pictures.shape[1:3]) >= WINDOW:
        row["ssim"].append(round(float(np.mean([ssim(*pair) for pair in pairs])), 4))
    return True


def reached(row: dict[str, Any], target: float, along: str = "cpu") -> float:
    """Return the seconds or steps at which a run's PSNR is at a target; infinite if never."""
    values = np.maximum.accumulate(np.asarray(row["psnr"], dtype=float))
    if not len(values) or values[-1] < target:
        return math.inf
    return float(np.interp(target, values, np.asarray(row[along], dtype=float)))


def common_end(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the PSNR that both of two runs reach at best; minus infinity if one diverged."""
    return min(max(row["psnr"], default=-math.inf) for row in (one, other))


def ratio(
    slow: dict[str, Any], fast: dict[str, Any], along: str = "cpu", share: float = 1.0
) -> float:
    """Return seconds or steps of one run over another's to a share of their common gain in dB.

    A run that diverged takes ``NEVER`` times as long.
    """
    diverged = [not len(row["psnr"]) for row in (slow, fast)]
    if any(diverged):
        return {(True, False): NEVER, (False, True): 1 / NEVER}.get(tuple(diverged), 1.0)
    start = max(row["psnr"][0] for row in (slow, fast))
    target = start + share * (common_end(slow, fast) - start)
    times = [max(reached(row, target, along), 1e-3) for row in (slow, fast)]
    return float(np.clip(times[0] / times[1], 1 / NEVER, NEVER))


def at(row: dict[str, Any], quantity: str, place: float, along: str = "cpu") -> float:
    """Return a quantity of a run at so many seconds or steps; minus infinity if it diverged."""
    if not len(row[quantity]):
        return -math.inf
    return float(np.interp(place, row[along], row[quantity]))


def last(row: dict[str, Any], quantity: str) -> float:
    """Return what a run ends with; the worst if it diverged."""
    if len(row[quantity]):
        return float(row[quantity][-1])
    return 1.0 if quantity == "error" else LOST


def at_equal_fit(one: dict[str, Any], other: dict[str, Any], quantity: str) -> float:
    """Return the difference of a quantity where two runs first have their common best PSNR.

    NaN where it was not measured.
    """
    target = common_end(one, other)
    if not len(one[quantity]):
        return math.nan
    values = [at(row, quantity, reached(row, target, "step"), "step") for row in (one, other)]
    return values[0] - values[1]
