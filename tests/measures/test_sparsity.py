import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hessian_lab.errors import ResourceError, UsageError
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import bce, mse
from hessian_lab.measures import record, sparsity
from hessian_lab.measures.sparsity import (
    Settings,
    batch_of,
    measure_sparsity,
    product_matrices,
    products_and_gradient,
    shares_of,
)
from hessian_lab.training.files import finite, locked
from hessian_lab.training.loop import train
from hessian_lab.training.run import load_run
from hessian_lab.training.setup import Setup
from tests.measures.test_estimates import counted, damaged, hundredfold, linear, strictly
from tests.reference import assert_same, autograd_hessian, points

# 177 parameters, of which ReLU leaves many without gradient on 25 points.
FIELD = Setup(act="relu", size=5, width=8, depth=3, steps=2, checkpoint_every=1)
FIELD = replace(FIELD, optimizer="adam", lr=0.05)
LAYERS = ["layers.0", "layers.1", "layers.2", "layers.3"]
ACTS = ["relu", "relu_pe", "sine", "gaussian", "tanh"]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    return train(FIELD, out=tmp_path_factory.mktemp("sparsity") / "run")


@pytest.fixture
def run(trained_once, tmp_path):
    return load_run(shutil.copytree(trained_once.path, tmp_path / "run"))


def signs(size, num, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], size=(size, num)))


def double_backward(model, loss, signal, vectors):
    """Return H v and g by two passes of autograd: nothing of ours."""
    parameters = list(model.parameters())
    value = loss(model(signal.coords), signal.values)
    parts = torch.autograd.grad(value, parameters, create_graph=True)
    gradient = torch.cat([part.flatten() for part in parts])
    columns = [
        torch.cat(
            [
                part.flatten()
                for part in torch.autograd.grad(
                    gradient, parameters, column, retain_graph=True, materialize_grads=True
                )
            ]
        )
        for column in vectors.T.to(gradient)
    ]
    return torch.stack(columns, dim=1), gradient.detach()


# The products keep zeros exact.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [mse, bce])
@pytest.mark.parametrize("act", ACTS)
def test_products_are_zero_where_those_of_double_backward_are(act, loss, dtype, monkeypatch):
    signal = points(60, num_outputs=3).to(dtype=dtype)
    field = make_field(act, 2, 3, width=24, depth=3, seed=3, dtype=dtype)
    vectors = signs(sum(value.numel() for value in field.parameters()), 3)
    expected, gradient = double_backward(field, loss, signal, vectors)
    monkeypatch.setattr(sparsity, "rademacher", lambda *_, like, **__: vectors.to(like.dtype))
    found, slope = products_and_gradient(field, loss, signal, Settings(num_probes=3))
    assert torch.equal(found == 0, expected == 0)
    assert torch.equal(slope == 0, gradient == 0)
    assert bool((expected == 0).any()) == act.startswith("relu")


def test_shares_are_counted(run):
    settings = Settings(num_probes=3, rtols=(1e-2,))
    result = measure_sparsity(run, settings)
    assert [one.step for one in result.measured] == [0, 1, 2]
    for one in result.measured:
        model, signal = run.model(one.step), run.signal()
        dense = autograd_hessian(model, mse, signal).numpy()
        _, gradient = double_backward(model, mse, signal, signs(177, 1))
        # With random signs a row of the Hessian gives zero only if it is zero.
        still, dead = gradient.numpy() == 0, ~dense.any(axis=1)
        assert one.whole.size == 177
        assert one.whole.zero.mean == pytest.approx(dead.mean())
        assert one.whole.gradient_zero == pytest.approx(still.mean())
        assert one.whole.gradient_zero_where_zero == pytest.approx(still[dead].mean())
        assert one.whole.zero_where_gradient == pytest.approx(dead[~still].mean())
        assert one.whole.within[0].mean >= one.whole.zero.mean
        start = 0
        for name in LAYERS:
            weight, bias = model.get_submodule(name).parameters()
            middle = start + weight.numel()
            stop = middle + bias.numel()
            assert one.layers[name].zero.mean == pytest.approx(dead[start:stop].mean())
            shares = one.layer_weights[f"{name}.weight"]
            assert (shares.size, shares.zero.mean) == (
                middle - start,
                pytest.approx(dead[start:middle].mean()),
            )
            start = stop
        parts = one.layer_weights.values()
        total = sum(part.size * part.zero.mean for part in parts)
        assert one.weights.zero.mean * one.weights.size == pytest.approx(total)
    assert 0 < result.measured[-1].whole.zero.mean < 1
    assert not result.failures


