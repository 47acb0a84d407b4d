"""Progress on stderr: bars in a terminal, plain lines elsewhere."""

import argparse
import logging
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from hessian_lab.training.loop import train
from hessian_lab.training.run import Run
from hessian_lab.training.setup import Setup

# Seconds between two plain lines.
LINE_INTERVAL = 5.0

logger = logging.getLogger(__name__)


class Progress:
    """A bar where stderr is a terminal, a line every few seconds elsewhere, nothing if quiet."""

    def __init__(self, what: str, total: int, *, quiet: bool) -> None:
        self.what = what
        self.total = total
        self.count = 0
        self.last = time.perf_counter()
        terminal = sys.stderr.isatty()
        self.lines = not quiet and not terminal
        self.bar = tqdm(total=total, desc=what, disable=quiet or not terminal, leave=False)

    def advance(self, count: int | None = None, **numbers: float) -> None:
        """Count one more, or up to ``count``, and show some numbers."""
        step = 1 if count is None else count - self.count
        self.count += step
        self.bar.set_postfix_str(_text(numbers), refresh=False)
        self.bar.update(step)
        now = time.perf_counter()
        if self.lines and (self.count == self.total or now - self.last >= LINE_INTERVAL):
            self.last = now
            logger.info("%s %d/%d, %s", self.what, self.count, self.total, _text(numbers))

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()


def _text(numbers: Mapping[str, float]) -> str:
    shown = {name: value for name, value in numbers.items() if value == value}
    return ", ".join(f"{name} {value:.4g}" for name, value in shown.items())


def trained(args: argparse.Namespace, given: Mapping[str, Any]) -> Run:
    """Train as the flags say, with progress, and return the run."""
    setup = Setup(**given)
    checked = setup.resolved()
    for name, owner in setup.ignored().items():
        logger.warning("--%s has no effect on %s", name, owner)
    progress = Progress("training", checked.steps, quiet=args.quiet)

    def watch(row: dict[str, float]) -> None:
        # Where there is a PSNR, it tells what the ratio to the signal's own power does.
        name = "snr" if math.isnan(row["psnr"]) else "psnr"
        progress.advance(int(row["step"]), loss=row["loss"], **{name: row[name]})

    try:
        return train(setup, out=args.out, overwrite=args.overwrite, watch=watch)
    finally:
        progress.close()
