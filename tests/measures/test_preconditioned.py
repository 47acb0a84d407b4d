import numpy as np
import pytest
import torch

import hessian_lab.measures.eigenvalues as module
from hessian_lab.errors import UsageError
from hessian_lab.losses import mse
from hessian_lab.measures.conditioning import Settings as ConditionSettings
from hessian_lab.measures.conditioning import measure_conditions
from hessian_lab.measures.eigenvalues import measure_eigenvalues
from hessian_lab.measures.estimates import Settings, measure_estimates
from hessian_lab.measures.scaled import preconditioned_matrix, reordered
from hessian_lab.optim import OPTIMIZERS
from hessian_lab.optim.preconditioner import dense_preconditioner, diagonal_preconditioner
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.training.loop import train
from hessian_lab.training.setup import Setup
from tests.reference import autograd_hessian, points, small_field

TINY = {"signal": "camera", "size": 6, "act": "tanh", "width": 3, "depth": 2, "threads": 1}
WITHOUT = {"sgd", "nonlinear_cg", "newton_cg", "gauss_newton"}


def run_of(name, path, **more):
    return train(
        Setup(optimizer=name, steps=9, checkpoint_every=3, **{**TINY, **more}), out=path / name
    )


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - WITHOUT))
def test_the_spectrum_is_that_of_the_optimizers_own_preconditioner(name, tmp_path):
    expected = {}

    def visit(step, model, optimizer):
        if step:
            hessian = autograd_hessian(model, mse, signal)
            root = optimizer.preconditioner(model).inverse_sqrt.dense()
            expected[step] = torch.linalg.eigvalsh(root @ hessian @ root).numpy()

    setup = Setup(optimizer=name, steps=9, checkpoint_every=3, **TINY)
    signal = train(Setup(steps=0, **TINY), out=tmp_path / "none").signal()
    run = train(setup, out=tmp_path / "run", visit=visit)
    found = measure_eigenvalues(run, preconditioned=True)
    assert [one.step for one in found.measured] == [3, 6, 9]
    assert not found.failures
    for one in found.measured:
        scale = np.abs(expected[one.step]).max()
        assert np.allclose(one.row, expected[one.step], rtol=0, atol=1e-9 * scale)
    table = found.to_json()
    assert table["preconditioned"]
    assert (run.path / "eigs-preconditioned.json").exists()


def test_an_optimizer_without_a_preconditioner_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no checkpoint of .* SGD has no preconditioner"):
        measure_eigenvalues(run_of("sgd", tmp_path), preconditioned=True)


def test_condition_numbers_hold_those_of_the_preconditioned_spectrum(tmp_path):
    run = run_of("adam", tmp_path)
    spectra = {
        one.step: one.spectrum for one in measure_eigenvalues(run, preconditioned=True).measured
    }
    found = measure_conditions(run, ConditionSettings(preconditioned=True))
    plain = measure_conditions(run)

    assert [one.step for one in found.measured] == list(spectra)
    for one in found.measured:
        own, spectrum = one.scaled["optimizer"], spectra[one.step]
        assert own.kappa == pytest.approx(spectrum.condition_number, rel=1e-6)
        assert own.resolved == spectrum.condition_number_resolved
        assert own.num_below == spectrum.numerical_zeros
        (same,) = [each for each in plain.measured if each.step == one.step]
        assert same.scaled == {name: one.scaled[name] for name in same.scaled}
    assert (run.path / "cond-preconditioned.json").exists()
    assert (
        measure_conditions(run, ConditionSettings(preconditioned=True)).measured == found.measured
    )


def test_condition_numbers_of_an_optimizer_without_a_preconditioner_are_refused(tmp_path):
    with pytest.raises(UsageError, match="SGD has no preconditioner"):
        measure_conditions(run_of("sgd", tmp_path), ConditionSettings(preconditioned=True))


def test_a_killed_measurement_goes_on(tmp_path, monkeypatch):
    run = run_of("adam", tmp_path)
    whole = measure_eigenvalues(run, preconditioned=True)
    (run.path / "eigs-preconditioned.json").unlink()

    def stop(one):
        if one.step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.Eigenvalues, "failures", [])
    with pytest.raises(KeyboardInterrupt):
        measure_eigenvalues(run, preconditioned=True, watch=stop)
    measured, plain = [], module._measure
    monkeypatch.setattr(
        module, "_measure", lambda *args: measured.append(args[1].step) or plain(*args)
    )
    again = measure_eigenvalues(run, preconditioned=True)
    assert measured in ([6, 9], [9])
    assert [one.to_json() for one in again.measured] == [one.to_json() for one in whole.measured]
    assert all(
        np.array_equal(*pair)
        for pair in zip(
            (one.row for one in again.measured), (one.row for one in whole.measured), strict=True
        )
    )


def test_products_agree_with_the_dense_matrix(tmp_path):
    run = run_of("kfac", tmp_path)
    dense = measure_eigenvalues(run, preconditioned=True).measured[-1].spectrum
    settings = Settings(method="slq", num=2, num_probes=4, num_steps=40, preconditioned=True)
    (*_, last) = measure_estimates(run, settings).measured
    assert last.whole.lambda_max == pytest.approx(dense.lambda_max, rel=1e-8)
    assert last.whole.lambda_min == pytest.approx(dense.lambda_min, rel=1e-8)
    with pytest.raises(ValueError, match="layers must be off with preconditioned"):
        Settings(preconditioned=True, layers=True)


@pytest.mark.parametrize("kind", ["diagonal", "dense"])
def test_the_floor_holds_the_rounding_that_scaling_magnifies(kind):
    field, signal = small_field("gaussian"), points()
    matrix = dense_hessian(field, mse, signal)
    again = dense_hessian(field, mse, reordered(signal))
    size = len(matrix)
    scale = torch.logspace(-9, 0, size, dtype=torch.float64)
    other = autograd_hessian(field, mse, signal)
    if kind == "diagonal":
        preconditioner, root = diagonal_preconditioner(scale), torch.diag(scale.rsqrt())
    else:
        noise = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).double()
        basis = torch.linalg.qr(noise).Q
        root = basis * scale.rsqrt() @ basis.T
        root = (root + root.T) / 2
        preconditioner = dense_preconditioner(root)
    expected = torch.linalg.eigvalsh(root @ other @ root)
    product, rounding = preconditioned_matrix(preconditioner, matrix, again)
    assert torch.equal(product, product.T)
    error = float((torch.linalg.eigvalsh(product) - expected).abs().max())
    assert error < 10 * rounding
    plain = size * torch.finfo(torch.float64).eps * float(expected.abs().max())
    # It is the rounding, not a bound far above it.
    assert rounding < 1e3 * max(error, plain)


def test_reordered_points_are_the_same_points():
    signal = points()
    other = reordered(signal)
    assert not torch.equal(other.coords, signal.coords)
    pairs = {tuple(row) for row in torch.cat([signal.coords, signal.values], dim=1).tolist()}
    assert {tuple(row) for row in torch.cat([other.coords, other.values], dim=1).tolist()} == pairs