def test_small_entries_are_counted_against_the_largest_of_their_part():
    # The columns have largest entries of their own, 1 and 200.
    products = torch.tensor([[1.0, 0.0], [0.1, 200.0], [0.0, 0.1], [-1e-3, -0.0]])
    gradient = torch.tensor([1.0, 0.0, 0.0, 2.0])
    found = shares_of(products, gradient, (1e-6, 1e-3))
    assert (found.zero.mean, found.zero.low, found.zero.high) == (0.375, 0.25, 0.5)
    assert found.within[0] == found.zero
    assert (found.within[1].low, found.within[1].high) == (0.5, 0.75)
    assert found.gradient_zero == 0.5
    assert found.gradient_zero_where_zero == pytest.approx(1 / 3)
    assert found.zero_where_gradient == 0.5


def test_probabilities_without_a_condition_are_missing():
    ones, zeros = torch.ones(3, 2), torch.zeros(3, 2)
    assert math.isnan(shares_of(ones, ones[:, 0], ()).gradient_zero_where_zero)
    assert math.isnan(shares_of(zeros, zeros[:, 0], ()).zero_where_gradient)
    assert shares_of(zeros, zeros[:, 0], (0.1,)).within[0].mean == 1


def test_zeros_of_the_hessian_itself_are_those_of_autograd(run):
    result = measure_sparsity(run, Settings(num_probes=1, dense=True), every=2)
    for one in result.measured:
        dense = autograd_hessian(run.model(one.step), mse, run.signal()).numpy()
        whole = one.dense["whole"]
        assert whole.size == 177
        assert whole.zero == pytest.approx((dense == 0).mean(), abs=2e-4)
        assert whole.zero_rows == pytest.approx((~dense.any(axis=1)).mean())
        assert whole.within[1] == pytest.approx((abs(dense) <= 1e-3 * abs(dense).max()).mean())
        last = one.dense["layers.3"]
        block = dense[-9:, -9:]
        assert (last.size, last.zero) == (9, pytest.approx((block == 0).mean()))
    assert list(one.dense) == ["whole", *LAYERS]


def test_matrices_are_the_products_in_the_shape_of_the_weights(run):
    settings = Settings(num_probes=2)
    found = product_matrices(run, settings, 2)
    products, _ = products_and_gradient(run.model(2), mse, run.signal(), settings)
    assert [list(matrix.shape) for matrix in found.values()] == [[8, 2], [8, 8], [8, 8], [1, 8]]
    assert_same(found["layers.1.weight"].flatten(), products[24:88, 0])
    assert torch.equal(found["layers.3.weight"].flatten() == 0, products[168:176, 0] == 0)


# The batch.


def test_a_batch_is_a_function_of_its_seed_and_holds_points_of_the_signal():
    signal = points(50)
    batch = batch_of(signal, 20, 3)
    assert torch.equal(batch.coords, batch_of(signal, 20, 3).coords)
    assert not torch.equal(batch.coords, batch_of(signal, 20, 4).coords)
    pairs = {tuple(row.tolist()) for row in torch.cat([signal.coords, signal.values], dim=1)}
    taken = [tuple(row.tolist()) for row in torch.cat([batch.coords, batch.values], dim=1)]
    assert len(set(taken)) == 20
    assert set(taken) <= pairs
    assert batch_of(signal, 50, 0) is signal


def test_points_are_those_of_a_training_step_by_default(run, tmp_path):
    assert measure_sparsity(run).settings.batch_size == 25
    assert measure_sparsity(run, Settings(batch_size=99)).settings.batch_size == 25
    batched = train(replace(FIELD, batch_size=6), out=tmp_path / "batched")
    few = measure_sparsity(batched)
    assert few.settings.batch_size == 6
    all_points = measure_sparsity(batched, Settings(batch_size=25))
    # Fewer points leave more units without gradient.
    assert few.measured[-1].whole.zero.mean > all_points.measured[-1].whole.zero.mean


