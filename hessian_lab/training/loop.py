"""The training loop: steps, checkpoints, and a state to continue from."""

import hashlib
import logging
import math
import signal as signals
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pandas as pd
import torch
from torch import Tensor, nn

from hessian_lab.errors import DivergenceError, InputError
from hessian_lab.losses import Loss
from hessian_lab.optim.contract import Contract
from hessian_lab.optim.make import configured, has_option
from hessian_lab.probe.scratch import require_disk
from hessian_lab.probe.vectors import placed
from hessian_lab.signal import Signal
from hessian_lab.training.files import locked, make_directory, write_atomically
from hessian_lab.training.prepare import Prepared, claim, prepare, settle
from hessian_lab.training.quality import quality
from hessian_lab.training.run import (
    COLUMNS,
    DIAGNOSTICS,
    METRICS,
    RESUME,
    Run,
    checkpoint_steps,
    fill,
    flat,
    load_run,
    read_resume,
)
from hessian_lab.training.setup import Setup
from hessian_lab.training.trajectory import NAME as TRAJECTORY
from hessian_lab.training.trajectory import TrajectoryWriter

# Saving may take this share of the time; a killed run repeats what it did since its last save.
SAVING_SHARE = 0.05

logger = logging.getLogger(__name__)

# Called after every checkpoint with its row of metrics.
Watch = Callable[[dict[str, float]], None]
# Called after every checkpoint with the step, the model and the optimizer as they are.
Visit = Callable[[int, nn.Module, Contract], None]


def train(
    setup: Setup | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    signal: Signal | None = None,
    watch: Watch | None = None,
    visit: Visit | None = None,
) -> Run:
    """Train a field and keep its trajectory; the ``train`` command does the same.

    A run that was killed continues from its last saved state and ends with the trajectory, bit for
    bit, that it would have had. A run that is complete is returned as it is.

    Args:
        setup: What to train; by default the command's own defaults.
        out: The run directory, exactly; by default ``runs/<act>-<hash of what defines the run>``.
        overwrite: Start anew even if the directory holds a run.
        model: A module of your own; a copy of it is trained, from its present parameters.
        loss: A loss of your own, a mean over points; by default that of the signal.
        signal: A signal of your own, in place of the named one.
        watch: Called after every checkpoint.
        visit: Called after every checkpoint that is made now, with the step, the model and the
            optimizer: to measure what the trajectory alone does not tell, such as the spectrum
            that the optimizer's preconditioner makes. It must leave both as they are.

    Raises:
        UsageError: For values out of range, a conflicting setup in ``out``, or ``out`` in use.
        InputError: For a signal that cannot be read, or a state of another version.
        ResourceError: If the trajectory does not fit on the disk.
        DivergenceError: If the loss is not finite; the checkpoints before it are kept.
    """
    prepared = prepare(setup or Setup(), model=model, loss=loss, signal=signal, out=out)
    # What cannot be trained leaves no directory behind.
    optimizer = make_optimizer(prepared.setup, prepared.model, prepared.signal.num_points)
    make_directory(prepared.directory)
    with locked(prepared.directory):
        claim(prepared, overwrite=overwrite)
        if not (prepared.directory / TRAJECTORY).exists():
            _require_room(prepared)
        status = "done"
        try:
            _Training(prepared, optimizer, watch, visit).run()
        except DivergenceError:
            status = "diverged"
            raise
        except BaseException:
            status = "interrupted"
            raise
        finally:
            settle(prepared, status)
    own = prepared.loss if prepared.record["own_loss"] else None
    return load_run(prepared.directory, model=model, loss=own)


def _require_room(prepared: Prepared) -> None:
    rows, item = prepared.setup.num_checkpoints, prepared.dtype.itemsize
    require_disk(
        prepared.directory,
        rows * prepared.size * item,
        "The trajectory",
        cure="Keep fewer checkpoints with --checkpoint-every.",
    )


