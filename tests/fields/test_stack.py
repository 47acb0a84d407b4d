import pytest
import torch

from hessian_lab.fields import ACTIVATIONS
from hessian_lab.fields.mlp import make_field
from hessian_lab.fields.stack import make_stack, stack_fields
from hessian_lab.losses import LOSSES, mse
from hessian_lab.training.stacked_objective import StackedObjective
from tests.reference import assert_same

COUNT, POINTS, CHANNELS = 5, 23, 3


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, dtype=torch.float64, generator=generator)


def example(name="sine", depth=2, **options):
    return make_stack(name, COUNT, 2, CHANNELS, width=4, depth=depth, seed=7, **options)


def autograd(model, loss, coords, values):
    """Return the loss of one network and its flat gradient."""
    found = loss(model(coords), values)
    parts = torch.autograd.grad(found, list(model.parameters()))
    return found.detach(), torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_fields_of_a_stack_are_those_of_their_seeds(name, depth):
    stack, coords = example(name, depth), 2 * unit(POINTS, 2) - 1
    values = stack(coords)
    assert values.shape == (COUNT, POINTS, CHANNELS)
    for index in range(COUNT):
        alone = make_field(name, 2, CHANNELS, width=4, depth=depth, seed=7 + index)
        assert_same(values[index], alone(coords).detach(), roundings=100)
        for one, other in zip(stack.field(index).parameters(), alone.parameters(), strict=True):
            assert torch.equal(one, other)


def test_layers_may_have_an_omega_each():
    stack = make_stack("sine", 2, 2, 1, width=3, depth=2, omega=(30.0, 5.0), seed=4)
    coords = 2 * unit(POINTS, 2) - 1
    model = make_field("sine", 2, 1, width=3, depth=2, omega=(30.0, 5.0), seed=5)
    assert_same(stack(coords)[1], model(coords).detach(), roundings=100)
    losses, gradients = StackedObjective(stack, coords, unit(2, POINTS, 1))(stack.parameters)
    expected = autograd(model, mse, coords, unit(2, POINTS, 1)[1])
    assert_same(losses[1], expected[0], roundings=100)
    assert_same(gradients[1], expected[1], roundings=1000)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_losses_and_gradients_are_those_of_autograd(name, loss):
    stack = example(name)
    values = unit(COUNT, POINTS, CHANNELS, seed=1)
    for coords in (2 * unit(POINTS, 2) - 1, 2 * unit(COUNT, POINTS, 2) - 1):
        losses, gradients = StackedObjective(stack, coords, values, loss)(stack.parameters)
        for index in range(COUNT):
            own = coords if coords.ndim == 2 else coords[index]
            expected = autograd(stack.field(index), loss, own, values[index])
            assert_same(losses[index], expected[0], roundings=100)
            assert_same(gradients[index], expected[1], roundings=1000)


def test_some_fields_can_be_asked_for_in_any_order():
    stack, values = example(), unit(COUNT, POINTS, CHANNELS, seed=1)
    objective = StackedObjective(stack, 2 * unit(COUNT, POINTS, 2) - 1, values)
    whole = objective(stack.parameters)
    index = torch.tensor([4, 0, 3])
    for one, other in zip(objective(stack.parameters[index], index), whole, strict=True):
        assert_same(one, other[index], roundings=100)


def test_chunks_change_rounding_alone():
    stack, values = example(), unit(COUNT, POINTS, CHANNELS, seed=1)
    objective = StackedObjective(stack, 2 * unit(POINTS, 2) - 1, values)
    whole = objective(stack.parameters)
    for size in (1, 2, 4):
        objective.chunk_size = size
        for one, other in zip(objective(stack.parameters), whole, strict=True):
            assert_same(one, other, roundings=100)


def test_adam_on_a_stack_is_adam_on_every_field():
    stack, values = example(), unit(COUNT, POINTS, CHANNELS, seed=1)
    coords = 2 * unit(POINTS, 2) - 1
    objective = StackedObjective(stack, coords, values)
    together = torch.nn.Parameter(stack.parameters.clone())
    optimizer = torch.optim.Adam([together], lr=1e-2)
    for _ in range(20):
        together.grad = objective(together.detach())[1]
        optimizer.step()
    for index in range(COUNT):
        model = stack.field(index)
        alone = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(20):
            alone.zero_grad()
            mse(model(coords), values[index]).backward()
            alone.step()
        flat = torch.cat([value.detach().flatten() for value in model.parameters()])
        assert_same(together.detach()[index], flat, roundings=1e6)


def test_wrong_shapes_are_refused():
    stack = example()
    coords, values = unit(POINTS, 2), unit(COUNT, POINTS, CHANNELS)
    with pytest.raises(ValueError, match=r"values must have shape \[5, 'p', 3\]"):
        StackedObjective(stack, coords, values[..., :2])
    with pytest.raises(ValueError, match="values must be of 5 fields, got 4"):
        StackedObjective(stack, coords, values[:4])
    with pytest.raises(ValueError, match=r"coords must be \[23, d\]"):
        StackedObjective(stack, coords[:5], values)
    with pytest.raises(ValueError, match="num_fields must be at least 1, got 0"):
        make_stack("sine", 0, 2, 3)
    with pytest.raises(ValueError, match="at least one network"):
        stack_fields([])
    with pytest.raises(ValueError, match="one activation, field 1 has another"):
        stack_fields([make_field("sine", 2, 3), make_field("sine", 2, 3, omega=5.0)])
    with pytest.raises(ValueError, match="fields must have one shape"):
        stack_fields([make_field("sine", 2, 3), make_field("sine", 2, 3, width=5)])
