"""Flags that commands share; those of training come from ``Setup``."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hessian_lab.cli.parser import Parser, number, one_of, option
from hessian_lab.signals import is_path
from hessian_lab.training.grid import layers
from hessian_lab.training.setup import Setup

# Field of Setup -> its flag.
FLAGS = {
    entry.name: entry.metadata.get("flag", "--" + entry.name.replace("_", "-"))
    for entry in fields(Setup)
}

# What says how steps are taken.
STEPPING = ("optimizer", "recipe", "lr", "lr_final", "options")


def add_setup(parser: Parser, job: Mapping[str, Any] | None = None) -> None:
    """Add one flag per field of ``Setup``; what is not given does not appear in the namespace.

    Args:
        parser: Of the command.
        job: What the command trains where a flag is not given, in place of the defaults of
            ``Setup``; ``asked_setup`` fills it in.
    """
    job = dict(job or {})
    parser.set_defaults(job=job)
    group = parser.add_argument_group("what to train")
    hints = get_type_hints(Setup)
    for entry in fields(Setup):
        flag = FLAGS[entry.name]
        options: dict[str, Any] = {
            "dest": entry.name,
            "default": argparse.SUPPRESS,
            "help": entry.metadata["help"],
        }
        if entry.name in job:
            options["help"] += f" (here {job[entry.name]})"
        elif entry.default is not MISSING and entry.default is not None:
            options["help"] += f" (default {entry.default})"
        if flag == "--set":
            options |= {"action": "append", "type": option, "metavar": "KEY=VALUE"}
        else:
            options |= _kind(entry.name, entry.metadata.get("names"), hints[entry.name])
        group.add_argument(flag, **options)


def _kind(name: str, names: Any, hint: Any) -> dict[str, Any]:
    if name == "signal":
        known = list(names)

        def convert(text: str) -> str:
            if not is_path(text) and text not in known and Path(text).exists():
                return f"./{text}"
            return text if is_path(text) else one_of(known)(text)

        return {"type": convert, "metavar": "NAME"}
    if names is not None:
        return {"type": one_of(list(names)), "metavar": "NAME"}
    kind = kind_of_hint(hint)
    if kind is layers:
        return {"type": _numbers, "metavar": "X[,X…]"}
    if kind is int:
        return {"type": number(int), "metavar": "N"}
    return {"type": number(float), "metavar": "X"} if kind is float else {"metavar": "NAME"}


def kind_of_hint(hint: Any) -> Callable[[str], Any]:
    """Return what reads a value of a field: ``int``, ``float``, ``layers`` or ``str``."""
    kinds = (*get_args(hint), hint)
    if any(get_origin(kind) is tuple for kind in kinds):
        return layers
    return next((kind for kind in (int, float) if kind in kinds), str)


def _numbers(text: str) -> float | tuple[float, ...]:
    """Return one number, or one for each layer."""
    try:
        return layers(text.replace(",", "/"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number, got {text!r}; one for each hidden layer is 3000,3000,30,30"
        ) from None


def given_setup(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of ``Setup`` that were given on the command line; a device by its name."""
    if getattr(args, "device", None) == "auto":
        from hessian_lab.training.devices import named_device

        # In its place, so that it is found out, and told, once.
        args.device = named_device(args.device)
    names = [entry.name for entry in fields(Setup)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if "options" in given:
        given["options"] = dict(given["options"])
    return given


def asked_setup(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of ``Setup`` that were given, and those of the command's own job.

    An optimizer or a recipe that is given comes without those of the job, its rate and options.
    """
    given = given_setup(args)
    job = dict(getattr(args, "job", {}))
    if "optimizer" in given or "recipe" in given:
        job = {name: value for name, value in job.items() if name not in STEPPING}
    return job | given


def add_output(parser: Parser) -> None:
    """Add the flags that say where results go and how much is told."""
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="DIR", help="the run directory (runs/<act>-<hash>)")
    group.add_argument(
        "--overwrite", action="store_true", help="start anew in a used --out, each time"
    )
    group.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress, no logs")
    group.add_argument("--verbose", "-v", action="store_true", help="debug logs, and tracebacks")
