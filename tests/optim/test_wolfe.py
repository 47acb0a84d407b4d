import itertools
import math

import pytest
import torch

from hessian_lab.optim.wolfe import MOST_TRIALS, Trial, armijo, cubic_minimum, strong_wolfe


def line(function):
    """Return what evaluates a function of one tensor, and the lengths it was asked for."""
    asked = []

    def evaluate(length):
        asked.append(length)
        place = torch.tensor(length, dtype=torch.float64, requires_grad=True)
        value = function(place)
        (slope,) = torch.autograd.grad(value, place)
        return Trial(length, float(value.detach()), float(slope), point=length)

    return evaluate, asked


def wavy(seed):
    """Return a random smooth function that grows at infinity and descends at 0."""
    generator = torch.Generator().manual_seed(seed)
    sizes, rates, phases = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    scale = 10 ** float(4 * torch.rand(1, generator=generator) - 2)

    def function(place):
        there = place / scale
        waves = sizes * torch.sin(3 * rates * there + phases)
        return waves.sum() + 0.05 * there**2

    start = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(start), start)
    return (lambda place: function(-place)) if slope > 0 else function


@pytest.mark.parametrize("c2", [0.9, 0.4, 0.1, 1e-3])
def test_conditions_hold_at_what_is_accepted(c2):
    accepted = 0
    for seed in range(300):
        evaluate, asked = line(wavy(seed))
        start = evaluate(0.0)
        first = 10 ** (seed % 7 - 3)
        found = strong_wolfe(evaluate, start, first, c2=c2)
        assert len(asked) - 1 <= MOST_TRIALS
        assert found.value <= start.value + 1e-4 * found.length * start.slope
        fulfilled = abs(found.slope) <= -c2 * start.slope
        assert fulfilled or len(asked) - 1 == MOST_TRIALS
        accepted += fulfilled
    assert accepted >= 298


def test_a_quadratic_takes_one_interpolation():
    evaluate, asked = line(lambda place: (place - 3) ** 2)
    found = strong_wolfe(evaluate, evaluate(0.0), 1.0, c2=1e-6)
    assert found.length == pytest.approx(3, rel=1e-12)
    assert asked == [0.0, 1.0, found.length]


def test_what_was_computed_at_the_accepted_trial_is_kept():
    evaluate, asked = line(lambda place: torch.cosh(place - 5))
    found = strong_wolfe(evaluate, evaluate(0.0), 0.01, c2=0.1)
    assert found.point == found.length
    assert found.length in asked


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("search", [strong_wolfe, armijo])
def test_trials_that_are_not_finite_are_too_far_out(bad, search):
    def evaluate(length):
        if length > 1e-4:
            return Trial(length, bad, bad)
        return Trial(length, (length - 5e-5) ** 2, 2 * (length - 5e-5))

    found = search(evaluate, evaluate(0.0), 1.0)
    assert 0 < found.length <= 1e-4
    assert found.value < evaluate(0.0).value


def test_a_slope_that_is_not_finite_is_refused():
    def evaluate(length):
        return Trial(length, -length, math.nan if length > 0.5 else -1.0)

    assert strong_wolfe(evaluate, evaluate(0.0), 1.0).length <= 0.5


def test_no_decrease_is_the_start_itself():
    def evaluate(length):
        return Trial(length, float(length > 0), -1.0)

    start = evaluate(0.0)
    assert strong_wolfe(evaluate, start, 1.0) is start
    assert armijo(evaluate, start, 1.0) is start


def test_an_unbounded_function_ends_with_the_last_trial():
    asked = []

    def evaluate(length):
        asked.append(length)
        return Trial(length, -length, -1.0)

    found = strong_wolfe(evaluate, Trial(0.0, 0.0, -1.0), 1.0, trials=4)
    assert found.length == asked[3] == max(asked) > 100
    assert len(asked) == 4


def test_armijo_shortens_between_a_tenth_and_a_half():
    evaluate, asked = line(lambda place: -place + 50 * place**2)
    found = armijo(evaluate, evaluate(0.0), 1.0)
    assert found.value < 0
    ratios = [later / former for former, later in itertools.pairwise(asked[1:])]
    assert ratios
    assert all(0.1 <= ratio <= 0.5 for ratio in ratios)


def test_cubic_minimum_is_that_of_a_cubic_in_either_order():
    def trial(length):
        return Trial(length, length**3 - 3 * length, 3 * length**2 - 3)

    pair = trial(0.2), trial(2.5)
    assert cubic_minimum(*pair, (0.2, 2.5)) == pytest.approx(1, rel=1e-12)
    assert cubic_minimum(*reversed(pair), (0.2, 2.5)) == pytest.approx(1, rel=1e-12)
    assert cubic_minimum(*pair, (1.5, 2.5)) == 1.5