class _Training:
    """The state of one training run, from its last save to its end."""

    # What a killed process needs beside parameters and optimizer.
    COUNTERS = ("step", "count", "evaluations", "step_length", "stalled", "elapsed")

    def __init__(
        self, prepared: Prepared, optimizer: Contract, watch: Watch | None, visit: Visit | None
    ) -> None:
        self.prepared = prepared
        self.setup = prepared.setup
        self.watch = watch
        self.visit = visit
        self.model = prepared.model
        self.steps = checkpoint_steps(self.setup)
        self.optimizer = optimizer
        self.step = 0
        self.count = 0
        self.evaluations = 0
        self.step_length = 0.0
        self.stalled = 0
        self.elapsed = 0.0
        self.rows: list[dict[str, float]] = []
        self.clock = _SaveClock(SAVING_SHARE)
        # The epoch whose points lie in an order of their own, and that order.
        self.order: tuple[int, Tensor] | None = None

    def run(self) -> None:
        """Train to the last step, unless it is there already."""
        self._restore()
        if self.count == len(self.steps):
            return
        self.writer = TrajectoryWriter(
            self.prepared.directory, len(self.steps), self.prepared.size, self.prepared.dtype
        )
        self.started = time.perf_counter() - self.elapsed
        try:
            with using_threads(self.prepared.threads), _deferred_interrupts() as interrupted:
                self._walk(interrupted)
        finally:
            self.writer.close()

    def _walk(self, interrupted: threading.Event) -> None:
        if self.count == 0:
            self._checkpoint()
        while self.step < self.setup.steps:
            if interrupted.is_set():
                self._save()
                raise KeyboardInterrupt
            self._advance()
            if self.step == self.steps[self.count]:
                self._checkpoint()
        self._save()
        if interrupted.is_set():
            raise KeyboardInterrupt

    def _restore(self) -> None:
        directory = self.prepared.directory
        if not (directory / RESUME).exists():
            return
        state = read_resume(directory)
        if "diverged" in state:
            raise DivergenceError(state["diverged"])
        fill(self.model, state["parameters"])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"run {directory} was saved by another version of its optimizer and cannot be "
                "continued. Train anew with --overwrite."
            ) from error
        for name in self.COUNTERS:
            setattr(self, name, state[name])
        self.rows = load_run(directory).metrics.to_dict("records")  # type: ignore[assignment]
        if self.step < self.setup.steps:
            logger.info("continuing %s from step %d", directory, self.step)

    def _advance(self) -> None:
        """Take one optimizer step."""
        batch = self._batch()
        before = flat(self.model)
        self._schedule()

        def closure() -> Tensor | tuple[Tensor, Tensor]:
            self.evaluations += 1
            outputs = self.model(batch.coords)
            loss = self.prepared.loss(outputs, batch.values)
            return (loss, outputs) if self.optimizer.takes_outputs else loss

        try:
            loss = torch.as_tensor(self.optimizer.step(closure))  # type: ignore[arg-type]
        except DivergenceError as error:
            self._stop(str(error))
        length = torch.linalg.vector_norm(flat(self.model) - before)
        value, self.step_length = torch.stack([loss.detach().reshape(()), length]).tolist()
        # Another batch may have a finite loss; the same points will not.
        if not math.isfinite(value) and batch is self.prepared.signal:
            self._diverge(value, self.step)
        self.step += 1
        if not math.isfinite(self.step_length):
            self._diverge(self.step_length, self.step, "step length")
        if self.step_length == 0:
            self.stalled += 1
            if self.stalled == 1:
                logger.warning("step %d had length 0: the optimizer has stalled", self.step)

    def _batch(self) -> "Signal | _Batch":
        """Return the points of the present step: a function of seed and step alone."""
        signal, size = self.prepared.signal, self.setup.batch_size
        if size is None or size >= signal.num_points:
            return signal
        per_epoch = math.ceil(signal.num_points / size)
        epoch, place = divmod(self.step, per_epoch)
        if self.order is None or self.order[0] != epoch:
            generator = torch.Generator().manual_seed(_mixed(self.setup.seed, epoch))
            order = torch.randperm(signal.num_points, generator=generator)
            self.order = epoch, placed(order, signal.coords.device)
        chosen = self.order[1][place * size : (place + 1) * size]
        # They were checked as parts of the whole signal.
        return _Batch(signal.coords[chosen], signal.values[chosen])

    def _schedule(self) -> None:
        """Set the learning rate of the present step, exponential between the two ends."""
        if self.setup.lr_final is None or self.setup.lr is None:
            return
        share = self.step / max(1, self.setup.steps - 1)
        rate = self.setup.lr * (self.setup.lr_final / self.setup.lr) ** share
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _checkpoint(self) -> None:
        """Keep the present parameters and what the whole signal says of them."""
        measured = quality(self.model, self.prepared.loss, self.prepared.signal)
        if not math.isfinite(measured["loss"]):
            self._diverge(measured["loss"], self.step)
        self.elapsed = time.perf_counter() - self.started
        entries = (self.step, self.elapsed, self.evaluations, self.step_length)
        row = dict(zip(COLUMNS, entries, strict=False)) | measured
        diagnostics = self.optimizer.diagnostics()
        row |= {name: diagnostics.get(name, math.nan) for name in DIAGNOSTICS}
        self.rows.append(row)
        self.writer.write(self.count, flat(self.model))
        self.count += 1
        if self.clock.due():
            self._save()
        if self.watch is not None:
            self.watch(row)
        if self.visit is not None:
            self.visit(self.step, self.model, self.optimizer)

    def _save(self, **more: str) -> None:
        """Save what a killed process needs; the rows it counts are on the disk already."""
        state = {
            "parameters": flat(self.model).cpu(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in self.COUNTERS},
            **more,
        }
        with self.clock.saving():
            table = pd.DataFrame(self.rows, columns=list(COLUMNS)).to_csv(index=False)
            directory = self.prepared.directory
            write_atomically(directory / METRICS, lambda stream: stream.write(table.encode()))
            write_atomically(directory / RESUME, lambda stream: torch.save(state, stream))

    def _diverge(self, value: float, step: int, what: str = "loss") -> NoReturn:
        """Stop at a number that is not finite."""
        rate = self.optimizer.param_groups[0]["lr"]
        self._stop(f"{what} must stay finite, it became {value} at step {step} (lr {rate:g}).")

    def _stop(self, message: str) -> NoReturn:
        """Keep the checkpoints so far, and say that training ends here."""
        place = self.prepared.directory
        if self.count:
            message += (
                f" The checkpoints up to step {self.steps[self.count - 1]} are kept: measure them "
                f"with hessian-lab eigs --run {place}, or train anew with a lower lr."
            )
        if self.count:
            self._save(diverged=message)
        raise DivergenceError(message)


