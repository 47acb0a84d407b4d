"""--device auto, in every command that has it."""

import json

import pytest
import torch

from hessian_lab import Setup
from hessian_lab.training.sweep import _name
from tests.cli.terminal import TINY, assert_refused, typed

AUTO_CPU = "device auto: cpu, torch sees no CUDA device"
SMALL = {"signal": "sines", "size": 12, "act": "tanh", "width": 3, "depth": 1, "steps": 2}


@pytest.fixture
def none_there(monkeypatch):
    """A machine without a CUDA device, with a torch that could use one."""
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


def told(answer):
    return [line for line in answer.err.splitlines() if "device auto" in line]


@pytest.mark.usefixtures("none_there")
def test_auto_finds_the_run_that_cpu_has_trained(tmp_path):
    first = typed(tmp_path, "train", *TINY, "--json")
    again = typed(tmp_path, "train", *TINY, "--device", "auto", "--json")
    assert again.json == first.json
    assert told(again) == [f"hessian-lab: {AUTO_CPU}"]
    assert not told(first)
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.usefixtures("none_there", "undrawn")
@pytest.mark.parametrize(
    "words",
    [
        ("eigs",),
        ("eigs", "--dry-run"),
        ("trace", "--run", "run"),
        ("derivatives", "--run", "run"),
    ],
)
def test_commands_tell_the_device_once(run, words):
    field = () if "--run" in words else TINY
    answer = typed(run.parent, *words, *field, "--device", "auto")
    assert answer.status == 0, answer.err
    assert told(answer) == [f"hessian-lab: {AUTO_CPU}"]


@pytest.mark.usefixtures("none_there")
def test_a_grid_over_auto_and_cpu_is_one_run(tmp_path):
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    answer = typed(tmp_path, "sweep", *words, "--device", "auto,cpu", "--json")
    assert answer.status == 0, answer.err
    assert [row["device"] for row in answer.json["runs"]] == ["cpu"]
    assert told(answer) == [f"hessian-lab: {AUTO_CPU}"]


@pytest.mark.usefixtures("none_there")
def test_cost_tells_the_device_that_it_measured(tmp_path):
    words = ("--optimizer", "adam", "--width", "4", "--depth", "1", "--batch-size", "4")
    answer = typed(tmp_path, "cost", *words, "--rounds", "1", "--device", "auto", "--json")
    assert answer.json["problem"]["device"] == "cpu"
    assert told(answer) == [f"hessian-lab: {AUTO_CPU}"]


def test_a_sweep_that_a_gpu_has_trained_is_told_without_one(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without")
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    done = typed(tmp_path, "sweep", *words, "--json").json
    # As if trained elsewhere: only the name of the device differs.
    setup = Setup(**SMALL, device="cuda").resolved()
    directory = tmp_path / "runs/sweep" / done["runs"][0]["run"]
    record = json.loads((directory / "run.json").read_text())
    record["setup"]["device"] = record["identity"]["device"] = "cuda"
    (directory / "run.json").write_text(json.dumps(record))
    directory.rename(directory.with_name(_name(setup)))
    answer = typed(tmp_path, "sweep", *words, "--device", "cuda", "--json")
    assert answer.status == 0, answer.err
    assert answer.json["runs"][0]["status"] == "done"
    assert answer.json["runs"][0]["loss"] == done["runs"][0]["loss"]
    # What is not there yet needs the device.
    other = typed(tmp_path, "sweep", *words, "--seed", "1", "--device", "cuda")
    assert_refused(other, 2, "device must be available, got 'cuda'")
