"""``trace``: what it prints, writes, refuses and leaves alone."""

import re
import shutil

import numpy as np
import pytest
import torch

from hessian_lab import load_run
from tests.cli.terminal import (
    FIELD,
    TINY,
    TRAINED,
    assert_continues,
    assert_refused,
    contents,
    typed,
)
from tests.reference import autograd_hessian

METHODS = ("hutchinson", "hutch++", "xtrace", "exact")
ESTIMATORS = METHODS[:3]
LONG = (*FIELD, "--steps", "150", "--optimizer", "adam", "--checkpoint-every", "1")


def exact(directory):
    """Return the trace at every second checkpoint, by nothing of ours, and of the two layers."""
    run = load_run(directory)
    for step in (0, 2, 3):
        diagonal = autograd_hessian(run.model(step), run.loss, run.signal()).diagonal()
        yield float(diagonal.sum()), [float(part.sum()) for part in diagonal.split([33, 4])]


@pytest.mark.parametrize("method", METHODS)
def test_traces_are_those_of_autograd_within_their_intervals(run, method):
    words = ("--method", method, "--products", "37", "--layers", "--every", "2", "--json")
    answer = typed(run.parent, "trace", "--run", "run", *words)
    assert answer.status == 0, answer.err
    assert answer.out.count("\n") == 1
    for one, (whole, parts) in zip(answer.json["spectra"], exact(run), strict=True):
        assert one["trace"]["mean"] == pytest.approx(whole, rel=1e-12)
        assert one["trace"]["low"] <= one["trace"]["mean"] <= one["trace"]["high"]
        assert list(one["layers"]) == ["layers.0", "layers.1"]
        for value, part in zip(one["layers"].values(), parts, strict=True):
            assert value["mean"] == pytest.approx(part, rel=1e-10)


@pytest.mark.parametrize("method", ESTIMATORS)
def test_fewer_products_make_an_interval_that_holds_the_trace(run, method):
    words = ("--method", method, "--products", "20", "--every", "2", "--json")
    answer = typed(run.parent, "trace", "--run", "run", *words)
    inside = [
        one["trace"]["low"] <= whole <= one["trace"]["high"]
        for one, (whole, _) in zip(answer.json["spectra"], exact(run), strict=True)
    ]
    assert inside == [True] * 3
    assert all(one["trace"]["standard_error"] > 0 for one in answer.json["spectra"])


def test_json_says_what_was_asked(run):
    words = ("--matrix", "ggn", "--products", "9", "--probe-seed", "4", "--every", "2")
    found = typed(run.parent, "trace", "--run", "run", *words, "--json").json
    assert (found["command"], found["run"], found["num_parameters"]) == ("trace", "run", 37)
    assert (found["matrix"], found["method"]) == ("ggn", "hutchinson")
    assert (found["num_products"], found["seed"], found["level"]) == (9, 4, 0.95)
    assert [one["step"] for one in found["spectra"]] == [0, 2, 3]


def test_it_trains_first_and_not_again(tmp_path):
    first = typed(tmp_path, "trace", *TINY, "--json")
    assert first.status == 0, first.err
    directory = tmp_path / first.json["run"]
    before = contents(directory)
    assert typed(tmp_path, "trace", *TINY, "--json").json == first.json
    assert contents(directory) == before
    assert {path.name for path in directory.iterdir()} == {*TRAINED, "trace.json", ".lock"}


def test_people_get_a_table_that_fits_a_terminal(run):
    words = ("--matrix", "ggn", "--layers", "--method", "xtrace")
    answer = typed(run.parent, "trace", "--run", "run", *words)
    assert answer.status == 0
    assert re.search(r"^ +step +loss +PSNR dB +trace +std\. error +95% interval$", answer.out, re.M)
    rows = re.findall(r"^ +(\d) .* (\S+) +\S+  \[(\S+), (\S+)\]$", answer.out, re.M)
    assert [int(step) for step, *_ in rows] == [0, 2, 3]
    for _, mean, low, high in rows:
        assert float(low) < float(mean) < float(high)
    assert re.search(r"^ +layers\.1 ", answer.out, re.M)
    assert max(len(line) for line in answer.out.splitlines()) <= 80


@pytest.mark.parametrize("method", METHODS)
def test_a_table_shows_an_interval_around_its_trace(run, method):
    words = ("--method", method, "--products", "37", "--every", "9")
    answer = typed(run.parent, "trace", "--run", "run", *words)
    rows = re.findall(r"^ +\d .* (\S+) +\S+  \[(\S+), (\S+)\]$", answer.out, re.M)
    assert len(rows) == 2
    for mean, low, high in rows:
        assert float(low) <= float(mean) <= float(high)


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_quiet_is_silent(run, words):
    answer = typed(run.parent, "trace", "--run", "run", "--quiet", *words)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out


def test_progress_is_plain_lines_where_stderr_is_no_terminal(run):
    answer = typed(run.parent, "trace", "--run", "run")
    pattern = r"hessian-lab: trace 4/4, loss \S+, psnr \S+, trace \S+\n"
    assert re.fullmatch(pattern, answer.err)


