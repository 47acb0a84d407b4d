import math
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from hessian_lab.cli.conditions import conditions_table
from hessian_lab.errors import ResourceError, UsageError
from hessian_lab.measures import conditioning, record
from hessian_lab.measures.conditioning import Settings, measure_conditions, require_dense
from hessian_lab.training.files import finite, locked
from hessian_lab.training.loop import train
from hessian_lab.training.run import load_run
from hessian_lab.training.setup import Setup
from tests.measures.test_estimates import (
    MATRICES,
    blocks,
    counted,
    damaged,
    hundredfold,
    linear,
    reference,
    strictly,
)

# 61 parameters.
FIELD = Setup(act="sine", signal="sines", size=20, width=6, depth=2, steps=2)
NAMES = ("identity", "equilibrated", "jacobi")


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    return train(FIELD, out=tmp_path_factory.mktemp("conditions") / "run")


@pytest.fixture
def run(trained_once, tmp_path):
    return load_run(shutil.copytree(trained_once.path, tmp_path / "run"))


def by_numpy(matrix, name):
    """Return κ of a scaled matrix, and its floor relative to max|λ|."""
    matrix = np.asarray(matrix)
    scale = {
        "identity": np.ones(len(matrix)),
        "equilibrated": np.linalg.norm(matrix, axis=1),
        "jacobi": abs(np.diag(matrix)),
    }[name]
    root = 1 / np.sqrt(scale)
    values = abs(np.linalg.eigvalsh(root[:, None] * matrix * root))
    return values.max() / values.min()


# Values.


@pytest.mark.parametrize("matrix", MATRICES)
def test_condition_numbers_are_those_of_autograd(run, matrix):
    result = measure_conditions(run, Settings(matrix))
    assert [one.step for one in result.measured] == [0, 1, 2]
    for one in result.measured:
        dense = reference(run, one.step, matrix)
        for name in NAMES:
            found = one.scaled[name]
            if found.resolved:
                assert found.kappa == pytest.approx(by_numpy(dense, name), rel=1e-2)
            else:
                assert found.kappa == pytest.approx(1 / (61 * np.finfo(np.float64).eps))
                # The reference's own smallest is rounding noise of that size, too.
                assert by_numpy(dense, name) > 0.01 * found.kappa
    assert not result.failures


def test_hessians_of_this_field_are_resolved_and_their_ggn_is_not(run):
    assert measure_conditions(run).measured[0].scaled["identity"].resolved
    # 20 points of one channel: the rank is at most 20 of 61.
    ggn = measure_conditions(run, Settings("ggn")).measured[0].scaled["identity"]
    assert not ggn.resolved
    assert ggn.num_below >= 41


def test_layers_are_measured_as_blocks(run):
    one = measure_conditions(run, Settings(layers=True)).measured[-1]
    parts = blocks(run, one.step)
    assert list(one.layers) == list(parts)
    for name, block in parts.items():
        for scaling in NAMES:
            found = one.layers[name][scaling]
            if found.resolved:
                assert found.kappa == pytest.approx(by_numpy(block, scaling), rel=1e-2)
    assert any(found["identity"].resolved for found in one.layers.values())


def test_what_is_proven_agrees_with_what_double_precision_resolves(run):
    result = measure_conditions(run, Settings(precision="extended"))
    for one in result.measured:
        for name in NAMES:
            interval, found = one.exact[name], one.scaled[name]
            assert interval.upper - interval.lower < 1e-6
            if found.resolved:
                assert interval.log10 == pytest.approx(math.log10(found.kappa), abs=0.01)
            else:
                assert 10**interval.upper > found.kappa / 2
    assert any(one.scaled["identity"].resolved for one in result.measured)


def test_estimated_scalings_are_measured_where_asked(run):
    one = measure_conditions(run, Settings(estimated=5)).measured[0]
    assert list(one.scaled) == [*NAMES, "equilibrated_estimated", "jacobi_estimated"]
    other = measure_conditions(run, Settings(estimated=5, seed=1)).measured[0]
    assert other.scaled["jacobi_estimated"] != one.scaled["jacobi_estimated"]
    assert other.scaled["jacobi"] == one.scaled["jacobi"]


def test_single_precision_training_is_measured_in_double(tmp_path):
    run = train(replace(FIELD, dtype="float32", steps=1), out=tmp_path / "run")
    one = measure_conditions(run, Settings(precision="extended")).measured[-1]
    kappa = by_numpy(reference(run, 1), "identity")
    assert one.scaled["identity"].kappa == pytest.approx(kappa, rel=1e-2)
    assert one.exact["identity"].log10 == pytest.approx(math.log10(kappa), abs=0.01)


# JSON and files.


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Settings(), "cond.json"),
        (Settings("ggn"), "cond-ggn.json"),
        (Settings(layers=True), "cond-layers.json"),
        (Settings(precision="extended"), "cond-extended.json"),
    ],
)
def test_files_are_named_after_what_was_measured(run, settings, name):
    before = {path.name for path in run.path.iterdir()}
    result = measure_conditions(run, settings, every=9)
    assert {path.name for path in run.path.iterdir()} - before - {".lock"} == {name}
    file = strictly(run.path / name)
    assert file["spectra"] == finite(result.to_json())["spectra"]
    assert file["command"] == "cond"


@pytest.mark.parametrize("settings", [Settings(layers=True, estimated=4), Settings("ggn")])
def test_reading_back_gives_what_was_measured(run, monkeypatch, settings):
    first = measure_conditions(run, settings)
    steps = counted(monkeypatch, conditioning)
    second = measure_conditions(load_run(run.path), settings)
    assert steps == []
    assert finite(second.to_json()) == finite(first.to_json())
    assert conditions_table(second, pictures=[]) == conditions_table(first, pictures=[])


