"""The trace of a curvature matrix at every checkpoint of a run, with its error."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hessian_lab.errors import NonFiniteError, UsageError
from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.losses import Loss
from hessian_lab.measures.checkpoints import Checkpoint, along, loss_failure, nan_if_none, told
from hessian_lab.measures.record import Record, suffix
from hessian_lab.names import known
from hessian_lab.probe.closed_diagonal import exact_diagonal
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.hessian import has_closed_form
from hessian_lab.probe.layers import layer_blocks
from hessian_lab.probe.linearized import MATRICES, Matrix
from hessian_lab.probe.memory import undivided
from hessian_lab.probe.operators import SymmetricOperator
from hessian_lab.probe.parameters import Layout, selected_names
from hessian_lab.probe.ranks import ALONE, Ranks
from hessian_lab.probe.sharding import own_points
from hessian_lab.probe.trace import trace
from hessian_lab.training.run import Run

TraceMethod = Literal["hutchinson", "hutch++", "xtrace", "exact"]
METHODS = ("hutchinson", "hutch++", "xtrace", "exact")


@dataclass(frozen=True)
class Settings:
    """How traces are measured.

    Attributes:
        matrix: ``hessian`` or ``ggn``.
        method: An estimator, or ``exact`` for a ``CoordinateMLP``.
        num_products: Products per estimate.
        layers: Whether to measure every layer's block too, at as many products each.
        seed: Of the probes.
        level: Of the intervals.
    """

    matrix: Matrix = "hessian"
    method: TraceMethod = "hutchinson"
    num_products: int = 30
    layers: bool = False
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        known("method", self.method, METHODS)
        known("matrix", self.matrix, MATRICES)
        if not 0 < self.level < 1:
            raise ValueError(f"level must be in (0, 1), got {self.level}.")


@dataclass(frozen=True)
class Value:
    """An estimate: its mean, standard error, and the ends of its interval."""

    mean: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class TraceAt:
    """The trace at one checkpoint, and those of the layers' blocks where asked for."""

    step: int
    loss: float
    psnr: float
    loss_error: float
    trace: Value
    layers: dict[str, Value] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Traces:
    """The traces of a run."""

    run: Run
    settings: Settings
    measured: list[TraceAt]

    @property
    def failures(self) -> list[str]:
        """What does not hold of the results, in a sentence each."""
        checked = (loss_failure(self.run, one.step, one.loss_error) for one in self.measured)
        failures = [text for text in checked if text]
        for one in self.measured:
            if not math.isfinite(one.trace.mean):
                failures.append(f"step {one.step}: the trace is not finite")
        return failures

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``trace --json`` prints."""
        return {
            "command": "trace",
            "run": str(self.run.path),
            "setup": self.run.setup.to_json(),
            "num_parameters": self.run.num_parameters,
            **asdict(self.settings),
            "spectra": told(self.run, self.measured),
        }


def measure_traces(
    run: Run,
    settings: Settings | None = None,
    *,
    every: int = 1,
    watch: Callable[[TraceAt], None] | None = None,
    ranks: Ranks = ALONE,
    split: str = "checkpoints",
) -> Traces:
    """Measure the trace of the Hessian at every ``every``-th checkpoint, and at the last.

    In the precision of the training by products; exactly, in double precision, by the closed form
    (``method="exact"``), which costs about as much as a few dozen products. Writes ``trace.json``
    beside the trajectory, also half-way; what is there already is not measured again.

    Args:
        run: The trajectory.
        settings: How to measure.
        every: Checkpoints from one measured to the next.
        watch: Called with every checkpoint when it is done.
        ranks: The processes that call this together; the first writes, and returns the traces.
        split: What they divide: ``checkpoints``, or ``points``.

    Raises:
        UsageError: For an exact trace of a module without a closed form.
    """
    settings = settings or Settings()
    if settings.method == "exact" and not has_closed_form(run.model(run.steps[0])):
        raise UsageError("method exact needs a CoordinateMLP as it was built; use hutch++.")
    path = run.path / f"trace{suffix(matrix=settings.matrix, layers=settings.layers)}.json"
    together = split != "checkpoints"
    measured = along(
        run,
        lambda one: _measure(one, run.loss, settings, ranks if together else ALONE),
        every=every,
        store=Record(
            run,
            path,
            asdict(settings),
            parse=from_json,
            body=lambda results: Traces(run, settings, results).to_json(),
        ),
        watch=watch,
        ranks=ranks,
        dealt=not together,
    )
    return Traces(run, settings, measured)


def _measure(one: Checkpoint, loss: Loss, settings: Settings, ranks: Ranks) -> TraceAt | None:
    find = _exact if settings.method == "exact" else _estimated
    found = find(one, loss, settings, ranks)
    if found is None:
        return None
    whole, layers = found
    return TraceAt(one.step, one.loss, one.psnr, one.loss_error, whole, layers)


def _estimated(
    one: Checkpoint, loss: Loss, settings: Settings, ranks: Ranks
) -> tuple[Value, dict[str, Value]] | None:
    kind = GGNOperator if settings.matrix == "ggn" else HessianOperator
    operator = kind(one.model, loss, one.signal, chunk_size="auto", check=False, ranks=ranks)
    if not ranks.first:
        operator.serve()
        return None
    with undivided(), operator.leading():
        blocks = layer_blocks(operator) if settings.layers else {}
        return _value(operator, settings), {
            name: _value(block, settings) for name, block in blocks.items()
        }


def _value(operator: SymmetricOperator, settings: Settings) -> Value:
    assert settings.method != "exact"
    try:
        estimate = trace(
            operator,
            method=settings.method,
            num_products=settings.num_products,
            seed=settings.seed,
        )
    except NonFiniteError:
        return Value(math.nan, math.nan, math.nan, math.nan)
    low, high = estimate.interval(level=settings.level)
    return Value(float(estimate.mean), float(estimate.standard_error), float(low), float(high))


def _exact(
    one: Checkpoint, loss: Loss, settings: Settings, ranks: Ranks
) -> tuple[Value, dict[str, Value]] | None:
    model, signal = one.model.double(), one.signal.to(dtype=torch.float64)
    assert isinstance(model, CoordinateMLP)
    own = own_points(signal, ranks)
    diagonal = exact_diagonal(model, loss, own, matrix=settings.matrix)
    if not ranks.alone:
        diagonal = ranks.total(diagonal.mul_(own.num_points / signal.num_points))
    if not ranks.first:
        return None
    places = Layout(model, selected_names(model, None)).layers() if settings.layers else {}
    return _sum(diagonal), {
        name: _sum(torch.cat([diagonal[place] for place in parts]))
        for name, parts in places.items()
    }


def _sum(diagonal: Tensor) -> Value:
    """Return the sum of a diagonal, with the roundings that it may hold."""
    total = float(diagonal.sum())
    rounding = float(torch.finfo(torch.float64).eps * len(diagonal) ** 0.5 * diagonal.abs().sum())
    return Value(total, rounding, total - 2 * rounding, total + 2 * rounding)


def from_json(entry: dict[str, Any]) -> TraceAt:
    """Return the trace at one checkpoint from what ``to_json`` wrote."""

    def value(part: dict[str, float | None]) -> Value:
        return Value(**{name: nan_if_none(number) for name, number in part.items()})

    return TraceAt(
        step=entry["step"],
        loss=nan_if_none(entry["loss"]),
        psnr=nan_if_none(entry["psnr"]),
        loss_error=nan_if_none(entry["loss_error"]),
        trace=value(entry["trace"]),
        layers={name: value(part) for name, part in entry["layers"].items()},
    )
