"""One job on several processes of this machine, as a user starts it."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH = 64
WORK = ("--probes", "6", "--lanczos-steps", "40", "--num", "1")
JOB = ("eigs", "--act", "sine", "--steps", "1", "--method", "slq", "--split", "points")
TOLD = ("--json", "-q")
# The job whose time is told, and one of the same start and no work, which is subtracted.
SIZES = {"whole": ("--width", str(WIDTH)), "start": ("--width", "4")}
LONGEST = 300
ROUNDS = 2


class Unsupported(Exception):
    """Why the job does not run on several ranks."""


def rank_seconds(rounds: int) -> dict[int, float] | str:
    """Return ranks -> least seconds of the job without its start; or why there are none."""
    counts = [count for count in (1, 2, 4, 8) if count <= (os.cpu_count() or 1)]
    if len(counts) < 2:
        return "needs two cores"
    try:
        _job(2, "start")
        times: dict[tuple[int, str], list[float]] = {}
        for _ in range(min(rounds, ROUNDS)):
            for count in counts:
                for size in SIZES:
                    times.setdefault((count, size), []).append(_job(count, size))
    except Unsupported as reason:
        return str(reason)
    found = {count: min(times[count, "whole"]) - min(times[count, "start"]) for count in counts}
    return found if min(found.values()) > 0 else "the job is over as fast as its start"


def _job(count: int, size: str) -> float:
    """Return the seconds of a job on so many ranks.

    Raises:
        Unsupported: If it fails, or every rank answers for itself.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _path()}
    # Bound to cores, every rank would take the first.
    environment.pop("OMP_PROC_BIND", None)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={count}", "-m", "--", "hessian_lab"),
            *(*JOB, *WORK, *TOLD, *SIZES[size]),
            *("--out", str(Path(folder, "run"))),
        ]
        start = time.perf_counter()
        try:
            done = subprocess.run(
                command,
                env=environment,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unsupported(f"{count} ranks took more than {LONGEST} s") from None
        spent = time.perf_counter() - start
    if done.returncode:
        raise Unsupported(f"hessian-lab ended with status {done.returncode} on {count} ranks")
    if not _one_answer(done.stdout):
        raise Unsupported(f"hessian-lab does not share its work: {count} ranks, several answers")
    return spent


def _one_answer(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _path() -> str:
    """Return where this very package is imported from, and what was there before."""
    import hessian_lab

    root = str(Path(hessian_lab.__file__).parents[1])
    return os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
