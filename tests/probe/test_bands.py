import pytest
import torch

from hessian_lab.probe.bands import Band, Integrals, Known, mean_interval, require_level
from tests.reference import assert_same

SIZE, NUM_PROBES, NUM_SEEDS = 60, 4, 2000
COUNT = NUM_PROBES * (SIZE + 2) / 2 - 1


def seen_by_probes(function):
    """Return what NUM_PROBES random directions see of a function [n], NUM_SEEDS times over."""
    generator = torch.Generator().manual_seed(0)
    shape = NUM_SEEDS, NUM_PROBES, SIZE
    masses = torch.randn(shape, dtype=torch.float64, generator=generator) ** 2
    return (masses / masses.sum(dim=2, keepdim=True) @ function).mean(dim=1)


def covered(function, *, square=None, level=0.95):
    """Return how often the interval holds the mean of a function [n]."""
    seen = seen_by_probes(function)
    square = seen if square is None else seen_by_probes(function**2)
    lower, upper = mean_interval(seen, seen, mean=seen, square=square, count=COUNT, level=level)
    truth = function.mean()
    return float(((lower <= truth) & (truth <= upper)).double().mean())


@pytest.mark.parametrize("rank", [1, 2, 5, 20, 30, 55, 59])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_a_share_is_in_its_interval_as_often_as_it_says(rank, level):
    function = (torch.arange(SIZE) < rank).double()
    # Four binomial standard errors of 2000 draws.
    slack = 4 * (level * (1 - level) / NUM_SEEDS) ** 0.5
    assert level - slack <= covered(function, level=level) <= level + slack + 0.01


@pytest.mark.parametrize(
    "function",
    [
        torch.exp(-torch.arange(SIZE).double() / 5),
        1 - 0.3 * torch.exp(-torch.arange(SIZE).double() / 2),
        torch.linspace(0, 1, SIZE).double(),
        torch.where(torch.arange(SIZE) < 4, 1e-3, 1e-9).double(),
    ],
    ids=["few large", "few below the peak", "even", "far below the peak"],
)
def test_the_mean_of_a_function_is_in_its_interval_as_often_as_it_says(function):
    assert covered(function, square="its own") >= 0.935


def test_bounds_widen_the_interval_on_their_side():
    low, mean, high = (torch.tensor([value], dtype=torch.float64) for value in (0.2, 0.3, 0.45))
    options = {"mean": mean, "square": mean, "count": COUNT, "level": 0.95}
    narrow = mean_interval(mean, mean, **options)
    wide = mean_interval(low, high, **options)
    assert_same(wide[0], mean_interval(low, low, **options)[0])
    assert_same(wide[1], mean_interval(high, high, **options)[1])
    assert wide[0] < narrow[0] < mean < narrow[1] < wide[1]


def test_the_interval_of_the_rest_is_the_rest_of_the_interval():
    mean = torch.linspace(0, 1, 21).double()
    square = mean**1.5
    options = {"count": COUNT, "level": 0.9}
    lower, upper = mean_interval(mean, mean, mean=mean, square=square, **options)
    turned = mean_interval(
        1 - mean, 1 - mean, mean=1 - mean, square=1 - 2 * mean + square, **options
    )
    assert_same(turned[0], 1 - upper, scale=1.0)
    assert_same(turned[1], 1 - lower, scale=1.0)


def test_the_interval_stays_in_the_unit_interval_and_reaches_its_ends():
    ends = torch.tensor([0.0, 1e-300, 1e-9, 1 - 1e-9, 1.0], dtype=torch.float64)
    lower, upper = mean_interval(ends, ends, mean=ends, square=ends, count=COUNT, level=0.95)
    assert not (lower.isnan() | upper.isnan()).any()
    assert lower[0] == 0
    assert upper[-1] == 1
    assert (lower >= 0).all()
    assert (upper <= 1).all()
    assert (lower <= ends).all()
    assert (ends <= upper).all()


def test_a_higher_level_is_wider():
    mean = torch.tensor([0.1, 0.5], dtype=torch.float64)
    widths = []
    for level in (0.5, 0.9, 0.99):
        lower, upper = mean_interval(mean, mean, mean=mean, square=mean, count=9, level=level)
        widths.append(upper - lower)
    assert (widths[0] < widths[1]).all()
    assert (widths[1] < widths[2]).all()


def band_of(function, masses, *, known=0, level=0.95):
    """Return the band of a function [n], from what probes have of it: masses [m, n]."""
    rest = masses[:, known:] @ function[known:]
    open_share = (1 - known / SIZE) * rest.mean() / masses[:, known:].sum(dim=1).mean()
    estimate = function[:known].sum() / SIZE + open_share
    seen = (masses @ function).unsqueeze(1)
    at_known = function[:known].unsqueeze(1)
    return Known(masses[:, :known], SIZE).band(
        Integrals(estimate.reshape(1), at_known, seen, seen), level=level
    )


@pytest.mark.parametrize("known", [0, 3, 20])
def test_a_band_is_as_wide_as_it_must_be(known):
    """It holds the truth at its level: less often would be wrong, more often a waste."""
    function = (torch.arange(SIZE) % 2).double()
    generator = torch.Generator().manual_seed(1)
    hits = 0
    for _ in range(400):
        masses = torch.randn(NUM_PROBES, SIZE, dtype=torch.float64, generator=generator) ** 2
        band = band_of(function, masses / masses.sum(dim=1, keepdim=True), known=known, level=0.8)
        hits += int(band.lower <= function.mean() <= band.upper)
    assert 0.8 - 0.08 < hits / 400 < 0.8 + 0.08


def test_what_is_known_is_exact_in_a_band():
    masses = torch.full((3, SIZE), 1 / SIZE, dtype=torch.float64)
    masses[:, :5] *= torch.tensor([0.1, 0.5, 1.2, 3.0, 0.2])
    masses /= masses.sum(dim=1, keepdim=True)
    inside = (torch.arange(SIZE) < 5).double()
    band = band_of(inside, masses, known=5)
    assert float(band.estimate) == pytest.approx(5 / SIZE)
    assert float(band.lower) == pytest.approx(5 / SIZE, abs=1e-9)
    assert float(band.upper) < 5.6 / SIZE


@pytest.mark.parametrize("level", [0, 1, -0.5, 95, float("nan")])
def test_rejects_a_level_that_is_none(level):
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got"):
        require_level(level)


def test_a_band_prints_its_interval():
    one = Band(*torch.tensor([0.25, 0.2, 0.3125], dtype=torch.float64), 0.95)
    assert str(one) == "0.2500 (0.2000 to 0.3125, 95%)"
    many = Band(torch.zeros(3), torch.zeros(3), torch.zeros(3), 0.9)
    assert str(many) == "3 estimates with 90% intervals"
