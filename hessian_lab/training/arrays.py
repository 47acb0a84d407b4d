"""Which share of a sweep the task of a job array is, from what its scheduler tells it."""

from collections.abc import Mapping
from dataclasses import dataclass

from hessian_lab.errors import UsageError


@dataclass(frozen=True)
class Scheduler:
    """The variables in which a scheduler tells a task its place.

    Attributes:
        name: What messages call it.
        index: The variable of the task's own index.
        none: What it holds outside of an array.
        last: That of the last index; empty where there is none.
        first: That of the first index; without one, arrays begin at 1.
        step: That of the distance between two indices.
        count: That of the number of tasks.
    """

    name: str
    index: str
    none: tuple[str, ...] = ("",)
    last: str = ""
    first: str = ""
    step: str = ""
    count: str = ""


SCHEDULERS = (
    Scheduler(
        "Slurm",
        "SLURM_ARRAY_TASK_ID",
        last="SLURM_ARRAY_TASK_MAX",
        first="SLURM_ARRAY_TASK_MIN",
        step="SLURM_ARRAY_TASK_STEP",
        count="SLURM_ARRAY_TASK_COUNT",
    ),
    Scheduler("PBS", "PBS_ARRAY_INDEX"),
    Scheduler("Torque", "PBS_ARRAYID"),
    Scheduler(
        "Grid Engine",
        "SGE_TASK_ID",
        none=("", "undefined"),
        last="SGE_TASK_LAST",
        first="SGE_TASK_FIRST",
        step="SGE_TASK_STEPSIZE",
    ),
    Scheduler(
        "LSF",
        "LSB_JOBINDEX",
        none=("", "0"),
        last="LSB_JOBINDEX_END",
        step="LSB_JOBINDEX_STEP",
    ),
)


def array_share(environment: Mapping[str, str]) -> tuple[int, int, str]:
    """Return i and k of the i-th of k shares, counted from 1, and the scheduler that told them.

    An array may begin anywhere and have steps. LSF does not tell where it begins: its arrays must
    begin at 1.

    Raises:
        UsageError: If this is no task of a job array, its scheduler does not tell how many there
            are (PBS), or the indices are a list without even steps.
    """
    for scheduler in SCHEDULERS:
        if environment.get(scheduler.index, "") not in scheduler.none:
            return (*_place(scheduler, environment), scheduler.name)
    names = ", ".join(one.index for one in SCHEDULERS)
    raise UsageError(
        f"--shard array must run as a task of a job array, none of {names} is set. "
        "Name the share: --shard 1/4."
    )


def _place(one: Scheduler, environment: Mapping[str, str]) -> tuple[int, int]:
    index = _number(environment, one.index)
    if not one.last:
        raise UsageError(
            f"--shard array must know how many tasks there are, and {one.name} does not tell: "
            f"--shard ${one.index}/K, for an array from 1 to K."
        )
    last = _number(environment, one.last)
    step = _number(environment, one.step) if environment.get(one.step) or one.count else 1
    if step < 1:
        raise UsageError(f"{one.step} must be at least 1, got {step}.")
    # Without a first index: the lowest one from 1 that steps lead from to this one.
    first = _number(environment, one.first) if one.first else (index - 1) % step + 1
    count = (last - first) // step + 1
    told = _number(environment, one.count) if one.count else count
    if not first <= index <= last or (index - first) % step or told != count:
        raise UsageError(
            f"a job array must have even steps, such as 1-8 or 0-14:2; {one.name} tells of {told} "
            f"tasks from {first} to {last} in steps of {step}, of which this is {index}. "
            "Name the share: --shard 1/4."
        )
    return (index - first) // step + 1, count


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    try:
        return int(text)
    except ValueError:
        raise UsageError(
            f"--shard array must find a whole number in {name}, got {text!r}. "
            "Name the share: --shard 1/4."
        ) from None
