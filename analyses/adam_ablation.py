"""What makes Adam faster than SGD on batches: the Gauss–Newton diagonal, as P3 §4.3 says?

Every preconditioner with and without momentum, at the best of its rates: Adam's second moment of
gradients; the same frozen after 50 steps; signs of gradients; and the exact diagonal of the batch's
Gauss–Newton matrix, averaged as Adam averages, to the powers ½ and 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.study import Answer, Row, Study, Verdict, main
from analyses.words import spread
from hessian_lab.fields.mlp import CoordinateMLP, make_field
from hessian_lab.probe.closed_diagonal import exact_diagonal
from hessian_lab.signal import Signal
from hessian_lab.signals import load_signal
from hessian_lab.training.quality import quality
from hessian_lab.training.run import fill, flat

Field = dict[str, Any]
FIELDS: tuple[Field, ...] = (
    {"act": "relu_pe", "octaves": 8},
    {"act": "sine", "omega": 30.0},
    {"act": "gaussian", "sigma": 0.1},
)
SMALL = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
# Of each preconditioner, the rates tried.
RATES: dict[str, tuple[float, ...]] = {
    "none": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "sign": SMALL,
    "moment": SMALL,
    "frozen moment": SMALL,
    "ggn ½": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "ggn 1": (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1),
}
MOMENTUM, AVERAGE = 0.9, 0.999
FROZEN = 50
# Added to Adam's root, and to the diagonal in units of its mean.
EPS, DAMPING = 1e-8, 1e-4
# C67: the exact diagonal recovers this share of the gap between SGD and Adam.
RECOVERED = 0.8
# A gap below this, in dB, is none.
LEAST_GAP = 0.3


@dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        fields: Fields of ``shape`` on ``size`` pixels per side.
        steps: On batches of ``batch_size``.
        images: Bundled images.
        tune_seed: Chooses the rate.
        seeds: Are compared.
    """

    fields: tuple[Field, ...] = FIELDS
    shape: tuple[int, int] = (4, 64)
    size: int = 64
    batch_size: int = 512
    steps: int = 400
    images: tuple[str, ...] = ("chelsea",)
    tune_seed: int = 0
    seeds: tuple[int, ...] = (1, 2)


FULL = Config()
QUICK = replace(FULL, fields=FIELDS[:1], shape=(2, 16), size=24, steps=30, images=("camera",))


def cells(config: Config) -> list[Row]:
    """Return every field with every preconditioner, with and without momentum."""
    return [
        {**field, "image": image, "preconditioner": name, "momentum": momentum}
        for field in config.fields
        for image in config.images
        for name in RATES
        for momentum in (0.0, MOMENTUM)
    ]


def measure(config: Config, cell: Row) -> list[Row]:
    """Choose the rate on one seed, and train with it on the others."""
    rates = RATES[cell["preconditioner"]]
    tuning = [_train(config, cell, rate, config.tune_seed) for rate in rates]
    rate = rates[int(np.argmax(tuning))]
    return [
        {
            "seed": seed,
            "lr": rate,
            "at_edge": rate in (rates[0], rates[-1]),
            "tuning": [None if np.isinf(end) else round(end, 2) for end in tuning],
            "shape": "{}×{}".format(*config.shape),
            "steps": config.steps,
            "psnr": round(_train(config, cell, rate, seed), 2),
        }
        for seed in config.seeds
    ]


def _train(config: Config, cell: Row, rate: float, seed: int) -> float:
    """Return the last PSNR; minus infinity if the loss is not finite."""
    signal = load_signal(cell["image"], size=config.size)
    options = {name: cell[name] for name in ("omega", "sigma", "octaves") if name in cell}
    depth, width = config.shape
    model = make_field(
        cell["act"],
        signal.coords.shape[1],
        signal.values.shape[1],
        width=width,
        depth=depth,
        seed=seed,
        **options,
    )
    precondition = _Preconditioner(cell["preconditioner"])
    place, drift = flat(model), torch.zeros(0)
    for count, batch in enumerate(_batches(signal, config, seed), 1):
        gradient = _gradient(model, batch)
        if not bool(gradient.isfinite().all()):
            return -np.inf
        step = gradient
        if cell["momentum"]:
            drift = gradient * (1 - MOMENTUM) + (drift * MOMENTUM if count > 1 else 0)
            step = drift / (1 - MOMENTUM**count)
        diagonal = partial(exact_diagonal, model, batch.loss, batch, matrix="ggn")
        place = place - rate * precondition(gradient, step, diagonal)
        fill(model, place)
    end = quality(model, signal.loss, signal)["psnr"]
    return end if np.isfinite(end) else -np.inf


