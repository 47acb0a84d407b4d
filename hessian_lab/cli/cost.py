"""``hessian-lab cost``."""

import argparse
import json
import logging
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from hessian_lab.cli.parser import Parser, number, one_of
from hessian_lab.errors import UsageError
from hessian_lab.fields import ACTIVATIONS
from hessian_lab.names import known
from hessian_lab.optim import OPTIMIZERS

if TYPE_CHECKING:
    from hessian_lab.measures.cost import Cost, Problem

HELP = "time and memory of a step of every optimizer, in units of Adam's"
EPILOG = """\
ESGD, K-FAC and Shampoo at the periods of the papers; time is a mean over a period, memory the most
that is alive in it: parameters, batch, state, graph, and what the step makes.

  hessian-lab cost --optimizer adam,esgd,kfac,lbfgs --width 256 --batch-size 512
"""

logger = logging.getLogger(__name__)


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--optimizer", metavar="NAME[,NAME…]", help="which (all)")
    parser.add_argument("--act", type=one_of(list(ACTIVATIONS)), default="gaussian", metavar="NAME")
    for name, default in (("width", 256), ("depth", 4), ("batch-size", 512), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=number(int), default=default, metavar="N")
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, … or auto (cpu)"
    )
    parser.add_argument("--out", metavar="STEM", default="runs/cost", help="figure (runs/cost)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress, no logs")
    parser.add_argument("--verbose", "-v", action="store_true", help="debug logs, and tracebacks")


def run(args: argparse.Namespace) -> int:
    """Measure the optimizers, print the table and draw it."""
    names = _names(args.optimizer)
    stem = _stem(args.out)
    for flag in ("width", "depth", "batch_size", "rounds"):
        if getattr(args, flag) < 1:
            raise UsageError(
                f"--{flag.replace('_', '-')} must be at least 1, got {getattr(args, flag)}."
            )
    from hessian_lab.measures.cost import Problem, measure_cost
    from hessian_lab.plots.cost import plot_cost
    from hessian_lab.plots.style import save
    from hessian_lab.training.devices import named_device

    args.device = named_device(args.device)
    names_of = [entry.name for entry in fields(Problem) if hasattr(args, entry.name)]
    problem = Problem(**{name: getattr(args, name) for name in names_of})
    costs = measure_cost(
        names, problem, rounds=args.rounds, watch=lambda name: logger.info("timing %s", name)
    )
    figure = plot_cost(
        [one.optimizer for one in costs],
        [one.ratio for one in costs],
        [one.peak_ratio for one in costs],
        title=_headline(problem),
    )
    pictures = [str(path) for path in save(figure, stem)]
    if args.json:
        from hessian_lab.training.files import finite

        body = {"command": "cost", "problem": asdict(problem), "pictures": pictures}
        print(json.dumps(finite(body | {"costs": [one.to_json() for one in costs]})))
    else:
        print("\n".join([_table(problem, costs), "", *pictures]))
    return 0


def _stem(text: str) -> Path:
    """Return where pictures go, after seeing that files can be written there."""
    path = Path(text).expanduser()
    stem = path.with_suffix("") if path.suffix in (".png", ".pdf") else path
    from hessian_lab.training.files import make_directory

    make_directory(stem.parent)
    if not os.access(stem.parent, os.W_OK):
        raise UsageError(f"out must be in a directory that can be written, {stem.parent} cannot.")
    return stem


def _names(text: str | None) -> list[str]:
    names = [name.strip() for name in (OPTIMIZERS if text is None else text.split(","))]
    try:
        found = [known("optimizer", name, OPTIMIZERS) for name in names]
    except ValueError as error:
        raise UsageError(str(error)) from None
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--optimizer must name each once, got {twice} twice.")
    return found


def _headline(problem: "Problem") -> str:
    return (
        f"{problem.act} {problem.depth}×{problem.width}, batch {problem.batch_size}, "
        f"{problem.dtype} on {problem.device}"
    )


def _table(problem: "Problem", costs: list["Cost"]) -> str:
    lines = [
        f"a step on {_headline(problem)}",
        "",
        f"{'':<14} {'time':>8} {'':>7} {'memory':>8} {'':>7} {'state':>8} {'loss':>6}",
        f"{'optimizer':<14} {'ms':>8} {'/ Adam':>7} {'MB':>8} {'/ Adam':>7} {'MB':>8} {'evals':>6}"
        "  options",
    ]
    for one in costs:
        if one.note:
            lines.append(f"{one.optimizer:<14} {one.note.split('. ')[0]}")
            continue
        options = ", ".join(f"{key} {value}" for key, value in one.options.items())
        lines.append(
            f"{one.optimizer:<14} {one.seconds * 1e3:8.2f} {one.ratio:7.2f} "
            f"{one.peak_bytes / 1e6:8.4g} {one.peak_ratio:7.2f} "
            f"{one.state_bytes / 1e6:8.4g} {one.evaluations:6.2f}  {options}".rstrip()
        )
    lines += ["", "time / Adam: the median over rounds, each beside an Adam step timed just before"]
    return "\n".join(lines)
