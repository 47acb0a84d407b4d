"""``hessian-lab report``."""

import argparse
import json
from pathlib import Path

from hessian_lab.cli.parser import Parser
from hessian_lab.errors import UsageError

HELP = "one HTML page of runs: signal and field, loss, spectra, settings, where it all comes from"
EPILOG = """\
Reads what is on disk and measures nothing: what was not measured is listed with the command that
does. The page is one file that opens without a network, also without scripts, and prints.

  hessian-lab report runs/relu_pe-1a2b3c4d
  hessian-lab report runs/* --out runs.html

Exit status: 0 done, 1 failed, 2 bad usage, 4 input missing or wrong.
"""
NAME = "report.html"
ENDINGS = (".html", ".htm")
# What a page of ours has in it, and how far from its beginning.
MARK, HEAD_BYTES = b'<meta name="generator" content="hessian-lab', 4096


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directories")
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        metavar="FILE",
        help=f"the page ({NAME} in the run directory; here, if there are several)",
    )
    group.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    group.add_argument("--quiet", "-q", action="store_true", help="no logs")
    group.add_argument("--verbose", "-v", action="store_true", help="debug logs, and tracebacks")


def run(args: argparse.Namespace) -> int:
    """Gather, compose and write."""
    runs = _distinct(args.runs)
    if args.out is not None:
        out = _checked(args.out)
    from hessian_lab.cli.gathered import gathered
    from hessian_lab.plots.report import report_page
    from hessian_lab.training.files import make_directory, write_atomically

    parts = [gathered(name) for name in runs]
    if args.out is None:
        out = _checked(str(Path(runs[0]) / NAME) if len(runs) == 1 else NAME)
    page = report_page(parts).encode()
    make_directory(out.parent)
    try:
        write_atomically(out, lambda stream: stream.write(page))
    except OSError as error:
        raise UsageError(f"out must be a file to write, {out}: {error.strerror}.") from None
    if args.json:
        told = [
            {
                "run": part.path,
                "status": part.status,
                "step": int(part.metrics["step"].iloc[-1]),
                "shown": [one.title for one in part.measurements],
                "missing": [command for _, command in part.missing],
                "notes": list(part.notes),
            }
            for part in parts
        ]
        body = {"command": "report", "out": str(out), "bytes": len(page), "runs": told}
        print(json.dumps(body, ensure_ascii=False, allow_nan=False))
    else:
        what = parts[0].headline if len(parts) == 1 else f"{len(parts)} runs"
        print(f"{what}\n\n{out} ({len(page) / 1e6:.2f} MB)")
    return 0


def _distinct(names: list[str]) -> list[str]:
    """Return the run directories in the order in which they were named, each once."""
    if "" in names:
        raise UsageError("RUN must name a directory, got ''.")
    found: dict[Path, str] = {}
    for name in names:
        found.setdefault(Path(name).expanduser().resolve(), name)
    return list(found.values())


def _checked(name: str) -> Path:
    """Return where the page goes, if it may be written there.

    Raises:
        UsageError: If it may not: what is there is no page of this command, or a directory.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"out must end in {' or '.join(ENDINGS)}, got {name!r}.")
    if path.is_dir():
        raise UsageError(f"out must be a file, {path} is a directory.")
    if path.exists():
        try:
            with path.open("rb") as stream:
                ours = MARK in stream.read(HEAD_BYTES)
        except OSError as error:
            raise UsageError(f"out must be a file to write, {path}: {error.strerror}.") from None
        if not ours:
            raise UsageError(
                f"out must be new or a report, {path} is another file. Choose another --out."
            )
    return path
