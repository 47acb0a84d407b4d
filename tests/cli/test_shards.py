"""Shares of one sweep: at the same time, killed, as tasks of a job array, submitted to Slurm."""

import os
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from hessian_lab import Setup
from hessian_lab.errors import ResourceError
from hessian_lab.training import sweep as sweeping
from hessian_lab.training.grid import setups, shard
from tests.cli.terminal import assert_refused, typed

FIELD = ("--signal", "sines", "--size", "12", "--act", "tanh", "--width", "3", "--depth", "1")
GRID = ("sweep", *FIELD, "--steps", "4", "--optimizer", "adam,sgd", "--lr", "0.01:1:log3")
VARIED = ("optimizer", "lr")
NUMBERS = ["loss", "evaluations", "products"]


SMALL = {"signal": "sines", "size": 12, "act": "tanh", "width": 3, "depth": 1}
RATES = {"optimizer": ["adam", "sgd"], "lr": [0.01, 0.1, 1.0]}


def grid():
    return setups(Setup(**SMALL, steps=2), RATES | {"lr": [0.01, 0.1]})


def on_disk(path):
    return pd.read_csv(path / "sweep.csv")


def complete(path):
    """Tell whether the table has every run, done."""
    return path.exists() and set(pd.read_csv(path)["status"]) == {"done"}


def test_a_share_that_is_killed_beside_another_continues_to_the_table_of_one(tmp_path):
    words = (*GRID[:-6], "--steps", "120", "--checkpoint-every", "1", *GRID[-4:])
    process = subprocess.Popen(
        [sys.executable, "-m", "hessian_lab", *words, "--shard", "2/2", "-q"], cwd=tmp_path
    )
    first = setups(Setup(**SMALL, steps=120, checkpoint_every=1), RATES)[1]
    begun = tmp_path / "runs/sweep" / sweeping._name(first) / "resume.pt"
    deadline = time.monotonic() + 120
    while not begun.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    # It still holds the run that it trains.
    other = typed(tmp_path, *words, "--shard", "1/2", "--json", "-q")
    assert other.status == 0, other.err
    statuses = [row["status"] for row in other.json["runs"]]
    assert statuses[::2] == ["done"] * 3
    assert "missing" in statuses[1::2]
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert typed(tmp_path, *words, "--shard", "2/2", "-q").status == 0
    assert complete(tmp_path / "runs/sweep/sweep.csv")
    assert not list((tmp_path / "runs/sweep").glob(".*.tmp"))
    assert typed(tmp_path, *words, "--out", "alone", "-q").status == 0
    both = [on_disk(tmp_path / place) for place in ("runs/sweep", "alone")]
    pd.testing.assert_frame_equal(both[0][["run", *NUMBERS]], both[1][["run", *NUMBERS]])


def test_what_one_share_saw_before_another_ended_is_not_written_after_it(tmp_path, monkeypatch):
    """Two shares end at the same time: one has looked at the runs, then the other ends."""
    every = grid()
    shares = [shard(every, f"{index}/2") for index in (1, 2)]
    other = threading.Thread(
        target=sweeping.sweep, args=(every,), kwargs={"out": tmp_path, "ours": shares[1]}
    )
    look, here, last = sweeping._row, threading.current_thread(), sweeping._name(every[-1])
    calls = []

    def row(setup, *words, **more):
        found = look(setup, *words, **more)
        if threading.current_thread() is here and sweeping._name(setup) == last:
            calls.append(setup)
            # Its last look.
            if len(calls) == len(shares[0]) + 1:
                other.start()
                other.join(timeout=1.5)
        return found

    monkeypatch.setattr(sweeping, "_row", row)
    first = sweeping.sweep(every, out=tmp_path, ours=shares[0])
    other.join(timeout=60)
    assert first.statuses() == {"done": 2, "missing": 2}
    assert on_disk(tmp_path)["status"].tolist() == ["done"] * 4


