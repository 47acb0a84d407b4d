"""Commands by several processes: ``torchrun --nproc-per-node K -m -- hessian_lab eigs …``."""

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import hessian_lab
from hessian_lab.cli.parser import one_of
from hessian_lab.errors import UsageError

if TYPE_CHECKING:
    from hessian_lab.probe.ranks import Ranks

# Commands whose measurements ranks divide.
RANKED = ("eigs", "trace", "cond", "sparsity", "doctor")
# What ranks may be asked differently.
OWN = ("ranks", "verbose", "quiet", "words")


def add_split(parser: Any, *splits: str) -> None:
    """Add the flag that says what ranks divide."""
    parser.add_argument(
        "--split",
        type=one_of(("auto", *splits)),
        default="auto",
        metavar="NAME",
        help=f"what the ranks of a torchrun job divide: {', '.join(splits)} (default auto)",
    )


def rank_told() -> int | None:
    """Return the number of this process in its job as the launcher tells it, None if alone."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    text = os.environ.get("RANK", "")
    return int(text) if text.isdigit() else 0


def present(args: argparse.Namespace) -> "Ranks":
    """Return the ranks of the job that a command runs in."""
    from hessian_lab.probe.ranks import ALONE

    ranks: Ranks = getattr(args, "ranks", ALONE)
    return ranks


@contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """Join the other processes of a job, if there are any, and end with them, well or not.

    Raises:
        UsageError: If the command runs in one process alone, or ranks were asked differently.
        RankError: If another rank fails.
    """
    if rank_told() is None:
        yield
        return
    if args.command not in RANKED:
        raise UsageError(
            f"{args.command} runs in one process, {os.environ['WORLD_SIZE']} were started. Start "
            f"it without torchrun; {', '.join(RANKED)} take several."
        )
    from hessian_lab.probe.ranks import join

    device = getattr(args, "device", "cpu")
    if re.fullmatch(r"cuda:\d+", device):
        raise UsageError(
            f"every rank must have a device of its own, got {device!r} for all. Use --device cuda."
        )
    with join(device=device) as ranks:
        args.ranks = ranks
        args.quiet = args.quiet or not ranks.first
        ranks.require_agreement(_asked(args))
        yield


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """Return what every rank must be asked for alike."""
    import torch

    versions = {"hessian_lab": hessian_lab.__version__, "torch": torch.__version__}
    return {name: value for name, value in vars(args).items() if name not in OWN} | versions
