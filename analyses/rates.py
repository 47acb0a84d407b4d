"""A method at the best of its rates: chosen on one seed, compared on others."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from analyses.study import Row
from hessian_lab.errors import DivergenceError
from hessian_lab.training.loop import train
from hessian_lab.training.setup import Setup

# The options of a field that a cell may have.
FIELD = ("act", "omega", "sigma", "octaves", "init")
NOTHING: Row = {"psnr": [], "wall": [], "step": [], "evaluations": [], "shape": ""}


@dataclass(frozen=True)
class Method:
    """An optimizer as it is compared.

    Attributes:
        optimizer: Its name.
        rates: Those tried.
        options: Its options.
        acts: The fields it is run on; all if empty.
    """

    optimizer: str
    rates: tuple[float, ...]
    options: Any = ()
    acts: tuple[str, ...] = ()


def field_of(cell: Row) -> Row:
    """Return the options of ``Setup`` that a cell says of its field."""
    return {name: cell[name] for name in FIELD if name in cell}


def compared(
    method: Method,
    setup: Callable[[float, int], Setup],
    *,
    tune_seed: int,
    seeds: Iterable[int],
) -> list[Row]:
    """Choose the rate on one seed, and train with it on the others; a row for each of these.

    Args:
        method: What is compared.
        setup: Makes the setup of a rate and a seed.
        tune_seed: Chooses the rate, by the last PSNR.
        seeds: Are compared; a run that diverged has an empty curve.
    """
    chosen = choose(method, lambda rate: _end(curve(setup(rate, tune_seed))))
    return [
        {"seed": seed, **chosen, **(curve(setup(chosen["lr"], seed)) or NOTHING)} for seed in seeds
    ]


def choose(method: Method, trial: Callable[[float], float | None]) -> Row:
    """Choose the rate that scores best; return what a row says of it.

    Args:
        method: What is compared; of a single rate nothing is tried.
        trial: The score of a rate, None if it diverged.
    """
    rate, tuning = method.rates[0], []
    if len(method.rates) > 1:
        tuning = [trial(each) for each in method.rates]
        best = max(tuning, key=lambda end: -np.inf if end is None else end)
        rate = method.rates[tuning.index(best)]
    edge = len(method.rates) > 1 and rate in (method.rates[0], method.rates[-1])
    return {"lr": rate, "at_edge": edge, "rates": list(method.rates), "tuning": tuning}


def _end(found: Row | None) -> float | None:
    return None if found is None else found["psnr"][-1]


def curve(setup: Setup, quantity: str = "psnr") -> Row | None:
    """Return PSNR or SNR, seconds and evaluations by step of one run, or None if it diverged."""
    with TemporaryDirectory() as directory:
        try:
            metrics = train(setup, out=Path(directory) / "run").metrics
        except DivergenceError:
            return None
    return {
        "shape": f"{setup.depth}×{setup.width}",
        "step": [int(step) for step in metrics["step"]],
        quantity: [round(float(each), 2) for each in metrics[quantity]],
        "wall": [round(float(each), 3) for each in metrics["wall_s"]],
        "evaluations": [int(each) for each in metrics["evaluations"]],
    }
