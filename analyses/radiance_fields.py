"""Which optimizer fits a radiance field fastest, each at its best rate: L-BFGS, ESGD, Adam, SGD?

P1 Fig. 7: full batch on the rays of a torus, L-BFGS against Adam at its best rate and at 1e-4, at
equal iterations and equal seconds; then fields of growing width on fewer rays. P2 Figs 2, 4, Tables
2–6 and P3 Figs 1, 3, Table 1: batches of 256 rays of 8,000 and 24 samples a ray, three fields of
4×32 without direction of view, on the torus that is rendered here and, where their files are, on
the cow Spot and the bust of Nefertiti. Rates fall exponentially to a twentieth, the median of the
papers' schedules; the first is chosen on one seed and on the torus alone by the last PSNR of the
rays that are fitted, and compared on other seeds. Seconds are the processor's, on one thread, in
steps alone; every method's steps are taken in turns. It takes 25 minutes of one busy core. In 300
steps ESGD measures curvature in 52, in the papers' 200,000 in one of a hundred.

Held out are three views, with their PSNR, SSIM and mean absolute error; LPIPS needs weights of
another network. The papers' 8×256 fields with 2,048 rays of 128 samples, 200,000 steps on pictures
of 400² (Blender) or 480×640 (LLFF, BLEFF) are 0.7 TFLOP a step: hours on a GPU for each scene,
method and seed, days with rates to choose. Their scenes are not among the project's data; folders
of them train by ``hessian-lab train --signal FOLDER``.
"""

import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd

from analyses.radiance_verdicts import radiance_verdicts
from analyses.rates import Method, choose
from analyses.scenes import NOTHING, fitted, missing
from analyses.study import Row, Study, Verdict, main
from hessian_lab.training.setup import Setup

FIELDS: dict[str, dict[str, Any]] = {
    "gaussian": {"act": "gaussian", "sigma": 0.2},
    "relu": {"act": "relu"},
    "relu_pe": {"act": "relu_pe", "octaves": 4},
}
SMOOTH, ENCODED = ("gaussian",), ("gaussian", "relu_pe")
SELDOM = {"update_every": 100, "warmup_steps": 50}
ADAM = (3e-4, 1e-3, 3e-3, 0.01, 0.03)
# ε is 1e-4 where none is told, as published.
BATCH = {
    "adam": Method("adam", ADAM),
    "esgd": Method("esgd", (0.015, 0.05, 0.15, 0.5, 1.5), SELDOM, ENCODED),
    "esgd ε=1": Method("esgd", (0.5, 1.5, 5.0, 15.0, 50.0), SELDOM | {"eps": 1.0}, ENCODED),
    "sgd": Method("sgd", (0.3, 1.0, 3.0, 10.0, 30.0)),
    "sgd momentum": Method("sgd", (0.1, 0.3, 1.0, 3.0), {"momentum": 0.9}, SMOOTH),
    "lbfgs": Method("lbfgs", (0.01, 0.03, 0.1), {"same_batch": False}, SMOOTH),
}
FULL_BATCH = {
    "lbfgs": Method("lbfgs", (1.0,)),
    "adam": Method("adam", ADAM),
    "adam 1e-4": Method("adam", (1e-4,)),
}
# The papers' schedules end at 5e-5 to 1e-1 of the first rate.
DECAY = 0.05


@dataclass(frozen=True)
class Fixed:
    """A field on rays that all steps see.

    Attributes:
        shape: Hidden layers and units.
        points: Rays.
        samples: Of each.
        steps: Of L-BFGS; Adam takes ``adam_factor`` times as many.
        views: Pictures held out that are looked at.
        slow: Whether Adam is run at 1e-4 too.
    """

    shape: tuple[int, int]
    points: int
    samples: int
    steps: int
    views: int = 1
    slow: bool = False


@dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        fixed: Fields on fixed rays of the first scene, full batch.
        adam_factor: Adam's steps over those of L-BFGS.
        fixed_size: Pixels per side of their pictures.
        fixed_checkpoints: Of their runs, beside the start.
        fields: Names of ``FIELDS``, on batches.
        scenes: Of the batches; rates are chosen on the first.
        shape: Hidden layers and units.
        size: Pixels per side of the pictures.
        points: Rays.
        samples: Of each.
        batch_size: Rays of a step.
        steps: Of every method.
        views: Pictures held out that are looked at.
        shown: Fitted rays whose PSNR is followed.
        checkpoints: Of a run, beside the start.
        tune_seed: Chooses the rate.
        seeds: Are compared.
    """

    fixed: tuple[Fixed, ...] = (
        Fixed((4, 32), 1500, 24, 120, views=3, slow=True),
        Fixed((4, 32), 256, 16, 30),
        Fixed((8, 64), 256, 16, 30),
        Fixed((8, 256), 256, 16, 30),
    )
    adam_factor: int = 2
    fixed_size: int = 40
    fixed_checkpoints: int = 15
    fields: tuple[str, ...] = tuple(FIELDS)
    scenes: tuple[str, ...] = ("torus-nerf", "spot-nerf", "nefertiti-nerf")
    shape: tuple[int, int] = (4, 32)
    size: int = 32
    points: int = 8000
    samples: int = 24
    batch_size: int = 256
    steps: int = 300
    views: int = 3
    shown: int = 2000
    checkpoints: int = 10
    tune_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)


FULL = Config()
QUICK = replace(
    FULL,
    fixed=(Fixed((2, 8), 100, 6, 6, slow=True), Fixed((2, 12), 60, 6, 4)),
    fixed_size=12,
    fixed_checkpoints=2,
    scenes=("torus-nerf",),
    shape=(2, 8),
    size=12,
    points=300,
    samples=6,
    batch_size=100,
    steps=6,
    views=1,
    shown=100,
    checkpoints=3,
    seeds=(1, 2),
)


def cells(config: Config) -> list[Row]:
    """Return every field on fixed rays, and every field on batches."""
    fixed = [
        {"part": "fixed", "depth": one.shape[0], "width": one.shape[1], "points": one.points}
        for one in config.fixed
    ]
    return [*fixed, *({"part": "batch", "field": field} for field in config.fields)]


def measure(config: Config, cell: Row) -> list[Row]:
    """Choose the rate of each method on one seed, and train by all on the others, in turns."""
    fixed = cell["part"] == "fixed"

    def trial(name: str, rate: float) -> float | None:
        (found,) = _run(config, cell, {name: rate}, config.tune_seed, config.scenes[0], 1)
        return None if found is None else float(found["psnr"][-1])

    methods = _methods(config, cell)
    chosen = {name: choose(method, partial(trial, name)) for name, method in methods.items()}
    rates = {name: found["lr"] for name, found in chosen.items()}
    shared = _shared(config, cell)
    what = {name: shared.get(name) for name in ("size", "points", "samples", "batch_size")}
    checkpoints = config.fixed_checkpoints if fixed else config.checkpoints
    rows: list[Row] = []
    for scene in config.scenes[:1] if fixed else config.scenes:
        if why := missing(scene):
            rows.append({"scene": scene, "skipped": why})
            continue
        for seed in config.seeds:
            runs = _run(config, cell, rates, seed, scene, checkpoints)
            for name, found in zip(rates, runs, strict=True):
                told = {"scene": scene, "seed": seed, "method": name, **what, **chosen[name]}
                rows.append(told | (found or NOTHING))
    return rows


def _run(
    config: Config, cell: Row, rates: dict[str, float], seed: int, scene: str, checkpoints: int
) -> list[Row | None]:
    """Train by some methods, each at its rate."""
    shared, methods = _shared(config, cell), _methods(config, cell)
    setups = [
        Setup(**shared, **_of_method(config, cell, methods[name], rate), signal=scene, seed=seed)
        for name, rate in rates.items()
    ]
    views = _fixed(config, cell).views if cell["part"] == "fixed" else config.views
    with warnings.catch_warnings():
        # A line search on batches is one of the things that are compared.
        warnings.filterwarnings("ignore", message=".*mini-batch's own loss.*")
        return fitted(setups, views=views, shown=config.shown, checkpoints=checkpoints)


def _methods(config: Config, cell: Row) -> dict[str, Method]:
    if cell["part"] == "fixed":
        slow = _fixed(config, cell).slow
        return {name: one for name, one in FULL_BATCH.items() if slow or name != "adam 1e-4"}
    return {name: one for name, one in BATCH.items() if not one.acts or cell["field"] in one.acts}


def _of_method(config: Config, cell: Row, method: Method, rate: float) -> dict[str, Any]:
    """Return what of a setup is the method's own."""
    steps, final = config.steps, DECAY * rate
    if cell["part"] == "fixed":
        steps = _fixed(config, cell).steps
        steps *= 1 if method.optimizer == "lbfgs" else config.adam_factor
    return {
        "optimizer": method.optimizer,
        "options": dict(method.options),
        "lr": rate,
        "lr_final": None if cell["part"] == "fixed" else final,
        "steps": steps,
    }


def _fixed(config: Config, cell: Row) -> Fixed:
    asked = (cell["depth"], cell["width"]), cell["points"]
    (one,) = [one for one in config.fixed if (one.shape, one.points) == asked]
    return one


def _shared(config: Config, cell: Row) -> dict[str, Any]:
    """Return what of a setup all methods share."""
    if cell["part"] == "batch":
        depth, width = config.shape
        shared = {"size": config.size, "points": config.points, "samples": config.samples}
        shared |= FIELDS[cell["field"]] | {"batch_size": config.batch_size}
    else:
        one = _fixed(config, cell)
        depth, width = one.shape
        shared = {"size": config.fixed_size, "points": one.points, "samples": one.samples}
        shared |= FIELDS["gaussian"]
    return shared | {"depth": depth, "width": width, "dtype": "float32"}


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the curves say of the papers' comparisons."""
    return radiance_verdicts(rows)


STUDY = Study(
    name="radiance_fields",
    question="Which optimizer fits a radiance field fastest, each at its best rate?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
