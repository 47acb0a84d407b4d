import json

import numpy as np
import pytest
import torch
from torch import nn

from hessian_lab.errors import InputError
from hessian_lab.losses import mse
from hessian_lab.signal import Signal
from hessian_lab.training.loop import train
from hessian_lab.training.retrace import retrace
from hessian_lab.training.run import flat, load_run
from hessian_lab.training.setup import Setup

TINY = {"signal": "camera", "size": 6, "act": "tanh", "width": 3, "depth": 2, "threads": 1}


def visited(run, steps):
    seen = {}
    retrace(run, lambda step, model, _: seen.update({step: flat(model).numpy()}), steps=steps)
    return seen


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("batch_size", [None, 10])
def test_checkpoints_are_visited_bit_for_bit(dtype, batch_size, tmp_path):
    setup = Setup(
        optimizer="esgd", steps=12, checkpoint_every=3, dtype=dtype, batch_size=batch_size, **TINY
    )
    run = train(setup, out=tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()}
    seen = visited(run, [0, 6, 12])
    assert list(seen) == [0, 6, 12]
    for step, parameters in seen.items():
        assert np.array_equal(parameters, run.trajectory[run.steps.index(step)])
    assert {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()} == before


def test_training_stops_after_the_last_step_that_is_asked_for(tmp_path):
    run = train(Setup(optimizer="adam", steps=10, **TINY), out=tmp_path / "run")
    calls = []

    class Counting(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, coords):
            calls.append(1)
            return self.inner(coords)

    own = train(
        Setup(optimizer="adam", steps=10, **TINY),
        out=tmp_path / "own",
        model=Counting(run.model(0)),
    )
    calls.clear()
    visited(own, [4])
    # Four steps, and what the checkpoints measure.
    assert len(calls) <= 4 + 2 * 5
    assert not visited(own, [])


def test_a_run_of_ones_own_is_trained_again_too(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    coords = torch.linspace(-1, 1, 9, dtype=torch.float64).view(-1, 1)
    signal = Signal(coords, coords.sin())

    def loss(predictions, values):
        return 3 * mse(predictions, values)

    setup = Setup(optimizer="lbfgs", steps=5, threads=1)
    run = train(setup, out=tmp_path / "run", model=module, loss=loss, signal=signal)
    assert np.array_equal(visited(run, [5])[5], run.trajectory[5])


def test_another_trajectory_is_refused(tmp_path):
    run = train(Setup(optimizer="adam", steps=4, **TINY), out=tmp_path / "run")
    record = json.loads((run.path / "run.json").read_text())
    record["setup"]["lr"] = 2e-3
    (run.path / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="cannot be trained again here: at step 4 the parameters"):
        visited(load_run(run.path), [4])
