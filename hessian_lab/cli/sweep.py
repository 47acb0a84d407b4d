"""``hessian-lab sweep``."""

import argparse
import json
import logging
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from hessian_lab.cli.flags import FLAGS, kind_of_hint
from hessian_lab.cli.parser import Parser, number, option
from hessian_lab.errors import UsageError
from hessian_lab.names import plural
from hessian_lab.training.arrays import array_share
from hessian_lab.training.grid import setups, shard, values
from hessian_lab.training.setup import Setup

if TYPE_CHECKING:
    from hessian_lab.training.sweep import Sweep

HELP = "train a grid of settings, and find every optimizer's best rate"
EPILOG = """\
Lists and ranges: adam,esgd    0:3 (0, 1, 2)    1e-4:1e1:log7    0.5:2:lin4
An option of one optimizer alone: --set esgd.update_every=100
Two fields, one with an ω for each of its layers: --omega 30,3000/3000/30/30
A killed sweep continues when the same command is typed again.

  hessian-lab sweep --optimizer adam,sgd --act gaussian --lr 1e-4:1e1:log7 --seed 0:3

On several machines that share --out: --shard 1/4 on the first, …, 4/4 on the last; --shard array in
the tasks of a job array (Slurm, Grid Engine, LSF; PBS tells a task its index alone, so of an array
from 1 to K: --shard $PBS_ARRAY_INDEX/K). On Slurm, --slurm K submits such an array (pip install
'hessian-lab[slurm]'). The same command without either prints the table of all, and trains what is
missing.

  hessian-lab sweep --act sine --lr 1e-4:1:log9 --slurm 3 --slurm-set time=60 --slurm-set mem_gb=4
"""

logger = logging.getLogger(__name__)


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    add_grid(parser)
    group = parser.add_argument_group("the sweep")
    group.add_argument("--jobs", type=number(int), default=1, metavar="N", help="processes (1)")
    group.add_argument(
        "--shard",
        metavar="I/K",
        help="train the I-th of K shares alone, from 1; array: that of this task of a job array",
    )
    group.add_argument(
        "--slurm", type=number(int), metavar="K", help="submit K shares to Slurm, and return"
    )
    group.add_argument(
        "--slurm-set",
        action="append",
        type=option,
        default=[],
        metavar="KEY=VALUE",
        help="an option of the jobs: time=60 (minutes; required), partition=gpu; repeatable",
    )
    add_sweep_output(parser, "runs/sweep")


def add_grid(parser: Parser) -> None:
    """Add a flag for every field of ``Setup``, each of which takes several values."""
    group = parser.add_argument_group("what to train; every value may be a list or a range")
    for entry in fields(Setup):
        options: dict[str, Any] = {"dest": entry.name, "default": argparse.SUPPRESS}
        if entry.name == "options":
            options |= {"action": "append", "type": option, "metavar": "KEY=VALUE"}
        else:
            options |= {"metavar": "V[,V…]"}
        text = entry.metadata.get("grid", entry.metadata["help"])
        group.add_argument(FLAGS[entry.name], help=text, **options)


def add_sweep_output(parser: Parser, directory: str) -> None:
    """Add the flags that say where many runs go and how much is told."""
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="DIR", default=directory, help=f"directory ({directory})")
    group.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress, no logs")
    group.add_argument("--verbose", "-v", action="store_true", help="debug logs, and tracebacks")


def run(args: argparse.Namespace) -> int:
    """Train the grid, and print the best rates."""
    if args.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {args.jobs}.")
    _check_slurm(args)
    share = _share(args.shard)
    base, varied, own = given_grid(args)
    grid = setups(base, varied, own=own)
    if args.slurm is not None:
        return _submit(args, grid, tuple(varied))

    from hessian_lab.training.devices import named_devices
    from hessian_lab.training.sweep import sweep

    grid = named_devices(grid)
    ours = shard(grid, share)
    tell = teller(len(ours))
    done = sweep(grid, out=args.out, varied=tuple(varied), jobs=args.jobs, ours=ours, watch=tell)
    print(json.dumps(_json(done)) if args.json else _table(done))
    return 0


def _share(text: str | None) -> str | None:
    """Return what share to train; that of the task of a job array by its numbers."""
    if text != "array":
        return text
    index, count, scheduler = array_share(os.environ)
    logger.info("share %d of %d (%s array)", index, count, scheduler)
    return f"{index}/{count}"


def _check_slurm(args: argparse.Namespace) -> None:
    if args.slurm is None:
        if args.slurm_set:
            raise UsageError("--slurm-set must stand with --slurm K.")
        return
    if args.shard is not None:
        raise UsageError("--slurm must stand without --shard: it submits all shares.")
    if args.slurm < 1:
        raise UsageError(f"--slurm must be at least 1, got {args.slurm}.")


