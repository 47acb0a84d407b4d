"""How fast do optimizers converge near a minimum, and what do their line searches do?

P1 §3.2, §4.2 and P1s §1: superlinear convergence of L-BFGS, orders of the others, skipped pairs,
conjugate directions. On a strongly convex function with a known minimum, and on 1-D fields that
can interpolate their 20 points, in double precision: errors below 1e-7 drown in rounding of the
loss. With 80 digits the same counts stay constant to 1e-40 (a pilot).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from analyses.study import Answer, Row, Study, Verdict, main
from analyses.words import spread
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.optim.bfgs import BFGS
from hessian_lab.optim.first_order import SGD, Adam
from hessian_lab.optim.lbfgs import LBFGS
from hessian_lab.optim.newton import Newton
from hessian_lab.optim.nonlinear_cg import NonlinearCG
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.signals import load_signal

# Windows of the error on the convex function, and of the loss on fields, in decades.
ERRORS = (1e-1, 1e-3, 1e-5, 1e-7)
LOSSES = (1e-4, 1e-8, 1e-12, 1e-16, 1e-20)
# name -> an optimizer of parameters of the convex function.
CONVEX: dict[str, Callable[[Any], Any]] = {
    "lbfgs m=5": lambda params: LBFGS(params, history_size=5),
    "lbfgs m=10": lambda params: LBFGS(params, history_size=10),
    "lbfgs m=100": lambda params: LBFGS(params, history_size=100),
    "bfgs": BFGS,
    "newton": lambda params: Newton(params, damping=1e-12),
    "gradient descent": lambda params: SGD(params, lr=2 / 106),
    "adam": lambda params: Adam(params, lr=1e-2),
}
FIELDS: tuple[dict[str, Any], ...] = (
    {"act": "sine", "omega": 10.0},
    {"act": "gaussian", "sigma": 0.3},
    {"act": "relu"},
    {"act": "relu_pe", "octaves": 4},
)


@dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        seeds: Of functions, fields and starts.
        size: Variables of the convex function.
        steps: The most that any optimizer takes.
        histories: Pairs of L-BFGS on fields.
        saddle_steps: Of Newton's method on fields.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    size: int = 12
    steps: int = 1500
    histories: tuple[int, ...] = (10, 100)
    saddle_steps: int = 60


FULL = Config()
QUICK = replace(FULL, seeds=(0, 1), steps=300, histories=(100,), saddle_steps=15)


def cells(config: Config) -> list[Row]:
    """Return every method on every problem from every seed."""
    convex = [
        {"kind": "convex", "method": name, "seed": seed} for name in CONVEX for seed in config.seeds
    ]
    fields = [
        {"kind": "field", **field, "history": history, "seed": seed}
        for field in FIELDS
        for history in config.histories
        for seed in config.seeds
    ]
    saddles = [
        {"kind": "saddle", "solve": solve, "seed": seed}
        for solve in ("exact", "abs", "damped")
        for seed in config.seeds
    ]
    pairs = [
        {"kind": "pairs", "method": name, "search": search, "seed": seed}
        for name in ("lbfgs", "bfgs")
        for search in ("strong_wolfe", "armijo")
        for seed in config.seeds
    ]
    directions = [
        {"kind": "directions", "restart": restart, "seed": seed}
        for restart in (1, None)
        for seed in config.seeds
    ]
    return [*convex, *fields, *saddles, *pairs, *directions]


def measure(config: Config, cell: Row) -> Row:
    """Run one cell."""
    return MEASURES[cell["kind"]](config, cell)


def convex(size: int, seed: int) -> tuple[nn.Parameter, Callable[[], Tensor]]:
    """Return a start and a strongly convex function, least at 0.

    ½ xᵀ A x + ⅙ Σ xᵢ³ + ¼ Σ xᵢ⁴ with eigenvalues of A from 1 to 100: the cubic term keeps Newton's
    method at the order 2, which symmetry would raise to 3.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(noise).Q
    values = torch.logspace(0, 2, size, dtype=torch.float64)
    matrix = basis * values @ basis.T
    point = nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))
    return (
        point,
        lambda: 0.5 * point @ matrix @ point + (point**3).sum() / 6 + 0.25 * (point**4).sum(),
    )


def _convex(config: Config, cell: Row) -> Row:
    point, closure = convex(config.size, cell["seed"])
    optimizer = CONVEX[cell["method"]]([point])
    errors = [float(point.detach().norm())]
    while len(errors) <= config.steps and errors[-1] > ERRORS[-1]:
        optimizer.step(closure)
        errors.append(float(point.detach().norm()))
    order = _order(errors)
    return {"counts": counts(errors, ERRORS), "order": order}


def counts(numbers: list[float], rungs: tuple[float, ...]) -> list[int | None]:
    """Return the iterations from each rung to the next, None where it was not reached."""
    places = [next((k for k, each in enumerate(numbers) if each <= rung), None) for rung in rungs]
    return [None if low is None or high is None else high - low for low, high in pairwise(places)]


