import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from hessian_lab.cli.estimates import estimates_table
from hessian_lab.errors import UsageError
from hessian_lab.losses import mse
from hessian_lab.measures import estimates, record
from hessian_lab.measures.eigenvalues import measure_eigenvalues
from hessian_lab.measures.estimates import Settings, measure_estimates
from hessian_lab.signal import Signal
from hessian_lab.training.files import finite, locked
from hessian_lab.training.loop import train
from hessian_lab.training.run import load_run
from hessian_lab.training.setup import Setup
from tests.cli.terminal import refuse_constant
from tests.reference import assert_same, autograd_hessian

# 61 parameters; 12 Lanczos steps leave much of their spectrum open.
FIELD = Setup(act="tanh", signal="sines", size=20, width=6, depth=2, steps=1)
# 10 parameters.
TINY = Setup(act="tanh", signal="sines", size=8, width=3, depth=1, steps=4)
LAYERS = ("layers.0", "layers.1", "layers.2")
MATRICES = ("hessian", "ggn")
METHODS = ("slq", "lanczos")


def autograd_ggn(model, signal):
    """Return ``Jᵀ J / p`` [n, n], the Gauss–Newton matrix of half the mean squared error."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def predictions(named):
        return functional_call(model, named, (signal.coords,)).flatten()

    parts = jacrev(predictions)(parameters).values()
    rows = torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)
    return rows.T @ rows / len(signal.coords)


def reference(run, step, matrix="hessian"):
    """Return the matrix at a checkpoint in double precision, by nothing of ours."""
    model, signal = run.model(step).double(), run.signal().to(dtype=torch.float64)
    return autograd_ggn(model, signal) if matrix == "ggn" else autograd_hessian(model, mse, signal)


def exact_values(run, step, matrix="hessian"):
    return np.linalg.eigvalsh(reference(run, step, matrix).numpy())


def blocks(run, step, matrix="hessian"):
    """Return each layer's diagonal block: a weight and a bias lie next to each other."""
    whole, start, found = reference(run, step, matrix), 0, {}
    model = run.model(step)
    for name in LAYERS:
        size = sum(value.numel() for value in model.get_submodule(name).parameters())
        found[name] = whole[start : start + size, start : start + size]
        start += size
    assert start == len(whole)
    return found


def assert_extreme(one, values, num):
    """Assert that the extremes are those of all eigenvalues, in order, within their residuals."""
    found, residuals = np.array(one.extreme_values), np.array(one.residuals)
    ends, largest = np.sort(values)[::-1], abs(values).max()
    expected = ends if len(values) <= 2 * num else np.concatenate([ends[:num], ends[-num:]])
    nearest = abs(found[:, None] - values).min(axis=1)
    assert (nearest <= residuals + 1e3 * np.finfo(np.float64).eps * largest).all()
    # The search ends at residuals of 1e-6 max|λ|: no eigenvalue farther out is missing by more.
    assert found == pytest.approx(expected, rel=0, abs=2e-6 * largest)
    assert residuals.max() <= 1e-6 * largest
    assert all(one.converged)


