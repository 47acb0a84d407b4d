"""``cond``: what it prints, writes, refuses and leaves alone."""

import math
import re
import sys

import numpy as np
import pytest

from hessian_lab import load_run
from tests.cli.terminal import TINY, TRAINED, assert_continues, assert_refused, contents, typed
from tests.reference import autograd_hessian

NAMES = ("identity", "equilibrated", "jacobi")
# A job of 33 parameters whose Hessians double precision resolves.
SMALL = ("--width", "4", "--size", "9", "--steps", "3", "--act", "sine", "--omega", "9")


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr("hessian_lab.cli.cond._draw", lambda _result: [])


def exact(directory, step, name):
    """Return κ by autograd and numpy, by nothing of ours."""
    run = load_run(directory)
    matrix = autograd_hessian(run.model(step), run.loss, run.signal()).numpy()
    scale = {
        "identity": np.ones(len(matrix)),
        "equilibrated": np.linalg.norm(matrix, axis=1),
        "jacobi": abs(np.diag(matrix)),
    }[name]
    root = 1 / np.sqrt(scale)
    values = abs(np.linalg.eigvalsh(root[:, None] * matrix * root))
    return values.max() / values.min()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("precision", ["double", "extended"])
def test_condition_numbers_are_those_of_autograd(tmp_path, precision):
    words = (*SMALL, "--precision", precision, "--every", "2", "--json")
    answer = typed(tmp_path, "cond", *words)
    assert answer.status == 0, answer.err
    assert answer.out.count("\n") == 1
    assert [one["step"] for one in answer.json["spectra"]] == [0, 2, 3]
    resolved = 0
    for one in answer.json["spectra"]:
        for name in NAMES:
            found, kappa = (
                one["scaled"][name],
                exact(tmp_path / answer.json["run"], one["step"], name),
            )
            if found["resolved"]:
                resolved += 1
                assert found["kappa"] == pytest.approx(kappa, rel=1e-2)
                if precision == "extended":
                    proven = one["exact"][name]
                    assert proven["lower"] <= proven["upper"]
                    assert proven["upper"] == pytest.approx(math.log10(kappa), abs=0.01)
        assert bool(one["exact"]) == (precision == "extended")
    assert resolved


@pytest.mark.usefixtures("undrawn")
def test_without_flags_it_is_the_papers_experiment(tmp_path):
    found = typed(tmp_path, "cond", "--steps", "1", "--json").json
    chosen = ("signal", "act", "width", "depth", "size", "sigma", "recipe", "optimizer", "lr")
    assert [found["setup"][name] for name in chosen] == [
        *("sines", "gaussian", 16, 2, 256, 0.1, "psgd-condition-pn", "psgd", 0.2)
    ]
    assert found["num_parameters"] == 321
    # 46 to 148 eigenvalues lie below the floor of double precision.
    whole = found["spectra"][0]["scaled"]["identity"]
    assert not whole["resolved"]
    assert 20 < whole["num_below"] < 160


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("words", "name", "rate"),
    [(("--optimizer", "adam"), "adam", 1e-3), (("--recipe", "esgd-max-pn"), "esgd_max", 0.15)],
)
def test_another_optimizer_comes_at_its_own_rate(tmp_path, words, name, rate):
    setup = typed(tmp_path, "cond", *SMALL, *words, "--json").json["setup"]
    assert (setup["optimizer"], setup["act"], setup["lr"]) == (name, "sine", rate)


def test_people_get_a_table_that_fits_a_terminal_and_a_picture(tmp_path):
    words = ("--width", "4", "--size", "20", "--steps", "4", "--estimated", "3")
    answer = typed(tmp_path, "cond", *words, "--precision", "extended", "--out", "run", "--layers")
    assert answer.status == 0, answer.err
    assert re.search(
        r"^ step +loss  SNR dB +scaled by +κ +eff\. +eff10 below unscaled$", answer.out, re.M
    )
    bounds = re.findall(r"^.* (H|D\^E|D\^J) +≥ (\S+) ", answer.out, re.M)
    assert bounds
    assert "D^J, est." in answer.out
    rows = re.findall(r"^ +(\d) +(\d+\.\d{4}) +(\d+\.\d{4}) +(\d+\.\d{4})$", answer.out, re.M)
    assert [row[0] for row in rows] == ["0", "2", "4"]
    assert "layers.1 at step 4:" in answer.out
    width = max(len(line) for line in answer.out.splitlines() if not line.startswith("gaussian"))
    assert width <= 80
    drawn = tmp_path / "run" / "figures" / "conditioning-extended.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert answer.out.rstrip().endswith("run/figures/conditioning-extended.pdf")


