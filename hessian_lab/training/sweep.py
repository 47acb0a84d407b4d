"""Many trainings: the grid of some settings, one run directory each, one table of all."""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from hessian_lab.errors import DivergenceError, ResourceError, UsageError
from hessian_lab.optim.make import configured
from hessian_lab.training.devices import named_devices, usable_device
from hessian_lab.training.files import locked, make_directory, write_atomically
from hessian_lab.training.grid import shown
from hessian_lab.training.loop import train
from hessian_lab.training.run import RECORD, RESUME, load_run, read_record
from hessian_lab.training.setup import Setup, digest
from hessian_lab.training.workers import worker_pool, working

TABLE = "sweep.csv"
# What the runs of one optimizer may differ in and still be compared by their rates.
RATE, SEED = "lr", "seed"
# States of a run that no process changes any more.
ENDED = ("done", "diverged")
NUMBERS = ("loss", "psnr", "wall_s", "evaluations", "products")

logger = logging.getLogger(__name__)

# Called after every run with its row.
Watch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class Sweep:
    """The runs of a grid.

    Attributes:
        path: Where the run directories and ``sweep.csv`` are.
        varied: The fields of ``Setup`` that differ between the runs.
        table: One row per run: the varied fields, ``status`` (done, diverged, interrupted, running;
            missing, or refused where its optimizer does not fit), the loss, PSNR, seconds,
            evaluations and products at the last step, and the directory.
    """

    path: Path
    varied: tuple[str, ...]
    table: pd.DataFrame

    def statuses(self) -> dict[str, int]:
        """Return how many runs have which status."""
        counts = self.table["status"].value_counts()
        return {str(status): int(count) for status, count in counts.items()}

    def best(self) -> pd.DataFrame:
        """Return the best rate of every combination of the other fields, by the mean over seeds.

        By the PSNR at the last step, or by the loss where there is no PSNR. A rate at which a seed
        diverged, or is missing, is not compared. ``at_edge`` says that the best rate is the lowest
        or the highest of several: then a wider range may have a better one.
        """
        groups = [name for name in self.varied if name not in (RATE, SEED)]
        seeds = self.table.assign(done=self.table["status"] == "done").groupby(
            [*groups, RATE], sort=False, dropna=False
        )
        means = seeds[list(NUMBERS)].mean().assign(num_seeds=seeds.size())
        means = means[seeds["done"].all()].reset_index()
        by_psnr = bool(means["psnr"].notna().all())
        ranked = means.sort_values("psnr" if by_psnr else "loss", ascending=not by_psnr)
        best = ranked.drop_duplicates(groups) if groups else ranked.head(1)
        return best.assign(at_edge=self._at_edges(best, groups)).reset_index(drop=True)

    def _at_edges(self, best: pd.DataFrame, groups: list[str]) -> list[bool]:
        """Tell of each best rate whether it is the first or the last of those tried with it."""
        found = []
        for row in best.to_dict("records"):
            same = rows_of(self.table, {name: row[name] for name in groups})
            tried = sorted(set(same[RATE]))
            found.append(len(tried) > 1 and row[RATE] in (tried[0], tried[-1]))
        return found


