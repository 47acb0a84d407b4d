import errno
import os
import resource
import signal
import subprocess
import sys
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from hessian_lab.errors import ResourceError, UsageError
from hessian_lab.probe import memory, scratch
from hessian_lab.probe.conditioning import condition_number
from hessian_lab.probe.density import spectral_measure
from hessian_lab.probe.eigenpairs import extreme_eigenpairs
from hessian_lab.probe.lanczos import require_basis, tridiagonalize
from hessian_lab.probe.operators import MatrixOperator, SymmetricOperator
from hessian_lab.probe.scratch import (
    check_scratch,
    disk_rates,
    require_disk,
    require_room,
    temporary,
    whole_file,
)
from hessian_lab.probe.vectors import gaussian
from tests.reference import assert_same

CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def disk(monkeypatch, tmp_path):
    """Take every directory for one on a disk: /tmp may be memory."""
    monkeypatch.setattr(scratch, "IN_MEMORY", ())
    return tmp_path


def limit_memory(monkeypatch, there):
    monkeypatch.setattr(memory, "available_bytes", lambda _device: there)


# Files.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_temporary_tensor_is_zero_has_no_name_and_gives_its_space_back(disk, dtype):
    before = os.statvfs(disk).f_bavail
    found = temporary((300, 70, 90), dtype=dtype, directory=disk, what="It")
    assert found.shape == (300, 70, 90)
    assert found.dtype == dtype
    assert not found.any()
    assert not list(disk.iterdir())
    found.fill_(3)
    assert float(found.sum(dtype=torch.float64)) == 3 * 300 * 70 * 90
    view = found[5:]
    del found
    assert bool((view == 3).all())
    # Blocks are reserved: the disk is fuller by them, and by what others write meanwhile.
    assert os.statvfs(disk).f_bavail < before


def test_open_files_do_not_pile_up(disk):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        temporary((100,), dtype=torch.float64, directory=disk, what="It")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_scratch_must_be_a_directory(disk):
    (disk / "file").touch()
    for path in (disk / "none", disk / "file"):
        with pytest.raises(UsageError, match=r"scratch must be a directory to write in, .*: No"):
            check_scratch(path)


