"""How our times grow, and the exponents that their growth is fitted by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from hessian_lab.losses import mse
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.probe.vectors import gaussian
from tests.benchmarks.cases.densities import our_density
from tests.benchmarks.problem import Problem, problem
from tests.benchmarks.ranks import WIDTH, rank_seconds
from tests.benchmarks.timing import interleaved, spread

# Confidence of an exponent's interval.
LEVEL = 0.95


@dataclass(frozen=True)
class Fit:
    """An exponent, and half of its interval; None from two places."""

    exponent: float
    margin: float | None


def fitted(places: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Return the least-squares exponent of ``seconds ∝ placesᵉ``, in log–log."""
    across, along = np.log(np.asarray(places, float)), np.log(np.asarray(seconds, float))
    across = across - across.mean()
    exponent = float(across @ along / (across @ across))
    free = len(across) - 2
    if free < 1:
        return Fit(exponent, None)
    rest = along - along.mean() - exponent * across
    error = float(np.sqrt(rest @ rest / free / (across @ across)))
    return Fit(exponent, float(student.ppf((1 + LEVEL) / 2, free)) * error)


@dataclass(frozen=True)
class Curve:
    """Times at some places of one variable, all else fixed.

    Attributes:
        name: Short, for ``--only``.
        work: In words.
        variable: What changes.
        theory: The exponent of the leading term.
        why: That term.
        works: Place -> what is timed there.
    """

    name: str
    work: str
    variable: str
    theory: float
    why: str
    works: dict[int, Callable[[], object]]


def measured(curve: Curve, rounds: int) -> dict[str, Any]:
    """Time a curve, its places in turns, and return its entry of the record.

    A time is the least of its rounds: what disturbs a machine only adds, and here no ratio cancels
    it.
    """
    for work in curve.works.values():
        work()
    names = {str(place): work for place, work in curve.works.items()}
    times = interleaved(names, dict.fromkeys(names, rounds))
    return entry(curve, [spread(spent).low for spent in times.values()], rounds)


def entry(curve: Curve, seconds: list[float], rounds: int) -> dict[str, Any]:
    fit = fitted(list(curve.works), seconds)
    return {
        "name": curve.name,
        "work": curve.work,
        "variable": curve.variable,
        "theory": curve.theory,
        "why": curve.why,
        "places": list(curve.works),
        "seconds": seconds,
        "rounds": rounds,
        "exponent": fit.exponent,
        "margin": fit.margin,
    }


def _dense(found: Problem) -> Callable[[], object]:
    return lambda: dense_hessian(found.model, mse, found.signal)


def _product(found: Problem) -> Callable[[], object]:
    operator = HessianOperator(found.model, mse, found.signal)
    vector = gaussian(operator.size, 1, seed=1, like=operator)
    return lambda: operator @ vector


def dense_in_size(quick: bool) -> Curve:
    widths, side = ((2, 3, 4), 6) if quick else ((16, 20, 24, 32, 40, 48), 50)
    fields = [problem("sine", width, side=side) for width in widths]
    return Curve(
        "dense-n",
        f"dense Hessian, sine, four layers, {side**2:,} points, float64",
        "parameters n",
        2,
        "2 N n²",
        {field.size: _dense(field) for field in fields},
    )


def dense_in_points(quick: bool) -> Curve:
    width, sides = (3, (4, 6, 8)) if quick else (24, (24, 36, 50, 72, 100))
    fields = [problem("sine", width, side=side) for side in sides]
    return Curve(
        "dense-points",
        f"dense Hessian, sine 4×{width}, float64",
        "points N",
        1,
        "2 N n²",
        {field.signal.num_points: _dense(field) for field in fields},
    )


def product_in_size(quick: bool) -> Curve:
    widths, side = ((2, 3, 4), 6) if quick else ((32, 64, 128, 256, 512), 50)
    fields = [problem("sine", width, side=side, dtype="float32") for width in widths]
    return Curve(
        "product-n",
        f"Hessian times a vector, sine, four layers, {side**2:,} points, float32",
        "parameters n",
        1,
        "12 N n",
        {field.size: _product(field) for field in fields},
    )


def product_in_points(quick: bool) -> Curve:
    width, sides = (3, (4, 6, 8)) if quick else (64, (36, 50, 72, 100, 144))
    fields = [problem("sine", width, side=side, dtype="float32") for side in sides]
    return Curve(
        "product-points",
        f"Hessian times a vector, sine 4×{width}, float32",
        "points N",
        1,
        "12 N n",
        {field.signal.num_points: _product(field) for field in fields},
    )


def density_in_probes(quick: bool) -> Curve:
    width, steps, counts = (3, 4, (4, 5, 6)) if quick else (32, 40, (4, 8, 16, 32, 64))
    found = problem("sine", width, side=6 if quick else 50, dtype="float32")
    return Curve(
        "density-probes",
        f"spectral density, {steps} steps, {found.text}",
        "probes m",
        1,
        "m k products",
        {count: lambda count=count: our_density(found, count, steps) for count in counts},
    )


# Name -> what builds the curve.
CURVES: dict[str, Callable[[bool], Curve]] = {
    "dense-n": dense_in_size,
    "dense-points": dense_in_points,
    "product-n": product_in_size,
    "product-points": product_in_points,
    "density-probes": density_in_probes,
}
RANKS = "ranks"


def run_curve(name: str, *, quick: bool, rounds: int) -> dict[str, Any]:
    """Return a curve's entry of the record; where there is none, it says why."""
    if name != RANKS:
        return measured(CURVES[name](quick), rounds)
    found = "not timed in a quick run" if quick else rank_seconds(rounds)
    work = f"spectral density, {problem('sine', WIDTH, dtype='float32').text}, by torchrun"
    head = {"name": RANKS, "work": work, "variable": "ranks K"}
    if isinstance(found, str):
        return head | {"skipped": found}
    works = dict.fromkeys(found, lambda: None)
    curve = Curve(**head, theory=-1, why="products of N / K points", works=works)
    return entry(curve, list(found.values()), rounds)