def rows_of(table: pd.DataFrame, values: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows whose columns have these values; what is missing equals what is missing."""
    same = [
        all(_same(row[name], value) for name, value in values.items())
        for row in table.to_dict("records")
    ]
    # Of an empty table, an empty list would choose columns.
    return table.loc[pd.Series(same, index=table.index, dtype=bool)]


def _same(one: object, other: object) -> bool:
    missing = [each is None or each != each for each in (one, other)]
    return all(missing) or bool(one == other)


def sweep(
    setups: Sequence[Setup],
    *,
    out: str | Path = "runs/sweep",
    varied: Sequence[str] = (),
    jobs: int = 1,
    ours: Sequence[Setup] | None = None,
    watch: Watch | None = None,
) -> Sweep:
    """Train every setup, each in its own directory below ``out``; finished ones are not repeated.

    A killed sweep loses at most the unsaved steps of the runs in flight; the same call continues.
    ``sweep.csv`` is written after every run. Several machines may train their shares of a grid into
    one directory at the same time, if its file system has locks: the table that the last one leaves
    has all of them. Where all is done the table is made also without the device that trained.

    Args:
        setups: Resolved setups; the whole grid. ``auto`` becomes the device that is here.
        out: The directory.
        varied: The fields that differ, in the order of the table.
        jobs: Processes; each uses its share of the cores.
        ours: Those to train here, where other machines train the rest; by default all.
        watch: Called after every run.

    Raises:
        UsageError: For an option that an optimizer does not have, before anything is trained.
        InputError: For a signal that cannot be read.
    """
    path, names = Path(out), tuple(varied)
    if (path / RECORD).exists():
        raise UsageError(f"out must not be a run itself, {path} is one. Choose another --out.")
    check_optimizers(setups)
    make_directory(path)
    grid = named_devices(setups)
    table = _Table(path, grid, names)
    for one, refusal in _trained(grid if ours is None else named_devices(ours), path, jobs):
        if refusal:
            table.refused.add(_name(one))
            logger.warning("%s: %s", _name(one), refusal)
        table.write()
        if watch is not None:
            watch(table.rows[_name(one)])
    return Sweep(path, names, table.write())


class _Table:
    """The rows of all runs of a sweep, of which other machines may train some at the same time.

    Attributes:
        rows: By the name of the run, as last seen.
        refused: The runs that do not fit here.
    """

    def __init__(self, path: Path, setups: Sequence[Setup], varied: Sequence[str]) -> None:
        self.path = path
        self.setups = {_name(one): one for one in setups}
        self.varied = varied
        self.rows: dict[str, dict[str, Any]] = {}
        self.refused: set[str] = set()

    def write(self) -> pd.DataFrame:
        """Look at the runs that had not ended, write the table of all, and return it.

        Under a lock: what another process has seen may be older, and must not be written later.
        """
        with locked(self.path, wait=True):
            refused = self.refused | self._refused_elsewhere()
            for name, one in self.setups.items():
                if self.rows.get(name, {}).get("status") not in ENDED:
                    self.rows[name] = _row(one, self.path, self.varied, refused=name in refused)
            table = pd.DataFrame([self.rows[name] for name in self.setups])
            text = table.to_csv(index=False).encode()
            write_atomically(self.path / TABLE, lambda stream: stream.write(text))
        return table

    def _refused_elsewhere(self) -> set[str]:
        """Return the runs that the table has as refused: nothing else on the disk says so."""
        try:
            found = pd.read_csv(self.path / TABLE, usecols=["run", "status"], dtype=str)
        except (OSError, ValueError):
            return set()
        return set(found["run"][found["status"] == "refused"])


def check_optimizers(setups: Iterable[Setup]) -> None:
    """Make every optimizer once, over a few parameters.

    Raises:
        UsageError: For an option that one of them does not have.
    """
    for one in {(each.optimizer, repr(each.options)): each for each in setups}.values():
        configured(str(one.optimizer), nn.Linear(1, 1), one.lr, one.options)


def _trained(setups: list[Setup], path: Path, jobs: int) -> Iterator[tuple[Setup, str]]:
    """Yield each setup when it is trained, with why not if it cannot be."""
    if jobs == 1:
        for one in setups:
            yield one, _train_one(one, path)
        return
    share = max(1, (os.cpu_count() or 1) // jobs)
    with worker_pool(jobs) as (pool, stopping):
        futures = {
            pool.submit(_train_one, replace(one, threads=one.threads or share), path): one
            for one in setups
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _train_one(setup: Setup, path: Path) -> str:
    """Train a setup; return why it does not fit, if so."""
    if _is_done_elsewhere(setup, path / _name(setup)):
        return ""
    try:
        with working():
            train(setup, out=path / _name(setup))
    except DivergenceError as error:
        logger.debug("%s: %s", _name(setup), error)
    except ResourceError as error:
        return str(error)
    return ""


def _is_done_elsewhere(setup: Setup, place: Path) -> bool:
    """Tell whether a run is complete whose device is not here."""
    if not (place / RECORD).exists() or read_record(place)["status"] != "done":
        return False
    try:
        usable_device(setup.device)
    except UsageError:
        return True
    return False


def _name(setup: Setup) -> str:
    entries = {name: value for name, value in setup.to_json().items() if name != "threads"}
    return f"{setup.act}-{setup.optimizer}-lr{setup.lr:g}-seed{setup.seed}-{digest(entries)}"


def _row(
    setup: Setup, path: Path, varied: Sequence[str], *, refused: bool = False
) -> dict[str, Any]:
    place = path / _name(setup)
    row: dict[str, Any] = {name: shown(getattr(setup, name)) for name in varied}
    row |= {RATE: setup.lr, "status": "refused" if refused else "missing"}
    row |= dict.fromkeys(NUMBERS, math.nan)
    # Another process may have begun it and not yet saved a checkpoint.
    if (place / RECORD).exists() and (place / RESUME).exists():
        run = load_run(place, device="cpu")
        last = run.metrics.iloc[-1]
        row["status"] = run.record["status"]
        row |= {name: float(last[name]) for name in NUMBERS}
        # The last finite loss of a run that diverged says nothing of where it went.
        if row["status"] == "diverged":
            row |= {"loss": math.nan, "psnr": math.nan}
    return row | {"run": place.name}
