"""Going through the checkpoints of a run, and continuing where a killed measurement stopped."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from hessian_lab.errors import UsageError
from hessian_lab.measures.record import Throttle
from hessian_lab.optim.contract import Contract
from hessian_lab.optim.preconditioner import Preconditioner
from hessian_lab.probe.ranks import ALONE, Ranks
from hessian_lab.signal import Signal
from hessian_lab.training.files import locked
from hessian_lab.training.retrace import retrace
from hessian_lab.training.run import Run

# The loss at a checkpoint, computed again, agrees to this many roundings with the one recorded.
LOSS_ROUNDINGS = 1e4


class AtStep(Protocol):
    """The result at one checkpoint."""

    @property
    def step(self) -> int:
        """The optimizer step."""


class Told(AtStep, Protocol):
    """A result that can be printed."""

    def to_json(self) -> dict[str, Any]:
        """Return every number."""


Result = TypeVar("Result", bound=AtStep)


class Store(Protocol[Result]):
    """Where results are kept while a measurement goes on."""

    def known(self) -> list[Result]:
        """Return the results of an earlier measurement of this very kind."""

    def save(self, results: list[Result]) -> None:
        """Write all results, those at earlier steps first."""


class _Kept(Generic[Result]):
    """The results so far by step, on the first rank, which writes them now and then."""

    def __init__(self, store: Store[Result], ranks: Ranks) -> None:
        self.store = store
        self.ranks = ranks
        self.known = {one.step: one for one in store.known()} if ranks.first else {}
        self.throttle = Throttle()

    def missing(self, chosen: Sequence[int]) -> list[int]:
        """Return which of some steps are not known; the same on every rank."""
        return self.ranks.told([step for step in chosen if step not in self.known])

    def add(self, results: Sequence[Result | None], watch: Callable[[Result], None] | None) -> None:
        """Take what all ranks have measured."""
        for result in results:
            if result is None:
                continue
            self.known[result.step] = result
            if self.throttle.due:
                self.throttle.run(self.save)
            if watch is not None:
                watch(result)

    def save(self) -> None:
        """Write all results, on the first rank."""
        if self.ranks.first:
            self.store.save([self.known[step] for step in sorted(self.known)])

    def watch(self, chosen: Sequence[int], watch: Callable[[Result], None] | None) -> None:
        """Show what was known before."""
        for step in chosen if watch is not None else ():
            if step in self.known:
                watch(self.known[step])  # type: ignore[misc]

    def those_of(self, chosen: Sequence[int]) -> list[Result]:
        """Return the results at some steps, as far as there are any."""
        return [self.known[step] for step in chosen if step in self.known]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One iterate of a run, in the precision of its training.

    Attributes:
        step: The optimizer step.
        loss: The loss of the whole signal there, as recorded in training.
        psnr: Likewise, in dB; NaN where it is not defined.
        loss_error: The difference between the loss recorded and computed again, relative to the
            loss, or to what rounding of values of the signal's size makes of it where that is more.
        model: The network.
        signal: What it was fitted to.
    """

    step: int
    loss: float
    psnr: float
    loss_error: float
    model: nn.Module
    signal: Signal


def checkpoint(run: Run, signal: Signal, step: int) -> Checkpoint:
    """Return one checkpoint, its loss computed again."""
    row = dict(run.metrics.set_index("step").loc[step])
    model, loss = run.model(step), float(row["loss"])
    with torch.no_grad():
        again = float(run.loss(model(signal.coords), signal.values))
    error = abs(again - loss) / _loss_scale(loss, signal)
    return Checkpoint(step, loss, float(row["psnr"]), error, model, signal)


def along(
    run: Run,
    measure: Callable[[Checkpoint], Result | None],
    *,
    every: int,
    store: Store[Result],
    watch: Callable[[Result], None] | None = None,
    ranks: Ranks = ALONE,
    dealt: bool = True,
) -> list[Result]:
    """Measure every ``every``-th checkpoint and the last, and keep the results on disk meanwhile.

    What the store knows is not measured again, and stays in it.

    Args:
        run: The trajectory.
        measure: Measures one checkpoint.
        every: Checkpoints from one measured to the next.
        store: Where results are kept.
        watch: Shown every result.
        ranks: The processes that call this together; the first returns the results and writes.
        dealt: Whether each rank measures other checkpoints; else all measure each of them together,
            and ``measure`` returns None on all but the first.

    Raises:
        UsageError: If another process is writing the run.
    """
    chosen = selected(run.steps, every)
    signal = run.signal()
    with _written_by_first(run, ranks):
        kept = _Kept(store, ranks)
        missing = kept.missing(chosen)
        kept.watch(chosen, watch)
        for turn in _turns(missing, ranks.count if dealt else 1):
            place = ranks.rank if dealt else 0
            result = measure(checkpoint(run, signal, turn[place])) if place < len(turn) else None
            kept.add(ranks.collected(result) if dealt else [result], watch)
        kept.save()
    return kept.those_of(chosen)


