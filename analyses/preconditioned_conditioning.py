"""Does scaling by D^E or D^J improve the conditioning of the papers' 1-D task, and does it pay?

P2 Fig. 1, P3 Fig. 2: a 2×16 field on sin 2πx + sin 6πx, preconditioned gradient descent with exact
``D``, refreshed for 20 steps and then every 10. κ of a Gaussian field is not resolved in double
precision, so it is enclosed in interval arithmetic at a few checkpoints; the sine field with ω = 30
is the resolved twin. σ, the number of points, seeds, exponent and rate are not stated in the papers
and are varied here. Beside it, what the papers say of the preconditioners themselves, on fixed
states: estimators, bounds, batches, Adam's second moment.

The full configuration takes about 20 minutes of one core; the proven κ of more seeds, or at every
step, takes five to ten seconds each.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from analyses.preconditioned_verdicts import verdicts
from analyses.preconditioner_facts import FACTS, digits, field_of, scales_of
from analyses.study import Row, Study, main
from hessian_lab.losses import mse
from hessian_lab.optim.contract import Contract
from hessian_lab.optim.make import make_optimizer
from hessian_lab.probe.conditions import conditions
from hessian_lab.probe.enclosures import condition_enclosures
from hessian_lab.probe.extended import Formula, exact_condition_numbers, interval_hessian
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.signal import Signal
from hessian_lab.signals import load_signal
from hessian_lab.training.run import fill, flat

Field = dict[str, Any]
SCALINGS = ("identity", "equilibrated", "jacobi")
# The papers' schedule; ε is far below every entry that steps are divided by.
SCHEDULE: dict[str, Any] = {"update_every": 10, "warmup_steps": 20, "eps": 1e-6}
RUNAWAY = 1e3
LINE_WIDTH = 16
GAUSSIANS = tuple({"act": "gaussian", "sigma": sigma} for sigma in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0))
SINE = {"act": "sine", "omega": 30.0}
# Field, and the rates of gradient descent and of the equilibrated run (p = ½) that tuning found.
WALKS = ((GAUSSIANS[1], 0.03, 0.1), (GAUSSIANS[3], 0.3, 0.3), (SINE, 0.01, 0.1))
METHODS = (
    ("identity", 1.0),
    ("equilibrated", 0.5),
    ("equilibrated", 1.0),
    ("jacobi", 0.5),
    ("jacobi", 1.0),
    ("abs-hessian", 0.5),
    ("abs-hessian", 1.0),
)


@dataclass(frozen=True)
class Config:
    """What is varied.

    Attributes:
        fields: Of κ at the start and along the three trajectories, at ``num_points``.
        proven_along: Those whose κ is proven along the equilibrated trajectory too, not only at
            the start.
        tuned: Fields of the comparison of rates.
        more_points: Other numbers of points, on the second field.
        num_points: Of the signal.
        seeds: Of κ.
        rate: Of the trajectories, with the printed exponent ½; the papers' 2 runs away.
        steps: Of every trajectory.
        every: Steps between the checkpoints of a row.
        proven_steps: Checkpoints whose κ is proven.
        rates: The grid that every method is tuned on, by the median over ``tuning_seeds``.
        tuning_seeds: Not those that are compared.
        compared_seeds: Of the comparison.
        walks: Of the comparison of trajectories at equal loss.
        walk_losses: The losses.
        fact_seeds: Of the facts on fixed states.
        size: Pixels per side of their image.
        scale: Of their numbers of steps, probes and draws.
        depth: Hidden layers of their fields.
        width: Units of each.
    """

    fields: tuple[Field, ...] = (*GAUSSIANS, SINE)
    proven_along: tuple[Field, ...] = ({"act": "gaussian", "sigma": 0.1}, SINE)
    tuned: tuple[Field, ...] = (GAUSSIANS[1], GAUSSIANS[3], SINE)
    more_points: tuple[int, ...] = (256, 1000)
    num_points: int = 100
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    rate: float = 0.1
    steps: int = 300
    every: int = 50
    proven_steps: tuple[int, ...] = (0, 50, 300)
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
    tuning_seeds: tuple[int, ...] = (100, 101)
    compared_seeds: tuple[int, ...] = tuple(range(8))
    walks: tuple[tuple[Field, float, float], ...] = WALKS
    walk_losses: tuple[float, ...] = (0.2, 0.1)
    fact_seeds: tuple[int, ...] = (0, 1, 2, 3)
    size: int = 50
    scale: float = 1.0
    depth: int = 4
    width: int = 16


FULL = Config()
QUICK = replace(
    FULL,
    fields=(GAUSSIANS[1], SINE),
    proven_along=(),
    tuned=(SINE,),
    more_points=(),
    num_points=40,
    seeds=(0,),
    steps=60,
    every=30,
    proven_steps=(0,),
    rates=(3e-2, 1e-1, 3e-1),
    tuning_seeds=(100,),
    compared_seeds=(0, 1),
    walks=WALKS[2:],
    fact_seeds=(0,),
    size=20,
    scale=0.1,
    depth=2,
)


def cells(config: Config) -> list[Row]:
    """Return the trajectories, the comparisons, and the facts."""
    paths = [
        {"kind": "path", **field, "points": points, "method": method, "seed": seed}
        for field, points in _signals(config)
        for seed in config.seeds
        for method in SCALINGS
    ]
    printed = [
        {"kind": "printed", **config.tuned[0], "points": 256, "method": method, "seed": seed}
        for method in SCALINGS
        for seed in config.seeds
    ]
    rates = [
        {"kind": "rate", **field, "points": 256, "method": method, "exponent": exponent}
        for field in config.tuned
        for method, exponent in METHODS
    ]
    walks = [
        {"kind": "walk", **field, "points": 256, "method": method, "rate": rate, "seed": seed}
        for field, *pair in config.walks
        for method, rate in zip(("identity", "equilibrated"), pair, strict=True)
        for seed in config.seeds
    ]
    facts = [{"kind": name, "seed": seed} for name in FACTS for seed in config.fact_seeds]
    return [*paths, *printed, *rates, *walks, *facts]


def _signals(config: Config) -> list[tuple[Field, int]]:
    varied = config.fields[min(1, len(config.fields) - 1)]
    return [
        *((field, config.num_points) for field in config.fields),
        *((varied, points) for points in config.more_points),
    ]


def measure(config: Config, cell: Row) -> list[Row]:
    """Measure one cell."""
    if cell["kind"] == "path":
        return _path(config, cell)
    if cell["kind"] == "printed":
        return [_printed(config, cell)]
    if cell["kind"] == "rate":
        return _compare(config, cell)
    if cell["kind"] == "walk":
        return _walk(config, cell)
    return FACTS[cell["kind"]](config, cell["seed"])


def _path(config: Config, cell: Row) -> list[Row]:
    """Return κ of H and of its scaled forms along one trajectory, a row per checkpoint."""
    model, signal = _field(cell, cell["seed"]), _signal(cell)
    rows: list[Row] = []

    def visit(step: int, loss: float) -> None:
        if (step % config.every and step != config.steps) or not math.isfinite(loss):
            return
        rows.append({"step": step, "loss": digits(loss), **_double(model, signal)})
        if step in config.proven_steps and _is_proven(config, cell, step):
            rows[-1] |= _proven(model, signal, cell)

    _descend(model, signal, cell["method"], 0.5, config.rate, config.steps, visit)
    return rows


def _is_proven(config: Config, cell: Row, step: int) -> bool:
    if cell["points"] != config.num_points:
        return False
    if step == 0:
        return bool(cell["method"] == "identity")
    along = [(field["act"], *scales_of(field)) for field in config.proven_along]
    return cell["method"] == "equilibrated" and (cell["act"], *scales_of(cell)) in along


def _double(model: nn.Module, signal: Signal) -> Row:
    """Return log₁₀ of κ and of the 10 % quantile's, with the flags, in double precision."""
    found = conditions(dense_hessian(model, mse, signal))
    row: Row = {}
    for name, one in found.items():
        row |= {
            f"kappa_{name}": digits(math.log10(one.kappa)),
            f"resolved_{name}": one.resolved,
            f"tenth_{name}": digits(math.log10(one.eff10)),
            f"tenth_resolved_{name}": one.eff10_resolved,
        }
    return row | {"unscaled_jacobi": found["jacobi"].num_unscaled}


