"""Which optimizer fits which field fastest, each at its best rate on the same budget?

P1 Figs 1, 3, 4: full batch, 4×64 on 50×50, L-BFGS against Adam, by steps and by seconds. Rates are
chosen on one seed and compared on others; the papers' own Adam rate is run beside. Run it with
nothing else on the machine: seconds are compared. ``stochastic_convergence`` has the batches.
"""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analyses.convergence_verdicts import full_verdicts
from analyses.rates import Method, compared, field_of
from analyses.study import Row, Study, Verdict, main
from hessian_lab.training.setup import Setup

FIELDS: tuple[dict[str, Any], ...] = (
    {"act": "sine", "omega": 30.0},
    {"act": "gaussian", "sigma": 0.05},
    {"act": "relu"},
    {"act": "relu_pe", "octaves": 8},
    {"act": "tanh"},
)
METHODS = {
    "lbfgs": Method("lbfgs", (1.0,)),
    "adam": Method("adam", (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    "adam 1e-4": Method("adam", (1e-4,)),
}
CHECKPOINTS = 25


@dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        fields: Fields of ``shape`` on ``size`` pixels per side.
        steps: Steps of L-BFGS; Adam takes ``adam_factor`` times as many.
        images: Bundled images.
        tune_seed: Chooses the rate.
        seeds: Are compared.
    """

    fields: tuple[dict[str, Any], ...] = FIELDS
    shape: tuple[int, int] = (4, 64)
    size: int = 50
    steps: int = 200
    adam_factor: int = 3
    images: tuple[str, ...] = ("chelsea", "camera")
    tune_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)


FULL = Config()
QUICK = replace(
    FULL,
    fields=(FIELDS[0], FIELDS[3]),
    shape=(2, 16),
    size=24,
    steps=30,
    images=("camera",),
    seeds=(1, 2),
)


def cells(config: Config) -> list[Row]:
    """Return every field with every method on every image."""
    return [
        {"part": "full", **field, "method": method, "image": image}
        for field in config.fields
        for image in config.images
        for method in METHODS
    ]


def measure(config: Config, cell: Row) -> list[Row]:
    """Choose the rate on one seed, and train with it on the others."""
    method = METHODS[cell["method"]]
    depth, width = config.shape
    steps = config.steps * (config.adam_factor if method.optimizer == "adam" else 1)

    def setup(rate: float, seed: int) -> Setup:
        return Setup(
            signal=cell["image"],
            size=config.size,
            depth=depth,
            width=width,
            optimizer=method.optimizer,
            lr=rate,
            steps=steps,
            checkpoint_every=max(1, steps // CHECKPOINTS),
            seed=seed,
            dtype="float32",
            **field_of(cell),
        )

    return compared(method, setup, tune_seed=config.tune_seed, seeds=config.seeds)


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the curves say of the papers' comparisons."""
    return full_verdicts(rows)


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
