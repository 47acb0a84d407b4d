"""``hessian-lab eigs``."""

import argparse
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from hessian_lab.cli.parser import Parser, number, one_of
from hessian_lab.cli.ranks import add_split, present
from hessian_lab.cli.source import add_source, check_every, source_model, source_run
from hessian_lab.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from hessian_lab.measures.eigenvalues import Eigenvalues
    from hessian_lab.measures.estimates import Estimates
    from hessian_lab.training.run import Run

HELP = "the eigenvalues of the Hessian along a training"
EPILOG = """\
Trains first, unless --run names a trajectory or the same training is in --out already.

  hessian-lab eigs --act relu_pe
  hessian-lab eigs --run runs/relu_pe-1a2b3c4d --every 10 --json
  hessian-lab eigs --act sine --width 256 --steps 200 --every 50 --dry-run
  torchrun --nproc-per-node 4 -m -- hessian_lab eigs --act sine --width 64

Methods: dense is exact, all eigenvalues in float64. lanczos gives the extreme ones with their
residuals, slq those and the density with its confidence band, both from products in the precision
of the training. auto is dense up to 20,000 parameters if it fits, and slq beyond.

Exit status: 0 done, 1 failed, 2 bad usage, 3 written but a check failed, 4 input missing or wrong,
130 interrupted (the same command continues).
"""
METHODS = ("auto", "dense", "lanczos", "slq")
# Flags of the stochastic methods, by the methods that they mean something to.
DEFAULTS = {"num": 5, "probes": 10, "lanczos_steps": 80, "probe_seed": 0}
MEANS = {
    "num": ("lanczos", "slq"),
    "probes": ("slq",),
    "lanczos_steps": ("slq",),
    "probe_seed": ("lanczos", "slq"),
}

logger = logging.getLogger(__name__)


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    group = parser.add_argument_group("how to measure")
    group.add_argument(
        "--method",
        type=one_of(METHODS),
        default="auto",
        metavar="NAME",
        help=f"{', '.join(METHODS)} (default auto: by size)",
    )
    for name, text in (
        ("num", "extreme eigenvalues from each end, lanczos and slq"),
        ("probes", "random vectors of slq"),
        ("lanczos_steps", "Lanczos steps of each"),
        ("probe_seed", "seed of the random vectors"),
    ):
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=number(int),
            default=argparse.SUPPRESS,
            metavar="N",
            help=f"{text} (default {DEFAULTS[name]})",
        )
    group.add_argument(
        "--preconditioned",
        action="store_true",
        help="of P^-1/2 H P^-1/2, with the optimizer's P at each checkpoint; dense, trains again",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print parameters, bytes and predicted time, and do nothing",
    )
    group.add_argument(
        "--scratch",
        type=Path,
        metavar="DIR",
        help="directory on a disk for what memory cannot hold: Lanczos vectors, a dense matrix",
    )
    add_split(group, "checkpoints", "points", "probes", "columns")
    add_source(parser)


def run(args: argparse.Namespace) -> int:
    """Train unless told otherwise, measure, draw, and print."""
    check_every(args)
    _check_numbers(args)
    from hessian_lab.probe.memory import undivided

    if args.dry_run:
        with undivided():
            return _tell_plan(args) if present(args).first else 0
    from hessian_lab.measures.planning import chosen_method, require_dense, require_search

    _warn_of_scratch(args)

    def choose(model: "nn.Module", num_points: int) -> tuple[str, str]:
        return chosen_method(args.method, model, num_points, _matrix_scratch(args))

    def require(model: "nn.Module", num_points: int) -> None:
        method = choose(model, num_points)[0]
        if method == "dense":
            require_dense(model, num_points, _matrix_scratch(args))
        elif args.preconditioned and args.layers:
            raise UsageError(f"--layers must stand without --preconditioned in method {method}.")
        else:
            require_search(model, _number(args, "num"), args.scratch)

    # The first of several ranks can have all memory; who has how much is seen when it is divided.
    with undivided():
        source = source_run(args, require)
        model, num_points = source.model(source.steps[0]), source.signal().num_points
        method, reason = present(args).told(choose(model, num_points))
        require(model, num_points)
    _warn_of_unused(args, method)
    logger.info("method %s: %s", method, reason)
    return (
        _dense(args, source, reason)
        if method == "dense"
        else _stochastic(args, source, method, reason)
    )


