import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hessian_lab.cli.estimates import trace_table
from hessian_lab.errors import UsageError
from hessian_lab.losses import mse
from hessian_lab.measures import record, traces
from hessian_lab.measures.traces import METHODS, Settings, measure_traces
from hessian_lab.signal import Signal
from hessian_lab.training.files import finite, locked
from hessian_lab.training.loop import train
from hessian_lab.training.run import load_run
from hessian_lab.training.setup import Setup
from tests.measures.test_estimates import (
    MATRICES,
    autograd_ggn,
    blocks,
    counted,
    damaged,
    hundredfold,
    linear,
    strictly,
)
from tests.reference import autograd_hessian

# 61 parameters: more than the products, so that estimates are random.
FIELD = Setup(act="tanh", signal="sines", size=20, width=6, depth=2, steps=2)
ESTIMATORS = [name for name in METHODS if name != "exact"]
EPS = np.finfo(np.float64).eps


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    return train(FIELD, out=tmp_path_factory.mktemp("traces") / "run")


@pytest.fixture
def run(trained_once, tmp_path):
    return load_run(shutil.copytree(trained_once.path, tmp_path / "run"))


def reference(run, step, matrix="hessian"):
    """Return the matrix at a checkpoint in double precision, by nothing of ours."""
    model, signal = run.model(step).double(), run.signal().to(dtype=torch.float64)
    return autograd_ggn(model, signal) if matrix == "ggn" else autograd_hessian(model, mse, signal)


def measured_steps(monkeypatch):
    return counted(monkeypatch, traces)


# Against the diagonal of the dense matrix.


@pytest.mark.parametrize("matrix", MATRICES)
def test_the_exact_trace_is_that_of_autograd(run, matrix):
    result = measure_traces(run, Settings(matrix, "exact", layers=True))
    for one in result.measured:
        diagonal = reference(run, one.step, matrix).diagonal()
        rounding = 1e3 * EPS * float(diagonal.abs().sum())
        assert one.trace.mean == pytest.approx(float(diagonal.sum()), abs=rounding)
        assert one.trace.low < one.trace.mean < one.trace.high
        assert one.trace.high - one.trace.low < rounding
        parts = blocks(run, one.step, matrix)
        assert list(one.layers) == list(parts)
        for name, block in parts.items():
            exact = float(block.diagonal().sum())
            assert one.layers[name].mean == pytest.approx(exact, abs=rounding)
    assert not result.failures


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("method", ESTIMATORS)
def test_estimates_lie_within_their_errors(run, method, matrix):
    exact = float(reference(run, 2, matrix).diagonal().sum())
    scores, inside = [], []
    for seed in range(20):
        settings = Settings(matrix, method, num_products=20, seed=seed)
        value = measure_traces(run, settings, every=9).measured[-1].trace
        scores.append((value.mean - exact) / value.standard_error)
        inside.append(value.low <= exact <= value.high)
        assert value.low < value.mean < value.high
    # At 95 %, 15 or fewer of 20 happen once in 400 times; XTrace covers 93 %.
    assert sum(inside) >= 15
    assert abs(np.mean(scores)) < 4 * np.std(scores) / len(scores) ** 0.5


@pytest.mark.parametrize("method", ESTIMATORS)
def test_as_many_products_as_parameters_are_exact(run, method):
    result = measure_traces(run, Settings(method=method, num_products=61, layers=True))
    for one in result.measured:
        exact = float(reference(run, one.step).diagonal().sum())
        assert one.trace.standard_error == 0
        assert one.trace.mean == pytest.approx(exact, rel=1e-12)
        for name, block in blocks(run, one.step).items():
            exact = float(block.diagonal().sum())
            assert one.layers[name].low - 1e-15 <= exact <= one.layers[name].high + 1e-15


def test_wider_levels_make_wider_intervals(run):
    narrow, wide = (
        measure_traces(run, Settings(level=level), every=9).measured[-1].trace
        for level in (0.5, 0.99)
    )
    assert narrow.mean == wide.mean
    assert wide.low < narrow.low < narrow.high < wide.high


def test_single_precision_training_has_an_exact_trace_in_double(tmp_path):
    run = train(replace(FIELD, dtype="float32", steps=1), out=tmp_path / "run")
    exact = float(reference(run, 1).diagonal().sum())
    value = measure_traces(run, Settings(method="exact")).measured[-1].trace
    assert value.mean == pytest.approx(exact, rel=1e-12)
    value = measure_traces(run, Settings(num_products=61)).measured[-1].trace
    assert value.low <= exact <= value.high
    assert value.mean == pytest.approx(exact, rel=1e-5)


# JSON and files.


def test_json_says_what_was_asked_and_found(run):
    result = measure_traces(run, Settings("ggn", "xtrace", num_products=12, layers=True))
    found = result.to_json()
    assert found["command"] == "trace"
    assert found["num_parameters"] == 61
    chosen = ("matrix", "method", "num_products", "layers", "seed", "level")
    assert [found[name] for name in chosen] == ["ggn", "xtrace", 12, True, 0, 0.95]
    file = strictly(run.path / "trace-ggn-layers.json")
    assert file["spectra"] == finite(found)["spectra"]
    for one in file["spectra"]:
        assert one.keys() == {"step", "loss", "psnr", "snr", "loss_error", "trace", "layers"}
        assert one["trace"].keys() == {"mean", "standard_error", "low", "high"}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Settings(), "trace.json"),
        (Settings("ggn"), "trace-ggn.json"),
        (Settings(layers=True), "trace-layers.json"),
    ],
)
def test_files_are_named_after_what_was_measured(run, settings, name):
    before = {path.name for path in run.path.iterdir()}
    measure_traces(run, settings, every=9)
    assert {path.name for path in run.path.iterdir()} - before - {".lock"} == {name}