@pytest.mark.usefixtures("undrawn")
def test_it_trains_first_and_not_again(tmp_path):
    first = typed(tmp_path, "cond", *TINY, "--act", "relu_pe", "--json")
    assert first.status == 0, first.err
    directory = tmp_path / first.json["run"]
    before = contents(directory)
    assert typed(tmp_path, "cond", *TINY, "--act", "relu_pe", "--json").json == first.json
    assert contents(directory) == before
    assert {path.name for path in directory.iterdir()} == {*TRAINED, "cond.json", ".lock"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("words", [(), ("--json",)])
def test_quiet_is_silent(run, words):
    answer = typed(run.parent, "cond", "--run", "run", "--quiet", *words)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out


@pytest.mark.usefixtures("undrawn")
def test_measuring_twice_computes_nothing(run, monkeypatch):
    words = ("cond", "--run", "run", "--layers", "--json")
    first = typed(run.parent, *words)
    monkeypatch.setattr("hessian_lab.measures.conditioning._measure", None)
    assert typed(run.parent, *words).json == first.json


def test_an_interrupted_measurement_says_so_and_continues_to_the_same_bytes(tmp_path):
    training = ("--optimizer", "sgd", "--lr", "1e-3", "--steps", "200", "--signal", "sines")
    field = ("--act", "sine", "--width", "6", "--depth", "2", "--out", "run")
    assert typed(tmp_path, "train", *training, *field).status == 0
    words = ("cond", "--run", "run", "--quiet")
    assert_continues(tmp_path, words, "cond.json", whole=201)


def test_the_optimizers_own_preconditioner_is_a_row_of_its_own(tmp_path):
    words = ("cond", *SMALL, "--optimizer", "adam", "--lr", "0.01", "--preconditioned", "--out")
    told = typed(tmp_path, *words, "run", "--quiet")
    assert told.status == 0
    assert "P: the preconditioner of adam there, training once more" in told.out
    assert told.out.count("  P  ") == 3
    assert (tmp_path / "run/figures/conditioning-preconditioned.png").exists()
    found = typed(tmp_path, "cond", "--run", "run", "--preconditioned", "--json").json
    assert found["preconditioned"]
    assert all("optimizer" in one["scaled"] for one in found["spectra"])


def test_overwriting_clears_the_results(run):
    for words in ((), ("--matrix", "ggn"), ("--layers",), ("--matrix", "ggn", "--layers")):
        assert typed(run.parent, "cond", "--run", "run", *words, "--every", "9").status == 0
    assert len(list(run.glob("cond*.json"))) == 4
    assert len(list((run / "figures").iterdir())) == 4
    assert typed(run.parent, "train", *TINY, "--out", "run", "--overwrite").status == 0
    assert not list(run.glob("cond*.json"))
    assert not list((run / "figures").iterdir())


# Words and failures.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--precision quadruple", "--precision: must be one of double, extended, got 'quadruple'"),
        ("--precision extendd", r"Did you mean extended\?"),
        ("--estimated 1", "estimated must be at least 2 for an error bar, got 1"),
        ("--estimated -2", "estimated must be at least 2"),
        ("--estimated x", "--estimated: must be a whole number, got 'x'"),
        ("--probe-seed -1", r"probe-seed must be in \[0, "),
        ("--every 0", "every must be at least 1, got 0"),
        ("--matrix fisher", "--matrix: must be one of hessian, ggn, got 'fisher'"),
        ("--precission double", r"Did you mean --precision\?"),
        ("--precision extended --width 40", "takes at most 500 parameters, got 1761"),
        ("--precision extended --act sinc", "takes the activations sine, .*got sinc"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_done(tmp_path, words, message):
    assert_refused(typed(tmp_path, "cond", *words.split()), 2, message)
    assert list(tmp_path.iterdir()) == []


def test_extended_precision_names_its_extra_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flint", None)
    for name in ("enclosures", "extended"):
        monkeypatch.delitem(sys.modules, f"hessian_lab.probe.{name}", raising=False)
    answer = typed(tmp_path, "cond", *SMALL, "--precision", "extended")
    assert_refused(answer, 2, r"need python-flint: pip install 'hessian-lab\[exact\]', or use")
    assert list(tmp_path.iterdir()) == []


def test_a_field_that_does_not_fit_is_refused_before_it_is_trained(tmp_path):
    answer = typed(tmp_path, "cond", "--width", "3000")
    assert_refused(answer, 1, "copies for the condition numbers must fit in memory")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("undrawn")
def test_a_seed_without_estimates_is_told(run):
    answer = typed(run.parent, "cond", "--run", "run", "--probe-seed", "3")
    assert answer.status == 0
    assert "--probe-seed has no effect without --estimated" in answer.err


def test_a_missing_run_is_refused(tmp_path):
    assert_refused(typed(tmp_path, "cond", "--run", "nowhere"), 4, "nowhere")


def test_a_checkpoint_that_is_not_finite_fails_its_check(run):
    rows = np.load(run / "trajectory.npy")
    rows[-1] = np.nan
    np.save(run / "trajectory.npy", rows)
    answer = typed(run.parent, "cond", "--run", "run", "--json")
    assert answer.status == 3, answer.err
    assert "check failed: step 3: the matrix is not finite" in answer.err
    assert answer.json["spectra"][-1]["scaled"]["identity"]["kappa"] is None
    assert (run / "figures" / "conditioning.png").exists()
