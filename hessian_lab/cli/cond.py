"""``hessian-lab cond``."""

import argparse
import logging
from typing import TYPE_CHECKING

from hessian_lab.cli.flags import asked_setup
from hessian_lab.cli.parser import Parser, number, one_of
from hessian_lab.cli.ranks import present
from hessian_lab.cli.source import add_source, check_every, source_run
from hessian_lab.errors import UsageError
from hessian_lab.training.setup import Setup

if TYPE_CHECKING:
    from torch import nn

    from hessian_lab.measures.conditioning import Conditions

HELP = "condition numbers along a training, before and after scaling"
EPILOG = """\
Trains first, unless --run names a trajectory or the same training is in --out already: by default
the papers' 1-D experiment, at a rate at which it trains (theirs, 2, runs away).

  hessian-lab cond
  hessian-lab cond --act sine --estimated 10
  hessian-lab cond --every 50 --precision extended
  hessian-lab cond --optimizer esgd --preconditioned
  hessian-lab cond --run runs/relu_pe-1a2b3c4d --every 10

κ of the Hessian H, and of D^(-1/2) H D^(-1/2) with the norms of the rows (D^E) and with the
magnitudes of the diagonal (D^J). Double precision tells κ up to some 1e13; beyond, it is printed as
a lower bound, with ≥. Extended precision gives the true κ, with proof, up to 500 parameters; it
needs pip install 'hessian-lab[exact]'.

Exit status: 0 done, 1 failed, 2 bad usage, 3 written but a check failed, 4 input missing or wrong,
130 interrupted (the same command continues).
"""
JOB = {
    "signal": "sines",
    "act": "gaussian",
    "width": 16,
    "depth": 2,
    "recipe": "psgd-condition-pn",
    "lr": 0.2,
    "steps": 100,
}
PRECISIONS = ("double", "extended")

logger = logging.getLogger(__name__)


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    group = parser.add_argument_group("how to measure")
    group.add_argument(
        "--precision",
        type=one_of(PRECISIONS),
        default="double",
        metavar="NAME",
        help="double, or extended for the true κ with its enclosure (default double)",
    )
    group.add_argument(
        "--estimated",
        type=number(int),
        default=0,
        metavar="M",
        help="also scale by D^E and D^J as M products estimate them",
    )
    group.add_argument(
        "--probe-seed",
        type=number(int),
        default=argparse.SUPPRESS,
        metavar="N",
        help="seed of the random vectors of --estimated (default 0)",
    )
    group.add_argument(
        "--preconditioned",
        action="store_true",
        help="also scale by the optimizer's own preconditioner P: trains once more to see it",
    )
    add_source(parser, job=JOB)


def run(args: argparse.Namespace) -> int:
    """Train unless told otherwise, measure, draw, and print."""
    check_every(args)
    seed = getattr(args, "probe_seed", 0)
    if args.estimated < 0 or args.estimated == 1:
        raise UsageError(f"estimated must be at least 2 for an error bar, got {args.estimated}.")
    if not 0 <= seed < 2**64:
        raise UsageError(f"probe-seed must be in [0, {2**64 - 1}], got {seed}.")
    if hasattr(args, "probe_seed") and not args.estimated:
        logger.warning("--probe-seed has no effect without --estimated")
    from hessian_lab.cli.conditions import conditions_table
    from hessian_lab.cli.output import tell
    from hessian_lab.cli.progress import Progress
    from hessian_lab.measures.checkpoints import selected
    from hessian_lab.measures.conditioning import (
        ConditionAt,
        Settings,
        measure_conditions,
        require_dense,
        require_extended,
    )

    def require(model: "nn.Module", num_points: int) -> None:
        require_dense(model, num_points)
        if args.precision == "extended":
            require_extended(model, Setup(**asked_setup(args)).act)

    ranks = present(args)
    source = source_run(args, require)
    require_dense(source.model(source.steps[0]), source.signal().num_points)
    progress = Progress("cond", len(selected(source.steps, args.every)), quiet=args.quiet)

    def watch(one: ConditionAt) -> None:
        progress.advance(loss=one.loss, psnr=one.psnr, κ=one.scaled["identity"].kappa)

    settings = Settings(
        matrix=args.matrix,
        precision=args.precision,
        layers=args.layers,
        estimated=args.estimated,
        seed=seed,
        preconditioned=args.preconditioned,
    )
    try:
        result = measure_conditions(source, settings, every=args.every, watch=watch, ranks=ranks)
    finally:
        progress.close()
    if not ranks.first:
        return 0
    pictures = _draw(result)
    return tell(args, result, lambda: conditions_table(result, pictures=pictures))


def _draw(result: "Conditions") -> list[str]:
    from hessian_lab.cli.output import figure_title
    from hessian_lab.measures.record import suffix
    from hessian_lab.plots.conditioning import plot_conditioning
    from hessian_lab.plots.style import save

    settings = result.settings
    shown = [one for one in result.measured if one.scaled["identity"].kappa > 0]
    if not shown:
        return []
    figure = plot_conditioning(
        {name: [one.scaled[name] for one in shown] for name in shown[0].scaled},
        steps=[one.step for one in shown],
        exact={name: [one.exact[name] for one in shown] for name in shown[0].exact},
        title=figure_title(result.run, settings.matrix),
    )
    method = "extended" if settings.precision == "extended" else "dense"
    own = settings.preconditioned
    stem = f"conditioning{suffix(method=method, matrix=settings.matrix, preconditioned=own)}"
    return [str(path) for path in save(figure, result.run.path / "figures" / stem)]
