"""What commands on many small fields share that are trained together."""

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hessian_lab.cli.parser import number
from hessian_lab.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from hessian_lab.training.tiles import TileRun

logger = logging.getLogger(__name__)


def add_together(group: Any, what: str) -> None:
    """Add the flags that say how many fields are trained together, and which are measured."""
    integers: dict[str, Any] = {"type": number(int), "metavar": "N"}
    group.add_argument("--block", default=256, help=f"{what}s trained together (256)", **integers)
    group.add_argument(
        "--spectra", action="store_true", help=f"measure the Hessian spectrum of every {what}"
    )
    group.add_argument(
        "--every", default=1, help=f"measure one {what} of so many, drawn at random (1)", **integers
    )


def check_every(args: argparse.Namespace) -> None:
    """Refuse a ``--every`` that makes no sense, and tell of one that has no effect."""
    if args.every < 1:
        raise UsageError(f"every must be at least 1, got {args.every}.")
    if args.every > 1 and not args.spectra:
        logger.warning("--every has no effect without --spectra")


def ending(done: "TileRun", what: str) -> int:
    """Return the exit status, and say how many fields have diverged."""
    lost = num_diverged(done)
    if lost:
        logger.error("%d of %d %s diverged: try a lower --lr", lost, len(done.table), what)
    return 1 if lost == len(done.table) else 0


def num_diverged(done: "TileRun") -> int:
    """Return how many fields have a loss that is not finite."""
    return int((~done.table["loss"].abs().lt(float("inf"))).sum())


@contextmanager
def watching(
    what: str, number: str, *, quiet: bool
) -> Iterator[Callable[[int, "pd.DataFrame"], None]]:
    """Give what is called after every block, which tells the median of a column of the table."""
    from hessian_lab.cli.progress import Progress

    progress: Progress | None = None

    def watch(count: int, table: "pd.DataFrame") -> None:
        nonlocal progress
        progress = progress or Progress(what, count, quiet=quiet)
        progress.advance(len(table), **{number: float(table[number].median())})

    try:
        yield watch
    finally:
        if progress is not None:
            progress.close()


def measure_with_progress(args: argparse.Namespace, done: "TileRun") -> "pd.DataFrame":
    """Return the spectra of every ``--every``-th field."""
    from hessian_lab.cli.progress import Progress
    from hessian_lab.measures.tile_spectra import measure_tiles

    progress = Progress("spectra", -(-len(done.table) // args.every), quiet=args.quiet)
    try:
        return measure_tiles(
            done, every=args.every, watch=lambda row: progress.advance(κ=row["kappa"])
        )
    finally:
        progress.close()


def spread(column: "pd.Series[Any]", text: str) -> str:
    """Return median and ends of a column."""
    numbers = (column.median(), column.min(), column.max())
    return "median {}, least {}, largest {}".format(*(format(each, text) for each in numbers))


def spectra_lines(spectra: "pd.DataFrame") -> list[str]:
    """Return what people are told of the spectra of many fields."""
    return [
        "",
        f"spectra of {len(spectra)} fields, float64",
        f"{'κ':<18} {spread(spectra['kappa'], '.1e')}; "
        f"{int((~spectra['resolved'].astype(bool)).sum())} are lower bounds",
        f"{'effective κ':<18} {spread(spectra['effective_kappa'], '.1e')}",
        f"{'zero':<18} {spread(spectra['zero_share'], '.1%')}",
        f"{'negative':<18} {spread(spectra['negative_share'], '.1%')}",
    ]