# What is there is not measured again.


@pytest.mark.parametrize("layers", [False, True])
def test_reading_back_gives_what_was_measured(run, monkeypatch, layers):
    settings = Settings(num_products=8, layers=layers)
    first = measure_traces(run, settings)
    steps = measured_steps(monkeypatch)
    second = measure_traces(load_run(run.path), settings)
    assert steps == []
    assert finite(second.to_json()) == finite(first.to_json())
    assert trace_table(second) == trace_table(first)


@pytest.mark.parametrize(
    "other", [{"num_products": 9}, {"seed": 1}, {"method": "xtrace"}, {"level": 0.9}]
)
def test_other_settings_are_measured_anew(run, monkeypatch, other):
    measure_traces(run, Settings(num_products=8))
    steps = measured_steps(monkeypatch)
    chosen = {"num_products": 8} | other
    assert measure_traces(run, Settings(**chosen)).settings == Settings(**chosen)
    assert steps == run.steps


def test_an_interrupted_measurement_continues(run, monkeypatch):
    monkeypatch.setattr(record, "SAVING_SHARE", float("inf"))

    def stop(one):
        if one.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_traces(run, watch=stop)
    steps = measured_steps(monkeypatch)
    result = measure_traces(run)
    assert steps == [2]
    (run.path / "trace.json").unlink()
    assert finite(measure_traces(run).to_json()) == finite(result.to_json())


def test_a_subset_grows_into_the_whole_and_is_kept(run, monkeypatch):
    measure_traces(run, every=2)
    steps = measured_steps(monkeypatch)
    measure_traces(run)
    assert [one.step for one in measure_traces(run, every=9).measured] == [0, 2]
    assert steps == [1]
    assert len(strictly(run.path / "trace.json")["spectra"]) == 3


def test_results_of_another_loss_are_not_taken_for_those_of_the_run(run):
    other = measure_traces(load_run(run.path, loss=hundredfold)).measured[-1].trace.mean
    ours = measure_traces(load_run(run.path)).measured[-1].trace.mean
    assert other == pytest.approx(100 * ours)


def test_two_processes_do_not_measure_into_one_directory(run):
    with locked(run.path), pytest.raises(UsageError, match="out must not be in use"):
        measure_traces(run)


# A user's own module, and matrices that are zero or not finite.


def make_own(path):
    generator = torch.Generator().manual_seed(0)
    coords = torch.rand(30, 2, dtype=torch.float64, generator=generator)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    signal = Signal(coords, torch.sin(3 * coords[:, :1]))
    train(Setup(steps=1, optimizer="adam"), out=path, model=module, signal=signal)
    return load_run(path, model=module)


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_module_of_a_users_own_is_measured(tmp_path, matrix):
    run = make_own(tmp_path / "run")
    last = measure_traces(run, Settings(matrix, num_products=17, layers=True)).measured[-1]
    dense = reference(run, last.step, matrix)
    assert last.trace.mean == pytest.approx(float(dense.diagonal().sum()))
    assert list(last.layers) == ["0", "2"]
    assert last.layers["2"].mean == pytest.approx(float(dense.diagonal()[12:].sum()))


def test_an_exact_trace_of_another_module_is_refused(tmp_path):
    run = make_own(tmp_path / "run")
    with pytest.raises(UsageError, match=r"exact needs a CoordinateMLP .*; use hutch\+\+"):
        measure_traces(run, Settings(method="exact"))
    assert not (run.path / "trace.json").exists()


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_matrix_has_trace_zero(tmp_path, method):
    setup = Setup(act="relu", depth=0, size=6, steps=1, optimizer="sgd")
    run = train(setup, out=tmp_path / "run", loss=linear)
    result = measure_traces(run, Settings(method=method, layers=True))
    for one in result.measured:
        for value in (one.trace, *one.layers.values()):
            assert (value.mean, value.standard_error, value.low, value.high) == (0, 0, 0, 0)
    assert not result.failures


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_that_is_not_finite_fails_its_check(run, method):
    result = measure_traces(damaged(run), Settings(method=method, layers=True))
    assert any("step 2: the trace is not finite" in failure for failure in result.failures)
    assert math.isfinite(result.measured[0].trace.mean)
    last = strictly(run.path / "trace-layers.json")["spectra"][-1]
    assert (last["step"], last["trace"]["mean"]) == (2, None)
    assert trace_table(result)


# Refusals.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "hutch"}, "method must be one of hutchinson, hutch\\+\\+, xtrace"),
        ({"matrix": "GGN"}, "matrix must be one of hessian, ggn, got 'GGN'"),
        ({"num_products": 1}, "num_products must be at least 2"),
        ({"method": "hutch++", "num_products": 3}, "num_products must be at least 4"),
        ({"level": 95}, "level must be .*got 95"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_settings_without_sense_are_refused_and_nothing_is_written(run, settings, message):
    with pytest.raises(ValueError, match=message):
        measure_traces(run, Settings(**settings))
    assert not list(run.path.glob("trace*.json"))


def test_the_level_is_checked_for_an_exact_trace_too(run):
    with pytest.raises(ValueError, match=r"level must be .*got 95"):
        measure_traces(run, Settings(method="exact", level=95))
