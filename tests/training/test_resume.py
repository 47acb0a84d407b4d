import os
import random
import signal as signals
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hessian_lab.errors import UsageError
from hessian_lab.signal import Signal
from hessian_lab.training import loop
from hessian_lab.training.files import locked
from hessian_lab.training.loop import train
from hessian_lab.training.run import load_run
from hessian_lab.training.setup import Setup

CASES = {
    "lbfgs": Setup(act="sine", size=12, width=12, depth=3, steps=400),
    "adam": Setup(
        act="relu_pe",
        size=12,
        width=8,
        depth=2,
        optimizer="adam",
        lr_final=1e-5,
        batch_size=50,
        steps=1200,
        checkpoint_every=3,
    ),
}
# What a resumed run may differ in: how long it took.
TIMELESS = ["step", "evaluations", "step_length", "loss", "psnr", "grad_norm"]


def start(setup, out):
    """Train in a process of its own."""
    code = (
        "from hessian_lab.training.loop import train\n"
        "from hessian_lab.training.setup import Setup\n"
        f"train({setup!r}, out={str(out)!r})\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def assert_same_run(path, reference):
    run = load_run(path)
    assert np.array_equal(run.trajectory, reference.trajectory)
    assert run.metrics[TIMELESS].equals(reference.metrics[TIMELESS])
    assert run.metrics["wall_s"].is_monotonic_increasing
    state, expected = (torch.load(one.path / "resume.pt") for one in (run, reference))
    assert torch.equal(state["parameters"], expected["parameters"])


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_with_the_trajectory_it_would_have_had(name, tmp_path):
    setup = CASES[name]
    reference = train(setup, out=tmp_path / "whole")
    chance = random.Random(name)
    killed, positions = 0, []
    for _ in range(2):
        process = start(setup, tmp_path / "killed")
        seen = positions[-1] if positions else -1
        while process.poll() is None and position(tmp_path / "killed") <= seen:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.2))
        process.send_signal(signals.SIGKILL)
        process.wait()
        process.stderr.close()
        killed += process.returncode == -signals.SIGKILL
        positions.append(position(tmp_path / "killed"))
    assert killed >= 1
    assert positions == sorted(positions)

    train(setup, out=tmp_path / "killed")
    assert_same_run(tmp_path / "killed", reference)


def position(path):
    """Return the step that a killed run would continue from, or -1."""
    try:
        return torch.load(path / "resume.pt")["step"]
    except FileNotFoundError:
        return -1


