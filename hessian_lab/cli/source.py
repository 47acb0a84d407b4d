"""The run that a command measures: one on disk, or one trained now."""

import argparse
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessian_lab.cli.flags import FLAGS, add_output, add_setup, asked_setup, given_setup
from hessian_lab.cli.parser import Parser, number, one_of
from hessian_lab.cli.ranks import present
from hessian_lab.errors import InputError, UsageError
from hessian_lab.training.setup import Setup

if TYPE_CHECKING:
    from torch import nn

    from hessian_lab.signal import Signal
    from hessian_lab.training.run import Run

MATRICES = ("hessian", "ggn")

logger = logging.getLogger(__name__)


def add_source(
    parser: Parser, *, job: Mapping[str, Any] | None = None, matrices: bool = True
) -> None:
    """Add the flags that say what is measured, and all of training.

    Args:
        parser: Of the command.
        job: What the command trains by default; see ``add_setup``.
        matrices: Whether to add ``--matrix`` and ``--layers``.
    """
    parser.add_argument(
        "--run", metavar="DIR", help="measure this trajectory (on --device); do not train"
    )
    parser.add_argument(
        "--every", type=number(int), default=1, metavar="K", help="measure every K-th checkpoint"
    )
    if matrices:
        parser.add_argument(
            "--matrix",
            type=one_of(MATRICES),
            default="hessian",
            metavar="NAME",
            help="hessian, or ggn for the Gauss–Newton matrix (default hessian)",
        )
        parser.add_argument(
            "--layers", action="store_true", help="also measure the block of every layer"
        )
    add_setup(parser, job)
    add_output(parser)


def check_every(args: argparse.Namespace) -> None:
    """Refuse a ``--every`` that makes no sense, before anything is imported."""
    if args.every < 1:
        raise UsageError(f"every must be at least 1, got {args.every}.")


def source_run(
    args: argparse.Namespace, require: Callable[["nn.Module", int], None] | None = None
) -> "Run":
    """Return the run to measure: the one named, or the one trained now.

    Args:
        args: The command line.
        require: Told model and number of points before anything is trained, to refuse what cannot
            be measured.
    """
    if args.run is not None:
        return _named(args)
    from hessian_lab.cli.progress import trained
    from hessian_lab.training.prepare import prepare

    ranks = present(args)
    if not ranks.first:
        return _trained_by_first(args, ranks.told(""))
    given = asked_setup(args)
    if require is not None:
        ready = prepare(Setup(**given), out=args.out)
        require(ready.model, ready.signal.num_points)
    run = trained(args, given)
    ranks.told(str(run.path.absolute()))
    return run


def _trained_by_first(args: argparse.Namespace, path: str) -> "Run":
    """Return the run that the first rank has trained meanwhile."""
    from hessian_lab.training.run import load_run

    if not Path(path).is_dir():
        raise InputError(
            f"every rank must see the run, {path} is not here. Put --out on a file system that "
            "all machines share."
        )
    return _placed(args, load_run(path, device=getattr(args, "device", None)))


def _placed(args: argparse.Namespace, run: "Run") -> "Run":
    """Return a run on this rank's own device, where it was trained on one that it names."""
    if present(args).alone or not run.device.startswith("cuda") or hasattr(args, "device"):
        return run
    from hessian_lab.training.run import load_run

    return load_run(run.path, device="cuda")


def source_model(args: argparse.Namespace) -> tuple["nn.Module", "Signal", list[int], bool]:
    """Return a model and signal as they would be measured, the steps, and whether to train."""
    if args.run is not None:
        run = _named(args)
        return run.model(run.steps[0]), run.signal(), run.steps, False
    from hessian_lab.training.loop import make_optimizer
    from hessian_lab.training.prepare import prepare
    from hessian_lab.training.run import checkpoint_steps

    ready = prepare(Setup(**asked_setup(args)), out=args.out)
    # What training would refuse, a plan refuses too.
    make_optimizer(ready.setup, ready.model, ready.signal.num_points)
    return ready.model, ready.signal, checkpoint_steps(ready.setup), True


def _named(args: argparse.Namespace) -> "Run":
    given = given_setup(args)
    device = given.pop("device", None)
    flags = [FLAGS[name] for name in given]
    flags += [f"--{name}" for name in ("out", "overwrite") if getattr(args, name)]
    if flags:
        raise UsageError(
            f"--run must stand without {', '.join(flags)}: the trajectory is there already. "
            "Leave it out to train."
        )
    if not args.run:
        raise UsageError("run must name a directory, got ''.")
    from hessian_lab.training.run import load_run

    run = _placed(args, load_run(args.run, device=device))
    if not run.complete:
        logger.warning(
            "%s ends at step %d of %d: measuring what is there",
            run.path,
            run.steps[-1],
            run.setup.steps,
        )
    return run