def _submit(args: argparse.Namespace, grid: list[Setup], varied: tuple[str, ...]) -> int:
    """Submit the shares of a grid, and tell how to see, continue and cancel them."""
    if args.slurm > len(grid):
        raise UsageError(f"--slurm must be at most {len(grid)}, the runs, got {args.slurm}.")
    if any(one.device == "auto" for one in grid):
        raise UsageError(
            "--device auto must be named with --slurm: machines that differ would train other runs."
        )
    from hessian_lab.training.slurm import FOLDER, Share, submit

    options = dict(args.slurm_set)
    out = Path(args.out).expanduser().absolute()
    ids = submit(Share(grid, args.slurm, out, varied, args.jobs), options)
    array = ids[0].partition("_")[0]
    local = options.get("cluster") == "local"
    see, cancel = ("ps", "kill") if local else ("squeue -j", "scancel")
    jobs = " ".join(ids) if local else array
    table = shlex.join(["hessian-lab", *_without_slurm(args.words)])
    if args.json:
        body = {"command": "sweep", "path": args.out, "jobs": ids, "table": table}
        print(json.dumps(body, ensure_ascii=False))
        return 0
    lines = [
        f"{plural(args.slurm, 'job')} for {plural(len(grid), 'run')}: {jobs}",
        f"see       {see} {jobs}",
        f"logs      {Path(args.out) / FOLDER}",
        f"cancel    {cancel} {jobs}",
        "continue  the same command, when none of them runs any more",
        f"table     {table}",
    ]
    print("\n".join(lines))
    return 0


def _without_slurm(words: Sequence[str]) -> list[str]:
    """Return a command line without the flags that submit."""
    kept, skip = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        if not skip and flag not in ("--slurm", "--slurm-set"):
            kept.append(word)
        skip = not skip and flag in ("--slurm", "--slurm-set") and not equals
    return kept


def teller(total: int) -> Callable[[dict[str, Any]], None]:
    """Return what logs a line for every run that is done."""
    count = 0

    def tell(row: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        logger.info(
            "%d/%d %s: %s, loss %.4g, psnr %.4g",
            *(count, total, row["run"], row["status"], row["loss"], row["psnr"]),
        )

    return tell


def given_grid(
    args: argparse.Namespace,
) -> tuple[Setup, dict[str, list[Any]], dict[str, dict[str, Any]]]:
    """Return what all runs share, the values of what differs, and options of one optimizer."""
    hints = get_type_hints(Setup)
    fixed: dict[str, Any] = {}
    varied: dict[str, list[Any]] = {}
    own: dict[str, dict[str, Any]] = {}
    for entry in fields(Setup):
        if not hasattr(args, entry.name):
            continue
        given = getattr(args, entry.name)
        if entry.name == "options":
            fixed["options"] = {name: value for name, value in given if "." not in name}
            for name, value in given:
                optimizer, dot, name_of = name.partition(".")
                if dot:
                    own.setdefault(optimizer, {})[name_of] = value
            continue
        found = values(given, kind_of_hint(hints[entry.name]))
        if len(found) > 1:
            varied[entry.name] = found
        else:
            fixed[entry.name] = found[0]
    return Setup(**fixed), varied, own


def _json(done: "Sweep") -> dict[str, Any]:
    def rows(table: Any) -> Any:
        return json.loads(table.to_json(orient="records", double_precision=15))

    return {
        "command": "sweep",
        "path": str(done.path),
        "varied": list(done.varied),
        "runs": rows(done.table),
        "best": rows(done.best()),
    }


def _table(done: "Sweep") -> str:
    from hessian_lab.cli.output import decibels

    told = ", ".join(f"{count} {status}" for status, count in done.statuses().items())
    best = done.best()
    lines = [f"{plural(len(done.table), 'run')}: {told}", ""]
    if len(best):
        groups = [name for name in done.varied if name not in ("lr", "seed")]
        head = "".join(f"{name:<12} " for name in groups)
        # Sounds and solids have none.
        known = bool(best["psnr"].notna().any())
        fit = f"{'PSNR dB':>8} " * known
        lines.append(f"{head}{'best lr':>9}  {fit}{'loss':>10} {'seeds':>5} {'evals':>7} {'s':>7}")
        for row in best.to_dict("records"):
            mark = " *" if row["at_edge"] else "  "
            head = "".join(f"{row[name]!s:<12} " for name in groups)
            fit = f"{decibels(row['psnr']):>8} " * known
            lines.append(
                f"{head}{row['lr']:9.3g}{mark}{fit}{row['loss']:10.3e} "
                f"{row['num_seeds']:5d} {row['evaluations']:7.0f} {row['wall_s']:7.1f}"
            )
        if best["at_edge"].any():
            lines.append("* at the edge of the rates tried: a wider range may have a better one")
    else:
        lines.append("no rate has finished with every seed")
    return "\n".join([*lines, "", f"the runs of this sweep in {done.path / 'sweep.csv'}"])