@pytest.mark.parametrize("stop", [0, 1, 7, 19])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam", "sgd"])
def test_continuing_from_any_save_changes_no_bit(optimizer, stop, tmp_path, monkeypatch):
    setup = Setup(size=6, width=4, depth=2, optimizer=optimizer, steps=20, batch_size=10)
    if optimizer == "lbfgs":
        setup = Setup(size=6, width=4, depth=2, steps=20)
    reference = train(setup, out=tmp_path / "whole")

    class Stop(Exception):
        pass

    def watch(row):
        if row["step"] == stop:
            raise Stop

    monkeypatch.setattr(loop, "SAVING_SHARE", float("inf"))
    with pytest.raises(Stop):
        train(setup, out=tmp_path / "stopped", watch=watch)
    assert position(tmp_path / "stopped") == stop
    assert load_run(tmp_path / "stopped").record["status"] == "interrupted"
    assert not load_run(tmp_path / "stopped").complete
    train(setup, out=tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", reference)


def test_a_row_is_on_the_disk_when_its_checkpoint_is_told(tmp_path):
    told = []

    def watch(_row):
        told.append(np.load(tmp_path / "trajectory.npy")[len(told)])

    run = train(Setup(size=6, width=4, depth=1, steps=3), out=tmp_path, watch=watch)
    assert np.array_equal(np.stack(told), run.trajectory)


@pytest.fixture
def interruptible():
    """Answer Ctrl-C as Python does, also where the shell has it ignored."""
    former = signals.signal(signals.SIGINT, signals.default_int_handler)
    yield
    signals.signal(signals.SIGINT, former)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_in_the_last_step_is_heard_and_nothing_is_lost(tmp_path):
    setup = Setup(size=6, width=4, depth=1, steps=3)

    def watch(row):
        if row["step"] == 3:
            os.kill(os.getpid(), signals.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(setup, out=tmp_path, watch=watch)
    assert load_run(tmp_path).complete


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_saves_the_step_it_came_in(tmp_path):
    setup = Setup(size=6, width=4, depth=1, optimizer="sgd", steps=50, checkpoint_every=10)

    def watch(row):
        if row["step"] == 20:
            os.kill(os.getpid(), signals.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(setup, out=tmp_path / "run", watch=watch)
    assert position(tmp_path / "run") == 20
    assert load_run(tmp_path / "run").steps == [0, 10, 20]
    assert signals.getsignal(signals.SIGINT) is signals.default_int_handler


def test_a_complete_run_is_not_trained_again(tmp_path):
    setup = Setup(size=6, width=4, depth=1, steps=3)
    train(setup, out=tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("[a-z]*")}
    calls = []
    run = train(setup, out=tmp_path / "run", watch=calls.append)
    assert run.complete
    assert not calls
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_overwrite_starts_anew_and_leaves_foreign_files(tmp_path):
    train(Setup(size=6, width=4, depth=1, steps=3), out=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "spectrum.csv").write_text("old")
    run = train(Setup(size=6, width=5, depth=1, steps=2), out=tmp_path, overwrite=True)
    assert run.steps == [0, 1, 2]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "spectrum.csv").exists()


def test_overwriting_killed_before_any_deletion_can_be_typed_again(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    setup, other = (Setup(size=6, width=width, depth=1, steps=2) for width in (4, 5))
    unlink = Path.unlink
    for place in range(6):
        out = tmp_path / str(place)
        train(setup, out=out)
        for name in ("eigenvalues.npy", "eigs.json"):
            (out / name).write_text("old")
        calls = []

        def killed(path, missing_ok=False, place=place, calls=calls):
            calls.append(path)
            if len(calls) > place:
                raise Killed
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", killed)
        with pytest.raises(Killed):
            train(other, out=out, overwrite=True)
        monkeypatch.setattr(Path, "unlink", unlink)
        run = train(other, out=out, overwrite=True)
        assert run.complete
        assert not (out / "eigs.json").exists()


def test_an_empty_trajectory_is_allocated_anew(tmp_path):
    setup = Setup(size=6, width=4, depth=1, steps=2)
    train(setup, out=tmp_path)
    (tmp_path / "resume.pt").unlink()
    (tmp_path / "trajectory.npy").write_bytes(b"")
    assert train(setup, out=tmp_path).complete


def test_a_writer_on_another_machine_that_shares_the_directory_is_named(tmp_path, monkeypatch):
    setup = Setup(size=6, width=4, depth=1, steps=2)
    with monkeypatch.context() as there:
        there.setattr("platform.node", lambda: "node7")
        lock = locked(tmp_path)
        lock.__enter__()
    try:
        with pytest.raises(UsageError, match=r"in use, .* \(pid \d+ on node7\)"):
            train(setup, out=tmp_path)
    finally:
        lock.__exit__(None, None, None)


def test_options_that_are_tuples_continue(tmp_path):
    options = {"betas": (0.8, 0.99)}
    setup = Setup(size=6, width=4, depth=1, steps=2, optimizer="adam", options=options)
    first = train(setup, out=tmp_path)
    assert train(setup, out=tmp_path).setup == first.setup == load_run(tmp_path).setup


def test_losses_and_modules_with_other_options_are_other_runs(tmp_path):
    coords = torch.linspace(-1, 1, 9, dtype=torch.float64).unsqueeze(1)
    signal = Signal(coords, coords**2)
    setup = Setup(steps=2)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(1, 3), nn.GELU(), nn.Linear(3, 1)).double()
    train(setup, out=tmp_path, model=module, signal=signal, loss=nn.HuberLoss(delta=0.01))
    with pytest.raises(UsageError, match="differs in loss"):
        train(setup, out=tmp_path, model=module, signal=signal, loss=nn.HuberLoss(delta=10))
    module[1] = nn.Tanh()
    with pytest.raises(UsageError, match="differs in architecture"):
        train(setup, out=tmp_path, model=module, signal=signal, loss=nn.HuberLoss(delta=0.01))


def test_a_different_setup_is_refused_with_its_differences(tmp_path):
    train(Setup(size=6, width=4, depth=1, steps=3), out=tmp_path)
    with pytest.raises(UsageError, match=r"seed: 0 there, 1 asked; width: 4 there, 5 asked\. "):
        train(Setup(size=6, width=5, depth=1, steps=3, seed=1), out=tmp_path)


def test_two_ways_of_asking_for_one_run_are_one_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = train(Setup(act="relu", size=6, width=4, depth=1, steps=2))
    same = Setup(act="relu", omega=3.0, size=6, width=4, depth=1, steps=2, lr=1.0, init="kaiming")
    assert train(same).path == one.path
    assert train(Setup(act="relu", size=6, width=4, depth=1, steps=2, seed=1)).path != one.path


def test_the_lock_refuses_a_second_writer_and_goes_with_the_first(tmp_path):
    setup = Setup(size=6, width=4, depth=1, steps=2)
    with (
        locked(tmp_path),
        pytest.raises(UsageError, match=r"out must not be in use, .* \(pid \d+\)"),
    ):
        train(setup, out=tmp_path)
    assert train(setup, out=tmp_path).complete
