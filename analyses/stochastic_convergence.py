"""Which optimizer fits which field fastest on batches, each at its best rate?

P2 Figs 5, 8, 9 and P3 Figs 1, 3, 5: batches of 512, five linear maps of 256 on 256×256. The first
256 steps, two epochs of the papers' hundreds, take two hours on two cores; the full length (64,000
steps, 9 pairs of image and seed for each combination) wants a GPU for days. The wavelet field of
P3 Fig. 1 is trained for its ten epochs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analyses.rates import Method, compared, field_of
from analyses.stochastic_verdicts import stochastic_verdicts
from analyses.study import Row, Study, Verdict, main
from hessian_lab.training.setup import Setup

Field = dict[str, Any]
FIELDS: tuple[Field, ...] = (
    {"act": "gaussian", "sigma": 0.05},
    {"act": "sine", "omega": 30.0},
    {"act": "relu_pe", "octaves": 8},
    {"act": "wavelet"},
)
# C123's rival cause of K-FAC's failure: another initialisation.
XAVIER: Field = {"act": "sine", "omega": 30.0, "init": "xavier_normal"}
SMOOTH = ("gaussian", "sine")


def _esgd(every: int) -> dict[str, int]:
    return {"update_every": every, "warmup_steps": 50}


EQUILIBRATED = (0.015, 0.05, 0.15, 0.5, 1.5, 5.0)
FACTORED = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
KFAC = {"update_every": 10, "inverse_every": 100}
METHODS = {
    "adam": Method("adam", (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    "esgd": Method("esgd", EQUILIBRATED, _esgd(100)),
    "sgd": Method("sgd", (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)),
    "sgd momentum": Method("sgd", (0.001, 0.003, 0.01, 0.03, 0.1), {"momentum": 0.9}),
    "adahessian E": Method("adahessian", EQUILIBRATED, {"estimator": "equilibrated"}),
    "adahessian J": Method("adahessian", (1e-3, 3e-3, 1e-2, 3e-2, 0.15), {"estimator": "jacobi"}),
    "kfac": Method("kfac", FACTORED, KFAC),
    "shampoo": Method("shampoo", FACTORED, {"update_every": 10}),
    "esgd_max": Method("esgd_max", EQUILIBRATED, _esgd(100)),
    "rmsprop": Method("adam", (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), {"betas": (0.0, 0.99)}, SMOOTH),
    "esgd N=10": Method("esgd", EQUILIBRATED, _esgd(10), SMOOTH),
    # ε is 1e-4 elsewhere, as published.
    "esgd ε=1": Method("esgd", EQUILIBRATED, _esgd(100) | {"eps": 1.0}, SMOOTH),
    "esgd published": Method(
        "esgd", EQUILIBRATED, _esgd(100) | {"bias_correction": "steps"}, SMOOTH
    ),
    "adahessian J published": Method(
        "adahessian", EQUILIBRATED, {"estimator": "pn-jacobi"}, SMOOTH
    ),
    "kfac damping 0.01": Method("kfac", FACTORED, KFAC | {"damping": 0.01}, ("sine",)),
    "kfac empirical": Method("kfac", FACTORED, KFAC | {"fisher": "empirical"}, ("sine",)),
    "lbfgs": Method("lbfgs", (0.1, 0.3, 1.0), {"same_batch": False}, SMOOTH),
    "nonlinear_cg": Method("nonlinear_cg", (1.0,), {"same_batch": False}, SMOOTH),
    "gauss_newton": Method("gauss_newton", (1.0,), {"max_cg": 10}, SMOOTH),
}
ON_XAVIER = ("adam", "kfac")
# P3 Fig. 1d-e: the rates of the paper, and the better of those around the best of the short run.
EPOCHS = {
    "adam printed": Method("adam", (1e-4,)),
    "esgd printed": Method("esgd", (0.15,), _esgd(100)),
    "adam tuned": Method("adam", (3e-4, 1e-3, 3e-3)),
    "esgd tuned": Method("esgd", (0.15, 0.5, 1.5), _esgd(100)),
}


@dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        fields: Fields of the first part, all methods; ``steps`` steps.
        images: Bundled images.
        epochs: Those of the wavelet field of the second part; 0 leaves it out.
        tune_seed: Chooses the rate.
        seeds: Are compared.
    """

    fields: tuple[Field, ...] = (*FIELDS, XAVIER)
    shape: tuple[int, int] = (4, 256)
    batch_size: int = 512
    size: int = 256
    steps: int = 256
    epochs: int = 10
    images: tuple[str, ...] = ("chelsea",)
    tune_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)


FULL = Config()
QUICK = replace(
    FULL,
    fields=(FIELDS[0], FIELDS[2]),
    shape=(2, 32),
    batch_size=64,
    size=32,
    steps=24,
    epochs=1,
    seeds=(1, 2),
)


def cells(config: Config) -> list[Row]:
    """Return every field with every method on every image."""
    found = [
        {"part": "batch", **field, "method": method, "image": image}
        for image in config.images
        for field in config.fields
        for method in _methods(field)
    ]
    if config.epochs:
        wavelet = {"part": "epochs", "act": "wavelet", "image": config.images[0]}
        found += [wavelet | {"method": method} for method in EPOCHS]
    return found


def _methods(field: Field) -> Iterable[str]:
    if "init" in field:
        return ON_XAVIER
    return [name for name, one in METHODS.items() if not one.acts or field["act"] in one.acts]


def measure(config: Config, cell: Row) -> list[Row]:
    """Choose the rate on one seed, and train with it on the others."""
    method, steps = METHODS.get(cell["method"]), config.steps
    if cell["part"] == "epochs":
        method = EPOCHS[cell["method"]]
        steps = config.epochs * -(-(config.size**2) // config.batch_size)
    assert method is not None
    depth, width = config.shape

    def setup(rate: float, seed: int) -> Setup:
        # The whole image costs as much as a hundred steps.
        checkpoints = 1 if seed == config.tune_seed else 4
        return Setup(
            signal=cell["image"],
            size=config.size,
            depth=depth,
            width=width,
            optimizer=method.optimizer,
            lr=rate,
            options=dict(method.options),
            steps=steps,
            checkpoint_every=max(1, steps // checkpoints),
            batch_size=config.batch_size,
            seed=seed,
            dtype="float32",
            **field_of(cell),
        )

    return compared(method, setup, tune_seed=config.tune_seed, seeds=config.seeds)


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the curves say of the papers' comparisons."""
    return stochastic_verdicts(rows)


STUDY = Study(
    name="stochastic_convergence",
    question="Which optimizer fits which field fastest on batches, each at its best rate?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
