from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from hessian_lab.errors import ResourceError, UsageError
from hessian_lab.losses import bce, mse
from hessian_lab.probe import hessian, memory, scratch
from hessian_lab.probe.hessian import dense_ggn, dense_hessian, slab_numbers
from hessian_lab.probe.operators import MatrixOperator
from hessian_lab.probe.spectrum import spectrum, spectrum_bytes
from tests.probe.test_rendered import scene, small
from tests.reference import assert_same, autograd_hessian, points, small_field

DENSE = {"hessian": dense_hessian, "ggn": dense_ggn}
CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def path(monkeypatch, tmp_path):
    monkeypatch.setattr(scratch, "IN_MEMORY", ())
    return tmp_path / "matrix"


def limit_memory(monkeypatch, there):
    monkeypatch.setattr(memory, "available_bytes", lambda _device: there)
    monkeypatch.setattr(hessian, "available_bytes", lambda _device: there)


def other_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 7), nn.GELU(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1))


# Slabs of one unit, or of all.
@pytest.mark.parametrize("there", [100_000, None])
@pytest.mark.parametrize("matrix", DENSE)
def test_a_matrix_in_a_file_is_the_one_in_memory(path, monkeypatch, matrix, there):
    signal, model = points(num_outputs=3), small_field("tanh", 3, 3, 9)
    expected = DENSE[matrix](model, bce, signal)
    limit_memory(monkeypatch, there)
    found = DENSE[matrix](model, bce, signal, file=path, chunk_size=5)
    assert_same(found, expected, roundings=50)
    assert torch.equal(found, found.T)
    size = len(expected)
    assert np.array_equal(np.memmap(path, "float64", "r", shape=(size, size)), found)
    again = torch.from_file(str(path), shared=True, size=size**2, dtype=torch.float64)
    assert torch.equal(again.view(size, size), found)


@pytest.mark.parametrize("matrix", DENSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_modules_have_files_too(path, matrix, dtype):
    model, signal = other_module().to(dtype), points().to(dtype=dtype)
    found = DENSE[matrix](model, mse, signal, file=str(path))
    assert found.dtype == dtype
    assert path.stat().st_size == found.numel() * dtype.itemsize
    assert_same(found, DENSE[matrix](model, mse, signal), roundings=50)


def test_a_wrong_derivative_leaves_no_file(path):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            context.save_for_backward(value)
            return value**3

        @staticmethod
        def backward(context, gradient):
            (value,) = context.saved_tensors
            return gradient * value.detach().exp() * value.roll(1, 1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 4, dtype=torch.float64)

        def forward(self, coords):
            return Wrong.apply(self.layer(coords)).sum(dim=1, keepdim=True)

    with pytest.raises(ValueError, match="must be twice differentiable"):
        dense_hessian(Model(), mse, points(), file=path)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("matrix", DENSE)
@pytest.mark.parametrize("there", [150_000, None])
def test_radiance_fields_have_files_too(path, monkeypatch, matrix, there):
    field, signal = small("gaussian"), scene()
    expected = DENSE[matrix](field, mse, signal)
    assert_same(dense_hessian(field, mse, signal), autograd_hessian(field, mse, signal))
    monkeypatch.setattr("hessian_lab.probe.rendered.PANEL_NUMBERS", 1000)
    limit_memory(monkeypatch, there)
    monkeypatch.setattr(hessian, "hessian_rows", None)
    monkeypatch.setattr(hessian, "ggn_rows", None)
    found = DENSE[matrix](field, mse, signal, file=path)
    assert_same(found, expected, roundings=200)
    assert torch.equal(found, found.T)


def test_slabs_take_a_share_of_memory_and_at_least_a_unit(monkeypatch):
    model = small_field(depth=3, width=16)
    limit_memory(monkeypatch, 10**9)
    assert 0.2e9 < 8 * slab_numbers(model, 37) < 0.25e9
    limit_memory(monkeypatch, 10**6)
    least = slab_numbers(model, 37, 1)
    for there in (10**7, 10**5):
        limit_memory(monkeypatch, there)
        if there > 10**6:
            assert slab_numbers(model, 37, 1) > least
        else:
            with pytest.raises(ResourceError, match=r"A slab of the dense Hessian of 609 param"):
                slab_numbers(model, 37, 1)


def test_a_file_that_cannot_be_had_is_refused(path, monkeypatch):
    model, signal = small_field(), points()
    with pytest.raises(UsageError, match="file must be a path to write to"):
        dense_hessian(model, mse, signal, file=path / "none" / "matrix")
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(1, 1, 8 * 51**2 - 1))
    with pytest.raises(ResourceError, match=r"matrix \[51, 51\] must fit on the disk: .*20808 b"):
        dense_hessian(model, mse, signal, file=path)
    assert not list(path.parent.iterdir())


def test_operators_and_spectra_take_a_mapped_matrix(path):
    model, signal = small_field("relu", depth=3), points()
    expected = dense_hessian(model, mse, signal)
    found = dense_hessian(model, mse, signal, file=path)
    vectors = torch.linspace(-1, 1, 3 * len(found), dtype=torch.float64).view(-1, 3)
    assert_same(MatrixOperator(found) @ vectors, expected @ vectors)
    ours, theirs = spectrum(found), spectrum(expected)
    assert_same(ours.values, theirs.values, roundings=1e4)
    assert ours.structural_zeros == theirs.structural_zeros


# The memory of an eigenvalue problem.


def with_zeros(size, zeros, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, dtype=dtype, generator=generator)
    matrix = matrix + matrix.T
    matrix[:zeros] = matrix[:, :zeros] = 0
    # Zeros in the middle.
    order = torch.randperm(size, generator=generator)
    return matrix[order][:, order]


@pytest.mark.parametrize(
    ("zeros", "dtype"), [(0, torch.float64), (3, torch.float64), (0, torch.float32)]
)
@pytest.mark.parametrize("copies", [1, 2])
def test_one_copy_is_enough(monkeypatch, zeros, dtype, copies):
    matrix = with_zeros(60, zeros, dtype)
    expected = np.linalg.eigvalsh(matrix.double().numpy())
    limit_memory(monkeypatch, copies * 8 * (60 - zeros) ** 2)
    found = spectrum(matrix)
    assert_same(found.values, torch.from_numpy(expected), roundings=1e4)
    assert found.structural_zeros == zeros
    assert torch.equal(matrix, with_zeros(60, zeros, dtype))
    limit_memory(monkeypatch, 8 * (60 - zeros) ** 2 - 1)
    size = 60 - zeros
    with pytest.raises(ResourceError, match=rf"problem of size {size} .* --method slq"):
        spectrum(matrix)


def test_a_device_takes_a_workspace_of_its_own():
    assert spectrum_bytes(10, CPU) == 800
    assert spectrum_bytes(10, CPU, copied=True) == 1600
    assert spectrum_bytes(10, torch.device("cuda")) == 2400
