"""Optimizers side by side: each at its best learning rate, on the same budget, over seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hessian_lab.errors import UsageError
from hessian_lab.training.devices import named_devices
from hessian_lab.training.grid import shown
from hessian_lab.training.run import load_run
from hessian_lab.training.setup import Setup
from hessian_lab.training.sweep import RATE, SEED, Sweep, rows_of, sweep

CURVES = "compare.csv"

Watch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Optimizers at their best rates.

    Attributes:
        tuning: The sweep that found the rates.
        runs: The sweep of the best rates on the seeds that are compared.
        curves: By group, step and seed: ``wall_s``, ``evaluations``, ``loss``, ``psnr``.
        groups: What tells the curves apart: ``optimizer``, and what else was varied.
    """

    tuning: Sweep
    runs: Sweep
    curves: pd.DataFrame
    groups: tuple[str, ...]

    @property
    def quantity(self) -> str:
        """``psnr``, or ``loss`` where there is no PSNR."""
        return "psnr" if bool(self.curves["psnr"].notna().all()) else "loss"

    def bands(self) -> pd.DataFrame:
        """Return median, least and largest over seeds, by group and step.

        ``seconds`` is the median time at which the step was done.
        """
        grouped = self.curves.groupby([*self.groups, "step"], sort=False, dropna=False)
        values = grouped[self.quantity]
        table = values.agg(median="median", low="min", high="max", seeds="size")
        bands: pd.DataFrame = table.assign(seconds=grouped["wall_s"].median()).reset_index()
        return bands

    def target(self) -> float:
        """Return the value that every group reaches: the worst of their medians at the end."""
        last = self.bands().groupby(list(self.groups), sort=False, dropna=False).last()
        return float(last["median"].min() if self.quantity == "psnr" else last["median"].max())

    def table(self) -> pd.DataFrame:
        """Return one row per group: its rate, what it ends at, and when it reaches ``target``.

        Columns are the groups, ``lr``, ``at_edge`` (the best rate is the lowest or the highest
        tried), ``median``, ``low`` and ``high`` at the last step, ``seconds`` in all, and
        ``target_steps`` and ``target_seconds``, medians over seeds.
        """
        target = self.target()
        rates = self.tuning.best()
        rows = []
        for key, group in self.curves.groupby(list(self.groups), sort=False, dropna=False):
            names: dict[str, Any] = dict(zip(self.groups, key, strict=True))
            best = rows_of(rates, names).iloc[0]
            ends = group.sort_values("step").groupby("seed").last()
            values = ends[self.quantity]
            reached = [self._reached(part, target) for _, part in group.groupby("seed")]
            steps, seconds = np.median(np.array(reached), axis=0)
            rows.append(
                names
                | {"lr": best["lr"], "at_edge": best["at_edge"], "median": values.median()}
                | {"low": values.min(), "high": values.max(), "seeds": len(values)}
                | {"seconds": ends["wall_s"].median()}
                | {"target_steps": steps, "target_seconds": seconds}
            )
        return pd.DataFrame(rows)

    def _reached(self, curve: pd.DataFrame, target: float) -> tuple[float, float]:
        """Return step and second at which one curve reaches a value; infinite if never."""
        values = curve[self.quantity]
        there = curve[values >= target if self.quantity == "psnr" else values <= target]
        if not len(there):
            return np.inf, np.inf
        first = there.sort_values("step").iloc[0]
        return float(first["step"]), float(first["wall_s"])


def compare(
    setups: Sequence[Setup],
    *,
    seeds: Sequence[int],
    out: str | Path = "runs/compare",
    varied: Sequence[str],
    jobs: int = 1,
    watch: Watch | None = None,
) -> Comparison:
    """Find each optimizer's best rate on the seeds of a grid, and compare them on other seeds.

    All runs have their own directory below ``out``, where finished ones are not repeated; the
    curves are in ``compare.csv``. With more than one process the seconds are not those of a run
    that has the machine for itself.

    Args:
        setups: The grid over rates and seeds that tunes; resolved.
        seeds: To compare on; others than those that tuned, for an unbiased comparison.
        out: The directory.
        varied: The fields of ``Setup`` that differ in the grid.
        jobs: Processes.
        watch: Called after every run.

    Raises:
        UsageError: If a group has no rate with which every seed finishes.
    """
    path, setups = Path(out), named_devices(setups)
    told = tuple(dict.fromkeys(("optimizer", *varied)))
    tuning = sweep(setups, out=path, varied=told, jobs=jobs, watch=watch)
    groups = tuple(name for name in told if name not in (RATE, SEED))
    chosen = [replace(one, seed=seed) for one in _best(tuning, setups, groups) for seed in seeds]
    names = tuple(dict.fromkeys((*groups, SEED)))
    runs = sweep(chosen, out=path / "best", varied=names, jobs=jobs, watch=watch)
    failed = runs.table[runs.table["status"] != "done"]
    if len(failed):
        raise UsageError(
            f"every run must finish to be compared, {failed['run'].iloc[0]} is "
            f"{failed['status'].iloc[0]}. Try more seeds or lower rates."
        )
    found = [_curve(runs, dict(row), groups) for _, row in runs.table.iterrows()]
    curves = pd.concat(found).reset_index(drop=True)
    curves.to_csv(path / CURVES, index=False)
    return Comparison(tuning, runs, curves, groups)


def _best(tuning: Sweep, setups: Sequence[Setup], groups: Sequence[str]) -> list[Setup]:
    """Return one setup for each group, at its best rate."""
    rates = tuning.best()
    found: dict[tuple[Any, ...], Setup] = {}
    for one in setups:
        key = tuple(shown(getattr(one, name)) for name in groups)
        best = rows_of(rates, dict(zip(groups, key, strict=True)))["lr"].tolist()
        if not best:
            told = ", ".join(f"{name} {value}" for name, value in zip(groups, key, strict=True))
            raise UsageError(f"a rate must finish with every seed, none does for {told}.")
        if one.lr == best[0]:
            found.setdefault(key, one)
    return list(found.values())


def _curve(runs: Sweep, row: dict[str, Any], groups: Sequence[str]) -> pd.DataFrame:
    run = load_run(runs.path / row["run"], device="cpu")
    columns = ["step", "wall_s", "evaluations", "loss", "psnr"]
    entries = {name: row.get(name, shown(getattr(run.setup, name))) for name in (*groups, SEED)}
    curve: pd.DataFrame = run.metrics[columns].assign(**entries)
    return curve
