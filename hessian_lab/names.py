"""Names of things: registries, suggestions, and resolution on use."""

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any


def resolve(reference: str) -> Any:
    """Return the object that ``"module:attribute"`` names, importing the module now."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


def suggestion(name: str, names: Iterable[str], *, cutoff: float = 0.5) -> str:
    """Return " Did you mean …?" for the nearest of ``names``, or nothing when none is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]}?" if near else ""


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """Return ``name`` if it is among ``names``.

    Raises:
        ValueError: If not, with the nearest name and all of them.
    """
    choices = list(names)
    if name not in choices:
        raise ValueError(
            f"{kind} must be one of {', '.join(choices)}, got {name!r}.{suggestion(name, choices)}"
        )
    return name


def plural(count: int, word: str) -> str:
    """Return a number of things in words: ``1 run``, ``2 runs``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
