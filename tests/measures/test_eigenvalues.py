import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from hessian_lab.errors import DivergenceError, ResourceError, UsageError
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.measures import eigenvalues, record
from hessian_lab.measures.checkpoints import selected
from hessian_lab.measures.eigenvalues import measure_eigenvalues
from hessian_lab.measures.planning import require_dense
from hessian_lab.probe import memory
from hessian_lab.signal import Signal
from hessian_lab.training.files import locked
from hessian_lab.training.loop import train
from hessian_lab.training.run import load_run
from hessian_lab.training.setup import Setup
from tests.reference import autograd_hessian

TINY = Setup(act="tanh", size=6, width=3, depth=2, steps=4)


@pytest.fixture
def run(tmp_path):
    return train(TINY, out=tmp_path / "run")


def test_spectra_are_those_of_autograd_at_every_checkpoint(run):
    result = measure_eigenvalues(run)
    values = np.load(run.path / "eigenvalues.npy")
    assert values.shape == (5, run.num_parameters)
    assert (np.diff(values, axis=1) >= 0).all()
    for row, one, step in zip(values, result.measured, run.steps, strict=True):
        reference = autograd_hessian(run.model(step), mse, run.signal())
        expected = np.linalg.eigvalsh(reference.numpy())
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-12 * abs(expected).max())
        assert np.array_equal(one.spectrum.values.numpy(), row)
    assert not result.failures


def test_table_holds_every_scalar_of_every_checkpoint(run):
    result = measure_eigenvalues(run)
    table = pd.read_csv(run.path / "spectrum.csv")
    assert table["step"].tolist() == run.steps
    for name, value in result.measured[2].to_json().items():
        if name != "shares_below":
            assert table[name][2] == pytest.approx(value)
    assert table["share_below_1e-03"][2] == result.spectra[2].shares_below[1e-3]


def test_a_second_measurement_computes_nothing(run, monkeypatch):
    first = measure_eigenvalues(run)
    monkeypatch.setattr(eigenvalues, "dense_hessian", None)
    second = measure_eigenvalues(run)
    assert first.to_json() == second.to_json()


def test_a_subset_reuses_what_is_there(run, monkeypatch):
    whole = np.load(measure_eigenvalues(run).run.path / "eigenvalues.npy")
    monkeypatch.setattr(eigenvalues, "dense_hessian", None)
    subset = measure_eigenvalues(run, every=3)
    assert [one.step for one in subset.measured] == [0, 3, 4]
    assert np.array_equal(np.stack([one.values for one in subset.spectra]), whole[[0, 3, 4]])
    assert np.array_equal(np.load(run.path / "eigenvalues.npy"), whole)


def test_a_subset_grows_into_the_whole(run, tmp_path):
    measure_eigenvalues(run, every=3)
    assert len(np.load(run.path / "eigenvalues.npy")) == 3
    measure_eigenvalues(run)
    measure_eigenvalues(train(TINY, out=tmp_path / "fresh"))
    names = ("eigenvalues.npy", "spectrum.csv")
    assert all(
        (run.path / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes() for name in names
    )


def test_an_interrupted_measurement_continues(run, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "SAVING_SHARE", float("inf"))

    def stop(one):
        if one.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_eigenvalues(run, watch=stop)
    assert len(np.load(run.path / "eigenvalues.npy")) == 3
    computed = []
    measure = eigenvalues._measure
    monkeypatch.setattr(
        eigenvalues, "_measure", lambda *args: computed.append(args[1].step) or measure(*args)
    )
    result = measure_eigenvalues(run)
    assert computed == [3, 4]
    fresh = measure_eigenvalues(train(TINY, out=tmp_path / "fresh"))
    assert result.to_json()["spectra"] == fresh.to_json()["spectra"]


def test_results_of_another_run_are_not_taken_for_ours(tmp_path):
    measure_eigenvalues(train(TINY, out=tmp_path / "one"))
    other = train(Setup(act="sine", size=6, width=3, depth=2, steps=4), out=tmp_path / "two")
    for name in ("eigenvalues.npy", "eigs.json"):
        (tmp_path / "two" / name).write_bytes((tmp_path / "one" / name).read_bytes())
    result = measure_eigenvalues(other)
    expected = measure_eigenvalues(train(other.setup, out=tmp_path / "three"))
    assert result.to_json()["spectra"] == expected.to_json()["spectra"]


def test_a_wrong_hessian_fails_its_check(run, monkeypatch):
    right = eigenvalues.dense_hessian
    monkeypatch.setattr(eigenvalues, "dense_hessian", lambda *args: right(*args) * (1 + 1e-9))
    assert "differs from double backward" in measure_eigenvalues(run).failures[0]


def test_a_model_that_changes_between_evaluations_fails_its_check(tmp_path):
    module = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 1)).double()
    generator = torch.Generator().manual_seed(0)
    coords = torch.rand(30, 2, dtype=torch.float64, generator=generator)
    signal = Signal(coords, coords[:, :1])
    run = train(Setup(steps=2, optimizer="sgd"), out=tmp_path / "run", model=module, signal=signal)
    failures = measure_eigenvalues(run).failures
    assert any("is not deterministic" in failure for failure in failures)


