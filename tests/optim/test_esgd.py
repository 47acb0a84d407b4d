import math

import pytest
import torch

from hessian_lab.optim.esgd import ESGD, ESGDMax
from tests.optim.curvature_problems import HESSIAN, diagonal_quadratic, entries, quadratic
from tests.reference import assert_same

DIAGONAL = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)


def scale_of(optimizer):
    return optimizer.preconditioner().scale - optimizer.param_groups[0]["eps"]


@pytest.mark.parametrize("every", [1, 10, 100])
def test_the_scale_of_a_constant_hessian_is_right_at_all_times(every):
    point, closure = diagonal_quadratic(DIAGONAL)
    optimizer = ESGD([point], lr=0.01, update_every=every, warmup_steps=5)
    for _ in range(350):
        optimizer.step(closure)
        assert_same(scale_of(optimizer), DIAGONAL)


@pytest.mark.parametrize("every", [1, 10, 100])
def test_correcting_by_steps_shrinks_the_scale_as_published(every):
    point, closure = diagonal_quadratic(DIAGONAL)
    optimizer = ESGD([point], lr=0.01, update_every=every, warmup_steps=50, bias_correction="steps")
    for step in range(350):
        optimizer.step(closure)
        measured = step + 1 if step < 50 else 50 + (step - 49) // every
        ratio = math.sqrt((1 - 0.999**measured) / (1 - 0.999 ** (step + 1)))
        assert_same(scale_of(optimizer), ratio * DIAGONAL)


def test_correcting_by_steps_falls_to_0_277_at_step_2148():
    point, closure = diagonal_quadratic(DIAGONAL)
    optimizer = ESGD([point], lr=0.01, update_every=100, bias_correction="steps")
    ratios = []
    for _ in range(2300):
        optimizer.step(closure)
        ratios.append(float((scale_of(optimizer) / DIAGONAL)[0]))
    assert min(ratios) == ratios[2148] == pytest.approx(0.277, abs=5e-4)


def published(diagonal, start, gradient, *, steps, lr, weight_decay):
    """ESGD of 2025, from its description: yields the parameters after each step."""
    point = start.clone()
    momentum, average, since = torch.zeros_like(point), torch.zeros_like(point), 0
    for step in range(1, steps + 1):
        slope = gradient(point)
        if step <= 50 or since >= 100:
            average = 0.999 * average + 0.001 * diagonal**2
            since = 0
        since += 1
        momentum = 0.9 * momentum + 0.1 * slope
        denominator = average.sqrt() / math.sqrt(1 - 0.999**step) + 1e-4
        point = (1 - lr * weight_decay) * point
        point = point - lr / (1 - 0.9**step) * momentum / denominator
        yield point


def test_is_the_published_algorithm_with_its_correction():
    point, closure = diagonal_quadratic(DIAGONAL)
    options = {"lr": 0.15, "weight_decay": 0.01}
    optimizer = ESGD([point], bias_correction="steps", **options)
    start = point.detach().clone()
    reference = published(DIAGONAL, start, lambda x: DIAGONAL * x, steps=400, **options)
    for expected in reference:
        optimizer.step(closure)
        assert_same(point.detach(), expected, scale=1.0)


@pytest.mark.parametrize("options", [{}, {"accumulate": "mean"}, {"distribution": "gaussian"}])
def test_the_scale_tends_to_the_norms_of_rows(options):
    parameters, closure = quadratic()
    optimizer = ESGD(parameters, lr=0.0, update_every=1, num_probes=4, **options)
    for _ in range(800):
        optimizer.step(closure)
    # Some thousand squares: about 3 % of error, and half of it after the root.
    norms = torch.linalg.vector_norm(HESSIAN, dim=1)
    torch.testing.assert_close(scale_of(optimizer), norms, rtol=0.05, atol=0)


def test_a_sum_grows_like_the_root_of_its_terms():
    point, closure = diagonal_quadratic(DIAGONAL)
    optimizer = ESGD([point], lr=0.01, update_every=2, warmup_steps=0, accumulate="sum")
    for step in range(20):
        optimizer.step(closure)
        assert_same(scale_of(optimizer), math.sqrt(step // 2 + 1) * DIAGONAL)


@pytest.mark.parametrize("momentum", ["ema", "nesterov"])
def test_momentum_is_right_on_average_from_the_first_step(momentum):
    # A constant gradient: an average that is corrected is that gradient, whatever its weights.
    point = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    slope = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    optimizer = ESGD([point], lr=1.0, momentum=momentum, eps=1.0)
    for _ in range(7):
        before = entries([point])
        optimizer.step(lambda: slope @ point + 0 * point.square().sum())
        assert_same(before - entries([point]), slope, scale=20.0)


def test_nesterov_momentum_weighs_the_present_gradient_again():
    point = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = ESGD([point], lr=1.0, momentum="nesterov", eps=1.0)
    weights = []
    for step in range(4):
        before = float(point.detach())
        optimizer.step(lambda step=step: point.sum() * (step == 0) + 0 * point.square().sum())
        corrected = 1 - 0.9 ** (step + 2)
        weights.append((before - float(point.detach())) * corrected)
    assert weights == pytest.approx([0.19, 0.081, 0.0729, 0.06561])


def maximal(diagonals, start, *, lr):
    """ESGD-max from its description: yields the parameters after each step."""
    point, momentum, kept = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step, diagonal in enumerate(diagonals, start=1):
        slope = diagonal * point
        momentum = 0.9 * momentum + 0.1 * slope
        kept = torch.maximum(0.99 * kept, diagonal**2)
        ahead = (0.9 * momentum + 0.1 * slope) / (1 - 0.9 ** (step + 1))
        point = point - lr * (1 - 0.99**step) * ahead / (kept.sqrt() + 1e-4)
        yield point


def test_esgd_max_fades_its_maximum_and_warms_its_rate():
    point, _ = diagonal_quadratic(DIAGONAL)
    optimizer = ESGDMax([point], lr=1.0, betas=(0.9, 0.99), update_every=1)
    # Curvature that falls and rises again, so that both arguments of the maximum win at times.
    diagonals = [DIAGONAL * (1.5 + math.cos(step / 5)) for step in range(60)]
    start = point.detach().clone()
    for diagonal, expected in zip(diagonals, maximal(diagonals, start, lr=1.0), strict=True):
        optimizer.step(lambda diagonal=diagonal: (diagonal * point.square()).sum() / 2)
        assert_same(point.detach(), expected, scale=1.0)


def test_esgd_max_counts_its_warm_up_in_measurements():
    point = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = ESGDMax([point], lr=1.0, update_every=3, warmup_steps=0, eps=1.0, betas=(0, 0.9))
    lengths = []
    for _ in range(7):
        before = float(point.detach())
        optimizer.step(lambda: point.sum() + 0 * point.square().sum())
        lengths.append(before - float(point.detach()))
    expected = [1 - 0.99 ** (step // 3 + 1) for step in range(7)]
    assert lengths == pytest.approx(expected)
