"""Which fields does L-BFGS fit to sounds, and to a solid, and how does Adam compare?

P1s §4.1, §4.3, Figs 5, 6 and 8. Sounds: 4×128 on one second at 8 kHz, the cello as synthesised here
and, where its file is, a recording of Brahms; ω of the first two layers against SIREN's first
alone, and a grid of both; the Gaussian also at a larger σ. A solid: 4×64 sine on 30,000 points, all
at once, L-BFGS against Adam at 1e-4 and at its best rates by the points' cross-entropy and by the
IoU, chosen on another seed (the record's ``tuning`` is minus the one, or the other). By the IoU it
is the least rate on the terrain, 1e-4, where 3e-5, tried beside the record, ended at 0.835 and not
0.899. Seconds are the processor's, on one thread, in steps alone. It takes half an hour on one
core. The papers' 4×256 on half a second at 44.1 kHz takes 12 s an evaluation on one core: it wants
a GPU, and so does a solid of 100,000 points.

Time goes from -1 to 1 whatever the clip's length: the same ω is another frequency in another clip.
"""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analyses.rates import Method, choose, curve
from analyses.solids import NOTHING, fitted, missing
from analyses.sound_verdicts import sound_verdicts
from analyses.study import Row, Study, Verdict, main
from hessian_lab.errors import InputError
from hessian_lab.signals import load_signal
from hessian_lab.training.setup import Setup

# How each field is called, and what it is.
FIELDS: dict[str, dict[str, Any]] = {
    "sine 3000, 3000": {"act": "sine", "omega": (3000.0, 3000.0, 30.0, 30.0)},
    "sine 3000, 30": {"act": "sine", "omega": (3000.0, 30.0, 30.0, 30.0)},
    "gaussian 0.01": {"act": "gaussian", "sigma": 0.01},
    "gaussian 0.03": {"act": "gaussian", "sigma": 0.03},
    "relu_pe": {"act": "relu_pe", "octaves": 8},
    "relu": {"act": "relu"},
}
# What fits the points best may be the worst of solids.
BY_IOU = "adam by IoU"
METHODS = {
    "lbfgs": Method("lbfgs", (1.0,)),
    "adam": Method("adam", (3e-4, 1e-3, 3e-3)),
    BY_IOU: Method("adam", (1e-4, 3e-4, 1e-3, 3e-3)),
    "adam 1e-4": Method("adam", (1e-4,)),
}


@dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        clips: Sounds, with the second at which the clip of each begins.
        seconds: Of a clip.
        rate: Samples per second.
        shape: Layers and units of their fields.
        steps: Of L-BFGS on sounds.
        omegas: The grid of C102, of the first layer and of the second.
        grid_steps: Of L-BFGS at each of its points.
        grid_seeds: Of each.
        solids: Names of solids.
        points: Of each.
        solid_shape: Layers and units of their fields.
        solid_steps: Of L-BFGS on solids; Adam takes ``adam_factor`` times as many.
        resolution: Cubes per side of the grid of the IoU, and of marching cubes.
        checkpoints: Of L-BFGS's runs, beside the start.
        tune_seed: Chooses the rate.
        seeds: Are compared.
    """

    clips: tuple[tuple[str, float], ...] = (("bwv1007", 0.0), ("brahms", 5.0))
    seconds: float = 1.0
    rate: int = 8000
    shape: tuple[int, int] = (4, 128)
    steps: int = 100
    omegas: tuple[tuple[float, ...], tuple[float, ...]] = (
        (1000.0, 3000.0, 10000.0),
        (30.0, 1000.0, 3000.0, 10000.0),
    )
    grid_steps: int = 80
    grid_seeds: tuple[int, ...] = (1, 2)
    solids: tuple[str, ...] = ("terrain", "spot")
    points: int = 30_000
    solid_shape: tuple[int, int] = (4, 64)
    solid_steps: int = 80
    adam_factor: int = 2
    resolution: int = 48
    checkpoints: int = 10
    tune_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)


FULL = Config()
QUICK = replace(
    FULL,
    clips=(("bwv1007", 0.0),),
    seconds=0.25,
    rate=2000,
    shape=(4, 16),
    steps=20,
    omegas=((300.0, 3000.0), (30.0, 3000.0)),
    grid_steps=10,
    grid_seeds=(1,),
    solids=("terrain",),
    points=1500,
    solid_shape=(2, 16),
    solid_steps=12,
    resolution=12,
    checkpoints=4,
    seeds=(1, 2),
)


def cells(config: Config) -> list[Row]:
    """Return every field on every clip, the grid of ω, and every method on every solid."""
    sounds = [
        {"part": "sound", "clip": clip, "start": start, "field": field}
        for clip, start in config.clips
        for field in FIELDS
    ]
    grid = [
        {"part": "grid", "clip": clip, "start": start, "first": first, "second": second}
        for clip, start in config.clips
        for first in config.omegas[0]
        for second in config.omegas[1]
    ]
    solids = [
        {"part": "solid", "solid": name, "method": method}
        for name in config.solids
        for method in METHODS
    ]
    return [*sounds, *grid, *solids]


def measure(config: Config, cell: Row) -> list[Row]:
    """Train one field on one signal, from several seeds; say so where the signal is not here."""
    if cell["part"] == "solid":
        return _solid(config, cell)
    clip = {"start": cell["start"], "seconds": config.seconds, "rate": config.rate}
    try:
        points = load_signal(cell["clip"], **clip).num_points
    except InputError:
        return [{"skipped": f"not here: hessian-lab data get {cell['clip']}"}]
    steps, seeds = config.steps, config.seeds
    if cell["part"] == "grid":
        steps, seeds = config.grid_steps, config.grid_seeds
        rest = (30.0,) * (config.shape[0] - 2)
        field = {"act": "sine", "omega": (cell["first"], cell["second"], *rest)}
    else:
        field = FIELDS[cell["field"]]
    base = Setup(
        signal=cell["clip"],
        depth=config.shape[0],
        width=config.shape[1],
        optimizer="lbfgs",
        steps=steps,
        checkpoint_every=steps if cell["part"] == "grid" else max(1, steps // 20),
        dtype="float32",
        **clip,
        **field,
    )
    rows = []
    for seed in seeds:
        found = curve(replace(base, seed=seed), "snr") or {"step": [], "snr": [], "wall": []}
        rows.append({"seed": seed, "points": points, "rate": config.rate, **found})
    return rows


def _solid(config: Config, cell: Row) -> list[Row]:
    """Choose the rate on one seed, and train with it on the others."""
    if why := missing(cell["solid"], config.points, config.resolution):
        return [{"skipped": why}]
    method = METHODS[cell["method"]]
    factor = config.adam_factor if method.optimizer == "adam" else 1

    def setup(rate: float, seed: int) -> Setup:
        return Setup(
            signal=cell["solid"],
            points=config.points,
            act="sine",
            omega=30.0,
            depth=config.solid_shape[0],
            width=config.solid_shape[1],
            optimizer=method.optimizer,
            lr=rate,
            steps=config.solid_steps * factor,
            seed=seed,
            dtype="float32",
        )

    def trial(rate: float) -> float | None:
        found = fitted(setup(rate, config.tune_seed), resolution=config.resolution, checkpoints=1)
        if found is None:
            return None
        return float(found["iou"][-1] if cell["method"] == BY_IOU else -found["bce"][-1])

    chosen = choose(method, trial) | {"points": config.points}
    return [
        {"seed": seed, **chosen}
        | (
            fitted(
                setup(chosen["lr"], seed),
                resolution=config.resolution,
                checkpoints=config.checkpoints * factor,
                surface=config.resolution,
            )
            or NOTHING
        )
        for seed in config.seeds
    ]


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the curves say of C101, C102 and C104."""
    return sound_verdicts(rows)


STUDY = Study(
    name="sound_fields",
    question="Which fields does L-BFGS fit to sounds and to solids, and how does Adam compare?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
