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
from hessian_lab.training.files import make_directory, write_atomically
from hessian_lab.training.grid import shown
from hessian_lab.training.loop import train
from hessian_lab.training.run import RECORD, RESUME, load_run
from hessian_lab.training.setup import Setup, digest
from hessian_lab.training.workers import worker_pool, working

TABLE = "sweep.csv"
# What the runs of one optimizer may differ in and still be compared by their rates.
RATE, SEED = "lr", "seed"
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
    ``sweep.csv`` is written after every run.

    Args:
        setups: Resolved setups; the whole grid.
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
    _check_options(setups)
    make_directory(path)
    refused: dict[str, str] = {}

    def row_of(one: Setup) -> dict[str, Any]:
        return _row(one, path, names, refused=_name(one) in refused)

    rows = {_name(one): row_of(one) for one in setups}
    for one, refusal in _trained(list(setups if ours is None else ours), path, jobs):
        if refusal:
            refused[_name(one)] = refusal
            logger.warning("%s: %s", _name(one), refusal)
        rows[_name(one)] = row = row_of(one)
        _write(path, rows.values())
        if watch is not None:
            watch(row)
    # Other machines may have trained theirs meanwhile.
    return Sweep(path, names, _write(path, map(row_of, setups)))


def _check_options(setups: Iterable[Setup]) -> None:
    """Make every optimizer once, over a few parameters."""
    for one in {(each.optimizer, repr(each.options)): each for each in setups}.values():
        configured(str(one.optimizer), nn.Linear(1, 1), one.lr, one.options)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(list(rows))
    text = table.to_csv(index=False).encode()
    write_atomically(path / TABLE, lambda stream: stream.write(text))
    return table


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
    try:
        with working():
            train(setup, out=path / _name(setup))
    except DivergenceError as error:
        logger.debug("%s: %s", _name(setup), error)
    except ResourceError as error:
        return str(error)
    return ""


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
        run = load_run(place)
        last = run.metrics.iloc[-1]
        row["status"] = run.record["status"]
        row |= {name: float(last[name]) for name in NUMBERS}
        # The last finite loss of a run that diverged says nothing of where it went.
        if row["status"] == "diverged":
            row |= {"loss": math.nan, "psnr": math.nan}
    return row | {"run": place.name}
