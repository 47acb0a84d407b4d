"""A case: one piece of work, done by us and by others, checked before it is timed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.peers import installed
from tests.benchmarks.timing import interleaved, spread

OURS = "ours"
BEST = "best peer"
# Verdicts of an answer.
AGREES, WRONG, MISSING, RAISES = "agrees", "wrong", "not installed", "raises"
LONGEST_MESSAGE = 100

Work = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """Who does the work of a case, or some of it.

    Attributes:
        library: Its name in the table.
        prepare: Returns the function that is timed, which returns its answer; may raise.
        how: What tells it from another of the same library.
        share: Of the work that the function does. Seconds are divided by it.
        most_rounds: For one that takes long.
        check: Returns the answer, where the timed function's is random.
    """

    library: str
    prepare: Callable[[], Work]
    how: str = ""
    share: float = 1.0
    most_rounds: int | None = None
    check: Work | None = None

    @property
    def label(self) -> str:
        return f"{self.library}, {self.how}" if self.how else self.library


@dataclass(frozen=True)
class Unit:
    """Something to measure our time in, whose result nobody asks for."""

    label: str
    prepare: Callable[[], Work]


@dataclass(frozen=True)
class Target:
    """What a case must reach: at least so many times our time, or at most so many units."""

    against: str
    bound: float


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
        name: Short, for ``--only``.
        work: In words, with sizes and precision.
        ours: How we do it.
        contenders: How others do.
        deviation: How far an answer is from the reference.
        measure: What that is, in words.
        tolerance: The most that it may be.
        rounds: Timed, beside the first call, whose answer is checked.
        units: What our time is told in.
        targets: What must be reached.
    """

    name: str
    work: str
    ours: Contender
    contenders: tuple[Contender, ...]
    deviation: Callable[[Any], float]
    measure: str
    tolerance: float
    rounds: int = 5
    units: tuple[Unit, ...] = ()
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class _Checked:
    contender: Contender
    entry: dict[str, Any]
    run: Work | None


def run_case(case: Case, *, most_rounds: int | None = None) -> dict[str, Any]:
    """Check every answer, time those that agree, and return a row of the record.

    Ratios are others' seconds over ours, units' are ours over theirs, each in the same round. An
    answer off by more than the tolerance gets none, and if it is ours, nobody gets one.
    """
    most = min(case.rounds, most_rounds or case.rounds)
    ours = _checked(case, case.ours)
    others = [_checked(case, each) for each in case.contenders]
    works: dict[str, Work] = {}
    rounds: dict[str, int] = {}
    if ours.run is not None:
        works[OURS], rounds[OURS] = ours.run, most
        for each in (other for other in others if other.run is not None):
            works[each.contender.label] = each.run
            rounds[each.contender.label] = min(most, each.contender.most_rounds or most)
            if each.contender.check is not None:
                each.run()
        for unit in case.units:
            works[unit.label], rounds[unit.label] = unit.prepare(), most
            works[unit.label]()
    times = interleaved(works, rounds) if works else {}
    for each in others:
        if each.contender.label in times:
            spent = [one / each.contender.share for one in times[each.contender.label]]
            each.entry.update(_timed(spent, _over(spent, times[OURS])))
    units = [
        {"label": unit.label, **_timed(times[unit.label], _over(times[OURS], times[unit.label]))}
        for unit in case.units
        if unit.label in times
    ]
    row = {
        "name": case.name,
        "work": case.work,
        "measure": case.measure,
        "tolerance": case.tolerance,
        "ours": ours.entry | (_timed(times[OURS], []) if OURS in times else {}),
        "others": [each.entry for each in others],
        "units": units,
    }
    labels = {unit.label for unit in case.units}
    return row | {"targets": [_judged(row, each, labels) for each in case.targets]}


def _checked(case: Case, contender: Contender) -> _Checked:
    """Return a contender with its first answer's deviation, and its function if it may be timed."""
    own = contender is case.ours
    entry: dict[str, Any] = {"library": contender.library, "how": contender.how}
    if contender.share != 1:
        entry["share"] = contender.share
    if not own and installed(contender.library) is None:
        return _Checked(contender, entry | {"verdict": MISSING}, None)
    try:
        run = contender.prepare()
        deviation = float(case.deviation((contender.check or run)()))
    except Exception as error:
        if own:
            raise
        return _Checked(contender, entry | {"verdict": RAISES, "note": first_line(error)}, None)
    # What is no number is wrong.
    right = deviation <= case.tolerance
    entry |= {"verdict": AGREES if right else WRONG, "deviation": deviation}
    return _Checked(contender, entry, run if right else None)


def first_line(error: Exception) -> str:
    """Return the kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}".rstrip(": ")
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"


def _over(left: list[float], right: list[float]) -> list[float]:
    return [each / base for each, base in zip(left, right, strict=False)]


def _timed(spent: list[float], ratios: list[float]) -> dict[str, Any]:
    found: dict[str, Any] = {"seconds": spread(spent).median, "rounds": len(spent)}
    if ratios:
        whole = spread(ratios)
        found |= {"ratio": whole.median, "low": whole.low, "high": whole.high}
    return found


def _judged(row: dict[str, Any], target: Target, units: set[str]) -> dict[str, Any]:
    """Return what was reached of a target, None where nothing was there to compare with."""
    entry = {"against": target.against, "bound": target.bound}
    if target.against in units:
        found = next((u["ratio"] for u in row["units"] if u["label"] == target.against), None)
        met = None if found is None else found <= target.bound
        return entry | {"sign": "≤", "found": found, "met": met}
    found = min(ratios_against(row, target.against), default=None)
    met = None if found is None else found >= target.bound
    return entry | {"sign": "≥", "found": found, "met": met}


def ratios_against(row: dict[str, Any], against: str) -> Iterator[float]:
    """Yield the ratios of a library, or of all of them, that did the same work rightly."""
    for each in row["others"]:
        if "ratio" in each and against in (BEST, each["library"]):
            yield each["ratio"]