def along_training(
    run: Run,
    measure: Callable[[Checkpoint, Preconditioner], Result | None],
    *,
    every: int,
    store: Store[Result],
    watch: Callable[[Result], None] | None = None,
    ranks: Ranks = ALONE,
) -> list[Result]:
    """Measure with the optimizer's preconditioner, training the run once more; else as ``along``.

    Checkpoints at which there is none yet, as before the first step, are left out. Every rank
    trains, and measures other checkpoints.

    Raises:
        UsageError: If another process is writing the run, or its optimizer has no preconditioner.
        InputError: If the run cannot be trained again here.
    """
    chosen = selected(run.steps, every)
    signal, reason = run.signal(), ""
    with _written_by_first(run, ranks):
        kept = _Kept(store, ranks)
        missing = kept.missing(chosen)
        ends = {turn[-1] for turn in _turns(missing, ranks.count)}
        own: list[Result | None] = []

        def visit(step: int, model: nn.Module, optimizer: Contract) -> None:
            nonlocal reason
            if missing.index(step) % ranks.count == ranks.rank:
                try:
                    preconditioner = optimizer.preconditioner(model)
                except ValueError as error:
                    reason = str(error)
                else:
                    own.append(measure(checkpoint(run, signal, step), preconditioner))
            if step in ends:
                kept.add(ranks.collected(own.pop() if own else None), watch)

        kept.watch(chosen, watch)
        retrace(run, visit, steps=missing)
        if ranks.first and not kept.known:
            raise UsageError(f"no checkpoint of {run.path} has a preconditioner: {reason}")
        kept.save()
    return kept.those_of(chosen)


@contextmanager
def _written_by_first(run: Run, ranks: Ranks) -> Iterator[None]:
    """Hold the run's directory on the rank that writes it."""
    if not ranks.first:
        yield
        return
    with locked(run.path):
        yield


def _turns(steps: Sequence[int], count: int) -> list[list[int]]:
    """Return steps in groups that are measured at a time, a step for each rank."""
    return [list(steps[place : place + count]) for place in range(0, len(steps), count)]


def told(run: Run, measured: Sequence[Told]) -> list[dict[str, Any]]:
    """Return every number at each checkpoint, and the ``snr`` (dB) there where there is one."""
    return [one.to_json() | snr_at(run, one.step) for one in measured]


def snr_at(run: Run, step: int) -> dict[str, float]:
    """Return the ``snr`` (dB) that was recorded in training, or nothing where there was none."""
    value = float(run.metrics.set_index("step")["snr"].loc[step])
    return {} if math.isnan(value) else {"snr": value}


def selected(steps: list[int], every: int) -> list[int]:
    """Return every ``every``-th checkpoint, and the last."""
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}.")
    chosen = steps[::every]
    return chosen if chosen[-1] == steps[-1] else [*chosen, steps[-1]]


def loss_failure(run: Run, step: int, error: float) -> str | None:
    """Return what is wrong if the loss at a checkpoint is not the one recorded."""
    eps = torch.finfo(getattr(torch, run.setup.dtype)).eps
    if error <= LOSS_ROUNDINGS * eps:
        return None
    if math.isnan(error):
        return f"step {step}: the loss is not finite"
    return (
        f"step {step}: the loss computed again differs by {error:.1e}; "
        "the model or the loss is not deterministic"
    )


def nan_if_none(value: float | None) -> float:
    """Return a number that JSON could not hold."""
    return math.nan if value is None else value


def _loss_scale(loss: float, signal: Signal) -> float:
    """Return what a difference of losses is measured by: residuals are as exact as values are."""
    rms = float(signal.values.square().mean().sqrt())
    eps = torch.finfo(torch.float64).eps
    tiny = torch.finfo(torch.float64).tiny
    return float(max(abs(loss), abs(loss) ** 0.5 * rms, eps * rms**2, tiny))