def test_a_scratch_must_take_files(disk, monkeypatch):
    def refused(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(scratch.tempfile, "TemporaryFile", refused)
    with pytest.raises(UsageError, match=r"directory to write in, .*: Permission denied"):
        check_scratch(disk)


def test_a_scratch_serves_the_cpu_alone(disk):
    with pytest.raises(UsageError, match="scratch must be used on the CPU, got cuda"):
        check_scratch(disk, torch.device("cuda"))


def test_a_scratch_in_memory_is_refused(disk, monkeypatch, tmp_path):
    number = disk.stat().st_dev
    line = f"29 1 {os.major(number)}:{os.minor(number)} / / rw shared:1 - {{}} none rw\n"
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(scratch, "IN_MEMORY", ("tmpfs",))
    monkeypatch.setattr(scratch, "MOUNTS", mounts)
    mounts.write_text("1 1 0:999 / /x rw - tmpfs none rw\n" + line.format("ext4"))
    check_scratch(disk)
    mounts.write_text(line.format("tmpfs"))
    with pytest.raises(UsageError, match=r"must lie on a disk, .* is a tmpfs"):
        check_scratch(disk)
    mounts.unlink()
    check_scratch(disk)


def test_a_disk_that_is_too_small_is_refused_with_both_numbers(disk, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(9000, 1000, 8000))
    require_disk(disk, 8000, "It", cure="Tidy.")
    text = r"It must fit on the disk: it needs 7\.81 KiB \(8001 bytes\), and 7\.81 KiB .* Tidy\."
    with pytest.raises(ResourceError, match=text):
        require_disk(disk, 8001, "It", cure="Tidy.")
    with pytest.raises(ResourceError, match=r"It must fit on the disk: .*8008 bytes"):
        temporary((1001,), dtype=torch.float64, directory=disk, what="It")


@contextmanager
def small_files(num_bytes):
    """Let no file grow beyond so many bytes."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_disk_that_fills_up_meanwhile_is_an_error_and_leaves_nothing(disk):
    with small_files(1 << 20), pytest.raises(ResourceError, match="reserving 2 MiB failed"):
        temporary((1 << 18,), dtype=torch.float64, directory=disk, what="It")
    path = disk / "matrix"
    path.write_text("older")
    with (
        small_files(1 << 20),
        pytest.raises(ResourceError, match=r"matrix \[512, 512\] must fit on the disk"),
        whole_file(path, (512, 512), dtype=torch.float64),
    ):
        pytest.fail("was yielded")
    assert [one.name for one in disk.iterdir()] == ["matrix"]
    assert path.read_text() == "older"


def test_a_file_has_its_name_when_it_is_whole(disk):
    path, numbers = disk / "matrix", torch.arange(12, dtype=torch.float32).view(3, 4)
    with whole_file(path, (3, 4), dtype=torch.float32) as out:
        assert not path.exists()
        out.copy_(numbers)
    assert [one.name for one in disk.iterdir()] == ["matrix"]
    assert path.read_bytes() == numbers.numpy().tobytes()
    out[0, 0] = 7
    assert float(np.memmap(path, "float32", "r", shape=(3, 4))[0, 0]) == 7


def test_a_file_that_fails_leaves_the_older_one(disk):
    path = disk / "matrix"
    path.write_text("older")

    def interrupted():
        with whole_file(path, (3, 4), dtype=torch.float64) as out:
            out.fill_(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "older"
    assert [one.name for one in disk.iterdir()] == ["matrix"]
    with (
        pytest.raises(UsageError, match=r"file must be a path to write to, .*: No such file"),
        whole_file(disk / "none" / "matrix", (3, 4), dtype=torch.float64),
    ):
        pytest.fail("was yielded")


def test_a_file_is_written_by_one_at_a_time(disk):
    path = disk / "matrix"
    with whole_file(path, (3, 4), dtype=torch.float64) as out:
        out.fill_(1)
        with (
            pytest.raises(UsageError, match="one process at a time, another one is writing"),
            whole_file(path, (3, 4), dtype=torch.float64),
        ):
            pytest.fail("was yielded")
    assert (np.fromfile(path) == 1).all()
    assert [one.name for one in disk.iterdir()] == ["matrix"]
    # What is still mapped keeps nobody from writing it anew.
    with whole_file(path, (3, 4), dtype=torch.float64):
        pass
    assert (np.fromfile(path) == 0).all()
    assert bool((out == 1).all())


def test_a_directory_is_no_file_to_write(disk):
    with (
        pytest.raises(UsageError, match=r"file must be a path to write to, .*: Is a directory"),
        whole_file(disk, (3, 4), dtype=torch.float64),
    ):
        pytest.fail("was yielded")


KILLED = """
import sys, time, torch
from pathlib import Path
from hessian_lab.probe import scratch
scratch.IN_MEMORY = ()
place = Path(sys.argv[1])
basis = scratch.temporary((1 << 20,), dtype=torch.float64, directory=place, what="It").fill_(1)
with scratch.whole_file(place / "matrix", (512, 512), dtype=torch.float64) as out:
    out[:256] = 1
    print("half", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_result_and_no_scratch(disk):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(disk)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "half\n"
        assert [one.name for one in disk.iterdir()] == [".matrix.tmp"]
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    # The next one takes the place of what was half written.
    with whole_file(disk / "matrix", (8, 8), dtype=torch.float64):
        pass
    assert [one.name for one in disk.iterdir()] == ["matrix"]
    assert (disk / "matrix").stat().st_size == 512


def test_a_disk_is_timed_and_left_empty(disk):
    found = disk_rates(disk)
    assert 1e5 < found.write < 1e12
    assert 1e5 < found.read < 1e12
    assert not list(disk.iterdir())


# What goes to a file.


@pytest.mark.parametrize(
    ("there", "in_file"), [(None, False), (130, False), (129, True), (30, True), (29, None)]
)
def test_a_file_is_taken_only_where_memory_is_too_small(disk, monkeypatch, there, in_file):
    limit_memory(monkeypatch, there)
    given = {"device": CPU, "extra": 30, "what": "It", "cure": "Shrink."}
    if in_file is None:
        with pytest.raises(ResourceError, match=r"It, in a file, .* 30 B .* Shrink\."):
            require_room(100, **given, scratch=disk)
    else:
        assert require_room(100, **given, scratch=disk) is in_file
    if there is not None and there < 130:
        with pytest.raises(ResourceError, match=r"It must .*130 bytes.* Shrink\. Or name a scr"):
            require_room(100, **given, scratch=None)


# Lanczos.

SIZE = 401


@pytest.fixture
def operator():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator)
    values = torch.logspace(-6, 2, SIZE, dtype=torch.float64)
    basis = torch.linalg.qr(matrix).Q
    matrix = basis @ torch.diag(values) @ basis.T
    return MatrixOperator((matrix + matrix.T) / 2)


@pytest.fixture
def filed(monkeypatch):
    """Let no basis of more than 10 vectors stay in memory; return the shapes that go to files."""
    shapes, make = [], scratch.temporary
    limit_memory(monkeypatch, 16 * 10 * SIZE * 8)

    def counted(shape, **given):
        shapes.append(shape)
        return make(shape, **given)

    monkeypatch.setattr(scratch, "temporary", counted)
    return shapes


class Opaque(SymmetricOperator):
    """A matrix of which only products are known."""

    def __init__(self, operator):
        super().__init__(operator.size, operator.dtype, operator.device)
        self.operator = operator

    def matmat(self, block):
        return self.operator.matmat(block)


RUNS = {
    "tridiagonalize": (
        lambda operator, **given: tridiagonalize(
            operator,
            gaussian(SIZE, 16, seed=0, like=operator),
            num_steps=30,
            keep_basis=True,
            **given,
        ),
        lambda found: [found.alphas, found.betas, found.basis],
        [(16, 31, SIZE)],
    ),
    "density": (
        lambda operator, **given: spectral_measure(operator, num_probes=18, num_steps=30, **given),
        lambda found: [found.nodes, found.weights],
        [(16, 31, SIZE)],
    ),
    "pairs": (
        lambda operator, **given: extreme_eigenpairs(
            operator, num=4, which="both", basis_size=200, **given
        ),
        lambda found: [found.values, found.residuals],
        [(1, 201, SIZE)],
    ),
    "condition": (
        lambda operator, **given: condition_number(Opaque(operator), num_steps=200, **given),
        lambda found: [torch.tensor([found.value, found.largest, found.smallest])],
        [(1, 201, SIZE)],
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_basis_in_a_file_gives_what_one_in_memory_does(name, operator, disk, filed, monkeypatch):
    run, numbers, shapes = RUNS[name]
    found = numbers(run(operator, scratch=disk))
    assert filed == shapes
    assert not list(disk.iterdir())
    with pytest.raises(ResourceError, match=r"Lanczos basis .*Or name a scratch directory"):
        run(operator)
    limit_memory(monkeypatch, None)
    expected = numbers(run(operator, scratch=disk))
    assert filed == shapes
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs, roundings=1e4)


def test_a_basis_is_refused_where_not_even_a_step_fits(disk, monkeypatch):
    given = {"dtype": torch.float64, "device": CPU, "cure": "Fewer.", "scratch": disk}
    limit_memory(monkeypatch, 5 * SIZE * 8)
    assert require_basis(1, 300, SIZE, **given)
    limit_memory(monkeypatch, 5 * SIZE * 8 - 1)
    with pytest.raises(ResourceError, match=r"The Lanczos basis \[1, 300, 401\], in a file.*Fewer"):
        require_basis(1, 300, SIZE, **given)
    limit_memory(monkeypatch, 5 * SIZE * 8)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(1, 1, 300 * SIZE * 8 - 1))
    with pytest.raises(ResourceError, match=r"The Lanczos basis \[1, 300, 401\] must fit on the"):
        require_basis(1, 300, SIZE, **given)


BOUNDED = """
import resource, sys
import numpy as np, torch
from pathlib import Path
from scipy.linalg import eigh
from hessian_lab import HessianOperator, MatrixOperator, Signal, dense_hessian, make_field, mse
from hessian_lab.probe import hessian, memory, scratch, spectrum
from hessian_lab.probe.lanczos import tridiagonalize

torch.set_num_threads(1)
scratch.IN_MEMORY = ()
place, size = Path(sys.argv[1]), 2401
MIB = 1 << 20

def limit(room):
    status = Path("/proc/self/status").read_text()
    data = int(status.split("VmData:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (data + room, -1))

def refused(work):
    try:
        work()
    except (MemoryError, RuntimeError) as error:
        return "allocate" in str(error)
    return False

generator = torch.Generator().manual_seed(0)
coords = 2 * torch.rand(60, 2, dtype=torch.float64, generator=generator) - 1
signal = Signal(coords, coords[:, :1].sin())
field = make_field("tanh", 2, 1, width=47, depth=2)
with torch.no_grad():
    field.layers[1].bias[:2] = -100.0
expected = dense_hessian(field, mse, signal)
assert len(expected) == 2445
values = torch.linalg.eigvalsh(expected)
product = expected @ torch.ones(2445, dtype=torch.float64)
norm = float(expected.norm())
del expected
diagonal = torch.linspace(1, 2, 400_000, dtype=torch.float64)

class Diagonal(type(MatrixOperator(torch.eye(2))).__mro__[1]):
    def matmat(self, block):
        return diagonal.unsqueeze(1) * block

operator = Diagonal(400_000, torch.float64, torch.device("cpu"))
start = torch.ones(400_000, dtype=torch.float64)
tridiagonalize(operator, start, num_steps=2)
# OpenBLAS waits for ever where its own buffers find no memory: it takes them now.
eigh(np.eye(300), eigvals_only=True, driver="evd")

# A basis of 98 MiB.
limit(60 * MIB)
memory.available_bytes = lambda _device: 40 * MIB
run = tridiagonalize(operator, start, num_steps=32, keep_basis=True, scratch=place)
assert abs(float(run.basis[0, 31] @ run.basis[0, 3])) < 1e-12
memory.available_bytes = lambda _device: None
assert refused(lambda: tridiagonalize(operator, start, num_steps=32))

# A matrix of 46 MiB, in slabs of 5; then one copy of it.
hessian.available_bytes = memory.available_bytes = lambda _device: 20 * MIB
limit(40 * MIB)
assert refused(lambda: torch.ones(2445, 2445, dtype=torch.float64))
matrix = dense_hessian(field, mse, signal, file=place / "matrix", chunk_size=20)
assert float((matrix @ torch.ones(2445, dtype=torch.float64) - product).norm()) < 1e-12 * norm
memory.available_bytes = lambda _device: 50 * MIB
limit(64 * MIB)
alive = int((matrix != 0).any(dim=1).sum())
assert alive == 2445 - 2 * 48
assert refused(lambda: torch.linalg.eigvalsh(matrix.clone()))
found = spectrum.spectrum(matrix)
assert float((found.values - values).abs().max()) < 1e-12 * norm
print("bounded")
"""


def test_memory_is_bounded_by_what_is_left_beside_the_files(disk):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # What is freed goes back at once, rather than serving the next allocation.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(disk)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )
    assert done.stdout == "bounded\n", done.stderr
