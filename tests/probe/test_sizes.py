import pytest
import torch

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.probe import sizes
from hessian_lab.probe.closed_form import default_chunk_size, slots_of, temporary_numbers
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.kept_graph import block_size
from hessian_lab.probe.sizes import columns_at_once, numbers_at_once, within
from tests.pretended import CUDA, FREE_BYTES, pretended_cuda
from tests.reference import points, small_field

CPU = torch.device("cpu")
GIB = 1 << 30


def test_a_cpu_works_on_what_its_caches_hold():
    assert numbers_at_once(1000, device=CPU, itemsize=8) == 1000
    assert columns_at_once(16, device=CPU, size=10**9, itemsize=8) == 16


@pytest.mark.parametrize(
    ("free", "each", "expected"),
    [
        (64 * GIB, 1, 1 << 26),
        (GIB, 8, GIB // 16 // 8),
        (GIB, 8 * 6, GIB // 16 // 48),
        (1 << 16, 8, 1000),
        (0, 8, 1000),
        (None, 8, 1 << 26),
        (GIB, 0, 1 << 26),
    ],
)
def test_a_gpu_works_on_a_share_of_what_is_free_within_bounds(free, each, expected):
    assert within(free, each, least=1000, most=1 << 26) == expected


@pytest.mark.parametrize("free", [8 * GIB, 139 * GIB])
def test_buffers_of_a_pass_take_a_sixteenth_of_a_gpu_at_most(free, monkeypatch):
    monkeypatch.setattr(sizes, "available_bytes", lambda _: free)
    for num_buffers in (1, 6, 12):
        numbers = numbers_at_once(1 << 18, device=CUDA, itemsize=8, num_buffers=num_buffers)
        assert 8 * num_buffers * numbers <= free / 16
        assert numbers >= 1 << 22
    columns = columns_at_once(16, device=CUDA, size=12_737, itemsize=8)
    assert columns == 128
    large = columns_at_once(16, device=CUDA, size=10**6, itemsize=8)
    assert large == 16 or 8 * 8 * 10**6 * large <= free / 16


def test_passes_of_a_gpu_take_thousands_of_points():
    slots = slots_of(make_field("sine", 2, 1, width=64, depth=4))
    assert default_chunk_size(slots, 2500, like=torch.empty(0)) <= 512
    with pretended_cuda():
        there = torch.empty(0, dtype=torch.float64, device=CUDA)
        assert default_chunk_size(slots, 2500, like=there) == 2500
        most = default_chunk_size(slots, 10**6, like=there)
        assert 5000 <= most <= FREE_BYTES / 16 / 6 / 8 / 65**2


def test_memory_that_is_asked_for_follows_the_passes():
    field = small_field()
    with pretended_cuda():
        there = temporary_numbers(small_field().to(CUDA), 10**5)
    assert temporary_numbers(field, 10**5) < there <= FREE_BYTES / 8 / 8


def test_rows_of_a_graph_follow_its_size():
    assert block_size(1 << 24, CPU) == 16
    assert block_size(1 << 40, CPU) == 1
    with pretended_cuda():
        assert block_size(1 << 24, CUDA) == 128
        assert block_size(FREE_BYTES // 16 // 5, CUDA) == 5
        assert block_size(FREE_BYTES, CUDA) == 1


def test_products_of_a_gpu_take_wider_blocks():
    with pretended_cuda():
        operator = HessianOperator(small_field().to(CUDA), mse, points().to(device=CUDA))
        (field,) = operator._kept
        assert (operator @ torch.ones(operator.size, 100, dtype=torch.float64, device=CUDA)).is_cuda
        assert [block.num_vectors for block in field._bound] == [100]
    operator = HessianOperator(small_field(), mse, points())
    (field,) = operator._kept
    operator @ torch.ones(operator.size, 100, dtype=torch.float64)
    assert [block.num_vectors for block in field._bound] == [16, 4]
