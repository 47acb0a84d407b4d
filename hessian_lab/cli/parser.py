"""argparse, with suggestions."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from hessian_lab.names import suggestion


class Parser(argparse.ArgumentParser):
    """A parser that never abbreviates, and answers a wrong word with the nearest right one."""

    def __init__(self, **options: object) -> None:
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Print one sentence and exit with status 2."""
        print(f"{self.prog}: error: {self._mended(message)}", file=sys.stderr)
        print(f"Try: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    def _mended(self, message: str) -> str:
        unknown = re.match(
            r"argument (?:COMMAND|what): invalid choice: '(.*?)' \(choose from", message
        )
        if unknown:
            names = self.choices()
            return (
                f"{unknown[1]!r} must be one of {', '.join(names)}.{suggestion(unknown[1], names)}"
            )
        return message if message.endswith((".", "?")) else f"{message}."

    def choices(self) -> list[str]:
        """Return the words that a positional argument of this parser may be."""
        return [
            str(choice) for action in self._actions if action.choices for choice in action.choices
        ]

    def flags(self) -> list[str]:
        """Return every flag of this parser."""
        return [flag for action in self._actions for flag in action.option_strings]

    def suggested_flag(self, flag: str) -> str:
        """Return " Did you mean …?" for the nearest flag; dashes, which all have, do not count."""
        names = [known.removeprefix("--") for known in self.flags() if known.startswith("--")]
        return suggestion(flag.lstrip("-"), names, cutoff=0.6).replace(" mean ", " mean --")

    def takes_words(self) -> bool:
        """Tell whether any number of words may stand without a flag."""
        return any(each.nargs in ("*", "+") for each in self._actions if not each.option_strings)

    def takes_value(self, flag: str) -> bool:
        """Tell whether a flag is followed by a value."""
        action = self._option_string_actions.get(flag)
        return action is not None and action.nargs != 0


def number(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    """Return a converter of ``--flag`` values whose error says what is wanted."""
    words = {int: "a whole number", float: "a number"}

    def convert(text: str) -> int | float:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {words[kind]}, got {text!r}") from None

    return convert


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Return a converter that accepts some names, and suggests the nearest."""

    def convert(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(names)}, got {text!r}.{suggestion(text, names)}"
            )
        return text

    return convert


def option(text: str) -> tuple[str, object]:
    """Return the name and value of ``--set name=value``; values are read as Python literals."""
    import ast

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"must have the form key=value, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        named = {"true": True, "false": False, "none": None}
        return name, named.get(value.lower(), value)