def test_the_table_shows_what_other_machines_do_meanwhile(tmp_path):
    every = grid()
    sweeping.sweep(every, out=tmp_path, ours=shard(every, "2/2"))
    seen = []
    sweeping.sweep(
        every,
        out=tmp_path,
        ours=shard(every, "1/2"),
        watch=lambda _row: seen.append(on_disk(tmp_path)["status"].tolist()),
    )
    assert seen == [["done", "done", "missing", "done"], ["done"] * 4]


def test_a_run_that_did_not_fit_elsewhere_stays_refused_until_it_is_tried_again(
    tmp_path, monkeypatch
):
    every = grid()
    shares, real = [shard(every, f"{index}/2") for index in (1, 2)], sweeping.train

    def refuse(setup, **more):
        if setup.optimizer == "sgd":
            raise ResourceError("too large")
        return real(setup, **more)

    monkeypatch.setattr(sweeping, "train", refuse)
    first = sweeping.sweep(every, out=tmp_path, ours=shares[0], varied=VARIED)
    assert first.statuses() == {"missing": 2, "done": 1, "refused": 1}
    monkeypatch.setattr(sweeping, "train", real)
    second = sweeping.sweep(every, out=tmp_path, ours=shares[1], varied=VARIED)
    assert second.table["status"].tolist() == ["done", "done", "refused", "done"]
    again = sweeping.sweep(every, out=tmp_path, varied=VARIED)
    assert again.statuses() == {"done": 4}


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(_descriptor, _operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    answer = typed(tmp_path, *GRID, "-q")
    assert_refused(answer, 2, "out must be on a file system with locks, that of .* refuses them")


# The tasks of a job array.


def test_a_task_takes_the_share_of_its_place(tmp_path, monkeypatch):
    for name, value in {"ID": 4, "MIN": 2, "MAX": 6, "STEP": 2, "COUNT": 3}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    answer = typed(tmp_path, *GRID, "--shard", "array", "--json")
    assert answer.status == 0, answer.err
    assert "hessian-lab: share 2 of 3 (Slurm array)" in answer.err.splitlines()
    statuses = [row["status"] for row in answer.json["runs"]]
    assert statuses == ["missing", "done", "missing"] * 2


def test_array_outside_of_one_is_refused(tmp_path, monkeypatch):
    for name in ("SLURM_ARRAY_TASK_ID", "PBS_ARRAY_INDEX", "PBS_ARRAYID", "SGE_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("LSB_JOBINDEX", raising=False)
    answer = typed(tmp_path, *GRID, "--shard", "array")
    assert_refused(answer, 2, "--shard array must run as a task of a job array")
    assert not list(tmp_path.iterdir())


# Slurm.


def gone(number):
    """Tell whether a process has ended."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_jobs_train_all_shares_and_the_command_that_they_name_prints_the_table(tmp_path):
    pytest.importorskip("submitit")
    slurm = ("--slurm", "2", "--slurm-set", "cluster=local", "--slurm-set=time=5")
    answer = typed(tmp_path, *GRID[:1], *slurm, *GRID[1:], "--json")
    assert answer.status == 0, answer.err
    assert len(set(answer.json["jobs"])) == 2
    assert answer.json["table"].split() == ["hessian-lab", *GRID, "--json"]
    deadline = time.monotonic() + 120
    while not complete(tmp_path / "runs/sweep/sweep.csv"):
        logs = [path.read_text() for path in tmp_path.glob("runs/sweep/slurm/*.err")]
        assert time.monotonic() < deadline, logs
        time.sleep(0.1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/sweep/*/resume.pt")}
    assert len(before) == 6
    table = typed(tmp_path, *answer.json["table"].split()[1:], "-q")
    assert [row["status"] for row in table.json["runs"]] == ["done"] * 6
    assert before == {path: path.stat().st_mtime_ns for path in before}
    while not all(gone(int(job)) for job in answer.json["jobs"]):
        # Ours to reap: they were started by this process.
        os.waitpid(-1, os.WNOHANG)
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A directory of commands in which sbatch keeps what it is given."""
    pytest.importorskip("submitit")
    place = tmp_path / "bin"
    place.mkdir()
    kept = tmp_path / "kept.sh"
    for name, does in {
        "sbatch": f'cp "$1" {kept}; echo Submitted batch job 417',
        "srun": "",
    }.items():
        (place / name).write_text(f"#!/bin/sh\n{does}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    return kept


def test_slurm_gets_an_array_with_its_options(tmp_path, cluster):
    options = ("time=90", "partition=gpu", "mem_gb=4", "array_parallelism=2", "name=rates")
    words = [word for each in options for word in ("--slurm-set", each)]
    answer = typed(tmp_path, *GRID, "--slurm", "3", *words, "--device", "cuda", "--out", "at it")
    assert answer.status == 0, answer.err
    lines = cluster.read_text().splitlines()
    given = {"array=0-2%2", "partition=gpu", "time=90", "mem=4GB", "job-name=rates"}
    assert {f"#SBATCH --{each}" for each in given} <= set(lines)
    assert answer.out.splitlines() == [
        "3 jobs for 6 runs: 417",
        "see       squeue -j 417",
        "logs      at it/slurm",
        "cancel    scancel 417",
        "continue  the same command, when none of them runs any more",
        f"table     hessian-lab {' '.join(GRID)} --device cuda --out 'at it'",
    ]


def test_a_job_whose_time_is_over_is_queued_again(tmp_path):
    pytest.importorskip("submitit")
    from hessian_lab.training.slurm import Share

    share = Share(grid(), 2, tmp_path, VARIED, 1)
    again = share.checkpoint(2)
    assert (again.function, again.args) == (share, (2,))
    assert again.result() == {"missing": 2, "done": 2}


def test_what_slurm_says_of_a_partition_is_passed_on(tmp_path, cluster):
    (cluster.parent / "bin/sbatch").write_text("#!/bin/sh\necho invalid partition >&2; exit 1\n")
    words = ("--slurm", "2", "--slurm-set", "time=9", "--slurm-set", "partition=nine")
    answer = typed(tmp_path, *GRID, *words)
    assert answer.status == 2
    assert "Slurm must take the jobs, it did not" in answer.err
    assert "invalid partition" in answer.err


LOCAL = ("--slurm-set", "cluster=local", "--slurm-set", "time=5")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--slurm", "2", "--slurm-set", "time=5"), "must be typed where Slurm is"),
        (("--slurm", "0"), "--slurm must be at least 1, got 0"),
        (("--slurm", "7", *LOCAL), "--slurm must be at most 6, the runs, got 7"),
        (("--slurm", "2", "--shard", "1/2"), "--slurm must stand without --shard"),
        (("--slurm-set", "time=5"), "--slurm-set must stand with --slurm"),
        (("--slurm", "2", *LOCAL[:2]), "--slurm-set time must be the minutes .* got None"),
        (("--slurm", "2", *LOCAL, "--slurm-set", "time=1:00"), "minutes .* got '1:00'"),
        (("--slurm", "2", *LOCAL, "--slurm-set", "cluster=moon"), "slurm, local, got 'moon'"),
        (("--slurm", "2", *LOCAL, "--slurm-set", "nodes=2"), "nodes must be left out: a share"),
        (("--slurm", "2", *LOCAL, "--slurm-set", "partion=a"), "Unknown argument 'partion'"),
        (("--slurm", "2", *LOCAL, "--slurm-set", "mem_gb=much"), '"mem_gb" expected type'),
        (("--slurm", "2", *LOCAL, "--device", "auto"), "--device auto must be named with --slurm"),
        (("--slurm", "2", *LOCAL, "--set", "momentum=0.9"), "option of adam must be one of"),
    ],
)
def test_refuses_what_cannot_be_submitted(tmp_path, monkeypatch, words, message):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_refused(typed(tmp_path, *GRID, *words), 2, message)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_submitit_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    answer = typed(tmp_path, *GRID, "--slurm", "2", *LOCAL)
    assert_refused(answer, 2, r"pip install 'hessian-lab\[slurm\]'")
