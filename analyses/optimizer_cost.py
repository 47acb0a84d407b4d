"""What does a step of each optimizer cost, in time and memory, and how does it grow?

P1 Fig. 5 and Fig. 9, P2 Fig. 5b–c. Times are ratios of medians in one process, interleaved; memory
is the most that is alive in a step. Run it with nothing else on the machine:
``OMP_PROC_BIND=true python -m analyses.optimizer_cost``.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch

from analyses.study import Row, Study, Verdict, main
from hessian_lab.fields.mlp import CoordinateMLP, make_field
from hessian_lab.losses import mse
from hessian_lab.measures.cost import Problem, measure_cost
from hessian_lab.optim.compact import two_loop
from hessian_lab.optim.make import make_optimizer
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.probe.vectors import rademacher
from hessian_lab.signal import Signal

OPTIMIZERS = (
    *("sgd", "adam", "lbfgs", "newton_cg", "nonlinear_cg", "gauss_newton", "kfac", "ekfac"),
    *("shampoo", "esgd", "esgd_max", "adahessian"),
)


@dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
        problems: Of ``measures.cost.Problem``, for the steps of all optimizers.
        rounds: Interleaved repeats of a step.
        dense_widths: Of fields of two hidden layers, for what is cubic or quadratic in n.
        wide_widths: Of fields of four hidden layers, for L-BFGS.
        repeats: Of everything else.
    """

    problems: tuple[dict[str, Any], ...] = (
        {"act": "gaussian", "width": 256, "batch_size": 512},
        {"act": "gaussian", "width": 64, "batch_size": 2500},
    )
    rounds: int = 5
    dense_widths: tuple[int, ...] = (12, 18, 26, 36, 48)
    wide_widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    repeats: int = 15


FULL = Config()
QUICK = replace(
    FULL,
    problems=({"act": "gaussian", "width": 32, "depth": 2, "batch_size": 128},),
    rounds=2,
    dense_widths=(6, 10, 14),
    wide_widths=(8, 16, 32),
    repeats=3,
)


def cells(config: Config) -> list[Row]:
    """Return one cell per problem and optimizer, and per width."""
    steps = [
        {"kind": "step", "problem": place, "optimizer": name}
        for place in range(len(config.problems))
        for name in OPTIMIZERS
    ]
    grown = [{"kind": "dense", "width": width} for width in config.dense_widths]
    wide = [{"kind": "pairs", "width": width} for width in config.wide_widths]
    products = [
        {"kind": "product", "problem": place, "precision": name}
        for place in range(len(config.problems))
        for name in ("float32", "float64")
    ]
    return [*steps, *products, *grown, *wide]


def measure(config: Config, cell: Row) -> Row:
    """Time one cell."""
    return MEASURES[cell["kind"]](config, cell)


def _step(config: Config, cell: Row) -> Row:
    problem = Problem(**config.problems[cell["problem"]])
    (cost,) = measure_cost([cell["optimizer"]], problem, rounds=config.rounds)
    entries = cost.to_json()
    return entries | {"problem_text": _told(problem), "options": str(entries["options"])}


def _told(problem: Problem) -> str:
    entries = asdict(problem)
    return f"{entries['act']} {entries['depth']}×{entries['width']}, batch {entries['batch_size']}"


def _product(config: Config, cell: Row) -> Row:
    """Time a product and a kept double backward, in gradients."""
    problem = Problem(**config.problems[cell["problem"]])
    model, signal = _field(problem.width, problem.batch_size, problem.depth, cell["precision"])
    parameters = list(model.parameters())
    operator = HessianOperator(model, mse, signal)
    vector = rademacher(operator.size, 1, seed=0, like=parameters[0])[:, 0]
    parts = [
        part.view_as(value)
        for part, value in zip(
            vector.split([value.numel() for value in parameters]), parameters, strict=True
        )
    ]

    def gradient() -> None:
        torch.autograd.grad(mse(model(signal.coords), signal.values), parameters)

    loss = mse(model(signal.coords), signal.values)
    graph = torch.autograd.grad(loss, parameters, create_graph=True)

    def kept() -> None:
        torch.autograd.grad(graph, parameters, parts, retain_graph=True)

    seconds = _interleaved([gradient, lambda: operator @ vector, kept], config.repeats)
    return {
        "problem_text": _told(problem),
        "gradient_seconds": seconds[0],
        "product_ratio": seconds[1] / seconds[0],
        "kept_ratio": seconds[2] / seconds[0],
    }


