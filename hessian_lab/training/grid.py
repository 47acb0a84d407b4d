"""The grid of a sweep: which setups there are, and which share of them is ours."""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hessian_lab.errors import UsageError
from hessian_lab.names import suggestion
from hessian_lab.training.setup import Setup

# More runs than this are a mistyped range.
MOST_RUNS = 100_000
SPACED = re.compile(r"([^:]+):([^:]+):(log|lin)(\d+)")
COUNTED = re.compile(r"(-?\d+):(-?\d+)")


def layers(text: str) -> float | tuple[float, ...]:
    """Return one number for all layers, or those of each, which are joined: ``3000/3000/30/30``.

    Raises:
        ValueError: For another text.
    """
    found = tuple(float(word) for word in text.split("/"))
    return found[0] if len(found) == 1 else found


def shown(value: Any) -> Any:
    """Return a value as a table has it: the numbers of layers joined, others as they are."""
    return "/".join(f"{each:g}" for each in value) if isinstance(value, tuple) else value


def values(text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Return the values that one flag of a sweep names.

    ``a,b,c`` lists them; ``0:3`` counts 0, 1, 2; ``1e-4:1e1:log7`` are seven from end to end, each
    the same multiple of the one before, and ``lin`` in place of ``log`` the same distance.

    Args:
        text: What was typed.
        kind: ``str``, ``int``, ``float``, or ``layers`` for numbers that layers may have each.

    Raises:
        UsageError: For another text, an empty range, or a value twice.
    """
    found: list[Any] = []
    for word in text.split(","):
        found += _range(word.strip(), kind)
    repeated = next((one for one in found if found.count(one) > 1), None)
    if repeated is not None:
        cure = " Join the numbers of one field's layers: 3000/3000/30/30." * (kind is layers)
        raise UsageError(
            f"a sweep must name each value once, got {shown(repeated)} twice in {text!r}.{cure}"
        )
    return found


def _range(word: str, kind: Callable[[str], Any]) -> list[Any]:
    if kind is str:
        return [word]
    counted, spaced = COUNTED.fullmatch(word), SPACED.fullmatch(word)
    if counted and kind is int:
        first, last = map(int, counted.groups())
        if last <= first:
            raise UsageError(f"a range must hold a number: the end of {word!r} is not in it.")
        return list(range(first, last))
    try:
        numbers = kind in (float, layers)
        ends = [float(end) for end in spaced.groups()[:2]] if spaced and numbers else []
        found = [] if ends else [kind(word)]
    except ValueError:
        form = "0:3" if kind is int else "1e-4:1e1:log7"
        raise UsageError(
            f"a sweep must be over numbers such as 1,2 or {form}, got {word!r}."
        ) from None
    if spaced and ends:
        return _spaced(ends[0], ends[1], spaced[3], int(spaced[4]), word)
    return found


def _spaced(first: float, last: float, kind: str, num: int, word: str) -> list[float]:
    if num < 2 or (kind == "log" and not (first > 0 and last > 0)):
        raise UsageError(f"a range must have two ends, above 0 for log, got {word!r}.")
    shares = [place / (num - 1) for place in range(num)]
    if kind == "lin":
        return [first + share * (last - first) for share in shares]
    exponents = [(1 - share) * math.log10(first) + share * math.log10(last) for share in shares]
    # 1e-3 as 1e-3, not as 0.0009999999999999998.
    return [float(f"{10**exponent:.12g}") for exponent in exponents]


def setups(
    base: Setup,
    varied: Mapping[str, Sequence[Any]],
    *,
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Setup]:
    """Return every combination of the values of some fields, resolved, without repetition.

    Args:
        base: What all have in common.
        varied: The values of each field that differs.
        own: Options of single optimizers, by their names, beside those of ``base``.

    Raises:
        UsageError: For a value out of range, options of an optimizer that is not in the grid, or
            far too many combinations.
    """
    own = own or {}
    total = math.prod(len(each) for each in varied.values())
    if total > MOST_RUNS:
        raise UsageError(f"a sweep must have at most {MOST_RUNS:,} runs, got {total:,}.")
    combinations = itertools.product(*varied.values())
    made = [
        _with_own(replace(base, **dict(zip(varied, each, strict=True))).resolved(), own)
        for each in combinations
    ]
    swept = list(dict.fromkeys(str(one.optimizer) for one in made))
    for name in own:
        if name not in swept:
            raise UsageError(
                f"an option must be of an optimizer in the sweep, {', '.join(swept)}, got one of "
                f"{name!r}.{suggestion(name, swept)}"
            )
    return list({repr(one): one for one in made}.values())


def _with_own(setup: Setup, own: Mapping[str, Mapping[str, Any]]) -> Setup:
    options = own.get(str(setup.optimizer), {})
    return replace(setup, options={**setup.options, **options}) if options else setup


def shard(items: Sequence[Any], text: str | None) -> list[Any]:
    """Return the i-th of k shares, ``i/k`` counted from 1: every k-th of the items.

    Raises:
        UsageError: For another text, or a share that there is not.
    """
    if text is None:
        return list(items)
    parts = re.fullmatch(r"(\d+)/(\d+)", text)
    if not parts or not 1 <= int(parts[1]) <= int(parts[2]):
        raise UsageError(f"shard must be i/k with 1 <= i <= k, such as 1/4, got {text!r}.")
    return list(items[int(parts[1]) - 1 :: int(parts[2])])
