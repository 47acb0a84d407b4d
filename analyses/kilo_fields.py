"""Do the small fields of an image's tiles train faster by L-BFGS than by Adam, and alike?

P1 Fig. 6 and P1s Figs 9–13: a field of its own for every tile, here 64 tiles from all over each
photograph, trained together. Run it with nothing else on the machine: seconds are compared. The
papers' hundreds of fields at 10,000 points, and KiloNeRF, want a GPU.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

from analyses.study import Answer, Row, Study, Verdict, main
from analyses.words import bootstrap_median, spread
from hessian_lab.fields.stack import make_stack
from hessian_lab.optim.stacked_lbfgs import StackedLBFGS
from hessian_lab.signals.tiles import load_tiles
from hessian_lab.training.stacked_objective import StackedObjective

# method -> its rate; None for L-BFGS.
METHODS: dict[str, float | None] = {
    "lbfgs": None,
    "adam 1e-4": 1e-4,
    "adam 3e-4": 3e-4,
    "adam 1e-3": 1e-3,
    "adam 3e-3": 3e-3,
    "adam 1e-2": 1e-2,
}
# Steps between two entries of a curve.
EVERY = 5
# P1 Fig. 6, P1s Figs 9–13, and P1 Table 1's seconds per iteration, L-BFGS over Adam.
PRINTED_SPEED, PRINTED_OTHERS, PRINTED_COST = 14.0, (4.0, 6.0), 0.742 / 0.887
# Tiles converge alike if the slowest tenth takes at most so many times the median's steps; what
# makes them differ is their content if steps and content are so correlated.
ALIKE, EXPLAINED, GAINED = 1.5, 0.5, 0.9


@dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        shapes: Layers, units and pixels per side of a tile.
        images: Bundled images.
        sizes: Pixels per side of the centred square of each.
        num_tiles: How many of its tiles.
        steps: Of L-BFGS; Adam takes ``adam_factor`` times as many.
    """

    shapes: tuple[tuple[int, int, int], ...] = ((2, 32, 16), (4, 64, 32))
    images: tuple[str, ...] = ("retina", "coffee", "chelsea")
    sizes: tuple[int, ...] = (1408, 384, 288)
    num_tiles: int = 64
    steps: int = 100
    adam_factor: int = 3


FULL = Config()
QUICK = replace(FULL, shapes=((1, 8, 8),), images=("chelsea",), sizes=(96,), num_tiles=9, steps=15)


def cells(config: Config) -> list[Row]:
    """Return every shape on every image."""
    return [
        {"depth": depth, "width": width, "tile": tile, "image": image, "size": size}
        for depth, width, tile in config.shapes
        for image, size in zip(config.images, config.sizes, strict=True)
    ]


def measure(config: Config, cell: Row) -> list[Row]:
    """Train the same tiles by every method."""
    image = load_tiles(cell["image"], cell["tile"], cell["size"])
    chosen = np.linspace(0, image.num_tiles - 1, config.num_tiles).astype(int)
    values = torch.cat([image.values(index, index + 1) for index in chosen]).float()
    shape = (cell["depth"], cell["width"])
    return stack_rows(image.coords(), values, shape, config.steps, config.adam_factor)