@pytest.fixture(scope="module")
def measured_once(tmp_path_factory):
    """A run, and what each method says of each matrix, all in its own directory."""
    run = train(FIELD, out=tmp_path_factory.mktemp("field") / "run")
    results = {
        (method, matrix): measure_estimates(
            run, Settings(method, matrix, layers=True, num=3, num_probes=6, num_steps=12)
        )
        for method in METHODS
        for matrix in MATRICES
    }
    return run, results


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    return train(TINY, out=tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture
def run(trained_once, tmp_path):
    return load_run(shutil.copytree(trained_once.path, tmp_path / "run"))


def strictly(path):
    return json.loads(path.read_text(), parse_constant=refuse_constant)


def counted(monkeypatch, module=estimates):
    """Return the list of the steps that are measured from now on."""
    steps, measure = [], module._measure

    def counting(one, *rest):
        steps.append(one.step)
        return measure(one, *rest)

    monkeypatch.setattr(module, "_measure", counting)
    return steps


# Against all eigenvalues.


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("method", METHODS)
def test_extremes_are_those_of_the_dense_matrix(measured_once, method, matrix):
    run, results = measured_once
    result = results[method, matrix]
    assert [one.step for one in result.measured] == run.steps
    for one in result.measured:
        values = exact_values(run, one.step, matrix)
        assert_extreme(one.whole, values, 3)
        assert one.whole.lambda_max == one.whole.extreme_values[0]
        assert one.whole.lambda_min == one.whole.extreme_values[-1]
    assert not result.failures


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("method", METHODS)
def test_layers_are_the_diagonal_blocks(measured_once, method, matrix):
    run, results = measured_once
    last = results[method, matrix].measured[-1]
    assert tuple(last.layers) == LAYERS
    for name, block in blocks(run, last.step, matrix).items():
        assert last.layers[name].size == len(block)
        assert_extreme(last.layers[name], np.linalg.eigvalsh(block.numpy()), 3)


@pytest.mark.parametrize("matrix", MATRICES)
def test_dense_layers_are_the_diagonal_blocks(measured_once, tmp_path, matrix):
    run = load_run(shutil.copytree(measured_once[0].path, tmp_path / "run"))
    result = measure_eigenvalues(run, matrix=matrix, layers=True)
    kind = "-layers" if matrix == "hessian" else "-ggn-layers"
    rows = np.load(run.path / f"eigenvalues{kind}.npy")
    for one, row in zip(result.measured, rows, strict=True):
        values = exact_values(run, one.step, matrix)
        assert_same(one.spectrum.values, torch.from_numpy(values))
        parts = [values]
        for name, block in blocks(run, one.step, matrix).items():
            parts.append(np.linalg.eigvalsh(block.numpy()))
            assert_same(one.layers[name].values, torch.from_numpy(parts[-1]))
        assert_same(torch.from_numpy(row), torch.from_numpy(np.concatenate(parts)))
    assert not result.failures


@pytest.mark.parametrize("matrix", MATRICES)
def test_the_condition_number_is_bounded_from_below(measured_once, matrix):
    run, results = measured_once
    for one in results["slq", matrix].measured:
        magnitudes = abs(exact_values(run, one.step, matrix))
        largest = magnitudes.max()
        floor = len(magnitudes) * np.finfo(np.float64).eps * largest
        exact = largest / max(magnitudes.min(), floor)
        assert 1 < one.whole.condition_number <= exact * (1 + 1e-6)
        assert one.whole.tolerance == pytest.approx(floor, rel=1e-6)


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """The spectrum of one field by 16 seeds, and the exact one."""
    run = train(replace(FIELD, steps=0), out=tmp_path_factory.mktemp("seeds") / "run")
    several = [
        measure_estimates(run, Settings(num=1, num_probes=6, num_steps=12, seed=seed))
        for seed in range(16)
    ]
    return [one.measured[0].whole for one in several], exact_values(run, 0)


def test_share_intervals_hold_the_exact_shares(repeated):
    several, values = repeated
    magnitudes = abs(values)
    inside = []
    for one in several:
        assert one.shares_within
        for ratio, share, low, high in one.shares_within:
            exact = (magnitudes <= ratio * magnitudes.max()).mean()
            assert 0 <= low <= share <= high <= 1
            inside.append(low - 1e-12 <= exact <= high + 1e-12)
        lump, exact = one.density.lump, (magnitudes <= one.density.floor).mean()
        inside.append(float(lump.lower) - 1e-12 <= exact <= float(lump.upper) + 1e-12)
    # The intervals of one seed move together: 16 draws at 95 % hit 12 or more but for 1e-3.
    assert np.mean(inside) >= 12 / 16


def test_shares_grow_with_the_radius(repeated):
    for one in repeated[0]:
        ratios, shares, *_ = np.array(one.shares_within).T
        assert (np.diff(ratios) < 0).all()
        assert (np.diff(shares) <= 0).all()
        assert ratios == pytest.approx(10 ** (-np.arange(1, len(ratios) + 1) / 2))


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("trace", lambda values: values.sum()),
        ("frobenius_norm", lambda values: (values**2).sum() ** 0.5),
    ],
)
def test_means_are_right_within_their_errors(repeated, name, exact):
    several, values = repeated
    means, errors = np.array([getattr(one, name) for one in several]).T
    # Each error is of 6 probes: Student's t with 5 degrees of freedom has variance 5/3.
    scores = (means - exact(values)) / errors
    assert abs(scores.mean()) < 4 * (5 / 3 / len(scores)) ** 0.5
    assert 0.4 < (scores**2).mean() < 4


