"""Training a run once more, bit for bit, to see the optimizer at its checkpoints."""

import logging
import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hessian_lab.errors import DivergenceError, InputError
from hessian_lab.optim.contract import Contract
from hessian_lab.training.loop import Visit, train
from hessian_lab.training.run import Run, flat

# What another machine's rounding may make of the parameters, relative to them.
RTOL = 1e-6

logger = logging.getLogger(__name__)


class _AllSeen(Exception):
    """Every checkpoint that was asked for has been visited."""


def retrace(run: Run, visit: Visit, *, steps: Collection[int]) -> None:
    """Train a run again in memory of its own and visit model and optimizer at some checkpoints.

    A trajectory keeps parameters alone: the state of the optimizer at each of them would be twice
    to thousands of times as large. Training is deterministic, so that it is made again instead, at
    the cost of the training up to the last of the steps.

    Args:
        run: What to train; it is not touched.
        visit: Called with the step, the model and the optimizer, which it must leave as they are.
        steps: Checkpoints of the run.

    Raises:
        InputError: If the parameters are not those of the trajectory: another machine, or another
            version of torch, rounds otherwise.
    """
    wanted = set(steps)
    trajectory, places = run.trajectory, {step: place for place, step in enumerate(run.steps)}

    def see(step: int, model: nn.Module, optimizer: Contract) -> None:
        if step not in wanted:
            return
        _compare(run, step, flat(model).cpu().numpy(), trajectory[places[step]])
        with torch.enable_grad():
            visit(step, model, optimizer)
        wanted.discard(step)
        if not wanted:
            raise _AllSeen

    if not wanted:
        return
    threads = int(run.record["provenance"]["threads"])
    setup = replace(run.setup, threads=threads, device=run.device)
    own = run.own_loss if run.record["own_loss"] else None
    with tempfile.TemporaryDirectory() as directory:
        try:
            train(
                setup,
                out=Path(directory) / "run",
                model=run.model(run.steps[0]),
                loss=own,
                signal=run.signal(),
                visit=see,
            )
        except _AllSeen:
            return
        except DivergenceError as error:
            raise InputError(
                f"run {run.path} cannot be trained again here: it diverged before step "
                f"{min(wanted)}. {error}"
            ) from error


def _compare(run: Run, step: int, found: np.ndarray, kept: np.ndarray) -> None:  # type: ignore[type-arg]
    norm = float(np.linalg.norm(kept))
    error = float(np.linalg.norm(found - kept)) / (norm or 1.0)
    if not error <= RTOL:
        raise InputError(
            f"run {run.path} cannot be trained again here: at step {step} the parameters differ "
            f"by {error:.1e} of their norm. Measure it on the machine and with the version of "
            f"torch that trained it ({run.record['provenance']['torch']}), or train anew."
        )
    if error:
        logger.warning("step %d: parameters differ by %.1e of their norm", step, error)
