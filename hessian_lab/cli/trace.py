"""``hessian-lab trace``."""

import argparse
import logging

from hessian_lab.cli.parser import Parser, number, one_of
from hessian_lab.cli.ranks import add_split, present
from hessian_lab.cli.source import add_source, check_every, source_run
from hessian_lab.errors import UsageError

HELP = "the trace of the Hessian along a training, with its error"
EPILOG = """\
Trains first, unless --run names a trajectory or the same training is in --out already.

  hessian-lab trace --act gaussian --products 100
  hessian-lab trace --run runs/relu_pe-1a2b3c4d --method exact --layers

hutchinson, hutch++ and xtrace estimate it by products, with a 95 % interval; exact takes the closed
form of a coordinate network.

Exit status: 0 done, 1 failed, 2 bad usage, 3 written but a check failed, 4 input missing or wrong,
130 interrupted (the same command continues).
"""
METHODS = ("hutchinson", "hutch++", "xtrace", "exact")

logger = logging.getLogger(__name__)


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    group = parser.add_argument_group("how to measure")
    group.add_argument(
        "--method",
        type=one_of(METHODS),
        default="hutchinson",
        metavar="NAME",
        help=f"{', '.join(METHODS)} (default hutchinson)",
    )
    group.add_argument(
        "--products",
        type=number(int),
        default=argparse.SUPPRESS,
        metavar="N",
        help="Hessian–vector products per estimate (default 30)",
    )
    group.add_argument(
        "--probe-seed",
        type=number(int),
        default=argparse.SUPPRESS,
        metavar="N",
        help="seed of the random vectors (default 0)",
    )
    add_split(group, "checkpoints", "points")
    add_source(parser)


def run(args: argparse.Namespace) -> int:
    """Train unless told otherwise, measure, and print."""
    check_every(args)
    products, seed = getattr(args, "products", 30), getattr(args, "probe_seed", 0)
    if products < 4:
        raise UsageError(f"products must be at least 4 for an error bar, got {products}.")
    if seed < 0:
        raise UsageError(f"probe-seed must be at least 0, got {seed}.")
    if seed >= 2**64:
        raise UsageError(f"probe-seed must be at most {2**64 - 1}, got {seed}.")
    if args.method == "exact":
        for name in ("products", "probe_seed"):
            if hasattr(args, name):
                logger.warning("--%s has no effect on method exact", name.replace("_", "-"))
    from hessian_lab.cli.estimates import trace_table
    from hessian_lab.cli.output import tell
    from hessian_lab.cli.progress import Progress
    from hessian_lab.measures.checkpoints import selected
    from hessian_lab.measures.split import chosen_split
    from hessian_lab.measures.traces import Settings, TraceAt, measure_traces

    ranks = present(args)
    source = source_run(args)
    count = len(selected(source.steps, args.every))
    split, reason = chosen_split(
        args.split, ranks=ranks, possible=("checkpoints", "points"), num_checkpoints=count
    )
    if not ranks.alone:
        logger.info("%d ranks divide the %s: %s", ranks.count, split, reason)
    progress = Progress("trace", count, quiet=args.quiet)

    def watch(one: TraceAt) -> None:
        progress.advance(loss=one.loss, psnr=one.psnr, trace=one.trace.mean)

    settings = Settings(
        matrix=args.matrix,
        method=args.method,
        num_products=products,
        layers=args.layers,
        seed=seed,
    )
    try:
        result = measure_traces(
            source, settings, every=args.every, watch=watch, ranks=ranks, split=split
        )
    finally:
        progress.close()
    if not ranks.first:
        return 0
    return tell(args, result, lambda: trace_table(result))
