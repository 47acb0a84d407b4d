"""What every optimizer promises a training run, by name alone."""

import numpy as np
import pytest
import torch

from hessian_lab.errors import InputError
from hessian_lab.losses import mse
from hessian_lab.optim import OPTIMIZERS, RECIPES
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.training.loop import train
from hessian_lab.training.run import DIAGNOSTICS
from hessian_lab.training.setup import Setup

TINY = {"signal": "camera", "size": 6, "act": "tanh", "width": 3, "depth": 2, "threads": 1}
# Without a preconditioner.
WITHOUT = {"sgd", "nonlinear_cg", "newton_cg"}


class Stopped(Exception):
    """A process that ends."""


def stop_at(step):
    def visit(now, _model, _optimizer):
        if now == step:
            raise Stopped

    return visit


def numbers(run):
    return run.metrics.drop(columns="wall_s").to_numpy()


@pytest.mark.parametrize("batch_size", [None, 20])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:.*mini-batch:UserWarning")
def test_a_killed_run_continues_bit_for_bit(name, batch_size, tmp_path):
    setup = Setup(optimizer=name, steps=14, batch_size=batch_size, **TINY)
    whole = train(setup, out=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(setup, out=tmp_path / "killed", visit=stop_at(5))
    killed = train(setup, out=tmp_path / "killed")
    assert np.array_equal(killed.trajectory, whole.trajectory)
    assert np.array_equal(numbers(killed), numbers(whole), equal_nan=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends_by_its_name_alone(name, tmp_path):
    run = train(Setup(optimizer=name, steps=20, **TINY), out=tmp_path / "run")
    loss = run.metrics["loss"].to_numpy()
    assert loss[-1] < 0.9 * loss[0]
    assert set(DIAGNOSTICS) <= set(run.metrics.columns)
    assert run.metrics["skipped"].iloc[-1] == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains(recipe, tmp_path):
    run = train(Setup(recipe=recipe, steps=3, **TINY), out=tmp_path / "run")
    assert np.isfinite(run.metrics["loss"]).all()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - WITHOUT))
def test_preconditioned_spectra_are_measured_at_any_checkpoint(name, tmp_path):
    seen = {}

    def visit(step, model, optimizer):
        if step == 0:
            return
        before = [value.detach().clone() for value in model.parameters()]
        hessian = HessianOperator(model, mse, signal)
        preconditioner = optimizer.preconditioner(model)
        scaled = preconditioner.precondition(hessian).dense()
        root = preconditioner.inverse_sqrt.dense()
        torch.testing.assert_close(root, root.T)
        assert torch.linalg.eigvalsh(root).min() > 0
        torch.testing.assert_close(scaled, root @ hessian.dense() @ root, rtol=1e-6, atol=1e-9)
        seen[step] = torch.linalg.eigvalsh(scaled)
        assert all(map(torch.equal, before, model.parameters()))

    options = {"solver": "dense"} if name == "gauss_newton" else {}
    setup = Setup(optimizer=name, options=options, steps=4, **TINY)
    plain = train(setup, out=tmp_path / "plain")
    signal = plain.signal()
    visited = train(setup, out=tmp_path / "visited", visit=visit)
    assert sorted(seen) == [1, 2, 3, 4]
    assert np.array_equal(visited.trajectory, plain.trajectory)


def test_a_state_of_another_version_is_told(tmp_path):
    setup = Setup(optimizer="lbfgs", steps=9, **TINY)
    with pytest.raises(Stopped):
        train(setup, out=tmp_path, visit=stop_at(5))
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    state["optimizer"]["param_groups"] = [{"params": [0]}]
    torch.save(state, tmp_path / "resume.pt")
    with pytest.raises(InputError, match=r"another version of its optimizer .* --overwrite"):
        train(setup, out=tmp_path)
