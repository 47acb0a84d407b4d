import pytest
import torch

from hessian_lab.errors import ResourceError
from hessian_lab.probe import memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1010 * 2**20, "1010 MiB"),
        (3000 * 2**40, "3000 TiB"),
        (1024, "1 KiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**41, "2 TiB"),
    ],
)
def test_bytes_are_readable(num_bytes, text):
    assert memory.readable(num_bytes) == text


def test_there_is_memory_and_not_more_than_a_machine_has():
    assert 2**20 < memory.available_bytes(CPU) < 2**50


def test_a_container_limit_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available_bytes(CPU) == 1_000_000
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300000\n")
    assert memory.available_bytes(CPU) == 1_300_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes(CPU) > 1_000_000


def test_refuses_with_both_numbers_and_the_cure(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda _: 1024)
    memory.require_bytes(1024, "It", device=CPU, cure="Shrink.")
    with pytest.raises(
        ResourceError,
        match=r"It must fit in memory: it needs 2 KiB \(2048 bytes\), and 1 KiB are .* Shrink\.",
    ):
        memory.require_bytes(2048, "It", device=CPU, cure="Shrink.")
