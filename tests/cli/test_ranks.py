"""Commands by several ranks: equal to one process, and clear where they cannot go on."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hessian_lab.cli.main import main
from hessian_lab.cli.ranks import RANKED
from hessian_lab.plots import style
from hessian_lab.probe import memory, sharding
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.training.run import load_run
from tests.ranks import Job, results_of

EPS = np.finfo(np.float64).eps
FIELD = ["--act", "sine", "--width", "6", "--depth", "2", "--size", "10", "--steps", "6"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "run"
    assert main(["train", *FIELD, "--out", str(path), "--quiet"]) == 0
    return path


@pytest.fixture
def run(trained, tmp_path):
    """Return a copy of a trained run that ranks may write."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Draw nothing: pictures take longer than all that is tested here."""
    monkeypatch.setattr(style, "save", lambda *_: [])


def _cli(*commands):
    style.save = lambda *_: []
    return main(list(commands[int(os.environ["RANK"]) % len(commands)]))


def measured(run, *words):
    """Return what one process measures, as JSON, leaving the run as it was."""
    copy = shutil.copytree(run, run.parent / "alone")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*words, "--run", str(copy), "--json", "-q"]) == 0
    return json.loads(out.getvalue())["spectra"]


def gaps(found, expected, path=""):
    """Yield where two JSON values differ, and by how much."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            yield from gaps(found[name], expected[name], f"{path}/{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            yield from gaps(one, other, path)
    elif isinstance(expected, float):
        yield path, abs(found - expected) / max(abs(expected), 1e-3)


@pytest.mark.parametrize(
    ("words", "split"),
    [
        ("eigs --every 2 --layers", "checkpoints"),
        ("eigs --every 6 --matrix ggn --method lanczos --num 2", "points"),
        ("eigs --every 6 --method slq --probes 4 --lanczos-steps 20 --layers", "probes"),
        ("trace --every 6 --layers", "points"),
        ("trace --every 6 --method exact --layers", "points"),
        ("cond --every 3", ""),
        ("sparsity --every 3", ""),
    ],
)
def test_ranks_measure_what_one_process_measures(run, words, split):
    words = words.split()
    alone = measured(run, *words)
    splits = ["--split", split] if split else []
    job = Job(_cli, 2, [*words, *splits, "--run", str(run), "--json"])
    results, statuses = job.end()
    assert results == statuses == [0, 0], job.text("err")
    assert job.text("out", 1) == ""
    together = json.loads(job.text("out", 0))["spectra"]
    for path, gap in gaps(together, alone):
        name = path.rsplit("/", 1)[-1]
        # What is itself rounding noise is not compared.
        if name not in ("residuals", "product_error", "loss_error", "smallest_magnitude"):
            bound = 0 if split == "checkpoints" or not split else 1e-7
            assert gap <= bound, path
    assert f"2 ranks divide the {split}" in job.text("err", 0) or not split


def test_all_eigenvalues_of_shared_columns_are_those_of_one_process(run):
    copy = shutil.copytree(run, run.parent / "alone")
    assert main(["eigs", "--run", str(copy), "--every", "3", "--quiet"]) == 0
    command = ["eigs", "--run", str(run), "--every", "3", "--split", "columns", "--quiet"]
    assert results_of(_cli, 3, command) == [0, 0, 0]
    found, expected = (np.load(path / "eigenvalues.npy") for path in (run, copy))
    assert np.abs(found - expected).max() <= 100 * EPS * np.abs(expected).max()


def test_ranks_train_first_and_go_on_in_another_number(tmp_path):
    command = ["eigs", *FIELD, "--every", "3", "--out", "run", "--quiet"]
    assert results_of(_cli, 2, command, folder=tmp_path) == [0, 0]
    record = json.loads((tmp_path / "run" / "eigs.json").read_text())
    assert [one["step"] for one in record["spectra"]] == [0, 3, 6]
    # Marks what is there already: it must not be measured again.
    values = np.load(tmp_path / "run" / "eigenvalues.npy")
    record["spectra"][1]["product_error"] = 1e-13
    (tmp_path / "run" / "eigs.json").write_text(json.dumps(record))
    command = ["eigs", *FIELD, "--out", "run", "--quiet"]
    assert results_of(_cli, 3, command, folder=tmp_path) == [0, 0, 0]
    again = json.loads((tmp_path / "run" / "eigs.json").read_text())["spectra"]
    assert [one["step"] for one in again] == list(range(7))
    assert again[3]["product_error"] == 1e-13
    assert np.array_equal(np.load(tmp_path / "run" / "eigenvalues.npy")[::3], values)


def test_ranks_deal_out_the_checkpoints_of_a_preconditioned_run(tmp_path):
    setup = [*FIELD, "--optimizer", "esgd", "--set", "update_every=2", "--preconditioned"]
    command = ["eigs", *setup, "--every", "2", "--quiet", "--out"]
    assert main([*command, str(tmp_path / "alone")]) == 0
    assert results_of(_cli, 2, [*command, str(tmp_path / "run")]) == [0, 0]
    name = "eigenvalues-preconditioned.npy"
    assert np.array_equal(
        np.load(tmp_path / "run" / name), np.load(tmp_path / "alone" / name), equal_nan=True
    )


def test_ranks_that_were_asked_differently_say_so_and_touch_nothing(tmp_path):
    first = ["eigs", *FIELD, "--out", "run"]
    job = Job(_cli, 2, first, [*first, "--every", "2"], folder=tmp_path)
    results, _ = job.end()
    assert results == [2, 2]
    for rank in (0, 1):
        assert "rank 1 has every 2, rank 0 has 1" in job.text("err", rank)
    assert not (tmp_path / "run").exists()


def test_a_run_that_a_rank_does_not_see_is_named(tmp_path):
    job = Job(_elsewhere, 2, ["eigs", *FIELD, "--out", "run", "--quiet"], folder=tmp_path)
    results, _ = job.end()
    assert results[1] == 4
    assert results[0] in (1, None)
    assert "every rank must see the run" in job.text("err", 1)
    assert "rank 1: every rank must see the run" in job.text("err", 0)
    assert load_run(tmp_path / "run").complete


def _elsewhere(command):
    if os.environ["RANK"] == "1":
        from hessian_lab.cli import source

        source.Path = lambda path: Path(f"{path}-elsewhere")
    return main(command)


def _lost(command):
    if os.environ["RANK"] == "1":
        products, calls = HessianOperator._products, []

        def fail(operator, rows):
            calls.append(1)
            if len(calls) == 5:
                raise RuntimeError("CUDA error: device lost")
            return products(operator, rows)

        HessianOperator._products = fail
    return main(command)


def test_a_device_lost_halfway_ends_every_rank_and_the_run_goes_on(run):
    command = ["eigs", "--run", str(run), "--every", "6", "--method", "lanczos", "--num", "1"]
    start = time.monotonic()
    job = Job(_lost, 2, [*command, "--split", "points"])
    results, statuses = job.end()
    assert time.monotonic() - start < 60
    assert results[1] == 1
    assert results[0] == 1 or statuses[0] == 1
    for rank in (0, 1):
        assert "CUDA error: device lost" in job.text("err", rank)
    assert load_run(run).complete
    assert results_of(_cli, 2, [*command, "--quiet"]) == [0, 0]


def _interrupted(command):
    if os.environ["RANK"] == "0":
        HessianOperator._products = lambda *_: os.kill(os.getpid(), signal.SIGINT) or time.sleep(9)
    return main(command)


def test_an_interrupted_rank_ends_the_others(run):
    command = ["trace", "--run", str(run), "--every", "6", "--split", "points"]
    results, statuses = Job(_interrupted, 2, command).end()
    assert results[0] == 130
    assert results[1] == 1 or statuses[1] == 1


@pytest.mark.parametrize("command", [["train", "--size", "8"], ["info"], ["sweep"]])
def test_other_commands_run_in_one_process(command, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(command) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"hessian-lab: rank 1: error: {command[0]} runs in one process")
    assert ", ".join(RANKED) in told


def _broken_doctor(command):
    if os.environ["RANK"] == "1":
        products = HessianOperator._products
        HessianOperator._products = lambda operator, rows: 1.001 * products(operator, rows)
    return main(command)


def test_the_doctor_examines_every_rank():
    job = Job(_cli, 2, ["doctor", "--json"])
    results, statuses = job.end()
    assert results == statuses == [0, 0], job.text("err")
    checks = {one["name"]: one for one in json.loads(job.text("out", 0))["checks"]}
    assert checks["ranks"]["told"].startswith("2 ranks, ")
    job = Job(_broken_doctor, 2, ["doctor", "--json"])
    results, _ = job.end()
    assert results == [3, 0]
    checks = {one["name"]: one for one in json.loads(job.text("out", 0))["checks"]}
    failed = {name for name, one in checks.items() if one["status"] == "FAILED"}
    assert failed == {"double backward", "closed form", "finite differences", "ranks"}
    assert checks["closed form"]["told"].startswith("rank 1: ")


def _raising_doctor(command, slabs):
    if os.environ["RANK"] == "1":

        def fail(*_, **__):
            raise RuntimeError("CUDA error: device lost")

        if slabs:
            sharding.sum_slab = fail
        else:
            HessianOperator._products = fail
    return main(command)


def test_the_doctor_tells_of_a_rank_that_cannot_compute():
    results, _ = (job := Job(_raising_doctor, 2, ["doctor", "--json"], False)).end()
    assert results == [3, 0], job.text("err")
    checks = {one["name"]: one for one in json.loads(job.text("out", 0))["checks"]}
    assert "rank 1 alone raised RuntimeError: CUDA error: device lost" in checks["ranks"]["told"]


def test_a_rank_lost_within_the_last_check_of_the_doctor_ends_all():
    results, statuses = (job := Job(_raising_doctor, 2, ["doctor"], True)).end()
    assert results[1] == 1
    assert results[0] == 1 or statuses[0] == 1
    assert "rank 1: CUDA error: device lost" in job.text("err", 0)


def test_ranks_do_not_share_a_device(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["trace", "--device", "cuda:1"]) == 2
    assert "every rank must have a device of its own" in capsys.readouterr().err


def _scarce(command, room):
    memory._system_bytes, memory._cgroup_bytes = lambda: room, lambda: None
    return _cli(command)


@pytest.mark.parametrize(("words", "split"), [("", "probes"), ("--split points", "points")])
def test_lanczos_vectors_that_fit_one_process_fit_several_ranks(run, words, split):
    command = ["eigs", "--run", str(run), "--every", "6", "--method", "slq", "--num", "1"]
    job = Job(_scarce, 2, [*command, *words.split()], 700_000)
    results, _ = job.end()
    assert results == [0, 0], job.text("err")
    assert f"2 ranks divide the {split}" in job.text("err", 0)


def test_a_dry_run_tells_of_the_method_that_ranks_take(run):
    for flags in (["--dry-run"], ["--every", "6"]):
        job = Job(_scarce, 2, ["eigs", "--run", str(run), *flags], 500_000)
        results, _ = job.end()
        assert results == [0, 0], job.text("err")
        assert "it fits" in job.text("out", 0) + job.text("err", 0)


def test_a_split_that_a_method_does_not_have_is_refused(run):
    job = Job(_cli, 2, ["eigs", "--run", str(run), "--method", "slq", "--split", "columns"])
    results, _ = job.end()
    assert results == [2, 2]
    assert "split must be checkpoints or probes or points" in job.text("err", 0)


def test_torchrun_starts_the_ranks(run):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--"]
    words = ["hessian_lab", "trace", "--run", str(run), "--every", "3", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert [one["step"] for one in json.loads(done.stdout)["spectra"]] == [0, 3, 6]
