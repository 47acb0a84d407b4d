"""Reading back: what a measurement returned is what its files say, whatever the settings."""

import json
import shutil

import numpy as np
import pytest

from hessian_lab.errors import InputError
from hessian_lab.measures import conditioning, estimates, sparsity, traces
from hessian_lab.measures.eigenvalues import measure_eigenvalues
from hessian_lab.measures.known import (
    known_conditions,
    known_eigenvalues,
    known_estimates,
    known_sparsity,
    known_traces,
)
from hessian_lab.training.files import finite
from hessian_lab.training.loop import train
from hessian_lab.training.run import load_run
from hessian_lab.training.setup import Setup

# 61 parameters.
FIELD = Setup(act="tanh", signal="sines", size=20, width=6, depth=2, steps=2)
ESTIMATED = estimates.Settings(method="slq", matrix="ggn", num=2, num_probes=3, num_steps=9, seed=4)
TRACED = traces.Settings(method="hutch++", num_products=9, layers=True, seed=3)
CONDITIONS = conditioning.Settings(estimated=4, seed=2)
ZEROS = sparsity.Settings(num_probes=3, rtols=(1e-2,), batch_size=7, seed=5)
# name -> what measures, what reads back, and a file of it.
KINDS = {
    "eigenvalues": (
        lambda run: measure_eigenvalues(run, every=2, layers=True),
        lambda run: known_eigenvalues(run, layers=True),
        "eigs-layers.json",
    ),
    "eigenvalues of the GGN": (
        lambda run: measure_eigenvalues(run, matrix="ggn"),
        lambda run: known_eigenvalues(run, matrix="ggn"),
        "eigs-ggn.json",
    ),
    "estimates": (
        lambda run: estimates.measure_estimates(run, ESTIMATED),
        lambda run: known_estimates(run, "eigs-slq-ggn"),
        "eigs-slq-ggn.json",
    ),
    "traces": (
        lambda run: traces.measure_traces(run, TRACED),
        lambda run: known_traces(run, "trace-layers"),
        "trace-layers.json",
    ),
    "conditions": (
        lambda run: conditioning.measure_conditions(run, CONDITIONS),
        known_conditions,
        "cond.json",
    ),
    "zeros": (lambda run: sparsity.measure_sparsity(run, ZEROS), known_sparsity, "sparsity.json"),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    return train(FIELD, out=tmp_path_factory.mktemp("known") / "run")


@pytest.fixture
def run(trained_once, tmp_path):
    return load_run(shutil.copytree(trained_once.path, tmp_path / "run"))


@each_kind
def test_what_was_measured_is_known(run, kind):
    measure, known, _ = KINDS[kind]
    measured, found = measure(run), known(run)
    assert finite(found.to_json()) == finite(measured.to_json())
    assert found.failures == measured.failures == []


@each_kind
def test_nothing_is_known_of_what_was_not_measured(run, kind):
    assert KINDS[kind][1](run) is None


def test_eigenvalues_are_those_of_the_file(run):
    measure_eigenvalues(run, layers=True)
    rows = np.load(run.path / "eigenvalues-layers.npy")
    found = known_eigenvalues(run, layers=True)
    assert np.array_equal(np.stack([one.row for one in found.measured]), rows)
    assert len(found.measured) == 3


@each_kind
def test_reading_writes_nothing(run, kind):
    measure, known, _ = KINDS[kind]
    measure(run)
    before = {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()}
    known(run)
    assert {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()} == before


@each_kind
@pytest.mark.parametrize("text", ["", "{", "[]", "no entries", "no steps"])
def test_damaged_results_are_told(run, kind, text):
    measure, known, name = KINDS[kind]
    measure(run)
    record = json.loads((run.path / name).read_text())
    if text == "no entries":
        text = json.dumps({key: value for key, value in record.items() if key != "spectra"})
    elif text == "no steps":
        for entry in record["spectra"]:
            del entry["step"]
        text = json.dumps(record)
    (run.path / name).write_text(text)
    with pytest.raises(InputError, match=f"results must .*{name}"):
        known(run)


@each_kind
def test_results_of_another_run_are_told(run, kind):
    measure, known, name = KINDS[kind]
    measure(run)
    record = json.loads((run.path / name).read_text()) | {"run_id": "another"}
    (run.path / name).write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"must be of this run, .*{name} is of another"):
        known(run)


def test_a_measurement_killed_between_its_files_is_known_as_far_as_it_is_whole(run):
    measure_eigenvalues(run, every=2)
    record = (run.path / "eigs.json").read_text()
    measure_eigenvalues(run)
    (run.path / "eigs.json").write_text(record)
    assert [one.step for one in known_eigenvalues(run).measured] == [0]


@pytest.mark.parametrize("change", ["missing", "shorter", "others"])
def test_eigenvalues_that_are_not_the_records_are_told(run, change):
    measure_eigenvalues(run)
    path = run.path / "eigenvalues.npy"
    rows = np.load(path)
    if change == "missing":
        path.unlink()
    else:
        np.save(path, rows[:-1] if change == "shorter" else rows + 1)
    with pytest.raises(InputError, match=r"eigs\.json is damaged"):
        known_eigenvalues(run)
