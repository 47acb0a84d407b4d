"""``hessian-lab eigs``."""

import argparse
import json
import logging
import math
from typing import TYPE_CHECKING

from hessian_lab.cli.flags import FLAGS, add_output, add_setup, given_setup
from hessian_lab.cli.parser import Parser, number
from hessian_lab.errors import UsageError
from hessian_lab.training.setup import Setup

if TYPE_CHECKING:
    from hessian_lab.measures.eigenvalues import Eigenvalues
    from hessian_lab.training.run import Run

HELP = "all eigenvalues of the Hessian along a training"
EPILOG = """\
Trains first, unless --run names a trajectory or the same training is in --out already.

  hessian-lab eigs --act relu_pe
  hessian-lab eigs --run runs/relu_pe-1a2b3c4d --every 10 --json

Exit status: 0 done, 1 failed, 2 bad usage, 3 written but a check failed, 4 input missing or wrong,
130 interrupted (the same command continues).
"""

logger = logging.getLogger(__name__)


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    parser.add_argument(
        "--run", metavar="DIR", help="measure this trajectory (on --device); do not train"
    )
    parser.add_argument(
        "--every", type=number(int), default=1, metavar="K", help="measure every K-th checkpoint"
    )
    add_setup(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Train unless told otherwise, measure, draw, and print."""
    if args.every < 1:
        raise UsageError(f"every must be at least 1, got {args.every}.")
    from hessian_lab.cli.output import eigs_table
    from hessian_lab.cli.progress import Progress
    from hessian_lab.measures.eigenvalues import Measured, measure_eigenvalues, selected
    from hessian_lab.training.files import finite

    source = _source(args)
    progress = Progress("eigenvalues", len(selected(source.steps, args.every)), quiet=args.quiet)

    def watch(one: Measured) -> None:
        progress.advance(loss=one.loss, psnr=one.psnr, λmax=one.spectrum.lambda_max)

    try:
        result = measure_eigenvalues(source, every=args.every, watch=watch)
    finally:
        progress.close()
    pictures = _draw(result)
    if args.json:
        print(json.dumps(finite(result.to_json()), ensure_ascii=False, allow_nan=False))
    else:
        print(eigs_table(result, pictures=pictures))
    for failure in result.failures:
        logger.error("check failed: %s", failure)
    return 3 if result.failures else 0


def _source(args: argparse.Namespace) -> "Run":
    """Return the run to measure: the one named, or the one trained now."""
    given = given_setup(args)
    if args.run is None:
        from hessian_lab.cli.progress import trained
        from hessian_lab.measures.eigenvalues import require_spectrum
        from hessian_lab.training.prepare import prepare

        ready = prepare(Setup(**given), out=args.out)
        require_spectrum(ready.model, ready.signal.num_points)
        return trained(args, given)
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

    source = load_run(args.run, device=device)
    if not source.complete:
        logger.warning(
            "%s ends at step %d of %d: measuring what is there",
            source.path,
            source.steps[-1],
            source.setup.steps,
        )
    return source


def _draw(result: "Eigenvalues") -> list[str]:
    from hessian_lab.cli.output import headline
    from hessian_lab.plots.eigenvalues import plot_spectrum
    from hessian_lab.plots.style import save

    shown = [one for one in result.measured if math.isfinite(one.spectrum.spectral_radius)]
    if not shown:
        return []
    steps = [one.step for one in shown]
    figure = plot_spectrum([one.spectrum for one in shown], steps=steps, title=headline(result.run))
    return [str(path) for path in save(figure, result.run.path / "figures" / "eigenvalues")]
