import pytest

from hessian_lab.measures.traffic import Basis, Traffic, basis_traffic, dense_traffic
from hessian_lab.probe.scratch import DiskRates

# Two runs of ten vectors of 100 bytes, and the row for what is left over.
BASIS = Basis(starts=2, steps=10, vector=100)


def counted(basis, *, cached):
    """Return what the steps of a basis write and read, one after the other."""
    written = read = 0
    for step in range(1, basis.steps + 1):
        written += basis.starts * basis.vector
        read += basis.starts * step * basis.vector * (1 if cached else 2)
    return written, read


@pytest.mark.parametrize(("room", "cached"), [(1100, True), (1099, False)])
def test_a_step_reads_all_vectors_so_far_once_or_twice(room, cached):
    found = BASIS.traffic(room)
    written, read = counted(BASIS, cached=cached)
    assert found.held == 2 * 11 * 100
    assert found.written == written
    # k² / 2 for k (k + 1) / 2.
    assert found.read == pytest.approx(read * 10 / 11)


def test_blocks_of_probes_follow_one_another_in_one_file():
    twice = Basis(2, 10, 100, blocks=2.0).traffic(0)
    once = BASIS.traffic(0)
    assert (twice.held, twice.written, twice.read) == (once.held, 2 * once.written, 2 * once.read)


def test_only_what_does_not_fit_is_in_a_file():
    small = Basis(1, 3, 100)
    assert (small.held, small.working) == (400, 500)
    assert (BASIS.held, BASIS.working) == (2200, 1000)
    assert basis_traffic([BASIS, small], None) == (3200, Traffic())
    assert basis_traffic([BASIS, small], 3200) == (3200, Traffic())
    needed, found = basis_traffic([BASIS, small], 3199)
    assert needed == 1000
    assert found == BASIS.traffic(3199 - 1000)
    needed, found = basis_traffic([BASIS, small], 899)
    assert found.held == 2200
    assert found.written == BASIS.traffic(0).written + small.traffic(0).written


def test_a_dense_matrix_is_read_again_where_its_pages_do_not_stay():
    assert dense_traffic(10, 800) == Traffic(800, 800, 800)
    assert dense_traffic(10, 799) == Traffic(800, 800, 7 * 800)


def test_traffic_takes_the_time_of_the_disk():
    assert Traffic(1, 600, 900).seconds(DiskRates(write=200.0, read=300.0)) == 6.0
