"""``sparsity``: what it prints, writes, refuses and leaves alone."""

import re

import numpy as np
import pytest

from hessian_lab import Setup, load_run
from hessian_lab.cli.main import build
from hessian_lab.cli.sparsity import JOB
from hessian_lab.training.run import RESULTS
from tests.cli.terminal import FIELD, TINY, assert_continues, assert_refused, contents, typed
from tests.reference import autograd_hessian

OURS = ("--act", "relu", *TINY, "--optimizer", "adam")
LONG = (*OURS, "--steps", "75", "--checkpoint-every", "1")


@pytest.fixture
def drawn():
    """Draw the picture after all."""


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch, request):
    """Leave the picture away, which takes most of the time of a tiny measurement."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("hessian_lab.cli.sparsity._draw", lambda _result: [])


@pytest.fixture
def run_with_zeros(tmp_path):
    words = ("--size", "6", "--width", "8", "--depth", "2", "--optimizer", "adam", "--lr", "0.05")
    assert typed(tmp_path, "train", "--act", "relu", *words, "--steps", "3", "--out", "run").out
    return tmp_path / "run"


def test_shares_are_those_of_autograd(run_with_zeros):
    run = run_with_zeros
    answer = typed(run.parent, "sparsity", "--run", "run", "--every", "2", "--dense", "--json")
    assert answer.status == 0, answer.err
    assert answer.out.count("\n") == 1
    trained = load_run(run)
    for one in answer.json["spectra"]:
        dense = autograd_hessian(trained.model(one["step"]), trained.loss, trained.signal())
        rows = (dense == 0).all(dim=1).double()
        assert one["whole"]["zero"]["mean"] == pytest.approx(float(rows.mean()))
        assert one["layers"]["layers.0"]["zero"]["mean"] == pytest.approx(float(rows[:24].mean()))
        weight = one["layer_weights"]["layers.0.weight"]
        assert weight["zero"]["mean"] == pytest.approx(float(rows[:16].mean()))
        whole = one["dense"]["whole"]
        assert whole["zero"] == pytest.approx(float((dense == 0).double().mean()), abs=1e-3)
    assert 0 < answer.json["spectra"][-1]["whole"]["zero"]["mean"] < 1


def test_json_says_what_was_asked(run):
    words = ("--probes", "3", "--probe-seed", "4", "--rtol", "1e-5,0.1", "--batch-size", "9")
    found = typed(run.parent, "sparsity", "--run", "run", *words, "--json").json
    assert (found["command"], found["run"], found["num_parameters"]) == ("sparsity", "run", 37)
    assert (found["num_probes"], found["seed"], found["batch_size"]) == (3, 4, 9)
    assert (found["rtols"], found["dense"]) == ([1e-5, 0.1], False)
    assert len(found["spectra"][0]["whole"]["within"]) == 2


def test_the_job_without_flags_is_that_of_the_papers():
    setup = Setup(**JOB).resolved()
    # Five linear maps of 256, a 256×256 image in batches of 512, ESGD as their code runs it.
    assert (setup.depth + 1, setup.width, setup.size, setup.batch_size) == (5, 256, 256, 512)
    assert (setup.optimizer, setup.lr, setup.dtype) == ("esgd", 0.1, "float32")
    assert setup.options["update_every"] == 100
    parser, commands = build()
    args = parser.parse_args(["sparsity"])
    assert args.job == JOB
    help_text = " ".join(commands["sparsity"].format_help().split())
    assert "units per hidden layer (here 256)" in help_text
    assert "points per step (all) (here 512)" in help_text


def test_flags_change_the_job_one_by_one(tmp_path):
    found = typed(tmp_path, "sparsity", *TINY, "--json").json["setup"]
    assert (found["width"], found["steps"], found["size"]) == (3, 3, 6)
    assert (found["optimizer"], found["lr"], found["act"]) == ("esgd", 0.1, "relu_pe")
    assert (found["batch_size"], found["dtype"]) == (512, "float32")
    words = (*TINY, "--optimizer", "adam", "--lr", "0.01", "--dtype", "float64")
    found = typed(tmp_path, "sparsity", *words, "--json").json["setup"]
    assert (found["optimizer"], found["lr"], found["recipe"]) == ("adam", 0.01, None)
    assert found["dtype"] == "float64"


@pytest.mark.usefixtures("drawn")
def test_it_trains_first_and_not_again(tmp_path):
    first = typed(tmp_path, "sparsity", *OURS)
    assert first.status == 0, first.err
    (directory,) = (tmp_path / "runs").iterdir()
    before = contents(directory)
    assert typed(tmp_path, "sparsity", *OURS).out == first.out
    assert contents(directory) == before
    pictures = [str(path.relative_to(tmp_path)) for path in (directory / "figures").iterdir()]
    assert first.out.splitlines()[-2:] == sorted(pictures, reverse=True)
    assert {"sparsity.json", "figures/sparsity.png"} <= set(RESULTS)


def test_people_get_a_table_that_fits_a_terminal(run_with_zeros):
    answer = typed(run_with_zeros.parent, "sparsity", "--run", "run", "--dense")
    assert answer.status == 0
    assert re.search(r"^ +step +loss +PSNR dB +H v = 0 +≤1e-7 +≤0.001 +g = 0$", answer.out, re.M)
    rows = re.findall(r"^ +(\d) \S+ +\S+ +(\S+)% \((\S+)% … (\S+)%\)", answer.out, re.M)
    assert [int(step) for step, *_ in rows] == [0, 2, 3]
    for _, mean, low, high in rows:
        assert 0 < float(low) <= float(mean) <= float(high) < 100
    assert re.search(r"^ *layers\.1\.weight ", answer.out, re.M)
    assert "P(g = 0 | H v = 0)  100.0%" in answer.out
    assert "entries of H itself at step 3:" in answer.out
    assert max(len(line) for line in answer.out.splitlines()[1:]) <= 80


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_quiet_is_silent(run, words):
    answer = typed(run.parent, "sparsity", "--run", "run", "--quiet", *words)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out


def test_measuring_twice_computes_nothing(run, monkeypatch):
    words = ("sparsity", "--run", "run", "--json")
    first = typed(run.parent, *words)
    monkeypatch.setattr("hessian_lab.measures.sparsity._measure", None)
    assert typed(run.parent, *words).json == first.json


def test_an_interrupted_measurement_continues_to_the_same_bytes(tmp_path):
    assert typed(tmp_path, "train", *LONG, "--out", "run").status == 0
    words = ("sparsity", "--run", "run", "--probes", "64", "--quiet")
    assert_continues(tmp_path, words, "sparsity.json", whole=76)


@pytest.mark.parametrize("words", [("--seed", "0"), ("--out", "there")])
def test_run_stands_without_training_flags(run, words):
    answer = typed(run.parent, "sparsity", "--run", "run", *words)
    assert_refused(answer, 2, f"--run must stand without {words[0]}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--probes 0", "probes must be at least 1, got 0"),
        ("--probe-seed -1", "probe-seed must be in"),
        ("--rtol x", "--rtol: must be a number or several with commas, got 'x'"),
        ("--rtol 0", r"rtol must be in \(0, 1\), got 0"),
        ("--rtol 1e-3,2", r"rtol must be in \(0, 1\), got 2"),
        ("--batch-size 0", "batch_size must be at least 1, got 0"),
        ("--every 0", "every must be at least 1, got 0"),
        ("--layers", "'--layers' is no argument of sparsity"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_done(tmp_path, words, message):
    assert_refused(typed(tmp_path, "sparsity", *OURS, *words.split()), 2, message)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_size_of_the_measurement_is_checked(run):
    answer = typed(run.parent, "sparsity", "--run", "run", "--batch-size", "0")
    assert_refused(answer, 2, "batch_size must be at least 1, got 0")


def test_a_dense_hessian_too_large_is_refused_before_training(tmp_path):
    answer = typed(tmp_path, "sparsity", *FIELD, "--width", "4000", "--depth", "3", "--dense")
    assert_refused(answer, 1, "The dense Hessian of .* must fit in memory")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_missing_is_an_input_error(tmp_path):
    answer = typed(tmp_path, "sparsity", "--run", "nowhere")
    assert_refused(answer, 4, "run must be a run directory, nowhere does not exist")


@pytest.mark.usefixtures("drawn")
def test_a_checkpoint_that_is_not_finite_fails_its_check(run_with_zeros):
    run = run_with_zeros
    rows = np.load(run / "trajectory.npy")
    rows[-1] = np.nan
    np.save(run / "trajectory.npy", rows)
    answer = typed(run.parent, "sparsity", "--run", "run", "--json")
    assert answer.status == 3, answer.err
    assert "check failed: step 3: H v is not finite" in answer.err
    assert answer.json["spectra"][-1]["whole"]["zero"]["mean"] is None
    assert answer.json["spectra"][0]["whole"]["zero"]["mean"] > 0
    assert typed(run.parent, "sparsity", "--run", "run").status == 3