def _proven(model: nn.Module, signal: Signal, cell: Row) -> Row:
    """Return the enclosures of log₁₀ κ: middle, and the widest."""
    formula = Formula(cell["act"], cell.get("omega"), cell.get("sigma"))
    found = exact_condition_numbers(model, mse, signal, formula)
    row = {f"proven_{name}": digits(one.log10) for name, one in found.items()}
    width = max(one.upper - one.lower for one in found.values())
    return row | {"width": digits(width), "bits": max(one.bits for one in found.values())}


def _printed(config: Config, cell: Row) -> Row:
    """Return how the papers' own settings end: rate 2, exponent ½."""
    model, signal = _field(cell, cell["seed"]), _signal(cell)
    losses: list[float] = []
    _descend(
        model, signal, cell["method"], 0.5, 2.0, config.steps, lambda _, loss: losses.append(loss)
    )
    return {"start": digits(losses[0]), "loss": digits(losses[-1]), "best": digits(min(losses))}


def _walk(config: Config, cell: Row) -> list[Row]:
    """Return κ of H where a trajectory first reaches each loss; proven unless it is resolved."""
    model, signal = _field(cell, cell["seed"]), _signal(cell)
    waiting, rows = sorted(config.walk_losses, reverse=True), []

    def visit(step: int, loss: float) -> None:
        if not waiting or loss > waiting[0]:
            return
        one = conditions(dense_hessian(model, mse, signal))["identity"]
        kappa = math.log10(one.kappa)
        if not one.resolved:
            formula = Formula(cell["act"], cell.get("omega"), cell.get("sigma"))
            kappa = condition_enclosures(
                lambda: interval_hessian(model, mse, signal, formula), scalings=("identity",)
            )["identity"].log10
        row = {"step": step, "loss": digits(loss), "kappa": digits(kappa)}
        row |= {"tenth": digits(math.log10(one.eff10)), "tenth_resolved": one.eff10_resolved}
        while waiting and loss <= waiting[0]:
            rows.append({"target": waiting.pop(0), **row})

    _descend(model, signal, cell["method"], 0.5, cell["rate"], config.steps, visit)
    return rows or [{"target": None}]


