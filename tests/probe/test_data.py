import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hessian_lab.probe.data import Points
from tests.reference import points

SIGNAL = points(num_points=10)
PAIR = SIGNAL.coords, SIGNAL.values
BATCHES = list(zip(PAIR[0].split([9, 1]), PAIR[1].split([9, 1]), strict=True))
LOADER = DataLoader(TensorDataset(*PAIR), batch_size=4)


def gathered(batches):
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 10, 11])
@pytest.mark.parametrize(
    "data",
    [SIGNAL, PAIR, list(PAIR), BATCHES, tuple(BATCHES), [list(it) for it in BATCHES], LOADER],
)
def test_points_come_in_order_whatever_holds_them(data, chunk_size):
    batches = Points(data, chunk_size=chunk_size)
    for _ in range(2):
        assert all(map(torch.equal, gathered(batches), PAIR))
    assert max(len(targets) for _, targets in batches) <= (chunk_size or 10)


def test_chunks_are_cut_from_batches():
    assert [len(values) for _, values in Points(BATCHES, chunk_size=4)] == [4, 4, 1, 1]
    assert [len(values) for _, values in Points(LOADER)] == [4, 4, 2]
    assert [len(values) for _, values in Points(BATCHES).in_chunks(8)] == [8, 1, 1]
    assert [len(values) for _, values in Points(BATCHES, chunk_size=4).in_chunks(None)] == [9, 1]


def test_two_batches_are_no_pair():
    assert [len(values) for _, values in Points(tuple(BATCHES))] == [9, 1]


def test_inputs_may_be_anything_if_they_need_not_be_cut():
    batch = {"coords": PAIR[0]}, PAIR[1]
    assert next(iter(Points(batch)))[0] is batch[0]
    assert next(iter(Points([batch], chunk_size=10)))[0] is batch[0]
    with pytest.raises(TypeError, match=r"chunk_size needs inputs .* got dict\. .*smaller batches"):
        list(Points(batch, chunk_size=9))


def test_a_loader_is_not_started_before_it_is_needed():
    class Loader(list):
        def __iter__(self):
            started.append(1)
            return super().__iter__()

    started = []
    batches = Points(Loader(BATCHES))
    assert not started
    list(batches)
    assert started == [1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"data must be a Signal, a pair .* got NoneType"),
        (SIGNAL.coords, r"data must be .* got Tensor"),
        (TensorDataset(*PAIR), r"data must be .* got TensorDataset"),
        ((batch for batch in BATCHES), r"re-iterable, got a generator .* Pass list\(data\)"),
        (iter(BATCHES), "re-iterable, got a list_iterator"),
        (zip(*PAIR, strict=True), "re-iterable, got a zip"),
        (iter(LOADER), "re-iterable, got a _SingleProcessDataLoaderIter"),
    ],
)
def test_refuses_what_is_no_data(data, message):
    with pytest.raises(TypeError, match=message):
        Points(data)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"coords": 1}, TypeError, "batch 0 of data must be a pair .* got str"),
        ([PAIR[0]], TypeError, "batch 0 of data must be a pair .* got Tensor"),
        ([BATCHES[0], (PAIR[0], [1.0])], TypeError, "batch 1 of data must be a pair .* got tuple"),
        ((PAIR[0].numpy(), PAIR[1].numpy()), TypeError, "batch 0 .* must be a pair .* got ndarray"),
        ((PAIR[0], PAIR[1][:0]), ValueError, "batch 0 of data must hold at least one point"),
        ((PAIR[0], torch.tensor(1.0)), ValueError, "batch 0 of data must hold at least one point"),
        ((PAIR[0], PAIR[1][1:]), ValueError, "one target per input, got 10 inputs and 9 targets"),
        ([BATCHES[0], (PAIR[0], PAIR[1][1:])], ValueError, "batch 1 .* 10 inputs and 9 targets"),
    ],
)
def test_refuses_batches_that_are_no_pairs(data, error, message):
    with pytest.raises(error, match=message):
        list(Points(data))


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_refuses_chunks_of_no_points(chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size must be at least 1, got {chunk_size}"):
        Points(SIGNAL, chunk_size=chunk_size)


@pytest.mark.parametrize("chunk_size", [2.5, "all", True])
def test_refuses_chunks_that_are_no_integers(chunk_size):
    with pytest.raises(TypeError, match=f"chunk_size must be an integer.*, got {chunk_size!r}"):
        list(Points(SIGNAL, chunk_size=chunk_size))