def test_the_density_and_the_share_below_it_have_mass_1(repeated):
    for one in repeated[0]:
        density = one.density
        mass = torch.trapezoid(density.density.estimate, density.grid)
        assert float(mass + density.lump.estimate) == pytest.approx(1, abs=0.01)


def test_more_steps_than_parameters_are_as_many_as_parameters(run):
    result = measure_estimates(run, Settings(num=100, num_steps=1000))
    for one in result.measured:
        values = exact_values(run, one.step)
        assert len(one.whole.extreme_values) == len(values) == 10
        assert_extreme(one.whole, values, 100)
        rounding = 1e4 * np.finfo(np.float64).eps * abs(values).sum()
        assert one.whole.trace[0] == pytest.approx(values.sum(), abs=rounding)
        assert one.whole.frobenius_norm[0] == pytest.approx((values**2).sum() ** 0.5)
        assert one.whole.frobenius_norm[1] < 1e-8


# JSON.


def assert_holds_keys(found, expected, where="result"):
    """Assert that one JSON object has every key of another, at every level."""
    for key, value in expected.items():
        assert key in found, f"{where} lacks {key}"
        if isinstance(value, dict):
            assert_holds_keys(found[key], value, f"{where}.{key}")
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for one, other in zip(found[key], value, strict=True):
                assert_holds_keys(one, other, f"{where}.{key}")


@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_key_of_a_dense_result_is_there(run, method, layers):
    dense = measure_eigenvalues(run, layers=layers).to_json()
    found = measure_estimates(run, Settings(method, layers=layers, num=2)).to_json()
    assert_holds_keys(found, dense)
    for one in (found["spectra"][0], *found["spectra"][0].get("layers", {}).values()):
        assert {"extreme_values", "residuals", "converged", "density", "num_products"} <= one.keys()
    assert ("layers" in found["spectra"][0]) == layers
    assert set(found["pooled"].values()) == {None}


def test_json_tells_what_was_found(repeated):
    one = repeated[0][0]
    found = one.to_json()
    assert (found["trace"], found["standard_errors"]["trace"]) == one.trace
    norm = (found["frobenius_norm"], found["standard_errors"]["frobenius_norm"])
    assert norm == one.frobenius_norm
    for name in ("lambda_min", "lambda_max", "tolerance", "condition_number", "residuals"):
        assert found[name] == getattr(one, name)
    assert found["num_parameters"] == one.size == 61
    assert found["num_products"] == one.num_products > 6 * 12
    density = found["density"]
    assert density["per_decade"] == one.density.density.estimate.tolist()
    assert density["log10_magnitude"] == one.density.grid.tolist()
    below = density["share_below_floor"]
    assert below["lower"] <= below["estimate"] <= below["upper"]
    for low, share, high in zip(
        density["lower"], density["per_decade"], density["upper"], strict=True
    ):
        assert low <= share <= high


def test_what_products_do_not_tell_is_null(run):
    one = measure_estimates(run, Settings(num=2)).measured[0].whole.to_json()
    unknown = ("structural_zeros", "numerical_zeros", "negative", "smallest_magnitude")
    unknown += ("effective_condition_number", "effective_rank")
    assert [one[name] for name in unknown] == [None] * len(unknown)
    assert one["condition_number_resolved"] is False
    assert one["smallest_magnitude_resolved"] is False


