import pytest
import torch

from hessian_lab.fields.stack import make_stack
from hessian_lab.losses import mse
from hessian_lab.optim.compact import two_loop
from hessian_lab.optim.lbfgs import LBFGS
from hessian_lab.optim.searching import curved
from hessian_lab.optim.stacked_lbfgs import StackedLBFGS, _Pairs
from hessian_lab.optim.stacked_wolfe import stacked_strong_wolfe
from hessian_lab.optim.wolfe import Trial, strong_wolfe
from hessian_lab.training.stacked_objective import StackedObjective
from tests.reference import assert_same

COUNT, POINTS = 6, 40


def problem(name, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    coords = 2 * torch.rand((POINTS, 2), dtype=dtype, generator=generator) - 1
    values = torch.rand((COUNT, POINTS, 3), dtype=dtype, generator=generator)
    # Different scales, so that searches take different numbers of trials.
    values *= torch.tensor([1e-3, 0.1, 0.5, 1, 2, 3], dtype=dtype)[:, None, None]
    stack = make_stack(name, COUNT, 2, 3, width=6, depth=2, seed=1, dtype=dtype)
    return stack, coords, values


def alone(stack, coords, values, index, steps, **options):
    """Return the losses of one field under LBFGS, before every step and at the end."""
    model = stack.field(index)
    optimizer = LBFGS(model.parameters(), **options)
    losses = [
        float(optimizer.step(lambda: mse(model(coords), values[index])).detach())
        for _ in range(steps)
    ]
    return [*losses, float(mse(model(coords), values[index]).detach())], optimizer


@pytest.mark.parametrize("history_size", [3, 100])
@pytest.mark.parametrize("name", ["sine", "gaussian", "relu_pe"])
def test_every_field_takes_the_steps_of_lbfgs_alone(name, history_size):
    stack, coords, values = problem(name)
    optimizer = StackedLBFGS(
        StackedObjective(stack, coords, values), stack.parameters, history_size=history_size
    )
    steps = 16
    together = torch.stack([*(optimizer.step() for _ in range(steps)), optimizer.losses])
    for index in range(COUNT):
        losses, single = alone(stack, coords, values, index, steps, history_size=history_size)
        assert together[:, index].tolist() == pytest.approx(losses, rel=1e-6)
        # Alone it asks once more, whether the batch is still the same.
        asked = single.diagnostics()["evaluations"]
        assert 0 <= asked - float(optimizer.evaluations[index]) <= 1


def quadratic(scales):
    """Return the objective ½ Σ s x², of a row of scales for each problem."""

    def objective(parameters, index):
        own = scales[index]
        return 0.5 * (own * parameters.square()).sum(dim=1), own * parameters

    return objective


def test_problems_that_have_converged_drop_out():
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand((50, 8), dtype=torch.float64, generator=generator) + 0.1
    scales[:30] = 1
    asked = []
    inner = quadratic(scales)

    def objective(parameters, index):
        asked.append(len(index))
        return inner(parameters, index)

    start = torch.ones((50, 8), dtype=torch.float64)
    optimizer = StackedLBFGS(objective, start, tolerance_grad=1e-9)
    for _ in range(60):
        optimizer.step()
    assert optimizer.converged
    assert float(optimizer.gradients.abs().max()) <= 1e-9
    assert asked[0] == 50
    assert asked[-1] < 20
    done = len(asked)
    optimizer.step()
    assert len(asked) == done


def test_a_problem_that_is_not_finite_stays_and_hinders_none():
    stack, coords, values = problem("sine")
    begun = stack.parameters.clone()
    begun[2, 0] = float("nan")
    optimizer = StackedLBFGS(StackedObjective(stack, coords, values), begun)
    clean = StackedLBFGS(StackedObjective(stack, coords, values), stack.parameters)
    for _ in range(10):
        optimizer.step()
        clean.step()
    others = [0, 1, 3, 4, 5]
    assert bool(optimizer.finished[2])
    assert torch.isnan(optimizer.losses[2])
    assert optimizer.losses[others].tolist() == pytest.approx(
        clean.losses[others].tolist(), rel=1e-6
    )


def test_losses_never_rise():
    stack, coords, values = problem("gaussian", torch.float32)
    optimizer = StackedLBFGS(StackedObjective(stack, coords, values), stack.parameters)
    before = [optimizer.step() for _ in range(60)]
    assert bool((torch.stack(before).diff(dim=0) <= 0).all())


def curves(seed):
    """Return random functions of one variable with a descent at 0: value and slope."""
    generator = torch.Generator().manual_seed(seed)
    size, phase, bend = torch.rand((3, 40), dtype=torch.float64, generator=generator)

    def at(places, lengths):
        a, b, c = (each[places] for each in (size, phase, bend))
        values = c * (lengths - 4 * b) ** 2 / 8 + 0.3 * a * torch.sin(6 * lengths * b + a)
        slopes = c * (lengths - 4 * b) / 4 + 1.8 * a * b * torch.cos(6 * lengths * b + a)
        # Beyond some length the function is not finite.
        far = lengths > 30 * a
        return torch.where(far, torch.inf, values), slopes

    return at


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("first", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("c2", [0.9, 0.1])
def test_searches_are_those_of_the_search_alone(seed, first, c2):
    at = curves(seed)
    places = torch.arange(40)
    values, slopes = at(places, torch.zeros(40, dtype=torch.float64))

    def evaluate(index, lengths):
        found = at(index, lengths)
        return *found, lengths.unsqueeze(1)

    start = values, slopes, torch.zeros((40, 1), dtype=torch.float64)
    lengths = torch.full((40,), first, dtype=torch.float64)
    found = stacked_strong_wolfe(evaluate, start, lengths, c2=c2)
    assert bool((slopes < 0).any())
    for place in range(40):
        trials = []

        def one(length, place=place, trials=trials):
            trials.append(length)
            index, single = torch.tensor([place]), torch.tensor([length], dtype=torch.float64)
            value, slope = at(index, single)
            return Trial(length, float(value), float(slope))

        origin = Trial(0.0, float(values[place]), float(slopes[place]))
        expected = strong_wolfe(one, origin, first, c2=c2) if origin.slope < 0 else origin
        assert float(found.lengths[place]) == pytest.approx(expected.length, rel=1e-9)
        assert int(found.trials[place]) == len(trials)
        # The gradient kept is that of the trial returned.
        assert float(found.gradients[place, 0]) == float(found.lengths[place])


@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"history_size": 0}, {"tolerance_grad": -1.0}, {"c2": 1.0}]
)
def test_options_out_of_range_are_refused(options):
    stack, coords, values = problem("sine")
    with pytest.raises(ValueError, match="must be"):
        StackedLBFGS(StackedObjective(stack, coords, values), stack.parameters, **options)


