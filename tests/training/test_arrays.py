"""The share of a sweep that a task of a job array is."""

import pytest

from hessian_lab.errors import UsageError
from hessian_lab.training.arrays import array_share


def slurm(index, indices, step=1):
    """Return what sbatch --array tells the task of an index."""
    told = {"ID": index, "MIN": min(indices), "MAX": max(indices), "STEP": step}
    told["COUNT"] = len(indices)
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


def grid_engine(index, first, last, step):
    told = {"ID": index, "FIRST": first, "LAST": last, "STEPSIZE": step}
    return {f"SGE_TASK_{name}": str(value) for name, value in told.items()}


def lsf(index, last, step=1):
    told = {"": index, "_END": last, "_STEP": step}
    return {f"LSB_JOBINDEX{name}": str(value) for name, value in told.items()}


@pytest.mark.parametrize(
    ("indices", "step"),
    [(range(1, 9), 1), (range(8), 1), (range(5, 6), 1), (range(0, 15, 2), 2), (range(3, 30, 7), 7)],
)
def test_the_tasks_of_an_array_take_every_share_once(indices, step):
    count = len(indices)
    shares = [array_share(slurm(index, indices, step)) for index in indices]
    assert shares == [(place, count, "Slurm") for place in range(1, count + 1)]
    # Grid Engine and LSF may tell the end that was typed, beyond the last task.
    last = max(indices) + step - 1
    found = [array_share(grid_engine(index, min(indices), last, step)) for index in indices]
    assert found == [(place, count, "Grid Engine") for place in range(1, count + 1)]


@pytest.mark.parametrize(("last", "step"), [(8, 1), (10, 3), (9, 4)])
def test_arrays_of_lsf_begin_at_one(last, step):
    indices = range(1, last + 1, step)
    shares = [array_share(lsf(index, last, step)) for index in indices]
    assert shares == [(place, len(indices), "LSF") for place in range(1, len(indices) + 1)]
    assert array_share({"LSB_JOBINDEX": "2", "LSB_JOBINDEX_END": "4"}) == (2, 4, "LSF")


def without(environment, name):
    return {key: value for key, value in environment.items() if key != name}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "must run as a task of a job array, none of SLURM_ARRAY_TASK_ID, PBS_ARRAY_INDEX, "),
        ({"SGE_TASK_ID": "undefined", "LSB_JOBINDEX": "0"}, "must run as a task of a job array"),
        ({"PBS_ARRAY_INDEX": "3"}, r"PBS does not tell: --shard \$PBS_ARRAY_INDEX/K"),
        ({"PBS_ARRAYID": "3"}, r"Torque does not tell: --shard \$PBS_ARRAYID/K"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "a whole number in SLURM_ARRAY_TASK_MAX, got ''"),
        (slurm("x", (1, 2)), "a whole number in SLURM_ARRAY_TASK_ID, got 'x'"),
        # sbatch --array=1,3,7 and 1-3,7-9
        (slurm(3, (1, 3, 7)), "even steps, such as .* Slurm tells of 3 tasks from 1 to 7 in steps"),
        (slurm(7, (1, 2, 3, 7, 8, 9)), "even steps"),
        (slurm(9, range(1, 9)), "of which this is 9"),
        (slurm(2, range(1, 9, 2), 2), "of which this is 2"),
        (slurm(1, (1, 2), 0), "SLURM_ARRAY_TASK_STEP must be at least 1, got 0"),
        (lsf(5, 4), "even steps"),
        *(
            (without(slurm(1, (1, 2)), f"SLURM_ARRAY_TASK_{name}"), f"TASK_{name}, got ''")
            for name in ("MIN", "MAX", "STEP", "COUNT")
        ),
        (without(grid_engine(1, 1, 4, 1), "SGE_TASK_FIRST"), "in SGE_TASK_FIRST, got ''"),
        (without(lsf(1, 4), "LSB_JOBINDEX_END"), "in LSB_JOBINDEX_END, got ''"),
    ],
)
def test_what_does_not_tell_a_share_is_refused(environment, message):
    with pytest.raises(UsageError, match=message):
        array_share(environment)