def test_shares_have_the_names_of_a_dense_result(run):
    one = measure_estimates(run, Settings(num=2, num_probes=4)).measured[-1].whole
    # 10 steps resolve hardly a decade; so the ratios are put there by hand.
    some = [(10.0**-2.5, 0.4, 0.3, 0.5), (1e-3, 0.3, 0.2, 0.4), (1e-4, 0.1, 0.0, 0.2)]
    changed = type(one)(**{**vars(one), "shares_within": some}).to_json()["shares_below"]
    assert {name: share for name, share in changed.items() if share is not None} == {
        "1e-03": 0.3,
        "1e-04": 0.1,
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_file_is_strict_json_and_what_is_returned(run, method):
    settings = Settings(method, num=2, num_probes=3, num_steps=5)
    found = measure_estimates(run, settings)
    file = strictly(run.path / f"eigs-{method}.json")
    assert file["spectra"] == json.loads(json.dumps(finite(found.to_json())))["spectra"]
    assert file["settings"]["num_steps"] == 5
    assert file["run_id"] == run.record["id"]
    assert [one["step"] for one in file["spectra"]] == run.steps
    for one in file["spectra"]:
        assert (one["density"] is None) == (method == "lanczos")
        assert (one["trace"] is None) == (method == "lanczos")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Settings(), "eigs-slq.json"),
        (Settings("lanczos"), "eigs-lanczos.json"),
        (Settings(matrix="ggn"), "eigs-slq-ggn.json"),
        (Settings("lanczos", "ggn", layers=True), "eigs-lanczos-ggn-layers.json"),
    ],
)
def test_files_are_named_after_what_was_measured(run, settings, name):
    before = {path.name for path in run.path.iterdir()}
    measure_estimates(run, settings, every=9)
    assert {path.name for path in run.path.iterdir()} - before - {".lock"} == {name}


# What is there is not measured again.


def test_reading_back_gives_what_was_measured(run, monkeypatch):
    settings = Settings(layers=True, num=2, num_probes=3, num_steps=6)
    first = measure_estimates(run, settings, every=2)
    steps = counted(monkeypatch)
    second = measure_estimates(load_run(run.path), settings, every=2)
    assert steps == []
    assert finite(second.to_json()) == finite(first.to_json())
    assert second.failures == first.failures
    assert estimates_table(second, pictures=[]) == estimates_table(first, pictures=[])


def test_lanczos_reads_back_what_it_does_not_know(run, monkeypatch):
    settings = Settings("lanczos", num=2)
    first = measure_estimates(run, settings)
    steps = counted(monkeypatch)
    second = measure_estimates(load_run(run.path), settings)
    assert steps == []
    assert math.isnan(second.measured[0].whole.trace[0])
    assert finite(second.to_json()) == finite(first.to_json())


@pytest.mark.parametrize(
    "other", [{"num": 3}, {"num_probes": 4}, {"num_steps": 7}, {"seed": 1}, {"matrix": "ggn"}]
)
def test_other_settings_are_measured_anew(run, monkeypatch, other):
    chosen = {"num": 2, "num_probes": 3, "num_steps": 6}
    measure_estimates(run, Settings(**chosen), every=9)
    steps = counted(monkeypatch)
    found = measure_estimates(run, Settings(**(chosen | other)), every=9)
    assert steps == [0, 4]
    assert found.settings == Settings(**(chosen | other))


def test_a_subset_grows_into_the_whole_and_is_kept(run, monkeypatch, tmp_path):
    settings = Settings("lanczos", num=2)
    measure_estimates(run, settings, every=3)
    steps = counted(monkeypatch)
    measure_estimates(run, settings)
    assert steps == [1, 2]
    subset = measure_estimates(run, settings, every=3)
    assert [one.step for one in subset.measured] == [0, 3, 4]
    assert steps == [1, 2]
    shutil.copytree(run.path, tmp_path / "fresh")
    (tmp_path / "fresh" / "eigs-lanczos.json").unlink()
    fresh = finite(measure_estimates(load_run(tmp_path / "fresh"), settings).to_json())
    assert strictly(run.path / "eigs-lanczos.json")["spectra"] == fresh["spectra"]


def test_an_interrupted_measurement_continues(run, monkeypatch):
    monkeypatch.setattr(record, "SAVING_SHARE", float("inf"))
    settings = Settings(num=2, num_probes=3, num_steps=6)

    def stop(one):
        if one.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_estimates(run, settings, watch=stop)
    half_way = strictly(run.path / "eigs-slq.json")["spectra"]
    steps = counted(monkeypatch)
    seen = []
    result = measure_estimates(run, settings, watch=lambda one: seen.append(one.step))
    assert steps == [3, 4]
    assert seen == [0, 1, 2, 3, 4]
    (run.path / "eigs-slq.json").unlink()
    fresh = measure_estimates(run, settings)
    assert finite(result.to_json()) == finite(fresh.to_json())
    assert half_way == finite(fresh.to_json())["spectra"][:3]