def _check_numbers(args: argparse.Namespace) -> None:
    for name in MEANS:
        lowest = 0 if name == "probe_seed" else 1
        value = getattr(args, name, DEFAULTS[name])
        if value < lowest:
            flag = name.replace("_", "-")
            raise UsageError(f"{flag} must be at least {lowest}, got {value}.")
    if getattr(args, "probe_seed", 0) >= 2**64:
        raise UsageError(f"probe-seed must be at most {2**64 - 1}, got {args.probe_seed}.")
    if getattr(args, "probes", 2) < 2:
        raise UsageError(f"probes must be at least 2 for an error bar, got {args.probes}.")


def _warn_of_unused(args: argparse.Namespace, method: str) -> None:
    for name, methods in MEANS.items():
        if hasattr(args, name) and method not in methods:
            logger.warning("--%s has no effect on method %s", name.replace("_", "-"), method)


def _warn_of_scratch(args: argparse.Namespace) -> None:
    if args.scratch is not None and args.method in ("auto", "dense") and not _matrix_scratch(args):
        flag = "--preconditioned" if args.preconditioned else "--split columns"
        logger.warning("--scratch has no effect on a dense matrix with %s: it lies in memory", flag)


def _matrix_scratch(args: argparse.Namespace) -> Path | None:
    """Return where a dense matrix may lie: preconditioned, or in columns of ranks, in memory."""
    scratch: Path | None = args.scratch
    divided = args.split == "columns" and not present(args).alone
    return None if args.preconditioned or divided else scratch


def _number(args: argparse.Namespace, name: str) -> int:
    return int(getattr(args, name, DEFAULTS[name]))


def _split(args: argparse.Namespace, source: "Run", method: str) -> str:
    """Return what the ranks divide."""
    from hessian_lab.measures.checkpoints import selected
    from hessian_lab.measures.planning import require_dense, require_density, require_search
    from hessian_lab.measures.split import chosen_split
    from hessian_lab.probe.memory import undivided

    ranks = present(args)
    ways = {"dense": ("columns",), "lanczos": ("points",), "slq": ("probes", "points")}
    more = () if args.preconditioned else ways[method]
    model, num_points = source.model(source.steps[0]), source.signal().num_points

    def in_file() -> bool:
        with undivided():
            return require_dense(model, num_points, _matrix_scratch(args))

    # A matrix of shared columns lies in memory.
    if method == "dense" and ranks.told(ranks.first and in_file()):
        more = ()

    def require() -> None:
        if method == "dense":
            require_dense(model, num_points, _matrix_scratch(args))
            return
        require_search(model, _number(args, "num"), args.scratch)
        if method == "slq":
            probes, steps = _number(args, "probes"), _number(args, "lanczos_steps")
            require_density(model, probes, steps, args.scratch)

    split, reason = chosen_split(
        args.split,
        ranks=ranks,
        possible=("checkpoints", *more),
        num_checkpoints=len(selected(source.steps, args.every)),
        num_probes=_number(args, "probes"),
        require=require,
    )
    if not ranks.alone:
        logger.info("%d ranks divide the %s: %s", ranks.count, split, reason)
    return split


def _tell_plan(args: argparse.Namespace) -> int:
    from hessian_lab.measures.checkpoints import selected
    from hessian_lab.measures.planning import plan, training_seconds

    _warn_of_scratch(args)
    model, signal, steps, trains = source_model(args)
    chosen = plan(
        model,
        signal,
        method=args.method,
        num_checkpoints=len(selected(steps, args.every)),
        matrix=args.matrix,
        num=_number(args, "num"),
        num_probes=_number(args, "probes"),
        num_steps=_number(args, "lanczos_steps"),
        layers=args.layers,
        scratch=args.scratch,
        in_memory=_matrix_scratch(args) is None,
    )
    seconds = training_seconds(model, signal, steps) if trains else 0.0
    if args.json:
        print(
            json.dumps(
                {
                    "command": "eigs",
                    "dry_run": True,
                    **chosen.to_json(),
                    "training_seconds": seconds,
                }
            )
        )
    else:
        from hessian_lab.measures.planning import duration

        print(chosen)
        print(f"training    about {duration(seconds)}" if trains else "training    done already")
    return 0