def test_parameters_must_be_rows():
    with pytest.raises(ValueError, match=r"parameters must have shape \[K, n\]"):
        StackedLBFGS(quadratic(torch.ones(3, 2)), torch.ones(3))


@pytest.mark.parametrize("most", [1, 3, 20])
def test_directions_are_those_of_every_problems_own_last_pairs(most):
    generator = torch.Generator().manual_seed(0)
    places = torch.tensor([2, 3, 5, 8, 9])
    kept = _Pairs(places, most)
    own = {int(place): [] for place in places}
    for round_ in range(9):
        steps, changes = torch.randn((2, 5, 4), dtype=torch.float64, generator=generator)
        # Some pairs show no curvature, and some problems have none to add.
        changes = torch.where(
            torch.rand(5, 1, generator=generator) < 0.6, steps + changes / 4, -steps
        )
        chosen = torch.rand(5, generator=generator) < 0.8 if round_ else torch.ones(5) > 0
        kept.add(places[chosen], steps[chosen], changes[chosen])
        for place, step, change in zip(places[chosen], steps[chosen], changes[chosen], strict=True):
            if curved(step, change):
                own[int(place)] = [*own[int(place)], (step, change)][-most:]
        if round_ == 5:
            kept.drop(places[1:2])
            own[3] = []
        if round_ == 7:
            places = places[torch.tensor([0, 1, 3])]
            steps, changes, chosen = steps[:3], changes[:3], chosen[:3]
            kept.keep(places, 0.25)
        if round_ >= 7:
            break
    for some in (places, places[1:], places[:1]):
        gradients = torch.randn((len(some), 4), dtype=torch.float64, generator=generator)
        found = kept.directions(some, gradients)
        assert kept.has_pairs(some).tolist() == [bool(own[int(place)]) for place in some]
        for place, gradient, direction in zip(some, gradients, found, strict=True):
            pairs = own[int(place)]
            expected = gradient
            if pairs:
                steps, changes = zip(*pairs, strict=True)
                inner = [one.dot(other) for one, other in pairs]
                expected = two_loop(steps, changes, inner, gradient)
            assert_same(direction, -expected, roundings=1000)


def test_a_search_that_leads_nowhere_is_tried_along_the_gradient_and_then_given_up():
    scales = torch.ones((2, 3), dtype=torch.float64)
    inner = quadratic(scales)
    broken = torch.tensor([False, True])

    def objective(parameters, index):
        losses, gradients = inner(parameters, index)
        # From its third evaluation on, no place of the second problem is lower.
        counts[index] += 1
        high = broken[index] & (counts[index] > 3)
        return torch.where(high, torch.inf, losses), gradients

    counts = torch.zeros(2, dtype=torch.long)
    start = torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64)
    optimizer = StackedLBFGS(objective, start, lr=0.1)
    for _ in range(4):
        optimizer.step()
    assert bool(optimizer.finished[1])
    assert not bool(optimizer.finished[0])
    assert bool(optimizer.losses.isfinite().all())
    # Both searches took all their trials.
    assert int(optimizer.evaluations[1]) >= 50