def test_results_of_another_run_are_not_taken_for_ours(run, tmp_path, monkeypatch):
    settings = Settings("lanczos", num=2)
    other = train(replace(TINY, act="sine"), out=tmp_path / "other")
    measure_estimates(other, settings)
    shutil.copy(other.path / "eigs-lanczos.json", run.path / "eigs-lanczos.json")
    steps = counted(monkeypatch)
    measure_estimates(run, settings)
    assert steps == run.steps


def hundredfold(predictions, values):
    return 100 * mse(predictions, values)


def test_another_loss_is_measured_anew(run):
    settings = Settings("lanczos", num=1)
    ours = measure_estimates(run, settings).measured[-1].whole.lambda_max
    other = measure_estimates(load_run(run.path, loss=hundredfold), settings)
    assert other.measured[-1].whole.lambda_max == pytest.approx(100 * ours)


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_results_of_another_loss_are_not_taken_for_those_of_the_run(run, method):
    def largest(one):
        if method == "dense":
            return measure_eigenvalues(one).spectra[-1].lambda_max
        settings = Settings("lanczos", num=1)
        return measure_estimates(one, settings).measured[-1].whole.lambda_max

    other = largest(load_run(run.path, loss=hundredfold))
    assert largest(load_run(run.path)) == pytest.approx(other / 100)


def test_two_processes_do_not_measure_into_one_directory(run):
    with locked(run.path), pytest.raises(UsageError, match="out must not be in use"):
        measure_estimates(run)


# Networks of all kinds.


def test_single_precision_is_measured_in_single_precision(tmp_path):
    setup = replace(TINY, dtype="float32", steps=1)
    run = train(setup, out=tmp_path / "run")
    result = measure_estimates(run, Settings(num=2, num_probes=4, num_steps=10))
    assert not result.failures
    eps = np.finfo(np.float32).eps
    for one in result.measured:
        values = exact_values(run, one.step)
        largest = abs(values).max()
        assert one.whole.tolerance == pytest.approx(10 * eps * largest, rel=1e-4)
        ends = np.sort(values)[::-1][[0, 1, -2, -1]]
        gaps = abs(np.array(one.whole.extreme_values) - ends)
        assert (gaps <= np.array(one.whole.residuals) + 100 * eps * largest).all()


