import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from tests.cli.terminal import assert_refused, typed

GRID = ("sweep", "--signal", "sines", "--size", "12", "--act", "tanh", "--width", "3")
GRID += ("--depth", "1", "--steps", "4", "--optimizer", "adam,sgd", "--lr", "0.01:1:log3")


def test_a_sweep_tells_the_best_rates_and_goes_on(tmp_path):
    first = typed(tmp_path, *GRID, "--seed", "0:2", "--json")
    assert first.status == 0
    assert len(first.json["runs"]) == 12
    assert first.json["varied"] == ["optimizer", "lr", "seed"]
    assert {row["optimizer"] for row in first.json["best"]} == {"adam", "sgd"}
    assert first.err.count("done, loss") == 12
    table = pd.read_csv(tmp_path / "runs/sweep/sweep.csv")
    for row in first.json["best"]:
        same = table[(table["optimizer"] == row["optimizer"]) & (table["lr"] == row["lr"])]
        means = table[table["optimizer"] == row["optimizer"]].groupby("lr")["loss"].mean()
        assert row["loss"] == pytest.approx(same["loss"].mean())
        assert row["loss"] == pytest.approx(means.min())

    again = typed(tmp_path, *GRID, "--seed", "0:2", "--quiet")
    assert "12 runs: 12 done" in again.out
    assert again.err == ""
    for row in first.json["best"]:
        assert f"{row['loss']:.3e}" in again.out


def test_a_share_is_trained_alone(tmp_path):
    assert "6 runs: 3 done, 3 missing" in typed(tmp_path, *GRID, "--shard", "1/2", "-q").out
    assert "6 runs: 6 done" in typed(tmp_path, *GRID, "--shard", "2/2", "-q").out


def test_one_setting_is_a_sweep_too(tmp_path):
    answer = typed(tmp_path, "sweep", *GRID[1:13], "--optimizer", "sgd", "--seed", "0:2", "-q")
    assert answer.status == 0, answer.err
    assert "2 runs: 2 done" in answer.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shard", "3/2"), "shard must be i/k"),
        (("--jobs", "0"), "--jobs must be at least 1, got 0"),
        (("--optimizer", "adm"), "optimizer must be one of .* Did you mean adam?"),
        (("--lr", "1:2:log"), "over numbers such as"),
        (("--seed", "2:2"), "a range must hold a number"),
        (("--width", "0"), "width must be at least 1"),
    ],
)
def test_refuses_grids_that_there_are_not(tmp_path, words, message):
    assert_refused(typed(tmp_path, *GRID, *words), 2, f".*{message}.*")
    assert not (tmp_path / "runs").exists()


def test_an_option_that_an_optimizer_lacks_is_told(tmp_path):
    answer = typed(tmp_path, *GRID, "--set", "momentum=0.9", "-q")
    assert answer.status == 2
    assert "option of adam must be one of" in answer.err


def test_an_option_may_be_of_one_optimizer_alone(tmp_path):
    answer = typed(tmp_path, *GRID, "--set", "sgd.momentum=0.9", "--json", "-q")
    assert answer.status == 0, answer.err
    plain = typed(tmp_path, *GRID, "--json", "-q", "--out", "plain")
    pairs = zip(answer.json["runs"], plain.json["runs"], strict=True)
    changed = [given["loss"] != bare["loss"] for given, bare in pairs]
    assert changed == [row["optimizer"] == "sgd" for row in answer.json["runs"]]
    assert_refused(typed(tmp_path, *GRID, "--set", "adm.eps=1"), 2, ".*Did you mean adam.*")


def is_gone(group, patience=20.0):
    """Tell whether the processes of a group end within some seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
@pytest.mark.parametrize(
    ("ending", "status", "whole_group"),
    [(signal.SIGINT, 130, True), (signal.SIGKILL, -9, False), (signal.SIGTERM, -15, False)],
)
def test_a_sweep_that_is_ended_leaves_no_process_and_goes_on(tmp_path, ending, status, whole_group):
    words = ("sweep", "--signal", "camera", "--size", "24", "--act", "tanh", "--width", "8")
    words += ("--optimizer", "adam", "--seed", "0:8", "--jobs", "2", "--steps", "200")
    words += ("--checkpoint-every", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "hessian_lab", *words],
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("runs/sweep/*/resume.pt"))) < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if whole_group:
        os.killpg(process.pid, ending)
    else:
        process.send_signal(ending)
    _, err = process.communicate(timeout=120)
    assert process.returncode == status
    assert "Traceback" not in err
    assert is_gone(process.pid)
    # The last was not begun, even if the first was done when the second had only started.
    assert 2 <= len(list(tmp_path.glob("runs/sweep/*/run.json"))) < 8
    # The same command continues; processes of its own take seconds to start, so only once.
    alone = () if whole_group else ("--jobs", "1")
    again = typed(tmp_path, *words, *alone, "--json", "-q")
    assert again.status == 0, again.err
    assert [row["status"] for row in again.json["runs"]] == ["done"] * 8
    if whole_group:
        other = typed(tmp_path, *words, "--out", "whole", "--jobs", "1", "--json", "-q")
        losses = [[row["loss"] for row in each.json["runs"]] for each in (again, other)]
        assert losses[0] == losses[1]


def test_options_are_checked_before_anything_is_trained(tmp_path):
    answer = typed(tmp_path, *GRID, "--set", "sgd.momentum=much")
    assert_refused(answer, 2, ".*momentum of sgd must be a number, got 'much'.*")
    assert not (tmp_path / "runs").exists()


def test_a_run_is_no_place_for_a_sweep(tmp_path):
    typed(tmp_path, "train", "--size", "6", "--width", "3", "--steps", "2", "--out", "one", "-q")
    answer = typed(tmp_path, *GRID, "--out", "one")
    assert_refused(answer, 2, ".*out must not be a run itself, one is one.*")
