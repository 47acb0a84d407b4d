"""``hessian-lab data``."""

import argparse
import json
from typing import Any

from hessian_lab.cli.parser import Parser
from hessian_lab.errors import UsageError
from hessian_lab.signals.registry import (
    Entry,
    directories,
    entries,
    entry_of,
    fault_of,
    place_of,
)

HELP = "list, download or check the files of signals that do not come with the package"
EPILOG = """\
Files lie in the directory that HESSIAN_LAB_DATA names, or else in the user's cache directory. Only
get downloads; it needs pip install 'hessian-lab[data]'.

  hessian-lab data list
  hessian-lab data get brahms
  hessian-lab data verify

Exit status: 0 done, 2 bad usage, 3 a file here is not the one that was registered, 4 a file is
missing, or cannot be downloaded.
"""


def add_flags(parser: Parser) -> None:
    """Add the flags of this command."""
    parser.add_argument("what", choices=("list", "get", "verify"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="of files (verify: all here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", "-q", action="store_true", help="no logs")
    parser.add_argument("--verbose", "-v", action="store_true", help="debug logs, and tracebacks")


def run(args: argparse.Namespace) -> int:
    """Do what is asked, and print a line per file."""
    try:
        chosen = [entry_of(name) for name in dict.fromkeys(args.names)]
    except ValueError as error:
        raise UsageError(str(error)) from None
    if args.what == "list" and chosen:
        raise UsageError(f"data list must stand alone, got {args.names[0]!r}.")
    if args.what == "get" and not chosen:
        raise UsageError(f"data get must be told what, one of {', '.join(entries())}.")
    return {"list": _list, "get": _get, "verify": _verify}[args.what](args, chosen)


def _list(args: argparse.Namespace, _: list[Entry]) -> int:
    places = {name: place_of(entry) for name, entry in entries().items()}
    if args.json:
        files = [_entries(entry) for entry in entries().values()]
        print(_object(args, files, directories=[str(each) for each in directories()]))
        return 0
    lines = [f"{'name':<13} {'kind':<6} {'bytes':>9}  {'licence':<19} here"]
    for name, entry in entries().items():
        here = "no" if places[name] is None else str(places[name])
        lines.append(f"{name:<13} {entry.kind:<6} {entry.bytes:9d}  {entry.licence:<19} {here}")
    print("\n".join([*lines, "", "hessian-lab data get NAME downloads one"]))
    return 0


def _get(args: argparse.Namespace, chosen: list[Entry]) -> int:
    from hessian_lab.signals.download import download

    files, lines = [], []
    for entry in chosen:
        path, now = download(entry)
        files.append(_entries(entry) | {"downloaded": now})
        lines += [
            f"{entry.name}: {'downloaded' if now else 'here already'}, {path}",
            f"  {entry.credit}",
        ]
    print(_object(args, files) if args.json else "\n".join(lines))
    return 0


def _verify(args: argparse.Namespace, chosen: list[Entry]) -> int:
    from hessian_lab.signals.registry import located

    for entry in chosen:
        if place_of(entry) is None:
            located(entry.name)
    files, lines, failed = [], [], False
    for entry in chosen or entries().values():
        path = place_of(entry)
        fault = "" if path is None else fault_of(entry, path)
        failed = failed or bool(fault)
        state = "not here" if path is None else f"{path}: {fault}" if fault else "as registered"
        files.append(_entries(entry) | {"fault": fault or None})
        lines.append(f"{entry.name:<13} {state}")
    print(_object(args, files) if args.json else "\n".join(lines))
    return 3 if failed else 0


def _entries(entry: Entry) -> dict[str, Any]:
    path = place_of(entry)
    return vars(entry) | {"path": None if path is None else str(path)}


def _object(args: argparse.Namespace, files: list[dict[str, Any]], **more: Any) -> str:
    body = {"command": f"data {args.what}", **more, "files": files}
    return json.dumps(body, ensure_ascii=False)
