"""The plan of docs/scale.md follows from its record, and its counts from the code."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.signal import Signal
from tests.benchmarks.scale import (
    BEGIN,
    END,
    PAGE,
    RECORD,
    Hardware,
    Model,
    Ratios,
    costs,
    readable,
    table,
)


class Operations(TorchDispatchMode):
    """Counts those of matrix products, in place or not."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm"):
            left, right = [one for one in args if isinstance(one, torch.Tensor)][-2:]
            self.total += 2 * left.numel() * right.shape[-1]
        return func(*args, **(kwargs or {}))


def test_the_page_is_what_its_record_says():
    text = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert text.strip() == table(json.loads(RECORD.read_text()))


def test_counts_are_those_of_the_code():
    field = make_field("sine", 2, 1, width=48, depth=5, dtype=torch.float32)
    signal = Signal(torch.rand(70, 2), torch.rand(70, 1))
    operator = HessianOperator(field, mse, signal, check=False)
    model = Model(width=48, depth=5, num_points=70)
    assert model.size == operator.size
    with Operations() as counted:
        operator @ torch.ones(operator.size)
    # The first and the last map, which are thin, come on top.
    assert model.operations <= counted.total <= 1.25 * model.operations
    part = operator._kept[0]
    kept = [*part.inputs[1:], *part.slopes, *part.deltas[:-1], *part.bends]
    assert model.stored == sum(one.numel() * one.element_size() for one in kept)


def test_costs_fall_with_ranks_but_for_what_lies_on_the_first():
    model = Model(width=100, depth=3, num_points=1000)
    few, many = (
        costs(model, ranks, Hardware(), Ratios(0.5, 0.5), vectors=2, steps=10) for ranks in (2, 8)
    )
    assert few.product == 4 * many.product
    assert few.stored == 4 * many.stored
    assert few.basis == many.basis == 2 * 11 * model.size * 4
    assert few.traffic < many.traffic < 4 * model.size * 4


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (99, "99 s"), (600, "10 min"), (36000, "10 h")]
)
def test_times_are_told_in_units_of_people(seconds, text):
    assert readable(seconds) == text