def test_what_is_proven_is_read_back_with_its_ends(tmp_path, monkeypatch):
    """A field with dead units, whose Hessian is singular: infinite ends are no JSON."""
    run = train(replace(FIELD, act="relu", steps=1), out=tmp_path / "run")
    settings = Settings(precision="extended")
    first = measure_conditions(run, settings)
    assert all(one.exact["identity"].singular for one in first.measured)
    steps = counted(monkeypatch, conditioning)
    second = measure_conditions(load_run(run.path), settings)
    assert steps == []
    assert finite(second.to_json()) == finite(first.to_json())
    assert [one.exact for one in second.measured] == [one.exact for one in first.measured]
    assert "∞ (singular)" in conditions_table(second, pictures=[])


@pytest.mark.parametrize("other", [{"estimated": 9}, {"seed": 1}])
def test_other_settings_are_measured_anew(run, monkeypatch, other):
    measure_conditions(run, Settings(estimated=8))
    steps = counted(monkeypatch, conditioning)
    measure_conditions(run, Settings(**({"estimated": 8} | other)))
    assert steps == run.steps


def test_an_interrupted_measurement_continues(run, monkeypatch):
    monkeypatch.setattr(record, "SAVING_SHARE", float("inf"))

    def stop(one):
        if one.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_conditions(run, watch=stop)
    steps = counted(monkeypatch, conditioning)
    result = measure_conditions(run)
    assert steps == [2]
    (run.path / "cond.json").unlink()
    assert finite(measure_conditions(run).to_json()) == finite(result.to_json())


def test_results_of_another_loss_are_not_taken_for_those_of_the_run(run, monkeypatch):
    measure_conditions(load_run(run.path, loss=hundredfold))
    steps = counted(monkeypatch, conditioning)
    measure_conditions(load_run(run.path))
    assert steps == run.steps


def test_two_processes_do_not_measure_into_one_directory(run):
    with locked(run.path), pytest.raises(UsageError, match="out must not be in use"):
        measure_conditions(run)


# Matrices that are zero or not finite, and what cannot be measured.


@pytest.mark.parametrize("precision", ["double", "extended"])
def test_a_checkpoint_that_is_not_finite_fails_its_check(run, precision):
    result = measure_conditions(damaged(run), Settings(precision=precision))
    assert any("step 2: the matrix is not finite" in failure for failure in result.failures)
    assert math.isfinite(result.measured[0].scaled["identity"].kappa)
    last = strictly(next(run.path.glob("cond*.json")))["spectra"][-1]
    assert last["scaled"]["identity"]["kappa"] is None
    assert "–" in conditions_table(result, pictures=[])


def test_a_zero_matrix_has_no_condition_number_and_fails_no_check(tmp_path):
    setup = Setup(act="relu", depth=0, size=6, steps=1, optimizer="sgd")
    run = train(setup, out=tmp_path / "run", loss=linear)
    result = measure_conditions(run)
    assert math.isnan(result.measured[0].scaled["identity"].kappa)
    assert not result.failures
    assert conditions_table(result, pictures=[])


def test_a_matrix_that_no_precision_encloses_fails_its_check(run, monkeypatch):
    from hessian_lab.probe import extended

    defaults = {"matrix": "hessian", "rtol": 1e-6, "precisions": (64,)}
    monkeypatch.setattr(extended.exact_condition_numbers, "__kwdefaults__", defaults)
    # 20 points: the Gauss–Newton matrix of 61 parameters is singular.
    result = measure_conditions(run, Settings("ggn", "extended"), every=9)
    assert "step 0: κ (identity) is not enclosed with 64 bits" in result.failures[0]
    assert "not enclosed" in conditions_table(result, pictures=[])


def test_extended_precision_says_which_extra_it_needs(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "flint", None)
    for name in ("enclosures", "extended"):
        monkeypatch.delitem(sys.modules, f"hessian_lab.probe.{name}", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'hessian-lab\[exact\]', or use precision"):
        measure_conditions(run, Settings(precision="extended"))


def test_extended_precision_refuses_what_it_does_not_know(tmp_path):
    settings = Settings(precision="extended")
    wide = train(replace(FIELD, width=30, steps=0), out=tmp_path / "wide")
    with pytest.raises(UsageError, match="takes at most 500 parameters, got 1021"):
        measure_conditions(wide, settings)
    sinc = train(replace(FIELD, act="sinc", steps=0), out=tmp_path / "sinc")
    with pytest.raises(UsageError, match=r"takes the activations sine, .*got sinc"):
        measure_conditions(sinc, settings)
    own = train(replace(FIELD, steps=0), out=tmp_path / "own", loss=nn.MSELoss())
    with pytest.raises(UsageError, match="needs the loss mse or bce"):
        measure_conditions(own, settings)
    assert not list(tmp_path.rglob("cond*.json"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"matrix": "GGN"}, "matrix must be one of hessian, ggn, got 'GGN'"),
        ({"precision": "double-double"}, "precision must be one of double, extended"),
        ({"estimated": 1}, "estimated must be 0 or at least 2 for an error bar, got 1"),
        ({"estimated": -3}, "estimated must be 0 or at least 2"),
    ],
)
def test_settings_without_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


def test_a_matrix_that_does_not_fit_is_refused():
    with pytest.raises(ResourceError, match=r"1000001 parameters and its copies for the condition"):
        require_dense(nn.Linear(10**6, 1), 10)