def _order(errors: list[float]) -> float:
    """Return the order of convergence: the slope of log eₖ₊₁ over log eₖ of the last errors."""
    late = np.log([each for each in errors if 1e-13 < each < 0.1][-8:])
    if len(late) < 3:
        return math.nan
    return round(float(np.polyfit(late[:-1], late[1:], 1)[0]), 3)


def _line(act: str, seed: int, **options: Any) -> tuple[Any, Callable[[], Tensor]]:
    signal = load_signal("sines", 20)
    model = make_field(act, 1, 1, width=16, depth=2, seed=seed, **options)
    return model, lambda: mse(model(signal.coords), signal.values)


def _field(config: Config, cell: Row) -> Row:
    options = {name: cell[name] for name in ("omega", "sigma", "octaves") if name in cell}
    model, closure = _line(cell["act"], cell["seed"], **options)
    optimizer = LBFGS(model.parameters(), history_size=cell["history"])
    losses = [float(closure().detach())]
    while len(losses) <= config.steps and losses[-1] > LOSSES[-1] and not optimizer.converged:
        optimizer.step(closure)
        losses.append(float(closure().detach()))
    first = next((k for k, each in enumerate(losses) if each <= LOSSES[0]), None)
    return {"to_first": first, "counts": counts(losses, LOSSES), "last": float(f"{losses[-1]:.3g}")}


def _saddle(config: Config, cell: Row) -> Row:
    model, closure = _line("tanh", cell["seed"])
    signal = load_signal("sines", 20)
    optimizer = Newton(model.parameters(), solve=cell["solve"], model=model)
    try:
        for _ in range(config.saddle_steps):
            optimizer.step(closure)
    except ArithmeticError:
        return {"negative": None, "slope": None, "loss": None}
    values = torch.linalg.eigvalsh(dense_hessian(model, mse, signal))
    gradient = torch.autograd.grad(closure(), list(model.parameters()))
    norm = math.sqrt(sum(float(part.square().sum()) for part in gradient))
    return {
        "negative": int((values < -1e-6 * values.abs().max()).sum()),
        "slope": float(f"{norm:.3g}"),
        "loss": float(f"{float(closure().detach()):.3g}"),
    }


def _pairs(config: Config, cell: Row) -> Row:
    kind: Any = LBFGS if cell["method"] == "lbfgs" else BFGS
    found = {}
    for name, (params, closure) in {
        "convex": _listed(*convex(config.size, cell["seed"])),
        "field": _listed(*_line("tanh", cell["seed"])),
    }.items():
        optimizer = kind(params, line_search_fn=cell["search"])
        for _ in range(100):
            optimizer.step(closure)
        found[f"skipped_{name}"] = int(optimizer.diagnostics()["skipped_pairs"])
    return found


def _listed(what: Any, closure: Callable[[], Tensor]) -> tuple[list[Any], Callable[[], Tensor]]:
    return list(what.parameters()) if isinstance(what, nn.Module) else [what], closure


def _directions(config: Config, cell: Row) -> Row:
    """Follow nonlinear CG, or steepest descent (a restart at every step), with exact searches."""
    point, closure = convex(config.size, cell["seed"])
    optimizer = NonlinearCG([point], restart=cell["restart"], c2=0.001)
    gradients, count = [], 0
    while count < config.steps and float(closure().detach()) > 1e-10:
        gradients.append(torch.autograd.grad(closure(), point)[0])
        optimizer.step(closure)
        count += 1
    cosines = [
        float(torch.nn.functional.cosine_similarity(one, two, dim=0))
        for one, two in pairwise(gradients)
    ]
    return {"steps": count, "cosine": float(np.median(np.abs(cosines)))}


