"""The directory of many small fields that are trained together: what it says, and whose it is."""

from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from hessian_lab.errors import InputError, UsageError
from hessian_lab.signal import Source
from hessian_lab.training.files import read_json, write_json
from hessian_lab.training.provenance import provenance
from hessian_lab.training.setup import FREE, Setup, digest

RECORD, TABLE, LOSSES = "tiles.json", "tiles.csv", "losses.npy"
# What the fields have made of an image, and of a video.
PICTURE, CLIP = "fitted.png", "fitted.gif"
# What is measured of a run, and no longer true of one that is begun anew.
SPECTRA = "tile_spectra.csv"
# What is made of a run when it is done.
MADE = (
    PICTURE,
    CLIP,
    "views.csv",
    "turntable.gif",
    "teacher.npy",
    *(f"figures/{name}.{kind}" for name in ("tiles", "views", "cells") for kind in ("png", "pdf")),
)
FORMAT_VERSION = 1


class Blocks(Protocol):
    """What many small fields are fitted to, each to its part: ``Tiled``, or cells of a volume."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes, then channels."""

    @property
    def axes(self) -> tuple[str, ...]:
        """What the axes are called."""

    @property
    def sides(self) -> tuple[int, ...]:
        """Lengths of a part along each axis."""

    @property
    def num_tiles(self) -> int:
        """How many parts there are."""

    @property
    def num_points(self) -> int:
        """Points of a part."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says beside the source."""

    @property
    def source(self) -> Source:
        """Where the data come from."""

    def corner(self, index: int) -> tuple[int, ...]:
        """Return the place of a part along each axis."""

    def coords(self) -> Tensor:
        """Return the coordinates [p, d] of every part."""

    def values(self, start: int, stop: int) -> Tensor:
        """Return the values [k, p, c] of some parts."""


def read_tiles(directory: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the record of a run of tiles or cells, and the table of what is done.

    Raises:
        InputError: If the directory holds none, or one of a newer format.
    """
    record = read_json(directory / RECORD, "a run of tiles")
    if record.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"run must be of format {FORMAT_VERSION}, {directory} is of format "
            f"{record.get('format_version')}. Update hessian-lab."
        )
    return record, read_table(directory)


def read_table(directory: Path) -> pd.DataFrame:
    """Return one row per field that is done; none of a run that has only begun.

    Raises:
        InputError: If the table cannot be read.
    """
    try:
        return pd.read_csv(directory / TABLE)
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return pd.DataFrame(columns=["tile"])
    except (OSError, ValueError) as error:
        raise InputError(f"run must have a readable {TABLE}, {directory}: {error}.") from error


def claim(
    path: Path,
    setup: Setup,
    image: Blocks,
    known: dict[str, Any],
    *,
    overwrite: bool,
    more: dict[str, Any] | None = None,
) -> None:
    """Make the directory hold this run and no other.

    Args:
        path: The directory, locked.
        setup: Of the fields.
        image: What they are fitted to.
        known: What defines the run.
        overwrite: Start anew even if the directory holds such a run.
        more: What else its record shall say.

    Raises:
        UsageError: If it holds something else.
    """
    mark = digest(known)
    if (path / RECORD).exists() and not overwrite:
        there = read_json(path / RECORD, "a run of tiles")
        if there.get("identity") != mark:
            raise UsageError(
                f"out must hold the same run of tiles, {path} differs in "
                f"{_differences(there, setup, image)}. Choose another --out, or start anew with "
                "--overwrite."
            )
        return
    others = [one.name for one in path.iterdir() if not one.name.startswith(".")]
    if others and not (path / RECORD).exists():
        raise UsageError(f"out must be a run of tiles or empty, {path} holds {sorted(others)[0]}.")
    for name in (TABLE, LOSSES, SPECTRA, *MADE):
        (path / name).unlink(missing_ok=True)
    record = {
        "format_version": FORMAT_VERSION,
        "identity": mark,
        "setup": setup.to_json(),
        **image.facts,
        "num_parameters": setup.num_parameters(len(image.sides), image.shape[-1]),
        "data": vars(image.source),
        "provenance": provenance(torch.device(setup.device)),
        "seconds": 0.0,
    }
    write_json(path / RECORD, record | (more or {}))


def _differences(there: dict[str, Any], setup: Setup, image: Blocks) -> str:
    """Return what tells a run that is there from the one asked for."""
    asked = setup.to_json() | image.facts | {"data": image.source.sha256}
    found = there.get("setup", {}) | {name: there.get(name) for name in image.facts}
    found["data"] = there.get("data", {}).get("sha256")
    told = [
        f"{name}: {str(found.get(name))[:12]} there, {str(value)[:12]} asked"
        for name, value in asked.items()
        if found.get(name) != value and name not in FREE
    ]
    return "; ".join(told) or "kind"