def test_single_precision_training_is_measured_in_double(tmp_path):
    run = train(Setup(size=6, width=3, depth=1, steps=2, dtype="float32"), out=tmp_path / "run")
    result = measure_eigenvalues(run)
    assert np.load(run.path / "eigenvalues.npy").dtype == np.float64
    assert all(one.dtype == "float64" for one in result.spectra)
    assert not result.failures


def test_a_diverged_run_is_measured_as_far_as_it_goes(tmp_path):
    setup = Setup(act="relu", size=6, optimizer="sgd", lr=1e30, steps=20)
    with pytest.raises(DivergenceError):
        train(setup, out=tmp_path / "run")
    run = load_run(tmp_path / "run")
    result = measure_eigenvalues(run)
    assert [one.step for one in result.measured] == run.steps
    assert np.isfinite(result.spectra[0].values.numpy()).all()
    for one in result.measured:
        finite = bool(one.spectrum.values.isfinite().all())
        assert finite or f"step {one.step}: the Hessian is not finite" in result.failures
    again = measure_eigenvalues(run)
    assert again.failures == result.failures


def test_structural_zeros_are_read_back(tmp_path, monkeypatch):
    run = train(Setup(act="relu", size=6, width=8, depth=3, steps=2), out=tmp_path / "run")
    first = measure_eigenvalues(run)
    assert first.spectra[0].structural_zeros > 0
    monkeypatch.setattr(eigenvalues, "dense_hessian", None)
    second = measure_eigenvalues(run)
    assert [one.structural_zeros for one in second.spectra] == [
        one.structural_zeros for one in first.spectra
    ]


def test_another_loss_is_measured_anew(run):
    first = measure_eigenvalues(run).spectra[-1]
    other = load_run(run.path, loss=lambda predictions, values: 100 * mse(predictions, values))
    assert measure_eigenvalues(other).spectra[-1].lambda_max == pytest.approx(
        100 * first.lambda_max
    )


def test_a_loss_that_is_all_rounding_is_no_failure(tmp_path):
    coords = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
    signal = Signal(coords, 0.3 + 0.2 * coords)
    setup = Setup(act="relu", depth=0, steps=40)
    run = train(setup, out=tmp_path / "run", signal=signal)
    assert run.metrics["loss"].iloc[-1] < 1e-25
    parts = signal.coords.split(7)

    def piecewise(predictions, values):
        return sum(
            mse(one, other) * len(one)
            for one, other in zip(predictions.split(7), values.split(7), strict=True)
        ) / sum(len(part) for part in parts)

    assert not measure_eigenvalues(load_run(run.path, loss=piecewise)).failures


def test_an_unfinished_run_is_measured_as_far_as_it_goes(tmp_path):
    def stop(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TINY, out=tmp_path / "run", watch=stop)
    run = load_run(tmp_path / "run")
    assert [one.step for one in measure_eigenvalues(run).measured] == run.steps != []


def test_two_processes_do_not_measure_into_one_directory(run):
    with locked(run.path), pytest.raises(UsageError, match="out must not be in use"):
        measure_eigenvalues(run)


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3, 4]), (9, [0, 4])]
)
def test_the_last_checkpoint_is_always_measured(every, expected):
    assert selected([0, 1, 2, 3, 4], every) == expected


def test_refuses_an_interval_below_one():
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        selected([0], 0)


def test_refuses_before_training_what_will_not_fit(monkeypatch):
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _: 10**6)
    with pytest.raises(ResourceError, match="Measure a smaller network"):
        require_dense(make_field("sine", 2, 1, width=64), 2500)


def test_a_large_matrix_is_looked_at_in_parts(monkeypatch):
    heights, isfinite = [], torch.Tensor.isfinite

    def counted(rows):
        heights.append(len(rows))
        return isfinite(rows)

    monkeypatch.setattr(torch.Tensor, "isfinite", counted)
    matrix = torch.diag(torch.arange(1100.0, dtype=torch.float64))
    assert eigenvalues._spectrum(matrix).lambda_max == 1099
    assert heights == [1024, 76]
    matrix[1099, 1099] = math.nan
    assert math.isnan(eigenvalues._spectrum(matrix).lambda_max)


def test_a_block_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda _device: 8 * 30**2 - 1)
    with pytest.raises(ResourceError, match=r"block of layer 0 must .*Measure without --layers"):
        eigenvalues._block(torch.eye(40, dtype=torch.float64), "0", torch.arange(30))