MEASURES: dict[str, Callable[[Config, Row], Row]] = {
    "convex": _convex,
    "field": _field,
    "saddle": _saddle,
    "pairs": _pairs,
    "directions": _directions,
}


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the counts say of the claims C28–C32."""
    kinds = {kind: rows[rows["kind"] == kind] for kind in MEASURES}
    return [
        _superlinear(kinds["convex"], kinds["field"]),
        _no_guarantee(kinds["field"]),
        _orders(kinds["convex"], kinds["saddle"]),
        _skips(kinds["pairs"]),
        _orthogonal(kinds["directions"]),
    ]


def _windows(rows: pd.DataFrame) -> list[str]:
    """Return median counts window by window."""
    columns = list(zip(*rows["counts"], strict=True))
    texts = []
    for column in columns:
        reached = [each for each in column if each is not None]
        texts.append(f"{np.median(reached):g}" if 2 * len(reached) > len(column) else "never")
    return texts


def _superlinear(convex_rows: pd.DataFrame, fields: pd.DataFrame) -> Verdict:
    parts = []
    for name in ("lbfgs m=5", "lbfgs m=10", "lbfgs m=100", "bfgs"):
        windows = _windows(convex_rows[convex_rows["method"] == name])
        parts.append(f"{name} {', '.join(windows)}")
    smooth = fields[fields["act"].isin(["sine", "gaussian"])]
    for (act, history), group in smooth.groupby(["act", "history"], sort=False):
        parts.append(f"{act} field m={history} {', '.join(_windows(group))}")
    short = convex_rows[convex_rows["method"] == "lbfgs m=5"]["counts"].tolist()
    first = float(np.median([each[0] for each in short if each[0] is not None]))
    last = float(np.median([each[-1] for each in short if each[-1] is not None] or [np.inf]))
    answer: Answer = "holds" if last < 0.5 * first else "holds only under"
    settings = (
        f"iterations per two decades of the error to {ERRORS[-1]:g} on a strongly convex quartic, "
        "κ = 100; per four decades of the loss on 1-D fields of 20 points; superlinear only with "
        "as many pairs as iterations, where L-BFGS is BFGS"
    )
    return Verdict("C28", answer, "; ".join(parts), settings)


def _no_guarantee(fields: pd.DataFrame) -> Verdict:
    parts, reached = [], {}
    for act, group in fields.groupby("act", sort=False):
        found = group["to_first"].notna()
        reached[str(act)] = float(found.mean())
        steps = group["to_first"].dropna()
        told = f"{spread(steps)} steps" if len(steps) else "never"
        parts.append(f"{act} {int(found.sum())} of {len(group)} ({told})")
    rough = max(reached.get("relu", 0.0), reached.get("relu_pe", 0.0))
    answer: Answer = (
        "holds" if rough < min(reached["sine"], reached["gaussian"]) else "holds only under"
    )
    measured = f"runs of L-BFGS that reach a loss of {LOSSES[0]:g}: {'; '.join(parts)}"
    return Verdict(
        "C29", answer, measured, "1-D, 20 points, 2×16; a non-guarantee has no refutation"
    )


def _orders(convex_rows: pd.DataFrame, saddles: pd.DataFrame) -> Verdict:
    medians = convex_rows.groupby("method", sort=False)["order"].median()
    known = medians.dropna()
    text = ", ".join(f"{name} {value:.2f}" for name, value in known.items())
    exact = saddles[saddles["solve"] == "exact"]
    ends = exact["negative"].map(lambda each: each is None or each != 0)
    others = saddles[saddles["solve"] != "exact"]
    clean = others["loss"].max()
    quadratic = medians["newton"] > 1.5
    linear = abs(medians["gradient descent"] - 1) < 0.2
    between = 1.0 < medians["bfgs"] < medians["newton"]
    answer: Answer = (
        "holds" if quadratic and linear and between and ends.any() else "holds only under"
    )
    measured = (
        f"order of the last errors: {text}; exact Newton on a tanh field ends with negative "
        f"curvature, or fails, in {int(ends.sum())} of {len(exact)}; |H| and damped end at a loss "
        f"of at most {clean:g}"
    )
    return Verdict("C30", answer, measured, "strongly convex quartic, κ = 100; 1-D field, 2×16")


def _skips(rows: pd.DataFrame) -> Verdict:
    totals = rows.groupby("search")[["skipped_convex", "skipped_field"]].sum()
    wolfe, armijo = totals.loc["strong_wolfe"], totals.loc["armijo"]
    none = not wolfe.any() and armijo["skipped_convex"] == 0
    answer: Answer = "holds" if none and armijo["skipped_field"] > 0 else "holds only under"
    measured = (
        f"pairs skipped in {100 * len(rows) // 2} steps each: strong Wolfe "
        f"{int(wolfe['skipped_convex'])} (convex), {int(wolfe['skipped_field'])} (field); Armijo "
        f"{int(armijo['skipped_convex'])}, {int(armijo['skipped_field'])}"
    )
    return Verdict("C31", answer, measured, "BFGS and L-BFGS; strongly convex quartic, tanh field")


def _orthogonal(rows: pd.DataFrame) -> Verdict:
    steepest, conjugate = rows[rows["restart"] == 1], rows[rows["restart"].isna()]
    fewer = bool(conjugate["steps"].median() < steepest["steps"].median())
    flat = bool(steepest["cosine"].max() < 0.05)
    answer: Answer = "holds" if fewer and flat else "holds only under"
    measured = (
        f"steps to a loss of 1e-10: steepest descent {spread(steepest['steps'])}, conjugate "
        f"gradients {spread(conjugate['steps'])}; |cosine| of successive gradients "
        f"{spread(steepest['cosine'], digits=2)} and {spread(conjugate['cosine'], digits=2)}"
    )
    return Verdict(
        "C32", answer, measured, "strongly convex quartic, κ = 100, all but exact searches"
    )


STUDY = Study(
    name="convergence_rates",
    question="How fast do optimizers converge near a minimum, and what do their searches do?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