# Files.


def test_json_says_what_was_asked_and_found(run):
    result = measure_sparsity(run, Settings(num_probes=2, rtols=(1e-5,), seed=7))
    found = result.to_json()
    assert (found["command"], found["num_parameters"]) == ("sparsity", 177)
    assert (found["num_probes"], found["rtols"], found["seed"]) == (2, (1e-5,), 7)
    file = strictly(run.path / "sparsity.json")
    assert file["spectra"] == finite(found)["spectra"]
    for one in file["spectra"]:
        assert list(one["layers"]) == LAYERS


@pytest.mark.parametrize("dense", [False, True])
def test_reading_back_gives_what_was_measured(run, monkeypatch, dense):
    settings = Settings(dense=dense)
    first = measure_sparsity(run, settings)
    steps = counted(monkeypatch, sparsity)
    second = measure_sparsity(load_run(run.path), settings)
    assert steps == []
    assert second.measured == first.measured


@pytest.mark.parametrize(
    "other", [{"num_probes": 9}, {"seed": 1}, {"rtols": (1e-2,)}, {"batch_size": 7}]
)
def test_other_settings_are_measured_anew(run, monkeypatch, other):
    measure_sparsity(run)
    steps = counted(monkeypatch, sparsity)
    measure_sparsity(run, Settings(**other))
    assert steps == run.steps


def test_an_interrupted_measurement_continues(run, monkeypatch):
    monkeypatch.setattr(record, "SAVING_SHARE", float("inf"))

    def stop(one):
        if one.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_sparsity(run, watch=stop)
    steps = counted(monkeypatch, sparsity)
    result = measure_sparsity(run)
    assert steps == [2]
    (run.path / "sparsity.json").unlink()
    assert finite(measure_sparsity(run).to_json()) == finite(result.to_json())


def test_two_processes_do_not_measure_into_one_directory(run):
    with locked(run.path), pytest.raises(UsageError, match="out must not be in use"):
        measure_sparsity(run)


# Other modules, and what is not finite.


def test_a_module_of_a_users_own_is_measured(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    with torch.no_grad():
        module[0].bias[0] = -100.0
    signal = points(30)
    train(Setup(steps=0, optimizer="sgd"), out=tmp_path / "run", model=module, signal=signal)
    last = measure_sparsity(load_run(tmp_path / "run", model=module)).measured[-1]
    dense = autograd_hessian(module, mse, signal)
    dead = (dense == 0).all(dim=1)
    assert list(last.layers) == ["0", "2"]
    assert last.whole.zero.mean == pytest.approx(float(dead.double().mean()))
    assert last.layers["0"].zero.mean >= 3 / 18


def test_a_loss_of_a_users_own_is_taken(run):
    ours = measure_sparsity(load_run(run.path)).measured[-1]
    other = measure_sparsity(load_run(run.path, loss=hundredfold)).measured[-1]
    assert other.whole.zero == ours.whole.zero
    none = measure_sparsity(load_run(run.path, loss=linear)).measured[-1]
    assert none.layers["layers.3"].zero.mean > ours.layers["layers.3"].zero.mean


def test_a_checkpoint_that_is_not_finite_fails_its_check(run):
    result = measure_sparsity(damaged(run), Settings(dense=True))
    assert "step 2: H v is not finite" in result.failures
    last = strictly(run.path / "sparsity-dense.json")["spectra"][-1]
    assert last["whole"]["zero"]["mean"] is None
    assert last["dense"]["whole"]["zero"] is None
    assert result.measured[0].whole.zero.mean > 0


def test_a_dense_hessian_that_does_not_fit_is_refused(run, monkeypatch):
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _device: 1000)
    with pytest.raises(ResourceError, match="The dense Hessian of 177 parameters"):
        measure_sparsity(run, Settings(dense=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_probes": 0}, "num_probes must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rtols": (1e-3, 1.0)}, r"rtol must be in \(0, 1\), got 1"),
        ({"rtols": (0.0,)}, r"rtol must be in \(0, 1\), got 0"),
        ({"rtols": (math.nan,)}, r"rtol must be in \(0, 1\), got nan"),
    ],
)
def test_settings_without_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings)