def _compare(config: Config, cell: Row) -> list[Row]:
    """Tune one method, and return one row per seed that did not choose the rate."""
    sweep = {
        rate: sorted(_last_loss(config, cell, seed, rate, [])[-1] for seed in config.tuning_seeds)[
            len(config.tuning_seeds) // 2
        ]
        for rate in config.rates
    }
    best = min(sweep, key=lambda rate: (sweep[rate], rate))
    rows = []
    for seed in config.compared_seeds:
        found: list[Row] = []
        losses = _last_loss(config, cell, seed, best, found)
        kept = [losses[k] for k in range(0, len(losses), max(1, config.steps // 20))]
        rows.append(
            {
                "seed": seed,
                "rate": best,
                "at_edge": best in (config.rates[0], config.rates[-1]),
                "loss": digits(losses[-1]),
                "losses": [digits(loss) for loss in kept],
                "steps_to": {f"{target:g}": _first(losses, target) for target in TARGETS},
                **{name: digits(sum(row[name] for row in found) / len(found)) for name in found[0]},
            }
        )
    return rows


TARGETS = (0.1, 0.03, 0.01)


def _first(losses: list[float], target: float) -> int | None:
    return next((step for step, loss in enumerate(losses) if loss <= target), None)


def _last_loss(config: Config, cell: Row, seed: int, rate: float, found: list[Row]) -> list[float]:
    """Return all losses of one trajectory; ``found`` gets the conditions at three of its steps."""
    model, signal = _field(cell, seed), _signal(cell)
    losses: list[float] = []
    measured = (0, config.steps // 3, 2 * config.steps // 3)
    keep = seed in config.compared_seeds

    def visit(step: int, loss: float) -> None:
        losses.append(loss)
        if keep and step in measured and math.isfinite(loss):
            every = conditions(dense_hessian(model, mse, signal))
            own = every.get(cell["method"])
            row = {
                "log_kappa": math.log10(every["identity"].kappa),
                "log_tenth": math.log10(every["identity"].eff10),
            }
            if own is not None:
                row |= {"log_own": math.log10(own.kappa), "log_own_tenth": math.log10(own.eff10)}
            found.append(row)

    _descend(model, signal, cell["method"], cell["exponent"], rate, config.steps, visit)
    return losses


def _descend(
    model: nn.Module,
    signal: Signal,
    method: str,
    exponent: float,
    rate: float,
    num_steps: int,
    visit: Any,
) -> None:
    """Run preconditioned gradient descent; a run that leaves stays where it left, at loss ∞."""
    optimizer: Contract = make_optimizer(
        "psgd", model, lr=rate, preconditioner=method, exponent=exponent, **SCHEDULE
    )
    left = False
    for step in range(num_steps + 1):
        with torch.no_grad():
            loss = float(mse(model(signal.coords), signal.values))
        left = left or not loss < RUNAWAY
        visit(step, math.inf if left else loss)
        if left:
            return
        before = flat(model)
        try:
            optimizer.step(lambda: mse(model(signal.coords), signal.values))
        except (ArithmeticError, RuntimeError):
            # A decomposition of a matrix that is no longer finite.
            left = True
        if not flat(model).isfinite().all():
            fill(model, before)
            left = True


def _field(cell: Row, seed: int) -> nn.Module:
    return field_of(cell, num_inputs=1, width=LINE_WIDTH, depth=2, seed=seed)


def _signal(cell: Row) -> Signal:
    return load_signal("sines", cell["points"])


STUDY = Study(
    name="preconditioned_conditioning",
    question="Does scaling by D^E or D^J improve the conditioning in 1-D, and does it pay?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
