import math
from dataclasses import replace

import numpy as np
import pytest

from hessian_lab.errors import UsageError
from hessian_lab.measures.compare import compare
from hessian_lab.training.grid import setups
from hessian_lab.training.run import load_run
from hessian_lab.training.setup import Setup

BASE = Setup(signal="sines", size=16, act="tanh", width=4, depth=1, steps=6, threads=1)
VARIED = {"optimizer": ["adam", "lbfgs"], "lr": [1e-3, 0.1, 1.0], "seed": [0]}
SEEDS = [1, 2, 3]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return compare(
        setups(BASE, VARIED), seeds=SEEDS, out=tmp_path_factory.mktemp("out"), varied=tuple(VARIED)
    )


def test_the_rates_are_those_of_the_tuning_seeds(done):
    table = done.tuning.table
    assert len(table) == 6
    for row in done.table().to_dict("records"):
        tried = table[table["optimizer"] == row["optimizer"]]
        assert row["lr"] == tried.loc[tried["loss"].idxmin(), "lr"]
        assert row["at_edge"] == (row["lr"] in (1e-3, 1.0))
        assert row["seeds"] == 3


def test_curves_are_those_of_the_runs(done):
    for row in done.runs.table.to_dict("records"):
        run = load_run(done.runs.path / row["run"])
        assert run.setup.seed in SEEDS
        same = (done.curves["optimizer"] == row["optimizer"]) & (done.curves["seed"] == row["seed"])
        curve = done.curves[same]
        assert np.array_equal(curve["loss"], run.metrics["loss"])
        assert np.array_equal(curve["step"], run.metrics["step"])


def test_bands_and_targets_are_medians_and_ranges_over_seeds(done):
    assert done.quantity == "loss"
    bands = done.bands()
    ends = {}
    for name in VARIED["optimizer"]:
        curves = np.array(
            [
                done.curves[(done.curves["optimizer"] == name) & (done.curves["seed"] == seed)][
                    "loss"
                ]
                for seed in SEEDS
            ]
        )
        band = bands[bands["optimizer"] == name]
        assert np.allclose(band["median"], np.median(curves, axis=0), rtol=1e-15)
        assert np.array_equal(band["low"], curves.min(axis=0))
        assert np.array_equal(band["high"], curves.max(axis=0))
        ends[name] = (np.median(curves[:, -1]), curves)
    target = max(median for median, _ in ends.values())
    assert done.target() == target
    for row in done.table().to_dict("records"):
        _, curves = ends[row["optimizer"]]
        first = [
            np.argmax(each <= target) if (each <= target).any() else math.inf for each in curves
        ]
        assert row["target_steps"] == np.median(first)


def test_finished_runs_are_not_trained_again(done):
    before = {path: path.stat().st_mtime_ns for path in done.tuning.path.rglob("trajectory.npy")}
    assert len(before) == 6 + 6
    again = compare(setups(BASE, VARIED), seeds=SEEDS, out=done.tuning.path, varied=tuple(VARIED))
    assert again.curves.equals(done.curves)
    after = {path: path.stat().st_mtime_ns for path in done.tuning.path.rglob("trajectory.npy")}
    assert after == before


def test_other_fields_make_groups_of_their_own(tmp_path):
    grid = setups(BASE, {"act": ["tanh", "sine"], "lr": [0.01, 0.1]})
    done = compare(grid, seeds=[4], out=tmp_path, varied=("act", "lr"))
    assert done.groups == ("optimizer", "act")
    assert [tuple(key) for key in done.table()[["optimizer", "act"]].to_numpy()] == [
        ("lbfgs", "tanh"),
        ("lbfgs", "sine"),
    ]


def test_an_optimizer_that_no_rate_suits_is_told(tmp_path):
    grid = setups(replace(BASE, act="relu"), {"optimizer": ["sgd"], "lr": [1e200]})
    with pytest.raises(UsageError, match="a rate must finish with every seed, none does for optim"):
        compare(grid, seeds=[1], out=tmp_path, varied=("optimizer", "lr"))