# What is there is not measured again.


def test_measuring_twice_computes_nothing(run, monkeypatch):
    words = ("trace", "--run", "run", "--layers", "--json")
    first = typed(run.parent, *words)
    monkeypatch.setattr("hessian_lab.measures.traces._measure", None)
    assert typed(run.parent, *words).json == first.json


@pytest.mark.parametrize("words", [("--products", "9"), ("--probe-seed", "1")])
def test_other_settings_are_measured_anew(run, words):
    first = typed(run.parent, "trace", "--run", "run", "--json").json
    other = typed(run.parent, "trace", "--run", "run", *words, "--json").json
    assert other["spectra"][0]["trace"]["mean"] != first["spectra"][0]["trace"]["mean"]
    assert typed(run.parent, "trace", "--run", "run", "--json").json == first


def test_an_interrupted_measurement_says_so_and_continues_to_the_same_bytes(tmp_path):
    assert typed(tmp_path, "train", *LONG, "--out", "run").status == 0
    words = ("trace", "--run", "run", "--products", "20", "--method", "hutch++", "--quiet")
    assert_continues(tmp_path, words, "trace.json", whole=151)


def test_overwriting_clears_the_results(run):
    for words in ((), ("--matrix", "ggn"), ("--layers",), ("--matrix", "ggn", "--layers")):
        assert typed(run.parent, "trace", "--run", "run", *words, "--every", "9").status == 0
    assert len(list(run.glob("trace*.json"))) == 4
    assert typed(run.parent, "train", *TINY, "--out", "run", "--overwrite").status == 0
    assert not list(run.glob("trace*.json"))


# Words and failures.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method hutch", "--method: must be one of hutchinson, .*Did you mean hutch\\+\\+\\?"),
        ("--method exakt", "--method: must be one of .*got 'exakt'. Did you mean exact\\?"),
        ("--matrix fisher", "--matrix: must be one of hessian, ggn, got 'fisher'"),
        ("--prodcuts 3", "'--prodcuts' is no argument of trace. Did you mean --products\\?"),
        ("--products x", "--products: must be a whole number, got 'x'"),
        ("--products 3", "products must be at least 4 for an error bar, got 3"),
        ("--products -5", "products must be at least 4"),
        ("--probe-seed -1", "probe-seed must be at least 0, got -1"),
        (f"--probe-seed {1 << 64}", "probe-seed must be at most"),
        ("--every 0", "every must be at least 1, got 0"),
        ("--act sien", "--act: must be one of .*Did you mean sine\\?"),
        ("--width 0", "width must be at least 1, got 0"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_done(tmp_path, words, message):
    assert_refused(typed(tmp_path, "trace", *TINY, *words.split()), 2, message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("--seed", "0"), ("--out", "there"), ("--overwrite",)])
def test_run_stands_without_training_flags(run, words):
    answer = typed(run.parent, "trace", "--run", "run", *words)
    assert_refused(answer, 2, f"--run must stand without {words[0]}")


@pytest.mark.parametrize("flag", ["products", "probe-seed"])
def test_flags_without_effect_are_told(run, flag):
    answer = typed(run.parent, "trace", "--run", "run", "--method", "exact", f"--{flag}", "7")
    assert answer.status == 0
    assert f"hessian-lab: --{flag} has no effect on method exact" in answer.err.splitlines()
    quiet = typed(run.parent, "trace", "--run", "run", f"--{flag}", "7")
    assert "no effect" not in quiet.err


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_that_is_not_finite_fails_its_check(run, method):
    rows = np.load(run / "trajectory.npy")
    rows[-1] = np.nan
    np.save(run / "trajectory.npy", rows)
    words = ("trace", "--run", "run", "--method", method, "--layers")
    answer = typed(run.parent, *words, "--json")
    assert answer.status == 3, answer.err
    assert "check failed: step 3: the trace is not finite" in answer.err
    assert answer.json["spectra"][-1]["trace"]["mean"] is None
    assert answer.json["spectra"][0]["trace"]["mean"] > 0
    assert typed(run.parent, *words).status == 3


def test_a_run_on_a_module_of_a_users_own_says_how_to_measure_it(tmp_path):
    from hessian_lab import Setup, Signal, train

    coords = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
    module = torch.nn.Linear(1, 1)
    setup = Setup(steps=1, optimizer="sgd")
    train(setup, out=tmp_path / "run", model=module, signal=Signal(coords, coords))
    for command in ("trace", "eigs"):
        answer = typed(tmp_path, command, "--run", "run", "--quiet")
        assert_refused(answer, 4, r"on a module of yours, Linear. Pass it: load_run\(path, model=…")


def test_a_moved_run_is_measured_the_same(run, monkeypatch):
    first = typed(run.parent, "trace", "--run", "run", "--json").json
    shutil.move(run, run.parent / "moved")
    monkeypatch.setattr("hessian_lab.measures.traces._measure", None)
    assert typed(run.parent, "trace", "--run", "moved", "--json").json == first | {"run": "moved"}