class Bent(nn.Module):
    """A module of a user's own, with a parameter of its own and one that is not used."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 1)
        self.factor = nn.Parameter(torch.ones(()))
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, coords):
        return self.factor * self.last(torch.tanh(self.first(coords)))


def make_signal():
    generator = torch.Generator().manual_seed(0)
    coords = torch.rand(30, 2, dtype=torch.float64, generator=generator)
    return Signal(coords, torch.sin(3 * coords[:, :1]))


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_module_of_a_users_own_is_measured(tmp_path, matrix):
    torch.manual_seed(0)
    setup = Setup(steps=1, optimizer="adam")
    train(setup, out=tmp_path / "run", model=Bent(), signal=make_signal())
    run = load_run(tmp_path / "run", model=Bent())
    result = measure_estimates(run, Settings("lanczos", matrix, layers=True, num=2))
    last = result.measured[-1]
    assert_extreme(last.whole, exact_values(run, last.step, matrix), 2)
    # Parameters that belong to no layer come first, and two of the three are not used.
    sizes = {name: one.size for name, one in last.layers.items()}
    assert list(sizes.values()) == [3, 12, 5]
    assert {"first": 12, "last": 5}.items() <= sizes.items()
    own = next(iter(last.layers.values())).extreme_values
    assert sorted(own, key=abs)[:2] == pytest.approx([0, 0], abs=1e-12)
    assert not result.failures


def test_frozen_parameters_are_no_part_of_the_matrix(tmp_path):
    torch.manual_seed(0)
    module = Bent()
    module.first.bias.requires_grad_(False)
    train(Setup(steps=1, optimizer="sgd"), out=tmp_path / "run", model=module, signal=make_signal())
    run = load_run(tmp_path / "run", model=module)
    result = measure_estimates(run, Settings("lanczos", layers=True, num=2)).measured[-1]
    dense = measure_eigenvalues(run).spectra[-1]
    assert (result.whole.size, result.layers["first"].size) == (16, 8)
    assert result.whole.lambda_max == pytest.approx(dense.lambda_max)


def test_a_module_in_training_mode_is_refused(tmp_path):
    module = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 1))
    signal = make_signal()
    run = train(Setup(steps=1, optimizer="sgd"), out=tmp_path / "run", model=module, signal=signal)
    with pytest.raises(ValueError, match=r"must be in evaluation mode: .* Call model\.eval"):
        measure_estimates(run)


def test_a_loss_that_changes_fails_its_check(run):
    factors = iter(range(1, 1000))

    def drifting(predictions, values):
        return (1 + 1e-3 * next(factors)) * mse(predictions, values)

    result = measure_estimates(load_run(run.path, loss=drifting), Settings("lanczos", num=1))
    assert any("is not deterministic" in failure for failure in result.failures)


def linear(predictions, values):
    return (predictions - values).mean()


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_matrix_is_told_in_strict_json(tmp_path, method):
    setup = Setup(act="relu", depth=0, size=6, steps=1, optimizer="sgd")
    run = train(setup, out=tmp_path / "run", loss=linear)
    result = measure_estimates(run, Settings(method, layers=True))
    assert not result.failures
    for one in strictly(run.path / f"eigs-{method}-layers.json")["spectra"]:
        assert one["extreme_values"] == [0, 0, 0]
        assert one["condition_number"] is None
        if method == "slq":
            assert (one["trace"], one["frobenius_norm"]) == (0, 0)
            assert one["density"]["share_below_floor"]["estimate"] == 1
    assert "nan" not in estimates_table(result, pictures=[])


@pytest.mark.parametrize(
    "setup",
    [
        Setup(act="tanh", signal="sines", size=8, depth=0, steps=1),
        Setup(act="tanh", signal="sines", size=8, depth=1, width=1, steps=1),
        Setup(act="relu", size=6, depth=3, width=1, steps=1, seed=1),
    ],
    ids=["linear", "width-1", "dead"],
)
def test_the_smallest_fields_are_measured(tmp_path, setup):
    run = train(setup, out=tmp_path / "run")
    result = measure_estimates(run, Settings(layers=True))
    last = result.measured[-1]
    values = exact_values(run, last.step)
    assert_extreme(last.whole, values, 5)
    assert last.whole.trace[0] == pytest.approx(values.sum())
    assert not result.failures


# What fails.


def damaged(run):
    """Return a run whose last checkpoint is NaN."""
    rows = np.load(run.path / "trajectory.npy")
    rows[-1] = np.nan
    np.save(run.path / "trajectory.npy", rows)
    return load_run(run.path)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_that_is_not_finite_fails_its_check(run, method):
    settings = Settings(method, layers=True, num=1, num_probes=3, num_steps=4)
    result = measure_estimates(damaged(run), settings)
    assert result.failures[0] == "step 4: the matrix is not finite"
    assert result.measured[0].whole.lambda_max > 0
    assert math.isnan(result.measured[-1].whole.lambda_max)
    last = strictly(run.path / f"eigs-{method}-layers.json")["spectra"][-1]
    assert last["lambda_max"] is None
    assert last["extreme_values"] == []
    assert estimates_table(result, pictures=[])


def test_dense_results_that_are_not_finite_are_not_measured_again(run, monkeypatch):
    first = measure_eigenvalues(damaged(run))
    monkeypatch.setattr("hessian_lab.measures.eigenvalues.dense_hessian", None)
    assert measure_eigenvalues(load_run(run.path)).failures == first.failures


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dense"}, "method must be one of lanczos, slq, got 'dense'"),
        ({"method": "slp"}, "method must be one of lanczos, slq, got 'slp'"),
        ({"matrix": "GGN"}, "matrix must be one of hessian, ggn, got 'GGN'"),
        ({"num": 0}, "num must be"),
        ({"num_probes": 1}, "num_probes must be at least 2"),
        ({"num_probes": 0}, "num_probes must be"),
        ({"num_steps": 0}, "num_steps must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_settings_without_sense_are_refused_and_nothing_is_written(run, settings, message):
    before = sorted(run.path.glob("eigs*"))
    with pytest.raises(ValueError, match=message):
        measure_estimates(run, Settings(**settings))
    assert sorted(run.path.glob("eigs*")) == before


def test_a_dense_measurement_of_an_unknown_matrix_is_refused(run):
    with pytest.raises(ValueError, match="matrix must be one of hessian, ggn, got 'GGN'"):
        measure_eigenvalues(run, matrix="GGN")


def test_refuses_an_interval_below_one(run):
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        measure_estimates(run, every=0)