def _dense(config: Config, cell: Row) -> Row:
    """Time what is dense: the Hessian, its eigenvalues, its inverse, steps of Newton and BFGS."""
    model, signal = _field(cell["width"], 256, 2, "float64")
    hessian = dense_hessian(model, mse, signal)
    size = len(hessian)
    shifted = hessian + torch.eye(size, dtype=hessian.dtype) * hessian.norm()
    steps = {}
    for name in ("newton", "bfgs", "lbfgs"):
        field = _field(cell["width"], 256, 2, "float64")[0]
        optimizer = make_optimizer(name, field)

        def step(field: CoordinateMLP = field, optimizer: Any = optimizer) -> None:
            optimizer.step(lambda: mse(field(signal.coords), signal.values))

        step()
        steps[name] = step
    works: dict[str, Callable[[], object]] = {
        "hessian": lambda: dense_hessian(model, mse, signal),
        "eigenvalues": lambda: torch.linalg.eigvalsh(hessian),
        "inverse": lambda: torch.linalg.inv(shifted),
        **steps,
    }
    seconds = _interleaved(list(works.values()), max(3, config.repeats // 4))
    told = dict(zip((f"{name}_seconds" for name in works), seconds, strict=True))
    return {"num_parameters": size, "hessian_bytes": hessian.nbytes, **told}


def _pairs(config: Config, cell: Row) -> Row:
    """Time the two-loop recursion over 100 pairs beside two evaluations with gradients."""
    model, signal = _field(cell["width"], 2500, 4, "float32")
    parameters = list(model.parameters())
    size = sum(value.numel() for value in parameters)
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(size, generator=generator) for _ in range(100)]
    inner = [step.dot(step) for step in steps]

    def gradient() -> None:
        torch.autograd.grad(mse(model(signal.coords), signal.values), parameters)

    seconds = _interleaved(
        [gradient, lambda: two_loop(steps, steps, inner, steps[0])], config.repeats
    )
    return {
        "num_parameters": size,
        "gradient_seconds": seconds[0],
        "two_loop_seconds": seconds[1],
        "share": seconds[1] / (seconds[1] + 2 * seconds[0]),
        "pair_bytes": 2 * 100 * size * 4,
    }


MEASURES: dict[str, Callable[[Config, Row], Row]] = {
    "step": _step,
    "product": _product,
    "dense": _dense,
    "pairs": _pairs,
}


def _field(width: int, points: int, depth: int, dtype: str) -> tuple[CoordinateMLP, Signal]:
    kind = getattr(torch, dtype)
    model = make_field("gaussian", 2, 3, width=width, depth=depth, seed=0, dtype=kind)
    generator = torch.Generator().manual_seed(0)
    coords, values = (torch.rand(points, size, generator=generator).to(kind) for size in (2, 3))
    return model, Signal(coords, values)


def _interleaved(works: list[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median seconds of each, their repeats taken in turns."""
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for place, work in enumerate(works):
            start = time.perf_counter()
            work()
            times[place].append(time.perf_counter() - start)
    return [statistics.median(each) for each in times]


def slope(rows: pd.DataFrame, name: str) -> float:
    """Return the exponent of a time in n, by least squares on logarithms of the larger half."""
    chosen = rows.sort_values("num_parameters").iloc[-max(3, len(rows) // 2 + 1) :]
    sizes, times = np.log(chosen["num_parameters"]), np.log(chosen[name].astype(float))
    return float(np.polyfit(sizes, times, 1)[0])


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Return what the times say of the claims C114–C127."""
    found: list[Verdict] = []
    steps = rows[rows["kind"] == "step"]
    for text, group in steps.groupby("problem_text", sort=False):
        table = group.set_index("optimizer")
        small = "×64," in str(text) or len(steps["problem_text"].unique()) == 1
        if "×64," not in str(text):
            found += _batched(table, f"{text}, float32, two cores")
        if small:
            found += _small(table, f"{text}, float32, two cores")
    products = rows[rows["kind"] == "product"]
    if len(products):
        found.append(_products(products))
    dense = rows[rows["kind"] == "dense"]
    if len(dense) >= 3:
        found += _growth(dense)
    pairs = rows[rows["kind"] == "pairs"]
    if len(pairs):
        found.append(_shares(pairs))
    return found


def _batched(table: pd.DataFrame, settings: str) -> list[Verdict]:
    time_of, memory = table["ratio"].astype(float), table["peak_ratio"].astype(float)
    esgd = Verdict(
        "C115",
        "holds" if time_of["esgd"] <= 1.1 and memory["esgd"] <= 1.1 else "holds only under",
        f"ESGD, N = 100: time {time_of['esgd']:.2f}, peak memory {memory['esgd']:.2f} of Adam's",
        f"{settings}; the peak is that of the step that measures curvature",
    )
    order = ["adam", "esgd", "kfac", "shampoo"]
    rises = all(time_of[one] <= 1.05 * time_of[two] for one, two in pairwise(order))
    text = ", ".join(f"{name} {time_of[name]:.2f} / {memory[name]:.2f}" for name in order)
    kron = Verdict(
        "C116",
        "holds"
        if rises and memory["esgd"] < min(memory["kfac"], memory["shampoo"])
        else "holds only under",
        f"time / memory over Adam's: {text}",
        f"{settings}; K-FAC's factors every 10 steps, inverses every 100; Shampoo's roots every 10",
    )
    hessian = Verdict(
        "C117",
        "holds only under" if time_of["adahessian"] > 1.2 * time_of["esgd"] else "does not hold",
        f"AdaHessian {time_of['adahessian']:.2f}, ESGD {time_of['esgd']:.2f} of Adam's",
        f"{settings}; AdaHessian measures every step, ESGD every 100: equal where both do",
    )
    return [esgd, kron, hessian]


def _small(table: pd.DataFrame, settings: str) -> list[Verdict]:
    time_of, memory = table["ratio"].astype(float), table["peak_ratio"].astype(float)
    second = ["newton_cg", "gauss_newton", "kfac", "lbfgs"]
    text = ", ".join(f"{name} {time_of[name]:.2f} / {memory[name]:.2f}" for name in second)
    cheap = memory["lbfgs"] <= 2 and time_of["lbfgs"] <= min(time_of[name] for name in second)
    return [
        Verdict(
            "C118",
            "holds" if cheap else "holds only under",
            f"time / memory over Adam's: {text}",
            f"{settings}; L-BFGS with a full history of 100 pairs, whose memory is 200 n numbers",
        )
    ]


def _products(rows: pd.DataFrame) -> Verdict:
    parts = [
        f"{row['problem_text']} {row['precision']}: {row['product_ratio']:.2f} by our product, "
        f"{row['kept_ratio']:.2f} by a kept double backward"
        for row in rows.to_dict("records")
    ]
    ours, kept = rows["product_ratio"].astype(float), rows["kept_ratio"].astype(float)
    answer = "holds" if kept.max() <= 1.2 else "holds only under"
    answer = "does not hold" if ours.min() > 4 else answer
    return Verdict("C114", answer, "; ".join(parts), "in gradients, medians of interleaved repeats")


def _growth(rows: pd.DataFrame) -> list[Verdict]:
    slopes = {name: slope(rows, f"{name}_seconds") for name in ("newton", "bfgs", "lbfgs")}
    text = ", ".join(f"{name} {value:.2f}" for name, value in slopes.items())
    sizes = f"n = {int(rows['num_parameters'].min())} … {int(rows['num_parameters'].max())}"
    near = abs(slopes["newton"] - 3) <= 0.3 and abs(slopes["bfgs"] - 2) <= 0.2
    exponents = {
        name: slope(rows, f"{name}_seconds") for name in ("hessian", "eigenvalues", "inverse")
    }
    told = ", ".join(f"{name} {value:.2f}" for name, value in exponents.items())
    return [
        Verdict(
            "C119",
            "holds" if near and abs(slopes["lbfgs"] - 1) <= 0.1 else "holds only under",
            f"exponent of a step's time in n: {text}",
            f"{sizes}, float64; orders are of the linear algebra alone: a step also evaluates",
        ),
        Verdict(
            "C122",
            "holds only under",
            f"exponent of the time: inverse {exponents['inverse']:.2f}; bytes exactly 8 n²",
            f"{sizes}; inverting is O(n³), storing O(n²)",
        ),
        Verdict(
            "C127",
            "does not hold",
            f"exponent of the time: {told}; bytes 8 n²",
            f"{sizes}; quadratic in memory, quadratic to cubic in time",
        ),
    ]


def _shares(rows: pd.DataFrame) -> Verdict:
    rows = rows.sort_values("num_parameters")
    shares = rows["share"].astype(float)
    rises = shares.iloc[-1] > 1.5 * shares.iloc[0]
    text = ", ".join(
        f"{share:.0%} at n = {int(size):,}"
        for share, size in zip(shares, rows["num_parameters"], strict=True)
    )
    return Verdict(
        "C124",
        "holds" if rises else "does not hold",
        f"share of the two-loop recursion in an iteration of two evaluations: {text}",
        "4 hidden layers, 2,500 points, 100 pairs, float32; both parts grow like n",
    )


STUDY = Study(
    name="optimizer_cost",
    question="What does a step of each optimizer cost, in time and memory, and how does it grow?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
