"""What are the zero eigenvalues made of?

P1s §2.1.3 argues that a ReLU field's Hessian is rank-deficient since derivatives of units vanish,
likely somewhere in every layer, and that sine and Gaussian fields keep full rank. Measured, for
4×16 fields on 50×50 photographs: which zero rows come from units that are dead on every point,
which from pairs that are never active together; which of the other zero eigenvalues lie in the
null space of one layer's Gauss–Newton block, as those of units do that are active on the same
points; what rescaling symmetries have to do with it; how often a unit is dead, by layer, width and
encoding; and what a Gaussian unit far from its bump does. The full record takes five minutes on
one core.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.dead_units import dead_by_layer, explained, paths_of, rescalings
from analyses.hessian_terms import trained
from analyses.smoothness import short, states
from analyses.study import Row, Study, main
from analyses.zero_anatomy_verdicts import verdicts
from hessian_lab.fields.mlp import CoordinateMLP, make_field
from hessian_lab.losses import mse
from hessian_lab.probe.closed_form import slots_of
from hessian_lab.probe.hessian import dense_ggn, dense_hessian
from hessian_lab.signal import Signal
from hessian_lab.signals import load_signal

Field = dict[str, Any]
EPS = torch.finfo(torch.float64).eps
# Roundings of a block's own largest eigenvalue below which an eigenvector is in its null space.
NULL_ROUNDINGS = 10
# Factors on either side of the floor within which an eigenvalue may be called either way.
AMBIGUOUS = 100


@dataclass(frozen=True)
class Config:
    """What is varied.

    Attributes:
        rough: Networks whose zeros are taken apart.
        smooth: Networks whose rows are compared with the slopes of their units.
        units: Networks whose dead units are counted at the start.
        images: Bundled photographs.
        seeds: Of initialisations.
        steps: Iterates of L-BFGS.
        late: A further one of the first image and the first two seeds, for rescalings.
        draws: Initialisations over which dead units are counted.
        size: Pixels per side.
    """

    rough: tuple[Field, ...]
    smooth: tuple[Field, ...]
    units: tuple[Field, ...]
    images: tuple[str, ...] = ("camera", "chelsea", "astronaut")
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    steps: tuple[int, ...] = (0, 50)
    late: int = 1500
    draws: int = 100
    size: int = 50


SHAPE = {"depth": 4, "width": 16}
ROUGH: tuple[Field, ...] = (
    {"act": "relu", **SHAPE},
    {"act": "relu_pe", "octaves": 4, **SHAPE},
    {"act": "relu_pe", "octaves": 8, **SHAPE},
)
SMOOTH: tuple[Field, ...] = (
    *(
        {"act": "gaussian", "sigma": sigma, **SHAPE}
        for sigma in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    ),
    {"act": "sine", "omega": 30.0, **SHAPE},
)
FULL = Config(
    rough=ROUGH,
    smooth=SMOOTH,
    units=tuple({**one, "width": width} for one in ROUGH for width in (16, 32, 64, 128, 256)),
)
QUICK = replace(
    FULL,
    smooth=SMOOTH[1:6:2],
    units=tuple({**one, "width": width} for one in ROUGH for width in (16, 64)),
    images=("camera",),
    seeds=(0,),
    steps=(0, 10),
    late=50,
    draws=10,
    size=24,
)


def cells(config: Config) -> list[Row]:
    """Return every network with what is measured of it."""
    found: list[Row] = []
    for seed in config.seeds:
        for image in config.images:
            found += [
                {"part": "zeros", "image": image, "seed": seed, **one} for one in config.rough
            ]
        first = config.images[0]
        found += [{"part": "bells", "image": first, "seed": seed, **one} for one in config.smooth]
    found += [{"part": "units", "image": config.images[0], **one} for one in config.units]
    return found


def measure(config: Config, cell: Row) -> Row | list[Row]:
    """Measure one cell."""
    return MEASURES[cell["part"]](config, cell)


# What zeros are made of.


def _zeros(config: Config, cell: Row) -> list[Row]:
    long = cell["image"] == config.images[0] and cell["seed"] in config.seeds[:2]
    steps = (*config.steps, config.late) if long else config.steps
    signal, models = trained(cell, steps, size=config.size)
    return [{"step": step, **anatomy(model, signal)} for step, model in models.items()]


def anatomy(model: CoordinateMLP, signal: Signal) -> Row:
    """Return what the zero eigenvalues of a ReLU field's Hessian are made of, in counts.

    ``dead``, ``cut`` and ``apart`` are rows that the paths of the field predict to be zero, and
    ``false`` those of them that are not; ``unforeseen`` are zero rows that they do not predict.
    Of the other zero eigenvalues, ``alike`` is how much of their eigenvectors lies in the null
    spaces of single layers' Gauss–Newton blocks; ``ambiguous`` are the eigenvalues that a floor
    100 times lower or higher would call otherwise.
    """
    paths = paths_of(model, signal.coords)
    reasons = explained(paths)
    predicted = torch.stack(list(reasons.values())).any(dim=0)
    matrix = dense_hessian(model, mse, signal)
    zero = (matrix == 0).all(dim=1)
    values, vectors = torch.linalg.eigh(matrix[~zero][:, ~zero])
    radius = float(values.abs().max())
    floor = len(matrix) * EPS * radius
    null = torch.zeros(len(matrix), int((values.abs() <= floor).sum()), dtype=matrix.dtype)
    null[~zero] = vectors[:, values.abs() <= floor]
    near = (values.abs() > floor / AMBIGUOUS) & (values.abs() < floor * AMBIGUOUS)
    directions = rescalings(model, paths)
    norms = torch.linalg.vector_norm
    lengths = norms(matrix @ directions, dim=0) / norms(directions, dim=0)
    return {
        "num_parameters": len(matrix),
        "structural": int(zero.sum()),
        **{name: int(part.sum()) for name, part in reasons.items()},
        "false": int((predicted & ~zero).sum()),
        "unforeseen": int((zero & ~predicted).sum()),
        "others": null.shape[1],
        "alike": short(_inside(model, dense_ggn(model, mse, signal), null)),
        "ambiguous": int(near.sum()),
        "dead_units": dead_by_layer(paths),
        "always_on": [int(active.all(dim=0).sum()) for active in paths.active],
        "rescalings": directions.shape[1],
        "rescaled": short(float(lengths.median()) / radius),
    }


def _inside(model: CoordinateMLP, ggn: Tensor, vectors: Tensor) -> float:
    """Return how much of orthonormal vectors lies in the null spaces of the layers' blocks."""
    total = 0.0
    for slot in slots_of(model):
        place = slice(slot.start, slot.bias.stop)
        block = ggn[place, place]
        live = (block != 0).any(dim=1)
        if not live.any():
            continue
        values, basis = torch.linalg.eigh(block[live][:, live])
        floor = NULL_ROUNDINGS * len(block) * EPS * float(values.abs().max())
        inner = basis[:, values.abs() <= floor].T @ vectors[place][live]
        total += float(inner.square().sum())
    return total


