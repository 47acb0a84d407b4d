"""Which optimizer fits which field fastest, each at its best rate on the same budget?

P1 Figs 1, 3, 4: full batch, 4×64 on 50×50, L-BFGS against Adam, by steps and by seconds. Rates are
chosen on one seed and compared on others; the papers' own Adam rate is run beside. Run it with
nothing else on the machine: seconds are compared. ``stochastic_convergence`` has the batches.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from analyses.convergence_verdicts import batch_verdicts, full_verdicts
from analyses.study import Row, Study, Verdict, main
from hessian_lab.errors import DivergenceError
from hessian_lab.training.loop import train
from hessian_lab.training.setup import Setup

Field = dict[str, Any]
SMOOTH: tuple[Field, ...] = (
    {"act": "sine", "omega": 30.0},
    {"act": "gaussian", "sigma": 0.05},
)
FULL_FIELDS: tuple[Field, ...] = (
    *SMOOTH,
    {"act": "relu"},
    {"act": "relu_pe", "octaves": 8},
    {"act": "tanh"},
)
BATCH_FIELDS: tuple[Field, ...] = (
    *SMOOTH,
    {"act": "wavelet"},
    {"act": "relu_pe", "octaves": 8},
)
EVERY_100 = {"update_every": 100, "warmup_steps": 50}
# name -> optimizer, its options, and the rates tried.
FULL_METHODS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "lbfgs": ("lbfgs", {}, (1.0,)),
    "adam": ("adam", {}, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    "adam 1e-4": ("adam", {}, (1e-4,)),
}
BATCH_METHODS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "sgd": ("sgd", {}, (0.1, 0.3, 1.0, 3.0, 10.0)),
    "sgd momentum": ("sgd", {"momentum": 0.9}, (0.01, 0.03, 0.1, 0.3, 1.0)),
    "adam": ("adam", {}, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    "esgd": ("esgd", EVERY_100, (0.05, 0.15, 0.5, 1.5, 5.0)),
    "esgd_max": ("esgd_max", EVERY_100, (0.05, 0.15, 0.5, 1.5, 5.0)),
    "adahessian E": ("adahessian", {"estimator": "equilibrated"}, (0.05, 0.15, 0.5, 1.5, 5.0)),
    "adahessian J": ("adahessian", {"estimator": "jacobi"}, (1e-3, 3e-3, 1e-2, 3e-2, 0.15)),
    "kfac": (
        "kfac",
        {"update_every": 10, "inverse_every": 100},
        (0.003, 0.01, 0.03, 0.1, 0.3),
    ),
    "shampoo": ("shampoo", {"update_every": 10}, (0.003, 0.01, 0.03, 0.1, 0.3)),
}


@dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        parts: ``full``, ``batch`` or both.
        full_fields: Fields of the full-batch part, of ``full_shape`` on ``full_size``.
        full_steps: Steps of L-BFGS; Adam takes ``adam_factor`` times as many.
        batch_fields: Fields of the part with batches.
        batch_steps: Their steps.
        images: Bundled images; the batch part takes the first ``batch_images`` of them.
        tune_seed: Chooses the rate.
        seeds: Are compared.
    """

    parts: tuple[str, ...] = ("full",)
    full_fields: tuple[Field, ...] = FULL_FIELDS
    full_shape: tuple[int, int] = (4, 64)
    full_size: int = 50
    full_steps: int = 200
    adam_factor: int = 3
    batch_fields: tuple[Field, ...] = BATCH_FIELDS
    batch_shape: tuple[int, int] = (4, 256)
    batch_size: int = 512
    batch_image_size: int = 256
    batch_steps: int = 256
    batch_images: int = 1
    images: tuple[str, ...] = ("chelsea", "camera")
    tune_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)


FULL = Config()
QUICK = replace(
    FULL,
    parts=("full", "batch"),
    full_fields=(FULL_FIELDS[0], FULL_FIELDS[3]),
    full_shape=(2, 16),
    full_size=24,
    full_steps=30,
    batch_fields=(BATCH_FIELDS[1],),
    batch_shape=(2, 32),
    batch_size=64,
    batch_image_size=32,
    batch_steps=24,
    images=("camera",),
    seeds=(1, 2),
)


def cells(config: Config) -> list[Row]:
    """Return every field with every method on every image."""
    full = [
        {"part": "full", **field, "method": method, "image": image}
        for field in config.full_fields
        for image in config.images
        for method in FULL_METHODS
    ]
    batch = [
        {"part": "batch", **field, "method": method, "image": image}
        for field in config.batch_fields
        for image in config.images[: config.batch_images]
        for method in BATCH_METHODS
    ]
    return [one for one in (*full, *batch) if one["part"] in config.parts]


def measure(config: Config, cell: Row) -> list[Row]:
    """Choose the rate on one seed, and train with it on the others."""
    methods = FULL_METHODS if cell["part"] == "full" else BATCH_METHODS
    _, _, rates = methods[cell["method"]]
    tried = []
    if len(rates) > 1:
        tried = [_train(config, cell, rate, config.tune_seed) for rate in rates]
        rate = max(zip(tried, rates, strict=True), key=lambda pair: _last(pair[0]))[1]
    else:
        rate = rates[0]
    edge = len(rates) > 1 and rate in (rates[0], rates[-1])
    tuning = [None if one is None else one["psnr"][-1] for one in tried]
    rows = []
    for seed in config.seeds:
        found = _train(config, cell, rate, seed) or {
            "psnr": [],
            "wall": [],
            "step": [],
            "shape": "",
        }
        rows.append(
            {"seed": seed, "lr": rate, "at_edge": edge, "rates": list(rates), "tuning": tuning}
            | found
        )
    return rows


def _last(found: Row | None) -> float:
    return -np.inf if found is None else found["psnr"][-1]


def _train(config: Config, cell: Row, rate: float, seed: int) -> Row | None:
    """Return the curve of one run, or None if it diverged."""
    full = cell["part"] == "full"
    optimizer, options, _ = (FULL_METHODS if full else BATCH_METHODS)[cell["method"]]
    field = {name: cell[name] for name in ("act", "omega", "sigma", "octaves") if name in cell}
    depth, width = config.full_shape if full else config.batch_shape
    steps = config.full_steps if full else config.batch_steps
    if full and optimizer == "adam":
        steps *= config.adam_factor
    setup = Setup(
        signal=cell["image"],
        size=config.full_size if full else config.batch_image_size,
        depth=depth,
        width=width,
        optimizer=optimizer,
        lr=rate,
        options=options,
        steps=steps,
        checkpoint_every=max(1, steps // (25 if full else 6)),
        batch_size=None if full else config.batch_size,
        seed=seed,
        dtype="float32",
        **field,
    )
    with TemporaryDirectory() as directory:
        try:
            metrics = train(setup, out=Path(directory) / "run").metrics
        except DivergenceError:
            return None
    return {
        "shape": f"{depth}×{width}",
        "step": [int(step) for step in metrics["step"]],
        "psnr": [round(float(each), 2) for each in metrics["psnr"]],
        "wall": [round(float(each), 3) for each in metrics["wall_s"]],
    }


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the curves say of the papers' comparisons."""
    return [
        *full_verdicts(rows[rows["part"] == "full"]),
        *batch_verdicts(rows[rows["part"] == "batch"]),
    ]


STUDY = Study(
    name="optimizer_convergence",
    question="Which optimizer fits which field fastest, each at its best rate on one budget?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
