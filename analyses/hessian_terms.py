"""How much of the Hessian is Gauss–Newton, how much activation curvature, how much cross-layer?

And how smooth is the loss? P1s §2.1.3 argues that the Hessian of a ReLU field is JᵀJ, and P1
Thms 4.3–4.5 that smoothness in the parameters decides. Measured: the three parts of the closed-form
Hessian, whole and by pairs of layers, along L-BFGS on 50×50 photographs (claims C19, C20, C49); how
far the Hessian moves and how much of the change of the gradient it misses, by the length of the
step and the number of points (C24, C25, C26); and whether runs end at kinks (C27). The full record
takes seven minutes on one core. 4×64 fields (12,737 parameters) take three matrices of 1.3 GB and
two minutes a state there: ``replace(FULL, wide=…)`` on a machine with 8 GB.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from analyses.hessian_terms_verdicts import verdicts
from analyses.smoothness import flat, gradient, missed, product, short, smoothness, states, unit
from analyses.study import Row, Study, main
from hessian_lab.fields.mlp import CoordinateMLP, make_field
from hessian_lab.losses import Loss, bce, mse
from hessian_lab.optim.lbfgs import LBFGS
from hessian_lab.probe.closed_form import slots_of
from hessian_lab.probe.hessian import HessianTerms, hessian_terms
from hessian_lab.probe.spectrum import spectrum
from hessian_lab.signal import Signal
from hessian_lab.signals import load_signal
from hessian_lab.training.loop import train
from hessian_lab.training.setup import Setup

Field = dict[str, Any]
PARTS = ("ggn", "activation", "cross")
# Directions that the share of curvature in kinks is averaged over.
DRAWS = 4
# Magnitudes of pre-activations, in units of their root mean square, that are counted.
NEAR = (1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Config:
    """What is varied.

    Attributes:
        fields: The options of ``Setup`` of each network.
        wide: Further ones, measured on the first image at the first and the last step.
        images: Bundled photographs; the first is that of everything but the parts.
        seeds: Of initialisations.
        steps: Iterates whose Hessian is taken apart.
        late: A further one, on the first image.
        smooth_steps: Iterates whose smoothness is probed.
        sizes: Pixels per side of the images that kinks are counted on.
        size: Pixels per side of what is taken apart.
        smooth_size: Pixels per side where smoothness is probed.
        kink_steps: Iterations after which runs are looked at for kinks.
        kink_size: Pixels per side of those.
    """

    fields: tuple[Field, ...]
    wide: tuple[Field, ...] = ()
    images: tuple[str, ...] = ("camera", "chelsea", "astronaut")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: tuple[int, ...] = (0, 5, 10, 20, 50)
    late: int = 400
    smooth_steps: tuple[int, ...] = (0, 50)
    sizes: tuple[int, ...] = (16, 32, 64, 128)
    size: int = 50
    smooth_size: int = 32
    kink_steps: int = 2000
    kink_size: int = 32


SHAPE = {"depth": 4, "width": 16}
OCTAVES = (4, 8)
FIELDS: tuple[Field, ...] = (
    {"act": "relu", **SHAPE},
    *({"act": "relu_pe", "octaves": octaves, **SHAPE} for octaves in OCTAVES),
    {"act": "sine", "omega": 30.0, **SHAPE},
    {"act": "gaussian", "sigma": 0.05, **SHAPE},
    {"act": "gaussian", "sigma": 0.1, **SHAPE},
    {"act": "tanh", **SHAPE},
)
# Whose runs are followed to their end, sine as one without kinks; of encodings, the last.
KINKED = ("relu", "sine")
WIDE: tuple[Field, ...] = (
    {"act": "relu", "depth": 4, "width": 32},
    {"act": "sine", "omega": 30.0, "depth": 4, "width": 32},
)
FULL = Config(fields=FIELDS, wide=WIDE)
QUICK = replace(
    FULL,
    wide=(),
    images=("camera",),
    seeds=(0,),
    steps=(0, 10),
    late=50,
    smooth_steps=(0, 10),
    sizes=(12, 24),
    size=24,
    smooth_size=24,
    kink_steps=100,
    kink_size=16,
)


def cells(config: Config) -> list[Row]:
    """Return every network with what is measured of it."""
    first = config.images[0]
    found: list[Row] = []
    for seed in config.seeds:
        for one in config.fields:
            for image in config.images:
                found.append({"part": "terms", "loss": "mse", "image": image, "seed": seed, **one})
            found.append({"part": "terms", "loss": "bce", "image": first, "seed": seed, **one})
            found.append({"part": "smooth", "image": first, "seed": seed, **one})
            if one["act"].startswith("relu"):
                found.append({"part": "points", "image": first, "seed": seed, **one})
            if one["act"] in KINKED or one.get("octaves") == max(OCTAVES):
                found.append({"part": "kinks", "image": first, "seed": seed, **one})
    for one in config.wide:
        found.append(
            {"part": "terms", "loss": "mse", "image": first, "seed": config.seeds[0], **one}
        )
    return found


def measure(config: Config, cell: Row) -> Row | list[Row]:
    """Measure one cell."""
    return MEASURES[cell["part"]](config, cell)


def trained(
    cell: Row, steps: tuple[int, ...], *, size: int, loss: Loss = mse
) -> tuple[Signal, dict[int, CoordinateMLP]]:
    """Return a signal and the fields that L-BFGS finds on it after some steps."""
    signal = load_signal(cell["image"], size)
    if loss is bce:
        middle = signal.values.median(dim=0).values
        signal = Signal(signal.coords, (signal.values > middle).to(signal.values), bce)
    names = ("act", "depth", "width", "octaves", "omega", "sigma", "seed")
    options = {name: cell[name] for name in names if name in cell}
    last = max(steps)
    every = max(1, min((later for later in steps if later), default=1))
    every = every if all(step % every == 0 for step in steps) else 1
    setup = Setup(signal=cell["image"], size=size, steps=last, checkpoint_every=every, **options)
    with TemporaryDirectory() as directory:
        run = train(setup, out=Path(directory) / "run", signal=signal, loss=loss)
        return signal, {step: _field(run.model(step)) for step in steps}


def _field(model: object) -> CoordinateMLP:
    assert isinstance(model, CoordinateMLP)
    return model.double()


# The three parts.


def _terms(config: Config, cell: Row) -> list[Row]:
    wide = cell["width"] > SHAPE["width"]
    steps = (0, max(config.steps)) if wide else config.steps
    first = cell["image"] == config.images[0] and cell["loss"] == "mse" and not wide
    steps = (*steps, config.late) if first else steps
    steps = (0, max(config.steps)) if cell["loss"] == "bce" else steps
    loss = bce if cell["loss"] == "bce" else mse
    signal, models = trained(cell, steps, size=config.size, loss=loss)
    return [
        {"step": step, **parts_of(model, loss, signal, spectra=not wide and step != 5)}
        for step, model in models.items()
    ]


def parts_of(model: CoordinateMLP, loss: Loss, signal: Signal, *, spectra: bool) -> Row:
    """Return the sizes of the parts of a Hessian, in units of its Frobenius norm."""
    terms = hessian_terms(model, loss, signal)
    whole = terms.ggn + terms.activation + terms.cross
    norm = float(torch.linalg.matrix_norm(whole))
    row: Row = {
        "num_parameters": len(whole),
        "norm": short(norm),
        "identity": short(_identity(model, loss, signal, whole)),
        "residual": short(float(torch.linalg.matrix_norm(whole - terms.ggn)) / norm),
        **{
            name: short(float(torch.linalg.matrix_norm(part)) / norm)
            for name, part in _named(terms)
        },
        "pairs": {name: _pairs(model, part, norm) for name, part in _named(terms)},
    }
    if spectra:
        found, ggn = spectrum(whole), spectrum(terms.ggn)
        gap = spectrum(whole - terms.ggn)
        row |= {
            "residual_spectral": short(gap.spectral_radius / found.spectral_radius),
            "zero": short(found.numerical_zeros / len(whole)),
            "zero_ggn": short(ggn.numerical_zeros / len(whole)),
            "negative": short(found.negative / len(whole)),
        }
    return row


def _named(terms: HessianTerms) -> Iterator[tuple[str, Tensor]]:
    for name in PARTS:
        yield name, getattr(terms, name)


def _pairs(model: CoordinateMLP, part: Tensor, norm: float) -> list[float]:
    """Return the norms of the blocks of maps i ≥ j, row by row; a pair stands in H twice."""
    places = [slice(slot.start, slot.bias.stop) for slot in slots_of(model)]
    return [
        short(float(torch.linalg.matrix_norm(part[rows, columns])) / norm)
        for i, rows in enumerate(places)
        for columns in places[: i + 1]
    ]


def _identity(model: CoordinateMLP, loss: Loss, signal: Signal, whole: Tensor) -> float:
    """Return by how much the sum of the parts misses a product by double backward, relatively."""
    vector = unit(len(whole), seed=7)
    found = product(model, loss, signal, vector)
    return float(torch.linalg.vector_norm(whole @ vector - found) / found.norm())


# Smoothness.


def _smooth(config: Config, cell: Row) -> list[Row]:
    # One step more, for its direction.
    steps = sorted({step + more for step in config.smooth_steps for more in (0, 1)})
    signal, models = trained(cell, tuple(steps), size=config.smooth_size)
    rows = []
    for step in config.smooth_steps:
        ahead = flat(models[step + 1]) - flat(models[step])
        norm = torch.linalg.vector_norm(ahead)
        directions = {"random": unit(len(ahead), seed=cell["seed"])}
        if float(norm):
            directions["optimizer"] = ahead / norm
        for name, direction in directions.items():
            rows.append(
                {"step": step, "direction": name, **smoothness(models[step], signal, direction)}
            )
    return rows


def _points(config: Config, cell: Row) -> list[Row]:
    _, models = trained(cell, config.smooth_steps, size=config.size)
    rows = []
    for step, model in models.items():
        directions = [unit(len(flat(model)), seed=100 + draw) for draw in range(DRAWS)]
        for size in config.sizes:
            signal = load_signal(cell["image"], size)
            shares = [
                sum(missed(model, signal, each, length) for each in directions) / DRAWS
                for length in (1e-2, 1e-3)
            ]
            rows.append({"step": step, "size": size, "missed": [short(each) for each in shares]})
    return rows


# Where runs end.


def _kinks(config: Config, cell: Row) -> Row:
    signal = load_signal(cell["image"], config.kink_size)
    options = {name: cell[name] for name in ("octaves", "omega", "seed") if name in cell}
    model = make_field(
        cell["act"],
        signal.coords.shape[1],
        signal.values.shape[1],
        width=cell["width"],
        depth=cell["depth"],
        **options,
    )
    start = _near(model, signal)
    optimizer = LBFGS(model.parameters())
    for _ in range(config.kink_steps):
        loss = optimizer.step(lambda: mse(model(signal.coords), signal.values))
        if optimizer.converged:
            break
    return {
        "iterations": int(optimizer.counters["step"]),
        "converged": optimizer.converged,
        "final_loss": short(float(loss.detach())),
        "gradient": short(float(gradient(model, signal).norm())),
        "near_start": start,
        "near_end": _near(model, signal),
    }


def _near(model: CoordinateMLP, signal: Signal) -> list[int]:
    """Return how many pre-activations are nearer to 0 than ``NEAR`` times their unit's size."""
    found = states(model, signal)
    sizes = found.square().mean(dim=0).sqrt()
    return [int((found.abs() < near * sizes).sum()) for near in NEAR]


MEASURES: dict[str, Callable[[Config, Row], Row | list[Row]]] = {
    "terms": _terms,
    "smooth": _smooth,
    "points": _points,
    "kinks": _kinks,
}
STUDY = Study(
    name="hessian_terms",
    question="How much of the Hessian is Gauss–Newton, and how smooth is the loss?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
