import pytest
import torch

from hessian_lab.errors import ResourceError
from hessian_lab.probe import memory
from hessian_lab.probe.lanczos import tridiagonalize
from hessian_lab.probe.settled import Candidates, agreement, candidates, without
from hessian_lab.probe.vectors import gaussian, rademacher
from tests.reference import assert_same

SIZE = 60
# A double and a fivefold eigenvalue above an even bulk.
EIGENVALUES = torch.cat([torch.linspace(0, 1, 53), torch.full((5,), 4.0), torch.full((2,), 7.0)])


def rotated(eigenvalues, dtype=torch.float64):
    """Return a symmetric matrix [n, n] with these eigenvalues and random eigenvectors."""
    size = len(eigenvalues)
    like = torch.empty(0, dtype=torch.float64)
    basis = torch.linalg.qr(gaussian(size, size, seed=99, like=like))[0]
    matrix = (basis * eigenvalues.double()) @ basis.T
    return ((matrix + matrix.T) / 2).to(dtype)


def settled_of(matrix, *, num_probes=10, num_steps=14, seed=0, block_size=16):
    found = []
    for first in range(0, num_probes, block_size):
        num = min(block_size, num_probes - first)
        starts = rademacher(len(matrix), num, seed=seed, like=matrix, first=first)
        run = tridiagonalize(matrix, starts, num_steps=num_steps, keep_basis=True)
        found.append(candidates(run, first=first))
    return agreement(found, num_probes=num_probes)


@pytest.mark.parametrize("scale", [1e-12, 1, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [12, 20, 30, 50])
def test_multiplicities_are_right(scale, dtype, num_steps):
    matrix = scale * rotated(EIGENVALUES, dtype)
    values = settled_of(matrix, num_steps=num_steps).values / scale
    seven, four = (int((values - place).abs().lt(1e-4).sum()) for place in (7, 4))
    assert seven == 2
    # A fivefold eigenvalue may be left out in single precision, but never counted wrong.
    assert four == 5 or (dtype == torch.float32 and four == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_are_eigenpairs(dtype):
    matrix = rotated(EIGENVALUES, dtype)
    settled = settled_of(matrix, num_steps=20)
    vectors = settled.vectors
    assert vectors.dtype == dtype
    assert len(settled.values) == len(vectors) >= 2
    assert_same(vectors @ vectors.T, torch.eye(len(vectors), dtype=dtype), roundings=1e4)
    images = settled.values.to(dtype).unsqueeze(1) * vectors
    assert_same(vectors @ matrix, images, scale=7.0, roundings=1e4)
    assert torch.equal(settled.values, settled.values.sort(descending=True).values)


def test_all_steps_settle_everything():
    matrix = rotated(EIGENVALUES)
    values = settled_of(matrix, num_steps=SIZE).values
    assert_same(values.flip(0), EIGENVALUES.double(), scale=7.0)


@pytest.mark.parametrize("gap", [1e-15, 1e-13, 1e-9, 1e-6, 1e-3])
def test_two_close_eigenvalues_are_two(gap):
    eigenvalues = torch.cat([torch.linspace(0, 1, 58), torch.tensor([4.0, 4.0 + gap])]).double()
    eigenvalues[-1] = 4 + gap
    values = settled_of(rotated(eigenvalues), num_steps=20).values
    assert int((values > 2).sum()) in (0, 2)


def test_two_probes_settle_nothing_and_three_do():
    matrix = rotated(torch.cat([torch.linspace(0, 1, 59), torch.tensor([9.0])]))
    assert len(settled_of(matrix, num_probes=2).values) == 0
    assert_same(settled_of(matrix, num_probes=3).values[:1], torch.tensor([9.0]).double())


def test_an_eigenspace_needs_two_probes_more_than_it_has_dimensions():
    eigenvalues = torch.cat([torch.zeros(6), torch.linspace(1, 2, 54)])
    for num_probes, expected in ((6, 0), (7, 0), (20, 6)):
        values = settled_of(rotated(eigenvalues), num_steps=40, num_probes=num_probes).values
        assert int((values < 0.5).sum()) == expected


def test_a_bulk_that_has_not_converged_is_not_settled():
    assert len(settled_of(rotated(torch.linspace(-1, 1, 60)), num_steps=6).values) == 0


def test_the_blocks_of_probes_do_not_matter():
    matrix = rotated(EIGENVALUES)
    whole, parts = settled_of(matrix), settled_of(matrix, block_size=4)
    assert_same(parts.values, whole.values)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_settled_is_there(seed):
    eigenvalues = torch.cat([torch.zeros(30), 10 ** -torch.linspace(0, 6, 30)]).double()
    settled = settled_of(rotated(eigenvalues), num_steps=25, seed=seed)
    counted = torch.zeros(60)
    for value in settled.values:
        gaps = (eigenvalues - value).abs() / eigenvalues.abs().clamp(min=1e-300) + counted
        closest = int(gaps.argmin())
        assert gaps[closest] < 1e-3
        counted[closest] = 1


def test_masses_are_taken_from_the_closest_nodes():
    nodes = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    weights = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.25] * 4], dtype=torch.float64)
    places = torch.tensor([3.1, 0.9], dtype=torch.float64)
    masses = torch.tensor([[0.2, 0.3], [0.1, 0.0]], dtype=torch.float64)
    left = without(nodes, weights, places, masses)
    expected = torch.tensor([[0.4, 0.0, 0.1, 0.0], [0.25, 0.25, 0.25, 0.15]], dtype=torch.float64)
    assert_same(left, expected)
    assert float(weights[0, 1]) == 0.3


def test_refuses_vectors_that_do_not_fit(monkeypatch):
    matrix = rotated(EIGENVALUES)
    starts = rademacher(SIZE, 4, seed=0, like=matrix)
    run = tridiagonalize(matrix, starts, num_steps=20, keep_basis=True)
    monkeypatch.setattr(memory, "available_bytes", lambda _: 0)
    with pytest.raises(ResourceError, match=r"Ritz vectors of length 60 must fit .* settle=False"):
        candidates(run, first=0)


def test_most_probes_must_have_found_a_pair():
    matrix = rotated(torch.cat([torch.linspace(0, 1, 59), torch.tensor([9.0])]))
    starts = rademacher(SIZE, 10, seed=0, like=matrix)
    run = tridiagonalize(matrix, starts, num_steps=10, keep_basis=True)
    found = candidates(run, first=0)
    at_top = found.values > 8
    for missing, expected in ((2, 1), (3, 0)):
        kept = ~(at_top & (found.rows < missing))
        parts = (getattr(found, name)[kept] for name in ("values", "radii", "rows", "vectors"))
        assert len(agreement([Candidates(*parts)], num_probes=10).values) == expected
