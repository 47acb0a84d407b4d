"""``hessian-lab doctor``."""

import argparse
import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hessian_lab.cli.parser import Parser, one_of
from hessian_lab.cli.ranks import present
from hessian_lab.names import plural
from hessian_lab.training.setup import DTYPES

if TYPE_CHECKING:
    from hessian_lab.measures.doctor import Finding

HELP = "check that this machine computes what it should; run it first"
EPILOG = """\
Symmetry of products, products against finite differences and double backward, closed forms against
torch.func.hessian, estimates against dense spectra, an eigenvalue problem whose answer is known,
everything twice bit for bit; rounding, precision, memory, versions, data and clock: in seconds, on
a field of 205 parameters. A note is of something scarce, nothing wrong.

  hessian-lab doctor
  hessian-lab doctor --device cuda:1 --dtype float32
  torchrun --nproc-per-node 8 -m -- hessian_lab doctor

Exit status: 0 all is well, 2 bad usage, 3 a check failed.
"""

logger = logging.getLogger(__name__)


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, … (auto)"
    )
    parser.add_argument(
        "--dtype",
        type=one_of(DTYPES),
        default="float64",
        metavar="NAME",
        help="precision of products, whose tolerances follow (float64)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="no logs")
    parser.add_argument("--verbose", "-v", action="store_true", help="debug logs, and tracebacks")


def run(args: argparse.Namespace) -> int:
    """Examine the machine, print a line per check as it is done, and tell what failed."""
    import torch

    from hessian_lab.measures.doctor import examine, of_all
    from hessian_lab.training.devices import named_device
    from hessian_lab.training.files import finite
    from hessian_lab.training.provenance import provenance

    name, ranks = named_device(args.device), present(args)
    findings = examine(name, args.dtype, ranks)
    if not ranks.alone:
        everyone = ranks.collected(list(findings))
        findings = iter(of_all(everyone))
    if not ranks.first:
        return 0
    facts = provenance(torch.device(name))
    if args.json:
        done = list(findings)
        body = {"command": "doctor", "device": name, "dtype": args.dtype, "provenance": facts}
        body |= {"passed": not any(one.failed for one in done)}
        checks = [one.to_json() for one in done]
        print(json.dumps(finite(body | {"checks": checks}), ensure_ascii=False))
    else:
        print(f"{facts['device']}, {args.dtype}, torch {facts['torch']}\n", flush=True)
        done = list(_printed(findings))
        print(f"\n{_summary(done)}")
    for one in done:
        if one.failed:
            logger.error("check failed: %s: %s", one.name, one.told)
    return 3 if any(one.failed for one in done) else 0


def _printed(findings: "Iterator[Finding]") -> "Iterator[Finding]":
    """Print each finding as soon as there is one."""
    for one in findings:
        print(f"{one.status:<6} {one.seconds:4.2f} s {one.name:<18}  {one.told}", flush=True)
        yield one


def _summary(done: "list[Finding]") -> str:
    failed = [one.name for one in done if one.failed]
    seconds = sum(one.seconds for one in done)
    if not failed:
        return f"all {len(done)} checks passed in {seconds:.1f} s"
    return f"{plural(len(failed), 'check')} of {len(done)} failed: {', '.join(failed)}"
