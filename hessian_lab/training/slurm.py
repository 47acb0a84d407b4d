"""A sweep as an array of Slurm jobs, one for each share, through submitit."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessian_lab.errors import UsageError
from hessian_lab.training.grid import shard
from hessian_lab.training.setup import Setup
from hessian_lab.training.sweep import check_optimizers, sweep

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

# Where jobs leave their logs, below the directory of the sweep.
FOLDER = "slurm"
CLUSTERS = ("slurm", "local")
# What submitit calls by one name for every scheduler; other options are Slurm's alone.
SHARED = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")
# A share is one process: two would train the same runs.
ALONE = ("nodes", "tasks_per_node", "ntasks_per_node")


@dataclass(frozen=True)
class Share:
    """What a job does: train the i-th of k shares of a grid. It may be called any number of times.

    Attributes:
        setups: The whole grid, resolved.
        num_shares: The number k.
        out: The directory of the sweep, absolute.
        varied: The fields that differ.
        jobs: Processes of each job.
    """

    setups: Sequence[Setup]
    num_shares: int
    out: Path
    varied: Sequence[str]
    jobs: int

    def __call__(self, index: int) -> dict[str, int]:
        """Train share ``index``, from 1, and return how many of its runs have which status."""
        logging.basicConfig(level=logging.INFO, format="hessian-lab: %(message)s")
        done = sweep(
            self.setups,
            out=self.out,
            varied=self.varied,
            jobs=self.jobs,
            ours=shard(self.setups, f"{index}/{self.num_shares}"),
            watch=lambda row: logging.getLogger(__name__).info("%s: %s", row["run"], row["status"]),
        )
        return done.statuses()

    def checkpoint(self, index: int) -> "DelayedSubmission":
        """Return what submitit queues again when a job is preempted or its time is over."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, index)


def submit(share: Share, options: Mapping[str, Any]) -> list[str]:
    """Submit an array of jobs, one for each share, and return their ids.

    Slurm queues a job again, three times at most, whose time is over.

    Args:
        share: What they do.
        options: Of Slurm, such as ``partition``, and ``time``, in minutes, which must be given:
            submitit's own default is five; those of ``SHARED`` by submitit's names;
            ``cluster="local"`` starts processes on this machine instead.

    Raises:
        UsageError: If submitit is not installed, there is no Slurm here, it has no such option, or
            it refuses the jobs.
    """
    try:
        import submitit
    except ImportError:
        raise UsageError(
            "--slurm needs submitit: pip install 'hessian-lab[slurm]'. Or write a job array that "
            "runs hessian-lab sweep … --shard array."
        ) from None
    cluster, given = _checked(options)
    check_optimizers(share.setups)
    executor = submitit.AutoExecutor(folder=share.out / FOLDER, cluster=cluster)
    try:
        executor.update_parameters(**given)
    except (NameError, AssertionError) as error:
        # By the name that was typed.
        text = str(error).splitlines()[0].replace("slurm_", "")
        raise UsageError(f"--slurm-set must be options of Slurm: {text}.") from None
    try:
        jobs = executor.map_array(share, range(1, share.num_shares + 1))
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise UsageError(f"Slurm must take the jobs, it did not: {error}") from None
    return [str(job.job_id) for job in jobs]


def _checked(options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the cluster, and its options by submitit's names."""
    given = {"timeout_min" if name == "time" else name: each for name, each in options.items()}
    cluster = given.pop("cluster", "slurm")
    if cluster not in CLUSTERS:
        raise UsageError(f"cluster must be one of {', '.join(CLUSTERS)}, got {cluster!r}.")
    if cluster == "slurm" and not all(shutil.which(name) for name in ("sbatch", "srun")):
        raise UsageError(
            "--slurm must be typed where Slurm is: there is no sbatch here. To try it with "
            "processes of this machine: --slurm-set cluster=local."
        )
    for name in ALONE:
        if name in given:
            raise UsageError(f"--slurm-set {name} must be left out: a share is one process.")
    if not isinstance(given.get("timeout_min"), int) or given["timeout_min"] < 1:
        raise UsageError(
            f"--slurm-set time must be the minutes that a job may take, such as time=120, got "
            f"{given.get('timeout_min')!r}."
        )
    named = {name if name in SHARED else f"slurm_{name}": each for name, each in given.items()}
    return cluster, {"name": "hessian-lab", **named}
