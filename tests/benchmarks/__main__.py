"""Ours beside others: the same work, in the same run, checked before it is timed.

``pip install -c constraints.txt -e '.[compare]'`` installs the others; those that are not there are
named as such. Rounds take turns and ratios are taken round by round, because machines drift.
"""

import argparse
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Threads that wander make some processes a third slower.
    os.environ.setdefault("OMP_PROC_BIND", "true")

import torch

from tests.benchmarks import table
from tests.benchmarks.case import run_case
from tests.benchmarks.cases import builders
from tests.benchmarks.record import header, write
from tests.benchmarks.scaling import CURVES, RANKS, run_curve

CURVE_ROUNDS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and return 1 where a target is missed."""
    found = builders()
    names = (*found, *CURVES, RANKS)
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(names))
    parser.add_argument("--rounds", type=int, metavar="N", help="at most so many timed rounds")
    parser.add_argument("--threads", type=int, metavar="N", help="torch's default")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: seconds, no figures")
    parser.add_argument("--record", type=Path, metavar="PATH", help="also write JSON")
    args = parser.parse_args(arguments)
    unknown = sorted(set(args.only or ()) - set(names))
    if unknown:
        parser.error(f"NAME must be one of {', '.join(names)}, got {unknown[0]!r}")
    if args.rounds is not None and args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    if args.threads:
        torch.set_num_threads(args.threads)
    chosen = args.only or names
    head = header(quick=args.quick)
    print(told(head))
    print(table.heading(), flush=True)
    body: dict[str, Any] = {"seconds": 0.0, "rows": [], "curves": []}
    start = time.perf_counter()

    def done(kind: str, entry: dict[str, Any], text: str) -> None:
        print(text, flush=True)
        body[kind].append(entry)
        body["seconds"] = time.perf_counter() - start
        if args.record:
            # A run that is killed leaves what it has.
            write(args.record, head | {"kind": "unfinished"} | body)

    # Others warn of their own insides.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in (each for each in found if each in chosen):
            row = run_case(found[name](args.quick), most_rounds=args.rounds)
            done("rows", row, table.told(row))
        for name in (each for each in (*CURVES, RANKS) if each in chosen):
            rounds = min(args.rounds or CURVE_ROUNDS, 1 if args.quick else CURVE_ROUNDS)
            curve = run_curve(name, quick=args.quick, rounds=rounds)
            done("curves", curve, table.curve(curve))
    print(f"\n{body['seconds']:.0f} s")
    if args.record:
        write(args.record, head | ({"kind": "partial"} if args.only or args.rounds else {}) | body)
    return int(any(each["met"] is False for row in body["rows"] for each in row["targets"]))


def told(head: dict[str, object]) -> str:
    """Return a line on the machine, and one on the libraries."""
    versions = ", ".join(f"{name} {each}" for name, each in head["libraries"].items())
    missing = ", ".join(head["missing"])
    return (
        f"torch {head['torch']}, {head['threads']} threads, {head['cpu']}\n{versions}"
        + (f"; not installed: {missing}" if missing else "")
        + "\nratio: others' seconds over ours, and ours in units, medians of rounds\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
