"""``hessian-lab``: parse, call, print, and turn errors into exit statuses."""

import argparse
import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import hessian_lab
from hessian_lab.cli import COMMANDS
from hessian_lab.cli.parser import Parser
from hessian_lab.cli.ranks import joined, rank_told
from hessian_lab.errors import InputError, RankError, UsageError

DONE, FAILED, USAGE, UNCHECKED, INPUT, INTERRUPTED = 0, 1, 2, 3, 4, 130

SHORT_HELP = """\
hessian-lab: a microscope for the loss landscape of neural fields.

  hessian-lab eigs --act relu_pe     all Hessian eigenvalues along a training
  hessian-lab trace --act sine       its trace, with the error
  hessian-lab train --act sine       train, and keep the trajectory
  hessian-lab list acts              what there is: acts, signals, optimizers
  hessian-lab doctor                 whether this machine computes what it should
  hessian-lab info                   versions and machine, to paste into an issue

hessian-lab COMMAND --help tells the rest.
"""

logger = logging.getLogger("hessian_lab")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    _mend_streams()
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads on; the interpreter would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print(f"{_name()}: interrupted. The same command continues.", file=sys.stderr)
        return INTERRUPTED
    return status


def _main(arguments: list[str]) -> int:
    if not arguments:
        print(SHORT_HELP, end="")
        return DONE
    args = parse(*build(), arguments)
    args.words = arguments
    with _logs(args):
        try:
            with joined(args):
                return int(_module(args.command).run(args))
        except BrokenPipeError:
            raise
        except Exception as error:
            return _report(error, verbose=getattr(args, "verbose", False))


def _mend_streams() -> None:
    """Make sure that there are streams to write to, and that they take every letter."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def build() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser, and that of each command."""
    parser = Parser(
        prog="hessian-lab", description="A microscope for the loss landscape of neural fields."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions and exit")
    places = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands = {}
    for name in COMMANDS:
        module = _module(name)
        commands[name] = places.add_parser(
            name,
            prog=f"hessian-lab {name}",
            help=module.HELP,
            description=module.HELP,
            epilog=getattr(module, "EPILOG", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_flags(commands[name])
    return parser, commands


def parse(
    parser: Parser, commands: dict[str, Parser], arguments: Sequence[str]
) -> argparse.Namespace:
    """Parse a command line; flags may also stand before the command."""
    args, left = parser.parse_known_args(_command_first(commands, list(arguments)))
    if left:
        command = commands[args.command]
        if left[0][:1] == "-":
            near = command.suggested_flag(left[0].split("=")[0])
        else:
            near = " Put all names before the flags." * command.takes_words()
        command.error(f"{left[0]!r} is no argument of {args.command}.{near}")
    return args


def _command_first(commands: dict[str, Parser], arguments: list[str]) -> list[str]:
    """Move the command before the flags that were typed before it."""
    if arguments[0] in ("--help", "-h", "--version") or not arguments[0].startswith("-"):
        return arguments
    valued = {
        flag for parser in commands.values() for flag in parser.flags() if parser.takes_value(flag)
    }
    for place, word in enumerate(arguments):
        if word in commands and arguments[place - 1] not in valued:
            return [word, *arguments[:place], *arguments[place + 1 :]]
    return arguments


def _module(name: str) -> ModuleType:
    return import_module(COMMANDS[name])


@contextlib.contextmanager
def _logs(args: argparse.Namespace) -> Iterator[None]:
    """Send logs to stderr, one plain line each, and leave the logger as it was."""
    level = logging.INFO
    if getattr(args, "quiet", False) or rank_told():
        level = logging.ERROR
    elif getattr(args, "verbose", False):
        level = logging.DEBUG
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{_name()}: %(message)s"))
    former = logger.handlers[:], logger.level, logger.propagate
    logger.handlers[:], logger.propagate = [handler], False
    logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _log_warning  # type: ignore[assignment]
            yield
    finally:
        logger.handlers[:], level, logger.propagate = former
        logger.setLevel(level)


def _log_warning(message: Warning | str, *_: object) -> None:
    """Say what a warning says, without the line of code that it came from."""
    logger.warning("%s", message)


def _report(error: Exception, *, verbose: bool) -> int:
    if verbose:
        logger.exception("failed")
    text = str(error).rstrip(".") or type(error).__name__
    known = UsageError, InputError, RankError, MemoryError, ArithmeticError, OSError
    if not isinstance(error, (*known, ValueError, TypeError)):
        text = f"{type(error).__name__}: {text}. Run it with --verbose for the traceback."
    ending = "" if text.endswith(("?", "…")) else "."
    print(f"{_name()}: error: {text.rstrip('.')}{ending}", file=sys.stderr)
    if isinstance(error, UsageError):
        return USAGE
    return INPUT if isinstance(error, InputError) else FAILED


def _name() -> str:
    """Return who speaks: one of several ranks says which."""
    rank = rank_told()
    return "hessian-lab" if rank is None else f"hessian-lab: rank {rank}"


class _Version(argparse.Action):
    """Prints the versions of the package and of torch, without importing torch."""

    def __call__(self, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            torch = version("torch")
        except PackageNotFoundError:
            torch = "missing"
        print(f"hessian-lab {hessian_lab.__version__} (torch {torch})")
        raise SystemExit(DONE)