# How often units are dead.


def _units(config: Config, cell: Row) -> Row:
    coords = load_signal(cell["image"], config.size).coords
    counts = []
    for seed in range(config.draws):
        model = make_field(
            cell["act"],
            coords.shape[1],
            1,
            width=cell["width"],
            depth=cell["depth"],
            octaves=cell.get("octaves"),
            seed=seed,
        )
        counts.append(dead_by_layer(paths_of(model, coords)))
    table = np.array(counts)
    return {
        "draws": config.draws,
        "any_dead": [short(float(each)) for each in (table > 0).mean(axis=0)],
        "dead_share": [short(float(each)) for each in table.mean(axis=0) / cell["width"]],
        "every_layer": short(float((table > 0).all(axis=1).mean())),
    }


# What is far from the bump of a Gaussian.


def _bells(config: Config, cell: Row) -> list[Row]:
    signal, models = trained(cell, config.steps, size=config.size)
    rows = []
    for step, model in models.items():
        row = {"step": step, **bells(model, signal, scale=cell.get("sigma") or 1 / cell["omega"])}
        if cell["seed"] != config.seeds[0]:
            del row["slopes"], row["rows"]
        rows.append(row)
    return rows


def bells(model: CoordinateMLP, signal: Signal, *, scale: float) -> Row:
    """Return the rows of a smooth field's Hessian beside the slopes of their units.

    ``rows`` are the norms of each hidden unit's rows, weights and bias together, and ``slopes`` its
    largest |φ′| over the points, both as decimal logarithms below the largest.
    """
    matrix = dense_hessian(model, mse, signal)
    norms = torch.linalg.vector_norm(matrix, dim=1).square()
    rows = []
    for slot in slots_of(model)[:-1]:
        weight = norms[slot.weight].view(slot.fan_out, slot.fan_in).sum(dim=1)
        rows.append((weight + norms[slot.bias]).sqrt())
    states_found = states(model, signal)
    slopes = model.activation.jet(states_found)[1].abs().amax(dim=0)
    values = torch.linalg.eigvalsh(matrix).abs()
    floor = len(matrix) * EPS * float(values.max())
    logs = [_logs(slopes), _logs(torch.cat(rows))]
    least = states_found.abs().amin(dim=0) / scale
    return {
        "zero": short(float((values <= floor).double().mean())),
        "floor_rows": int((torch.cat(rows) <= floor).sum()),
        "correlation": short(_correlation(*logs)),
        "least_slope": short(min(logs[0])),
        "least_row": short(min(logs[1])),
        "farthest": short(float(least.max())),
        "slopes": [round(each, 2) for each in logs[0]],
        "rows": [round(each, 2) for each in logs[1]],
    }


def _correlation(one: list[float], other: list[float]) -> float:
    if np.ptp(one) < 1e-6:
        return 0.0
    return float(np.asarray(np.corrcoef(one, other))[0, 1])


def _logs(values: Tensor) -> list[float]:
    floor = torch.finfo(values.dtype).tiny
    logs: list[float] = (values.clamp(min=floor) / values.max()).log10().tolist()
    return logs


MEASURES: dict[str, Callable[[Config, Row], Row | list[Row]]] = {
    "zeros": _zeros,
    "units": _units,
    "bells": _bells,
}
STUDY = Study(
    name="zero_anatomy",
    question="What are the zero eigenvalues of the Hessian made of?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
