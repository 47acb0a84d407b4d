"""Does cutting an image into patches restore the advantage over Adam that L-BFGS loses when large?

P1 §§1 and 5.2: one network for the whole of an image, and one small network for each of its tiles,
with as many parameters and points in all; each by L-BFGS and by Adam at its best of four rates. The
papers' sizes want a GPU.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analyses.kilo_fields import best_adam, ratios, stack_rows
from analyses.study import Answer, Row, Study, Verdict, main
from analyses.words import bootstrap_mean
from hessian_lab.signals.tiles import load_tiles

# method -> its rate; None for L-BFGS.
METHODS: dict[str, float | None] = {
    "lbfgs": None,
    "adam 3e-4": 3e-4,
    "adam 1e-3": 1e-3,
    "adam 3e-3": 3e-3,
    "adam 1e-2": 1e-2,
}


@dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        images: Bundled images.
        size: Pixels per side of the centred square of each.
        tile: Pixels per side of a tile.
        whole: Layers and units of the one network.
        small: Of a tile's; together they have about as many parameters.
        steps: Of L-BFGS; Adam takes ``adam_factor`` times as many.
        seeds: Of the initialisations.
    """

    images: tuple[str, ...] = ("retina", "coffee", "chelsea")
    size: int = 96
    tile: int = 16
    whole: tuple[int, int] = (4, 64)
    small: tuple[int, int] = (2, 16)
    steps: int = 100
    adam_factor: int = 3
    seeds: tuple[int, ...] = (0, 1)


FULL = Config()
QUICK = replace(
    FULL, images=("chelsea",), size=16, tile=8, whole=(1, 8), small=(1, 4), steps=15, seeds=(0,)
)


def cells(config: Config) -> list[Row]:
    """Return both cuts of every image with every seed."""
    return [
        {"cut": cut, "image": image, "seed": seed}
        for image in config.images
        for seed in config.seeds
        for cut in ("whole", "tiles")
    ]


def measure(config: Config, cell: Row) -> list[Row]:
    """Train one cut by every method; seconds are those of the processor."""
    whole = cell["cut"] == "whole"
    image = load_tiles(cell["image"], config.size if whole else config.tile, config.size)
    values = image.values(0, image.num_tiles).float()
    shape = config.whole if whole else config.small
    rows = stack_rows(
        image.coords(),
        values,
        shape,
        config.steps,
        config.adam_factor,
        METHODS,
        clock=time.process_time,
        seed=1000 * cell["seed"],
    )
    return [
        row | {"shape": f"{shape[0]}×{shape[1]}", "fields": len(values), "psnr": _pooled(row)}
        for row in rows
    ]


def _pooled(row: Row) -> list[list[float]]:
    """Return the PSNR of the picture that the fields make together, as one curve."""
    errors = 10 ** (-np.asarray(row["psnr"], dtype=float) / 10)
    return [[round(float(each), 2) for each in -10 * np.log10(errors.mean(axis=0))]]


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the curves say of C112."""
    found: dict[str, list[float]] = {"whole": [], "tiles": []}
    for _, group in rows.groupby(["image", "seed"], sort=False):
        for cut in found:
            methods: dict[str, dict[str, Any]] = {
                row["method"]: row for row in group[group["cut"] == cut].to_dict("records")
            }
            found[cut] += ratios(best_adam(methods), methods["lbfgs"])
    gain, low, high = np.exp(bootstrap_mean(np.log(found["tiles"]) - np.log(found["whole"])))
    answer: Answer = "holds" if low > 1 else "does not hold"
    if low <= 1 <= high:
        answer = "holds only under" if gain > 1 else "does not hold"
    means = {cut: np.exp(bootstrap_mean(np.log(each))) for cut, each in found.items()}
    told = "; ".join(
        f"{cut} {mean:.2f} [{least:.2f}, {most:.2f}]" for cut, (mean, least, most) in means.items()
    )
    measured = (
        f"Adam's seconds (best rate) over L-BFGS's to the lower end, geometric mean: {told}; "
        f"tiles over whole {gain:.2f} [{low:.2f}, {high:.2f}]"
    )
    shapes = dict.fromkeys(f"{row['fields']} of {row['shape']}" for row in rows.to_dict("records"))
    settings = (
        f"sine fields, {' against '.join(shapes)}, {', '.join(dict.fromkeys(rows['image']))}, "
        f"{rows['seed'].nunique()} seeds; one core"
    )
    return [Verdict("C112", answer, measured, settings)]


STUDY = Study(
    name="patches",
    question="Does cutting an image into patches restore the advantage of L-BFGS over Adam?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
