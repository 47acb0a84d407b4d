import pytest
import torch

from hessian_lab.probe.deletions import Deletions, Sketch
from hessian_lab.probe.sketch import Probing
from tests.probe.estimates import SCALES, SIZE, Counting, drawn, field_like, low_rank, with_spectrum
from tests.reference import assert_same

DOUBLE = torch.float64
# Each direction is a thousandth of the last.
STEEP = 10.0 ** -torch.arange(0, 15, 3, dtype=DOUBLE)


def sketch_of(matrix, vectors):
    """Return a sketch by these vectors."""
    sketch = Sketch(Probing(Counting(matrix), seed=0, distribution="rademacher"))
    sketch.vectors, sketch.products = vectors, matrix @ vectors
    sketch.basis.extend(sketch.products)
    return sketch


def projector(columns):
    """Return the projector onto their span, whatever their rank."""
    if not columns.any():
        return columns.new_zeros(len(columns), len(columns))
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    left = left[:, values > 1e-10 * values.max()]
    return left @ left.T


def projector_without(sketch, *directions):
    """Return the projector onto the basis less some directions in it."""
    basis = sketch.basis.vectors
    return basis @ basis.T - sum(basis @ torch.outer(one, one) @ basis.T for one in directions)


def assert_spans(sketch, *, roundings=1e6):
    """Assert every choice of one or two columns to leave what the others span."""
    deletions = Deletions(sketch)
    num = sketch.vectors.shape[1]
    for j in range(num):
        pair = deletions.pair(j)
        for i in range(num):
            kept = [column for column in range(num) if column not in (i, j)]
            directions = [deletions.single[:, j]] + [pair[:, i]] * (i != j)
            expected = projector(sketch.products[:, kept])
            ours = projector_without(sketch, *directions)
            assert_same(ours, expected, scale=1.0, roundings=roundings)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("num", [2, 3, 5])
def test_of_independent_columns_each_takes_a_direction(num, scale):
    sketch = sketch_of(scale * field_like(), drawn(SIZE, num))
    assert_spans(sketch)
    assert len(Deletions(sketch).partners) == num


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_of_more_columns_than_the_rank_none_takes_one_alone(rank):
    sketch = sketch_of(low_rank(rank), drawn(SIZE, 5))
    assert_spans(sketch)
    assert (Deletions(sketch).single == 0).all()
    assert len(Deletions(sketch).partners) == 0


@pytest.mark.parametrize("order", [[0, 0, 1], [0, 1, 0], [0, 1, 2, 1, 0], [0, 0], [0, 0, 0, 1, 2]])
def test_of_columns_that_repeat_all_must_go(order):
    sketch = sketch_of(field_like(), drawn(SIZE, 3)[:, order])
    assert_spans(sketch)
    assert len(Deletions(sketch).partners) == len(order)


def test_of_columns_of_which_two_are_one_beside_the_whole_range():
    vectors = torch.cat([torch.eye(SIZE, dtype=DOUBLE)[:, :2]] * 2, dim=1)[:, :3]
    matrix = torch.zeros(SIZE, SIZE, dtype=DOUBLE)
    matrix[:2, :2] = torch.tensor([[2, 1], [1, -1]])
    sketch = sketch_of(matrix, vectors)
    assert sketch.exhausted()
    assert len(Deletions(sketch).partners) == 3
    assert_spans(sketch)


def test_keeps_directions_that_are_small():
    matrix = with_spectrum(torch.cat([STEEP, STEEP.new_zeros(SIZE - 5)]))
    sketch = sketch_of(matrix, drawn(SIZE, 3))
    # The third product is known to 1e-10 of itself.
    assert_spans(sketch, roundings=1e9)


def test_the_zero_matrix_spans_nothing():
    sketch = sketch_of(torch.zeros(SIZE, SIZE, dtype=DOUBLE), drawn(SIZE, 4))
    assert sketch.basis.vectors.shape == (SIZE, 0)
    assert_spans(sketch)
