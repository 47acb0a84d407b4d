import math

import pytest
import torch

from hessian_lab.errors import ResourceError
from hessian_lab.measures import cost
from hessian_lab.measures.cost import PERIODIC, PERIODS, Problem, measure_cost
from hessian_lab.optim import OPTIMIZERS

SMALL = Problem(width=4, depth=1, batch_size=8)


@pytest.fixture(scope="module")
def measured():
    return {one.optimizer: one for one in measure_cost(list(OPTIMIZERS), SMALL, rounds=1)}


def test_every_optimizer_is_timed(measured):
    assert measured.keys() == OPTIMIZERS.keys()
    for one in measured.values():
        assert one.seconds > 0
        assert one.ratio > 0
        assert not one.note
        assert one.options == PERIODIC.get(one.optimizer, {})


def test_state_is_what_is_kept(measured):
    # 4·2 + 4 + 3·4 + 3 parameters in float32; Adam keeps two vectors, and a step per tensor.
    assert measured["adam"].state_bytes == 2 * 27 * 4 + 4 * 4
    assert measured["sgd"].state_bytes == 0
    assert measured["bfgs"].state_bytes >= 27 * 27 * 4


def test_memory_is_in_units_of_adams(measured):
    assert measured["adam"].peak_ratio == 1
    assert measured["adam"].peak_bytes > measured["adam"].state_bytes + 27 * 4 + 8 * 5 * 4
    assert measured["sgd"].peak_ratio < 1 < measured["adahessian"].peak_ratio
    for one in measured.values():
        assert one.peak_bytes >= one.state_bytes + 27 * 4


def test_evaluations_are_those_of_a_step(measured):
    assert measured["adam"].evaluations == 1
    assert measured["esgd"].evaluations == 1


def test_ratios_are_of_rounds(monkeypatch):
    times = iter([9.0, 1.0, 5.0, 2.0, 2.0, 6.0, 4.0, 40.0])
    # A period of each to warm up, then pairs of Adam's and its own.
    monkeypatch.setattr(cost._Runner, "period", lambda _self: next(times))
    (one,) = measure_cost(["sgd"], SMALL, rounds=3)
    assert one.ratio == pytest.approx(3.0)  # The median of 2/5, 6/2 and 40/4.
    assert one.seconds == 6.0


def test_a_period_is_of_all_that_is_amortised():
    for name, options in PERIODIC.items():
        periods = [each for each in options.values() if isinstance(each, int) and each]
        assert all(PERIODS[name] % each == 0 for each in periods)


def test_what_does_not_fit_is_told(monkeypatch):
    def refuse(name, model, **options):
        if name == "bfgs":
            raise ResourceError("BFGS must fit in memory.")
        return made(name, model, **options)

    made = cost.make_optimizer
    monkeypatch.setattr(cost, "make_optimizer", refuse)
    one, other = measure_cost(["bfgs", "sgd"], SMALL, rounds=1)
    assert one.note == "BFGS must fit in memory."
    assert math.isnan(one.ratio)
    assert other.ratio > 0


def test_refuses_no_rounds():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        measure_cost(["sgd"], SMALL, rounds=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_are_timed_on_a_gpu():
    (one,) = measure_cost(["adam"], Problem(width=4, depth=1, device="cuda"), rounds=1)
    assert one.seconds > 0
