"""The Hessian spectrum of every tile's field: how it is conditioned over a picture or film."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hessian_lab.errors import InputError
from hessian_lab.losses import mse
from hessian_lab.measures.planning import dense_bytes
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.probe.memory import require_bytes
from hessian_lab.probe.spectrum import spectrum
from hessian_lab.probe.stacked_hessian import stacked_hessians
from hessian_lab.signal import Signal
from hessian_lab.training.files import locked, write_atomically
from hessian_lab.training.tile_files import SPECTRA, Blocks
from hessian_lab.training.tiles import TileRun

COLUMNS = (
    "spectral_radius",
    "kappa",
    "resolved",
    "effective_kappa",
    "zero_share",
    "structural_share",
    "negative_share",
)
# Tiles whose results a killed measurement may lose.
SAVE_EVERY = 16
# Up to this many parameters the matrices of so many fields are made together; on a GPU always.
SMALL, TOGETHER = 300, 64


def measure_tiles(
    run: TileRun, *, every: int = 1, watch: Callable[[dict[str, Any]], None] | None = None
) -> pd.DataFrame:
    """Measure the whole Hessian spectrum of the fields of tiles, where they stand.

    In double precision: ``p n² + 4/3 n³`` operations per tile. Writes ``tile_spectra.csv`` beside
    the parameters, also half-way; what is there already is not measured again.

    Args:
        run: Fields of tiles.
        every: Measure one tile of so many, drawn at random and always the same.
        watch: Called after every tile with its row.

    Returns:
        One row per tile measured: λ of the largest magnitude, κ or its lower bound where it is not
        ``resolved``, the effective κ, shares of numerical zeros, of structural zeros and of
        negative eigenvalues.

    Raises:
        ValueError: For ``every`` below 1.
        ResourceError: If a matrix does not fit.
        UsageError: If another process is writing the run.
        InputError: If no tile is done, or it is no longer what was fitted.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}.")
    if not len(run.table):
        raise InputError(f"run must have a tile that is done, {run.path} has none.")
    image = run.image()
    _require(run, image.num_points)
    coords = image.coords()
    columns = ["tile", *image.axes, *COLUMNS]
    with locked(run.path):
        known = _known(run)
        chosen = sampled(len(run.table), every)
        waiting = [index for index in chosen if index not in known]
        for count, (index, found) in enumerate(_measured(run, image, coords, waiting), 1):
            corner = dict(zip(image.axes, image.corner(index), strict=True))
            known[index] = {"tile": index, **corner} | found
            if count % SAVE_EVERY == 0:
                _save(run, known, columns)
            if watch is not None:
                watch(known[index])
        _save(run, known, columns)
    return pd.DataFrame([known[index] for index in chosen], columns=columns)


def _require(run: TileRun, num_points: int) -> None:
    model = run.stack(0, 1).field(0).double()
    size = sum(value.numel() for value in model.parameters())
    require_bytes(
        dense_bytes(model, num_points) + 8 * size**2,
        f"The dense Hessian of {size} parameters",
        device=torch.device("cpu"),
        cure="Train smaller fields (--width, --depth).",
    )


def sampled(count: int, every: int) -> list[int]:
    """Return one of every ``every`` numbers below ``count``, ascending.

    A random sample, always the same, that has those of any larger ``every`` in it: tiles at regular
    places would all lie in one column.
    """
    order = np.random.default_rng(0).permutation(count)
    return sorted(order[: -(-count // every)].tolist())


def _measured(
    run: TileRun, image: Blocks, coords: Tensor, indices: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield some tiles with what their spectra say."""
    whole = run.stack(0, len(run.table))
    many = whole.parameters.shape[1] <= SMALL or whole.parameters.is_cuda
    step = TOGETHER if many else 1
    for start in range(0, len(indices), step):
        group = list(indices[start : start + step])
        parameters = whole.parameters[group].double()
        values = torch.cat([image.values(index, index + 1) for index in group]).to(parameters)
        few = replace(whole, parameters=parameters)
        if many:
            matrices = stacked_hessians(few, coords.to(parameters), values)
        else:
            signal = Signal(coords.to(parameters), values[0])
            matrices = dense_hessian(few.field(0), mse, signal).unsqueeze(0)
        for index, matrix in zip(group, matrices, strict=True):
            yield index, _found(matrix)


def _found(matrix: Tensor) -> dict[str, Any]:
    if not bool(matrix.isfinite().all()):
        return dict.fromkeys(COLUMNS, float("nan"))
    found = spectrum(matrix)
    size = len(found.values)
    return {
        "spectral_radius": found.spectral_radius,
        "kappa": found.condition_number,
        "resolved": found.condition_number_resolved,
        "effective_kappa": found.effective_condition_number,
        "zero_share": found.numerical_zeros / size,
        "structural_share": found.structural_zeros / size,
        "negative_share": float(np.mean(found.values.numpy() < -found.tolerance)),
    }


def _known(run: TileRun) -> dict[int, dict[str, Any]]:
    path = run.path / SPECTRA
    if not path.exists():
        return {}
    rows: list[Any] = pd.read_csv(path).to_dict("records")
    return {int(row["tile"]): row for row in rows}


def _save(run: TileRun, known: dict[int, dict[str, Any]], columns: list[str]) -> None:
    rows = [known[index] for index in sorted(known)]
    text = pd.DataFrame(rows, columns=columns).to_csv(index=False).encode()
    write_atomically(run.path / SPECTRA, lambda stream: stream.write(text))