def _dense(args: argparse.Namespace, source: "Run", reason: str) -> int:
    from hessian_lab.cli.output import eigs_table, tell
    from hessian_lab.cli.progress import Progress
    from hessian_lab.measures.checkpoints import selected
    from hessian_lab.measures.eigenvalues import Measured, measure_eigenvalues

    ranks, split = present(args), _split(args, source, "dense")
    if args.scratch is not None and (args.split, split) == ("auto", "columns"):
        logger.warning("--scratch has no effect where ranks divide columns: the matrix is shared")
    progress = Progress("eigenvalues", len(selected(source.steps, args.every)), quiet=args.quiet)

    def watch(one: Measured) -> None:
        progress.advance(loss=one.loss, psnr=one.psnr, λmax=one.spectrum.lambda_max)

    try:
        result = measure_eigenvalues(
            source,
            every=args.every,
            matrix=args.matrix,
            layers=args.layers,
            preconditioned=args.preconditioned,
            watch=watch,
            ranks=ranks,
            split=split,
            scratch=_matrix_scratch(args),
        )
    finally:
        progress.close()
    if not ranks.first:
        return 0
    pictures = _draw_dense(result)
    return tell(args, result, lambda: eigs_table(result, pictures=pictures), reason=reason)


def _stochastic(args: argparse.Namespace, source: "Run", method: str, reason: str) -> int:
    from hessian_lab.cli.estimates import estimates_table
    from hessian_lab.cli.output import tell
    from hessian_lab.cli.progress import Progress
    from hessian_lab.measures.checkpoints import selected
    from hessian_lab.measures.estimates import Estimated, Settings, measure_estimates

    ranks, split = present(args), _split(args, source, method)
    progress = Progress(method, len(selected(source.steps, args.every)), quiet=args.quiet)

    def watch(one: Estimated) -> None:
        progress.advance(loss=one.loss, psnr=one.psnr, λmax=one.whole.lambda_max)

    settings = Settings(
        method=method,  # type: ignore[arg-type]
        matrix=args.matrix,
        layers=args.layers,
        num=_number(args, "num"),
        num_probes=_number(args, "probes"),
        num_steps=_number(args, "lanczos_steps"),
        seed=_number(args, "probe_seed"),
        preconditioned=args.preconditioned,
    )
    try:
        result = measure_estimates(
            source,
            settings,
            every=args.every,
            watch=watch,
            ranks=ranks,
            split=split,
            scratch=args.scratch,
        )
    finally:
        progress.close()
    if not ranks.first:
        return 0
    pictures = _draw_density(result)
    return tell(args, result, lambda: estimates_table(result, pictures=pictures), reason=reason)


def _draw_dense(result: "Eigenvalues") -> list[str]:
    from hessian_lab.cli.output import figure_title
    from hessian_lab.measures.record import suffix
    from hessian_lab.plots.eigenvalues import plot_spectrum
    from hessian_lab.plots.style import save

    shown = [one for one in result.measured if math.isfinite(one.spectrum.spectral_radius)]
    if not shown:
        return []
    steps = [one.step for one in shown]
    title = figure_title(result.run, result.matrix, preconditioned=result.preconditioned)
    figure = plot_spectrum([one.spectrum for one in shown], steps=steps, title=title)
    kind = suffix(matrix=result.matrix, preconditioned=result.preconditioned)
    stem = result.run.path / "figures" / f"eigenvalues{kind}"
    return [str(path) for path in save(figure, stem)]


def _draw_density(result: "Estimates") -> list[str]:
    from hessian_lab.cli.output import figure_title
    from hessian_lab.measures.record import suffix
    from hessian_lab.plots.density import plot_density
    from hessian_lab.plots.style import save

    settings = result.settings
    measured = [one for one in result.measured if math.isfinite(one.whole.lambda_max)]
    if not measured:
        return []
    figure = plot_density(
        [one.whole.density for one in measured if one.whole.density is not None],
        extremes=[(one.whole.lambda_min, one.whole.lambda_max) for one in measured],
        steps=[one.step for one in measured],
        title=figure_title(result.run, settings.matrix, preconditioned=settings.preconditioned),
    )
    kind = suffix(
        method=settings.method, matrix=settings.matrix, preconditioned=settings.preconditioned
    )
    stem = result.run.path / "figures" / f"density{kind}"
    return [str(path) for path in save(figure, stem)]
