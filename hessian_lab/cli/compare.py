"""``hessian-lab compare``."""

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessian_lab.cli.parser import Parser, number
from hessian_lab.cli.sweep import add_grid, add_sweep_output, given_grid, teller
from hessian_lab.errors import UsageError
from hessian_lab.training.grid import setups, values
from hessian_lab.training.setup import Setup

if TYPE_CHECKING:
    from hessian_lab.measures.compare import Comparison

HELP = "optimizers side by side, each at its best rate, against steps and seconds"
EPILOG = """\
Tunes every optimizer over the rates on --tune-seed, then trains the best ones on --seed. Without
--lr the rates are each optimizer's own default, times 0.03 to 30. Killed, the same command goes on.

  hessian-lab compare --optimizer adam,esgd,lbfgs --act gaussian --steps 200
  hessian-lab compare --optimizer adam,lbfgs --act sine,relu_pe --lr 1e-4:1:log5 --seed 2:7

Seconds are those of runs that have the machine for themselves: with --jobs 1 and nothing beside it.
"""
# Of the default rate, where none is given.
FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
TUNE_SEEDS, SEEDS = "0", "1:4"
COMPARED = "sgd,adam,esgd,lbfgs"

logger = logging.getLogger(__name__)


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    add_grid(parser)
    group = parser.add_argument_group("the comparison")
    group.add_argument(
        "--tune-seed",
        default=TUNE_SEEDS,
        metavar="V[,V…]",
        help=f"seeds that choose the rate ({TUNE_SEEDS}); --seed are those compared ({SEEDS})",
    )
    group.add_argument("--jobs", type=number(int), default=1, metavar="N", help="processes (1)")
    add_sweep_output(parser, "runs/compare")


def run(args: argparse.Namespace) -> int:
    """Tune, compare, draw and print."""
    if args.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {args.jobs}.")
    tuning, seeds, varied = _grid(args)
    if args.jobs > 1:
        logger.warning("seconds are of runs that share the machine: --jobs %d", args.jobs)

    from hessian_lab.measures.compare import compare
    from hessian_lab.plots.compare import plot_comparison
    from hessian_lab.plots.style import save
    from hessian_lab.training.devices import named_devices
    from hessian_lab.training.files import finite

    tuning = named_devices(tuning)
    names = [name for name in varied if name not in ("lr", "seed")]
    groups = {tuple(getattr(one, name) for name in names) for one in tuning}
    total = len(tuning) + len(groups) * len(seeds)
    done = compare(
        tuning,
        seeds=seeds,
        out=args.out,
        varied=varied,
        jobs=args.jobs,
        watch=teller(total),
    )
    figure = plot_comparison(
        done.bands(), groups=done.groups, quantity=done.quantity, title=_headline(tuning[0], done)
    )
    pictures = [str(path) for path in save(figure, Path(args.out) / "compare")]
    if args.json:
        body = {
            "command": "compare",
            "path": args.out,
            "quantity": done.quantity,
            "target": done.target(),
            "table": done.table().to_dict("records"),
            "bands": done.bands().to_dict("records"),
            "pictures": pictures,
        }
        print(json.dumps(finite(body), default=_plain, allow_nan=False))
    else:
        print("\n".join([_table(done), "", f"curves in {args.out}/compare.csv", *pictures]))
    return 0


def _grid(args: argparse.Namespace) -> tuple[list[Setup], list[int], list[str]]:
    """Return the setups that tune, the seeds that are compared, and what is varied."""
    if not hasattr(args, "optimizer") and not hasattr(args, "recipe"):
        args.optimizer = COMPARED
    compared = values(getattr(args, "seed", SEEDS), int)
    tuning = values(args.tune_seed, int)
    both = sorted(set(compared) & set(tuning))
    if both:
        raise UsageError(
            f"--seed and --tune-seed must differ, got {both[0]} in both: a rate chosen on a seed "
            "is at its best there."
        )
    args.seed = args.tune_seed
    base, varied, own = given_grid(args)
    grid = setups(base, varied, own=own)
    if not hasattr(args, "lr"):
        grid = [
            replace(one, lr=float(f"{one.lr * factor:.6g}"))
            for one in grid
            for factor in FACTORS
            if one.lr is not None
        ]
    names = dict.fromkeys(("optimizer", *varied, "lr", "seed"))
    return grid, compared, list(names)


def _headline(one: Setup, done: "Comparison") -> str:
    shape = f"{one.depth}×{one.width} on {one.signal}"
    act = "" if "act" in done.groups else f"{one.act} "
    batch = "full batch" if one.batch_size is None else f"batches of {one.batch_size}"
    return f"{act}{shape}, {batch}, each at its best rate, median and range over seeds"


def _table(done: "Comparison") -> str:
    table, quantity = done.table(), done.quantity
    unit = "PSNR dB" if quantity == "psnr" else "loss"
    names = [name for name in done.groups]
    widths = [max(len(name), *(len(_text(value)) for value in table[name])) for name in names]
    head = "  ".join(f"{name:<{width}}" for name, width in zip(names, widths, strict=True))
    target = f"{done.target():.4g}"
    lines = [
        f"{head}  {'best lr':>9}  {unit:>8} {'[range]':>16} {'s':>7} "
        f"{'steps':>7} {'s':>7} to {target}",
    ]
    for row in table.to_dict("records"):
        cells = [f"{_text(row[name]):<{width}}" for name, width in zip(names, widths, strict=True)]
        mark = "*" if row["at_edge"] else " "
        span = f"[{row['low']:.4g}, {row['high']:.4g}]"
        lines.append(
            f"{'  '.join(cells)}  {row['lr']:9.3g}{mark} {row['median']:8.4g} {span:>16} "
            f"{row['seconds']:7.2f} {_reached(row['target_steps'], 0):>7} "
            f"{_reached(row['target_seconds'], 2):>7}"
        )
    if table["at_edge"].any():
        lines.append("* at the edge of the rates tried: a wider range may have a better one")
    return "\n".join(lines)


def _text(value: Any) -> str:
    return "–" if value is None or value != value else f"{value}"


def _reached(number: float, digits: int) -> str:
    return f"{number:.{digits}f}" if number < float("inf") else "never"


def _plain(value: Any) -> Any:
    return value.item()
