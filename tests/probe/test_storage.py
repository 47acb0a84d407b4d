import re

import pytest
import torch
from torch import nn

from hessian_lab.errors import ResourceError
from hessian_lab.losses import mse
from hessian_lab.probe import storage
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.data import Points
from hessian_lab.probe.linearize import Linearizer
from tests.reference import assert_same, points, small_field

NUM_POINTS = 60
SIGNAL = points(num_points=NUM_POINTS)
OPERATORS = [HessianOperator, GGNOperator]


def sequential():
    torch.manual_seed(0)
    maps = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 1)
    return nn.Sequential(maps[0], nn.Tanh(), maps[1], nn.Tanh(), maps[2]).double()


class Wide(nn.Module):
    """A weight by way of many numbers."""

    def forward(self, weight):
        return weight + torch.tanh(weight.T @ torch.ones(1, 1000).double()).mean() ** 2


MODELS = [small_field, sequential]


def bytes_per_point(make, operator):
    model = make()
    names = [name for name, _ in model.named_parameters()]
    return Linearizer(model, mse, names, matrix=operator.matrix).bytes_per_point(Points(SIGNAL))


def test_what_all_points_share_is_not_counted_per_point():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    nn.utils.parametrize.register_parametrization(model[0], "weight", Wide())
    names = [name for name, _ in model.named_parameters()]
    for matrix in ("hessian", "ggn"):
        linearizer = Linearizer(model, mse, names, matrix=matrix)
        assert 0 < linearizer.bytes_per_point(Points(SIGNAL)) < 200


@pytest.fixture
def free(monkeypatch):
    def leave(num_bytes):
        monkeypatch.setattr(storage, "available_bytes", lambda _: num_bytes)

    return leave


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_graph_keeps_its_activations_once(operator):
    # Inputs, two activations and their derivatives, all of 8 bytes: a tensor that two operations
    # keep is there once.
    assert 8 * (2 + 2 * 8) < bytes_per_point(sequential, operator) <= 8 * (2 + 5 * 2 * 8 + 4)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("fitting", [1, 7, NUM_POINTS - 1])
def test_auto_takes_the_chunk_that_fits(free, operator, make, fitting):
    whole = operator(make(), mse, SIGNAL)
    free((fitting + 0.5) * bytes_per_point(make, operator) / storage.STORED_SHARE)
    automatic = operator(make(), mse, SIGNAL, chunk_size="auto")
    assert automatic.chunk_size == fitting
    ones = torch.ones(whole.size, dtype=torch.float64)
    assert_same(automatic @ ones, whole @ ones)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("asked", [None, 40])
def test_refuses_with_a_chunk_size_that_works(free, operator, make, asked):
    each = bytes_per_point(make, operator)
    free(7.5 * each / storage.STORED_SHARE)
    points = asked or NUM_POINTS
    message = rf"Linearizing {points} points must fit .* \({round(each * points)} bytes\) of the "
    with pytest.raises(ResourceError, match=message) as caught:
        operator(make(), mse, SIGNAL, chunk_size=asked)
    found = re.search(r'Pass chunk_size=(\d+), or chunk_size="auto"', str(caught.value))
    assert found
    assert int(found[1]) == 7
    chunked = operator(make(), mse, SIGNAL, chunk_size=int(found[1]))
    assert chunked.chunk_size == 7
    with pytest.raises(ResourceError, match="Linearizing 8 points"):
        operator(make(), mse, SIGNAL, chunk_size=8)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("chunk_size", [None, "auto", 1])
def test_refuses_where_not_one_point_fits(free, make, chunk_size):
    free(bytes_per_point(make, HessianOperator))
    with pytest.raises(ResourceError, match=r"of which it may take half\. Measure a smaller net"):
        HessianOperator(make(), mse, SIGNAL, chunk_size=chunk_size)


@pytest.mark.parametrize("there", [None, 2**40])
@pytest.mark.parametrize(
    ("chunk_size", "taken"),
    [(None, None), ("auto", None), (59, 59), (60, None), (61, None), (1, 1)],
)
def test_all_is_kept_where_it_fits(free, there, chunk_size, taken):
    free(there)
    assert HessianOperator(small_field(), mse, SIGNAL, chunk_size=chunk_size).chunk_size == taken


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("chunk_size", [None, "auto"])
def test_nothing_large_is_evaluated_before_it_is_known_to_fit(free, make, chunk_size):
    sizes = []

    def loss(predictions, values):
        sizes.append(len(predictions))
        return mse(predictions, values)

    signal = points(num_points=1000)
    free(200 * bytes_per_point(make, HessianOperator))
    if chunk_size is None:
        with pytest.raises(ResourceError):
            HessianOperator(make(), loss, signal)
    else:
        HessianOperator(make(), loss, signal, chunk_size="auto")
    # Twice the sample of a sum's check is the most.
    assert max(sizes, default=0) <= 128
