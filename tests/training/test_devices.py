"""Devices: what ``auto`` becomes, what a launcher's process takes, what is refused and why."""

import logging

import pytest
import torch

from hessian_lab import Setup, load_run, train
from hessian_lab.errors import UsageError
from hessian_lab.training.devices import named_device, named_devices, usable_device

AUTO_CPU = "device auto: cpu, torch sees no CUDA device"
SMALL = {"signal": "sines", "size": 12, "act": "tanh", "width": 3, "depth": 1, "steps": 2}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def launched(monkeypatch, rank, size=2):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(size))


@pytest.fixture
def none_there(monkeypatch):
    """A machine without a CUDA device, with a torch that could use one."""
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


@pytest.fixture
def two_there(monkeypatch):
    """A machine with two CUDA devices that work."""
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _device: "Imagined")
    monkeypatch.setattr("hessian_lab.training.devices._fault", lambda _device: "")


@pytest.mark.usefixtures("none_there")
def test_auto_is_the_cpu_where_there_is_nothing_else_and_says_so(caplog):
    caplog.set_level(logging.INFO, "hessian_lab")
    assert usable_device("auto") == torch.device("cpu")
    assert caplog.messages == [AUTO_CPU]


@pytest.mark.usefixtures("two_there")
def test_auto_is_cuda_where_it_works(caplog):
    caplog.set_level(logging.INFO, "hessian_lab")
    assert named_device("auto") == "cuda"
    assert caplog.messages == ["device auto: cuda, Imagined"]
    assert usable_device("auto") == torch.device("cuda")


@pytest.mark.usefixtures("two_there")
def test_auto_names_what_it_does_not_use(monkeypatch, caplog):
    monkeypatch.setattr("hessian_lab.training.devices._fault", lambda _device: "out of memory")
    assert named_device("auto") == "cpu"
    assert caplog.messages == ["device auto: cpu, cuda cannot be used: out of memory"]
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.usefixtures("none_there")
@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1", "nonsense"])
def test_a_name_that_is_no_auto_stays(name, caplog):
    caplog.set_level(logging.INFO, "hessian_lab")
    assert named_device(name) == name
    assert not caplog.messages


@pytest.mark.usefixtures("two_there")
@pytest.mark.parametrize("name", ["cuda", "auto"])
@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_of_a_launcher_has_its_own_device(monkeypatch, name, rank):
    launched(monkeypatch, rank)
    assert usable_device(name) == torch.device("cuda", rank)
    assert usable_device("cpu") == torch.device("cpu")
    # What a record keeps is the same for all of them.
    assert named_device("auto") == "cuda"


@pytest.mark.usefixtures("two_there")
def test_a_device_that_is_named_is_taken_by_every_process(monkeypatch):
    launched(monkeypatch, 1)
    assert usable_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.usefixtures("two_there")
def test_a_launcher_of_one_process_changes_nothing(monkeypatch):
    launched(monkeypatch, 1, size=1)
    assert usable_device("cuda") == torch.device("cuda")


@pytest.mark.usefixtures("two_there")
def test_more_processes_than_devices_are_told(monkeypatch):
    launched(monkeypatch, 2, size=3)
    message = r"got 'cuda', which is cuda:2 for the process with LOCAL_RANK=2: torch sees 2 CUDA"
    with pytest.raises(UsageError, match=message):
        usable_device("cuda")
    with pytest.raises(UsageError, match=r"device must be available, got 'auto'"):
        usable_device("auto")


def test_a_device_that_is_there_and_cannot_be_used_is_no_cpu(monkeypatch):
    # torch without CUDA, or without a device, fails at the allocation itself.
    if torch.cuda.is_available():
        pytest.skip("there is one that works")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    message = r"device must be usable, cuda is there but is not: .+\. Try hessian-lab doctor, or"
    with pytest.raises(UsageError, match=message):
        usable_device("cuda")


def test_what_a_driver_that_is_too_old_says_is_passed_on(monkeypatch):
    def count():
        import warnings

        warnings.warn("CUDA initialization: The NVIDIA driver is too old.\nUpdate", stacklevel=1)
        return 0

    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", count)
    message = (
        r"torch sees 0 CUDA devices here \(CUDA initialization: The NVIDIA driver is too old\)"
    )
    with pytest.raises(UsageError, match=message):
        usable_device("cuda")


@pytest.mark.usefixtures("none_there")
def test_setups_that_become_one_stand_once(caplog):
    caplog.set_level(logging.INFO, "hessian_lab")
    given = [Setup(device=name, seed=seed) for name in ("auto", "cpu") for seed in (0, 1)]
    found = named_devices(given)
    assert found == [Setup(seed=0), Setup(seed=1)]
    assert caplog.messages == [AUTO_CPU]


@pytest.mark.usefixtures("none_there")
def test_a_run_records_the_device_that_it_had(tmp_path, caplog):
    caplog.set_level(logging.INFO, "hessian_lab")
    run = train(Setup(**SMALL, device="auto"), out=tmp_path / "run")
    assert run.setup.device == run.record["setup"]["device"] == "cpu"
    assert caplog.messages == [AUTO_CPU]
    # The same training, asked for by the device's own name.
    assert train(Setup(**SMALL), out=tmp_path / "run").record["id"] == run.record["id"]
    assert load_run(tmp_path / "run", device="auto").device == "cpu"
