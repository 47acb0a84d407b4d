import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import hessian_lab.training.sweep as module
from hessian_lab.training.grid import setups, shard
from hessian_lab.training.run import load_run
from hessian_lab.training.setup import Setup
from hessian_lab.training.sweep import Sweep, sweep

BASE = Setup(signal="sines", size=12, act="tanh", width=3, depth=1, steps=4, threads=1)
VARIED = {"optimizer": ["adam", "sgd"], "lr": [0.01, 0.1], "seed": [0, 1]}
GRID = setups(BASE, VARIED)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return sweep(GRID, out=tmp_path_factory.mktemp("sweep"), varied=tuple(VARIED))


def test_every_combination_is_a_run(done):
    assert len(done.table) == 8
    assert list(done.table["status"]) == ["done"] * 8
    for row in done.table.to_dict("records"):
        run = load_run(done.path / row["run"])
        assert (run.setup.optimizer, run.setup.lr, run.setup.seed) == (
            row["optimizer"],
            row["lr"],
            row["seed"],
        )
        assert row["loss"] == run.metrics["loss"].iloc[-1]
        assert row["evaluations"] == 4
    pd.testing.assert_frame_equal(pd.read_csv(done.path / "sweep.csv"), done.table)


def test_finished_runs_are_not_trained_again(done):
    before = {path: path.stat().st_mtime_ns for path in done.path.glob("*/trajectory.npy")}
    again = sweep(GRID, out=done.path, varied=tuple(VARIED))
    pd.testing.assert_frame_equal(again.table, done.table)
    assert {path: path.stat().st_mtime_ns for path in done.path.glob("*/trajectory.npy")} == before


def test_processes_train_the_same(done, tmp_path):
    parallel = sweep(GRID[:3], out=tmp_path, varied=tuple(VARIED), jobs=2)
    columns = ["optimizer", "lr", "seed", "status", "loss", "psnr", "evaluations", "run"]
    pd.testing.assert_frame_equal(parallel.table[columns], done.table[columns][:3])


def test_shares_make_up_the_whole(done, tmp_path):
    first = sweep(GRID, out=tmp_path, varied=tuple(VARIED), ours=shard(GRID, "1/2"))
    assert list(first.table["status"]) == ["done", "missing"] * 4
    second = sweep(GRID, out=tmp_path, varied=tuple(VARIED), ours=shard(GRID, "2/2"))
    assert second.table["loss"].equals(done.table["loss"])


def test_a_stopped_sweep_goes_on(done, tmp_path):
    def stop(_row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(GRID, out=tmp_path, varied=tuple(VARIED), watch=stop)
    table = pd.read_csv(tmp_path / "sweep.csv")
    assert list(table["status"]) == ["done"] + ["missing"] * 7
    assert sweep(GRID, out=tmp_path, varied=tuple(VARIED)).table["loss"].equals(done.table["loss"])


def test_divergence_is_a_row(tmp_path):
    grid = setups(BASE, {"optimizer": ["sgd"], "lr": [1e200, 0.1]})
    found = sweep(grid, out=tmp_path, varied=("lr",))
    assert list(found.table["status"]) == ["diverged", "done"]
    assert list(found.best()["lr"]) == [0.1]


def table_of(rows):
    columns = ["optimizer", "lr", "seed", "psnr", "status"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(loss=-table["psnr"], wall_s=1.0, evaluations=10.0, products=0.0)


def test_the_best_rate_has_the_best_mean_over_seeds():
    rows = [
        ("adam", 0.1, 0, 20.0, "done"),
        ("adam", 0.1, 1, 30.0, "done"),
        ("adam", 1.0, 0, 26.0, "done"),
        ("adam", 1.0, 1, 26.0, "done"),
        ("adam", 10.0, 0, 40.0, "done"),
        ("adam", 10.0, 1, math.nan, "diverged"),
        ("sgd", 0.1, 0, 11.0, "done"),
        ("sgd", 1.0, 0, 10.0, "done"),
    ]
    best = Sweep(None, ("optimizer", "lr", "seed"), table_of(rows)).best()
    assert list(best["optimizer"]) == ["adam", "sgd"]
    assert list(best["lr"]) == [1.0, 0.1]
    assert list(best["psnr"]) == [26.0, 11.0]
    assert list(best["num_seeds"]) == [2, 1]
    assert list(best["at_edge"]) == [False, True]


def test_without_psnr_the_lowest_loss_is_best():
    table = table_of([("adam", rate, 0, np.nan, "done") for rate in (0.1, 1.0, 10.0)])
    table["loss"] = [3.0, 1.0, 2.0]
    best = Sweep(None, ("lr",), table).best()
    assert list(best["lr"]) == [1.0]


def test_where_nothing_has_finished_nothing_is_best():
    table = table_of([("adam", 0.1, 0, np.nan, "missing")])
    assert not len(Sweep(None, ("optimizer", "lr"), table).best())


def test_names_are_those_of_different_runs():
    assert len({module._name(one) for one in GRID}) == 8


def test_a_run_that_has_just_begun_is_missing(tmp_path):
    whole = sweep(GRID[:2], out=tmp_path, varied=tuple(VARIED))
    begun = tmp_path / whole.table["run"][0]
    for path in begun.iterdir():
        if path.name != "run.json":
            path.unlink()
    nothing = sweep(GRID[:2], out=tmp_path, varied=tuple(VARIED), ours=[])
    assert list(nothing.table["status"]) == ["missing", "done"]
    again = sweep(GRID[:2], out=tmp_path, varied=tuple(VARIED))
    assert list(again.table["status"]) == ["done", "done"]
    assert list(again.table["loss"]) == list(whole.table["loss"])


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_does_not_fit_is_refused_and_the_rest_is_trained(tmp_path, jobs):
    wide = setups(replace(BASE, width=80, depth=2), {"optimizer": ["newton", "sgd"]})
    for processes in (jobs, 1):
        done = sweep(wide, out=tmp_path, varied=("optimizer",), jobs=processes)
        assert list(done.table["status"]) == ["refused", "done"]
        assert list(done.best()["optimizer"]) == ["sgd"]
    assert len(list(tmp_path.glob("*/run.json"))) == 1


def test_a_best_rate_at_the_edge_is_told_where_a_field_has_no_such_option(done):
    table = done.table.assign(omega=np.nan)
    told = Sweep(done.path, ("omega", *VARIED), table).best()
    assert list(told["at_edge"]) == list(done.best()["at_edge"])
    assert told["at_edge"].any()