def make_optimizer(setup: Setup, model: nn.Module, num_points: int) -> Contract:
    """Return the optimizer that a resolved setup names, over the trainable parameters.

    Args:
        setup: Resolved.
        model: What to train.
        num_points: Of the signal; a batch of all of them is always the same one.

    Raises:
        UsageError: For an option that it does not have, or one out of range.
    """
    assert setup.optimizer is not None
    options = dict(setup.options)
    if (setup.batch_size or num_points) < num_points and has_option(setup.optimizer, "same_batch"):
        options.setdefault("same_batch", False)
    return configured(setup.optimizer, model, setup.lr, options)


@dataclass(frozen=True)
class _Batch:
    """Some points of a signal."""

    coords: Tensor
    values: Tensor


class _SaveClock:
    """Tells when a save is due, so that saving takes at most a share of the time."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.cost = 0.0
        self.last = -math.inf

    def due(self) -> bool:
        return time.perf_counter() - self.last >= self.cost / self.share

    @contextmanager
    def saving(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.last = time.perf_counter()
        self.cost = self.last - start


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Use this many CPU threads, and the former number afterwards."""
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


@contextmanager
def _deferred_interrupts() -> Iterator[threading.Event]:
    """Note a first Ctrl-C or SIGTERM for the end of the step; a second one acts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    names = (signals.SIGINT, signals.SIGTERM)
    former = {
        name: handler
        for name in names
        if (handler := signals.getsignal(name)) not in (signals.SIG_IGN, None)
    }

    def note(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    for name in former:
        signals.signal(name, note)
    try:
        yield asked
    finally:
        for name, handler in former.items():
            signals.signal(name, handler)


def _mixed(seed: int, epoch: int) -> int:
    """Return a seed that stands for a pair of numbers."""
    data = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return int.from_bytes(data[:8], "big") >> 1
