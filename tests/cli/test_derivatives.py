"""``derivatives``: what it prints, writes and refuses."""

import re

import numpy as np
import pytest

from hessian_lab.cli.derivatives import JOB
from hessian_lab.training.run import RESULTS
from tests.cli.terminal import TINY, assert_refused, contents, typed


def test_json_is_one_object_with_the_errors(run):
    answer = typed(run.parent, "derivatives", "--run", "run", "--json")
    assert answer.status == 0, answer.err
    assert answer.out.count("\n") == 1
    found = answer.json
    assert (found["command"], found["run"], found["step"]) == ("derivatives", "run", 3)
    assert found["shape"] == [6, 6]
    with np.load(run / "derivatives.npz") as arrays:
        error = arrays["values"] - arrays["target_values"]
        slope = (arrays["gradient"] - arrays["target_gradient"])[1:-1, 1:-1]
    assert found["errors"]["values"]["error"] == pytest.approx(np.sqrt((error**2).mean()))
    assert found["errors"]["gradient"]["error"] == pytest.approx(np.sqrt((slope**2).mean()))


def test_it_trains_first_and_not_again(tmp_path):
    first = typed(tmp_path, "derivatives", *TINY)
    assert first.status == 0, first.err
    (directory,) = (tmp_path / "runs").iterdir()
    before = contents(directory)
    assert typed(tmp_path, "derivatives", *TINY).out == first.out
    assert contents(directory) == before
    assert first.out.splitlines()[-2:] == [
        str((directory / "figures" / f"derivatives.{ending}").relative_to(tmp_path))
        for ending in ("png", "pdf")
    ]
    assert typed(tmp_path, "train", *TINY, "--act", JOB["act"], "--out", directory).status == 0
    assert {"derivatives.npz", "figures/derivatives.png"} <= set(RESULTS)


def test_overwriting_clears_the_results(run):
    assert typed(run.parent, "derivatives", "--run", "run").status == 0
    assert typed(run.parent, "train", *TINY, "--out", "run", "--overwrite").status == 0
    assert not (run / "derivatives.npz").exists()
    assert not list((run / "figures").iterdir())


def test_people_get_a_table_that_fits_a_terminal(run):
    answer = typed(run.parent, "derivatives", "--run", "run", "--step", "2")
    assert answer.status == 0
    rows = re.findall(r"^ +(f|∇f|Δf) +(\S+) +(\S+) +(\S+) +(\S+)% +(\S+)$", answer.out, re.M)
    assert [row[0] for row in rows] == ["f", "∇f", "Δf"]
    for _, target, _, error, share, _ in rows:
        assert 100 * float(error) / float(target) == pytest.approx(float(share), rel=1e-2)
    assert "step 2: loss" in answer.out
    assert max(len(line) for line in answer.out.splitlines()) <= 100


@pytest.mark.parametrize("signal", ["sines", "chelsea"])
def test_lines_and_colours_are_measured(tmp_path, signal):
    words = ("--signal", signal, "--size", "8", "--width", "3", "--depth", "1", "--steps", "1")
    answer = typed(tmp_path, "derivatives", *words, "--json")
    assert answer.status == 0, answer.err
    assert answer.json["shape"] == ([8] if signal == "sines" else [8, 8])


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_quiet_is_silent(run, words):
    answer = typed(run.parent, "derivatives", "--run", "run", "--quiet", *words)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--step -1", "step must be at least 0, got -1"),
        ("--step x", "--step: must be a whole number, got 'x'"),
        ("--every 2", "'--every' is no argument of derivatives"),
        ("--act sien", "--act: must be one of .*Did you mean sine"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_done(tmp_path, words, message):
    assert_refused(typed(tmp_path, "derivatives", *TINY, *words.split()), 2, message)
    assert list(tmp_path.iterdir()) == []


def test_a_step_without_checkpoint_is_refused(run):
    answer = typed(run.parent, "derivatives", "--run", "run", "--step", "9", "--quiet")
    assert_refused(answer, 2, r"step must be a checkpoint \(0, 1, 2, 3\), got 9")


def test_run_stands_without_training_flags(run):
    answer = typed(run.parent, "derivatives", "--run", "run", "--width", "9")
    assert_refused(answer, 2, "--run must stand without --width")


def test_a_run_that_is_missing_is_an_input_error(tmp_path):
    answer = typed(tmp_path, "derivatives", "--run", "nowhere")
    assert_refused(answer, 4, "nowhere does not exist")


def test_a_checkpoint_that_is_not_finite_fails_its_check(run):
    rows = np.load(run / "trajectory.npy")
    rows[-1] = np.nan
    np.save(run / "trajectory.npy", rows)
    answer = typed(run.parent, "derivatives", "--run", "run", "--json")
    assert answer.status == 3
    assert "check failed: step 3: gradient of the field are not finite" in answer.err
    assert answer.json["errors"]["gradient"]["field"] is None
    assert answer.json["errors"]["gradient"]["target"] > 0


@pytest.mark.parametrize("signal", ["terrain", "torus-nerf"])
def test_what_fills_no_grid_is_refused_before_it_is_trained(tmp_path, signal):
    told = typed(tmp_path, "derivatives", "--signal", signal)
    assert_refused(told, 2, f"signal must fill a grid .* the points of {signal} do not")
    assert not (tmp_path / "runs").exists()
