import pytest
import torch

from hessian_lab.errors import ResourceError
from hessian_lab.fields import ACTIVATIONS
from hessian_lab.fields.stack import FieldStack, make_stack
from hessian_lab.losses import mse
from hessian_lab.probe import memory, stacked_hessian
from hessian_lab.probe.stacked_hessian import stacked_hessians
from hessian_lab.signal import Signal
from tests.reference import assert_same, autograd_hessian


def problem(act="sine", *, count=3, inputs=2, outputs=2, own=False, **options):
    stack = make_stack(
        act, count, inputs, outputs, **{"width": 4, "depth": 2, "octaves": 2} | options
    )
    shape = (count, 9, inputs) if own else (9, inputs)
    coords = 2 * torch.rand(shape, dtype=torch.float64) - 1
    return stack, coords, torch.rand(count, 9, outputs, dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"depth": 0}, {"depth": 3, "width": 3}, {"own": True}])
@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_every_matrix_is_that_of_torch(act, options):
    stack, coords, values = problem(act, **options)
    found = stacked_hessians(stack, coords, values)
    for place, matrix in enumerate(found):
        own = coords if coords.ndim == 2 else coords[place]
        expected = autograd_hessian(stack.field(place), mse, Signal(own, values[place]))
        assert_same(matrix, expected)
        assert_same(matrix, matrix.T.contiguous(), roundings=10)


def test_networks_taken_one_at_a_time_are_the_same(monkeypatch):
    stack, coords, values = problem(count=5, own=True)
    whole = stacked_hessians(stack, coords, values)
    monkeypatch.setattr(stacked_hessian, "PANEL_NUMBERS", 1)
    assert_same(stacked_hessians(stack, coords, values), whole)


def test_a_network_that_diverged_leaves_the_others_alone():
    stack, coords, values = problem()
    parameters = stack.parameters.clone()
    parameters[1, 0] = torch.nan
    broken = FieldStack(parameters, stack.activations, stack.sizes, stack.octaves)
    found = stacked_hessians(broken, coords, values)
    assert not bool(found[1].isfinite().all())
    assert_same(found[[0, 2]], stacked_hessians(stack, coords, values)[[0, 2]])


def test_what_does_not_fit_is_refused(monkeypatch):
    stack, coords, values = problem()
    with pytest.raises(ValueError, match=r"values must have shape \[3, 9, 2\], got \[2, 9, 2\]"):
        stacked_hessians(stack, coords, values[:2])
    monkeypatch.setattr(memory, "available_bytes", lambda _device: 1000)
    with pytest.raises(ResourceError, match="The Hessians of 3 networks of 42 parameters must fit"):
        stacked_hessians(stack, coords, values)