def _batches(signal: Signal, config: Config, seed: int) -> Iterator[Signal]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(config.steps):
        chosen = torch.randperm(signal.num_points, generator=generator)[: config.batch_size]
        yield Signal(signal.coords[chosen], signal.values[chosen], signal.loss)


def _gradient(model: CoordinateMLP, batch: Signal) -> Tensor:
    loss = batch.loss(model(batch.coords), batch.values)
    return torch.cat(
        [part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))]
    )


class _Preconditioner:
    """One of ``RATES``, with the average that it keeps."""

    def __init__(self, name: str) -> None:
        self.name, self.count, self.total = name, 0, torch.zeros(())

    def __call__(self, gradient: Tensor, step: Tensor, diagonal: Callable[[], Tensor]) -> Tensor:
        """Return the preconditioned direction ``step``."""
        if self.name == "none":
            return step
        if self.name == "sign":
            return step.sign()
        if self.name.endswith("moment"):
            if self.name == "moment" or self.count < FROZEN:
                self._add(gradient.square())
            return step / (self._mean().sqrt() + EPS)
        self._add(diagonal())
        mean = self._mean()
        return step / (mean + DAMPING * mean.mean()) ** (0.5 if self.name == "ggn ½" else 1.0)

    def _add(self, values: Tensor) -> None:
        self.count += 1
        self.total = AVERAGE * self.total + (1 - AVERAGE) * values

    def _mean(self) -> Tensor:
        return self.total / (1 - AVERAGE**self.count)


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the last PSNRs say of C67."""
    parts, recovered, signs = [], [], []
    for act, group in rows.groupby("act", sort=False):
        ends = {
            (name, bool(momentum)): float(part["psnr"].fillna(-np.inf).median())
            for (name, momentum), part in group.groupby(["preconditioner", "momentum"])
        }
        adam, sgd = ends["moment", True], ends["none", _tuned(group, "none")]
        gap = adam - sgd
        others = {name: ends[name, _tuned(group, name)] for name in RATES}
        gauss = max(("ggn ½", "ggn 1"), key=lambda name: _best(group, name))
        told = ", ".join(
            f"{name} {_told(group[group['preconditioner'] == name]['psnr'])}" for name in RATES
        )
        parts.append(f"{act}: Adam − SGD {gap:.1f} dB; {told}")
        if np.isfinite(gap) and gap > LEAST_GAP:
            recovered.append((others[gauss] - sgd) / gap)
            signs.append((others["sign"] - sgd) / gap)
    held = [one >= RECOVERED > sign for one, sign in zip(recovered, signs, strict=True)]
    answer: Answer = "holds" if held and all(held) else "holds only under"
    answer = answer if any(held) else "does not hold"
    shares = ", ".join(f"{100 * one:.0f} %" for one in recovered) or "no gap"
    of_signs = ", ".join(f"{100 * one:.0f} %" for one in signs) or "no gap"
    measured = (
        f"of the gap the exact GGN diagonal recovers {shares}, signs alone {of_signs}. "
        f"PSNR in dB, with and without momentum: {'; '.join(parts)}"
    )
    edges = sorted(set(rows[rows["at_edge"]]["preconditioner"]))
    settings = (
        f"{rows['shape'].iloc[0]}; {rows['steps'].iloc[0]} batches of 512; "
        f"{', '.join(dict.fromkeys(rows['image']))}; {rows['seed'].nunique()} seeds, rates chosen "
        "on another" + (f"; best rate at an edge: {', '.join(edges)}" if edges else "")
    )
    return [Verdict("C67", answer, measured, settings)]


def _best(rows: pd.DataFrame, name: str, momentum: float | None = None) -> float:
    """Return the best PSNR of tuning of a preconditioner."""
    chosen = rows[rows["preconditioner"] == name]
    chosen = chosen if momentum is None else chosen[(chosen["momentum"] > 0) == (momentum > 0)]
    tried = [end for row in chosen["tuning"] for end in row if end is not None]
    return max(tried, default=-np.inf)


def _tuned(rows: pd.DataFrame, name: str) -> bool:
    """Tell whether a preconditioner is better with momentum, as its tuning says."""
    return _best(rows, name, MOMENTUM) > _best(rows, name, 0.0)


def _told(ends: "pd.Series[float]") -> str:
    """Return the spread of what did not diverge, and how many did."""
    lost, kept = int(ends.isna().sum()), ends.dropna()
    text = spread(kept) if len(kept) else "–"
    return f"{text} ({lost} of {len(ends)} diverged)" if lost else text


STUDY = Study(
    name="adam_ablation",
    question="What makes Adam faster than SGD on batches?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