def stack_rows(
    coords: Tensor,
    values: Tensor,
    shape: tuple[int, int],
    steps: int,
    adam_factor: int,
    methods: dict[str, float | None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> list[Row]:
    """Train a stack of sine fields by every method; a row for each, with the curves of all fields.

    Args:
        coords: Coordinates [p, d] of all fields.
        values: Values [K, p, c], in single precision.
        shape: Layers and units.
        steps: Of L-BFGS; Adam takes ``adam_factor`` times as many.
        adam_factor: See ``steps``.
        methods: Their rates, None for L-BFGS; by default ``METHODS``.
        clock: Of the seconds.
        seed: Of the first field's initialisation.
    """
    content = values.std(dim=1).mean(dim=1)
    rows = []
    for method, rate in (methods or METHODS).items():
        stack = make_stack(
            "sine",
            len(values),
            coords.shape[1],
            values.shape[2],
            width=shape[1],
            depth=shape[0],
            dtype=torch.float32,
            seed=seed,
        )
        objective = StackedObjective(stack, coords.float(), values)
        taken = steps * (1 if rate is None else adam_factor)
        start = clock()
        losses = torch.stack(list(_walk(objective, stack.parameters, rate, taken)))
        seconds = clock() - start
        decibels = -10 * torch.log10(2 * losses[::EVERY] / values.shape[2])
        rows.append(
            {
                "method": method,
                "steps": taken,
                "wall": round(seconds, 3),
                "content": [round(float(each), 4) for each in content],
                "psnr": [[round(float(each), 2) for each in tile] for tile in decibels.T],
            }
        )
    return rows


def _walk(
    objective: StackedObjective, start: Tensor, rate: float | None, steps: int
) -> Iterator[Tensor]:
    """Yield the losses of all tiles before every step and at the end."""
    if rate is None:
        optimizer = StackedLBFGS(objective, start)
        yield optimizer.losses.clone()
        for _ in range(steps):
            optimizer.step()
            yield optimizer.losses.clone()
        return
    together = torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([together], lr=rate)
    for step in range(steps + 1):
        losses, together.grad = objective(together.detach())
        yield losses
        if step < steps:
            adam.step()


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the curves say of C105, C106, C120 and C137."""
    large = rows[rows["width"] == rows["width"].max()]
    small = rows[rows["width"] == rows["width"].min()]
    return [_speed(large, "C105"), _speed(large, "C106"), _cost(small), _alike(large)]


def groups(rows: pd.DataFrame) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yield images with their rows by method."""
    for image, group in rows.groupby("image", sort=False):
        yield str(image), {row["method"]: row for row in group.to_dict("records")}


def ratios(slow: dict[str, Any], fast: dict[str, Any]) -> list[float]:
    """Return by tile the seconds of one method over those of another to the lower of their ends."""
    found = []
    for pair in zip(_curves(slow), _curves(fast), strict=True):
        target = min(curve.max() for curve in pair)
        # Within the first entries of a curve nothing is told apart.
        times = [
            max(1, int(np.argmax(curve >= target))) * EVERY * row["wall"] / row["steps"]
            for curve, row in zip(pair, (slow, fast), strict=True)
        ]
        found.append(times[0] / times[1])
    return found


def _curves(row: dict[str, Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the PSNRs of all tiles [tiles, entries]; minus infinity where one diverged."""
    curves = np.asarray(row["psnr"], dtype=float)
    return np.where(np.isnan(curves), -np.inf, curves)


def best_adam(methods: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return Adam at the rate with the best median at the end."""
    adams = [row for name, row in methods.items() if name.startswith("adam")]
    return max(adams, key=lambda row: float(np.median(_curves(row)[:, -1])))


def _settings(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return (
        f"sine {first['depth']}×{first['width']} on tiles of {first['tile']}×{first['tile']}, "
        f"{len(first['psnr'])} each of {', '.join(dict.fromkeys(rows['image']))}; two cores"
    )


def _speed(rows: pd.DataFrame, claim: str) -> Verdict:
    tuned, slow, parts = [], [], []
    for image, methods in groups(rows):
        best = best_adam(methods)
        found = ratios(best, methods["lbfgs"])
        tuned += found
        slow += ratios(methods["adam 1e-4"], methods["lbfgs"])
        parts.append(f"{image} {spread(found)} ({best['method']})")
    center, low, high = bootstrap_median(tuned)
    middle = float(np.median(slow))
    if claim == "C105":
        holds, under = low <= PRINTED_SPEED <= high, middle >= PRINTED_SPEED / 2
    else:
        least, most = PRINTED_OTHERS
        holds, under = least <= low and high <= most, least <= middle
    answer: Answer = "holds" if holds else "holds only under" if under else "does not hold"
    measured = (
        f"Adam's time over L-BFGS's to the lower end, median over tiles: {center:.2f} "
        f"[{low:.2f}, {high:.2f}] at Adam's best rate, {middle:.2f} at 1e-4; {'; '.join(parts)}"
    )
    return Verdict(claim, answer, measured, _settings(rows))


def _cost(rows: pd.DataFrame) -> Verdict:
    found = []
    for _, methods in groups(rows):
        adams = [row for name, row in methods.items() if name.startswith("adam")]
        cost = float(np.median([row["wall"] / row["steps"] for row in adams]))
        found.append(methods["lbfgs"]["wall"] / methods["lbfgs"]["steps"] / cost)
    answer: Answer = "holds" if max(found) < 1 else "does not hold"
    measured = (
        f"seconds per iteration, L-BFGS over Adam: {spread(found)} (printed {PRINTED_COST:.2f})"
    )
    return Verdict("C120", answer, measured, f"{_settings(rows)}; not on a radiance field")


def _alike(rows: pd.DataFrame) -> Verdict:
    tails, correlations = [], []
    for _, methods in groups(rows):
        row = methods["lbfgs"]
        curves = _curves(row)
        # Each tile by its own measure: what it gains, not how hard it is.
        targets = curves[:, 0] + GAINED * (curves[:, -1] - curves[:, 0])
        steps = EVERY * np.argmax(curves >= targets[:, None], axis=1)
        tails.append(float(np.quantile(steps, 0.9) / max(np.median(steps), EVERY)))
        differ = np.ptp(steps) > 0 and np.ptp(row["content"]) > 0
        correlations.append(float(spearmanr(steps, row["content"]).statistic) if differ else 0.0)
    alike = max(tails) <= ALIKE
    explained = min(abs(each) for each in correlations) >= EXPLAINED
    answer: Answer = "holds" if alike or explained else "does not hold"
    measured = (
        f"steps of L-BFGS to {GAINED:.0%} of a tile's own gain in dB, the slowest tenth over the "
        f"median: {spread(tails)}; rank correlation with a tile's contrast {spread(correlations)}"
    )
    return Verdict("C137", answer, measured, _settings(rows))


STUDY = Study(
    name="kilo_fields",
    question="Do the small fields of an image's tiles train faster by L-BFGS, and alike?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
