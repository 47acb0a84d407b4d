import pytest
import torch

from hessian_lab.probe.canonical import canonical_rules, cumulative_bounds
from hessian_lab.probe.lanczos import tridiagonalize
from hessian_lab.probe.vectors import gaussian
from tests.reference import assert_same

SIZE, NUM_STEPS, NUM_PROBES = 50, 7, 3
EIGENVALUES = torch.cat(
    [torch.zeros(20), -0.1 * torch.rand(5), torch.linspace(0.2, 3, 25)]
).double()
EPS = torch.finfo(torch.float64).eps


@pytest.fixture(scope="module")
def starts():
    return gaussian(SIZE, NUM_PROBES, seed=0, like=EIGENVALUES)


@pytest.fixture(scope="module")
def run(starts):
    return tridiagonalize(EIGENVALUES.diag(), starts, num_steps=NUM_STEPS)


def exact(starts, points, *, upto):
    """Return each start's own mass [m, g] below points, or up to them."""
    masses = (starts / starts.norm(dim=0)).T ** 2
    places = EIGENVALUES.unsqueeze(1)
    return masses @ ((places <= points) if upto else (places < points)).double()


def christoffel(run, points):
    """Return 1 / Σ pⱼ(x)² [m, g] by the recurrence of the orthonormal polynomials, j = 0 … k."""
    rows = []
    for alphas, betas in zip(run.alphas, run.betas, strict=True):
        before, now, total, coupling = 0, torch.ones_like(points), 0, 0
        for alpha, beta in zip(alphas, betas, strict=True):
            total = total + now**2
            before, now = now, ((points - alpha) * now - coupling * before) / beta
            coupling = beta
        rows.append(1 / (total + now**2))
    return torch.stack(rows)


def test_bounds_hold_every_probes_own_measure(run, starts):
    points = torch.cat([torch.linspace(-0.5, 3.5, 200).double(), EIGENVALUES, torch.zeros(1)])
    lower, upper = cumulative_bounds(run, points, eps=EPS)
    assert (lower <= exact(starts, points, upto=False) + 1e-12).all()
    assert (upper >= exact(starts, points, upto=True) - 1e-12).all()
    assert (lower >= 0).all()
    assert (upper <= 1).all()


def test_bounds_are_as_far_apart_as_the_moments_allow(run):
    points = torch.linspace(-0.5, 3.5, 57).double()
    lower, upper = cumulative_bounds(run, points, eps=EPS)
    assert_same(upper - lower, christoffel(run, points), scale=1.0)


def test_bounds_hold_at_the_nodes_of_the_gauss_rule(run):
    ritz = run.ritz()
    lower, upper = cumulative_bounds(run, ritz.values[0], eps=EPS)
    sums = ritz.weights[0].cumsum(dim=0)
    assert_same(upper[0], sums, scale=1.0, roundings=1e4)
    assert_same(lower[0], sums - ritz.weights[0], scale=1.0, roundings=1e4)


@pytest.mark.parametrize("order", range(2 * NUM_STEPS + 1))
def test_rules_have_the_moments_that_the_steps_know(run, starts, order):
    masses = (starts / starts.norm(dim=0)).T ** 2
    expected = masses @ EIGENVALUES**order
    for row, (nodes, weights) in enumerate(canonical_rules(run)):
        assert (weights >= 0).all()
        actual = (weights * nodes**order).sum(dim=1)
        # The first is the Gauss rule, which has one moment less.
        first = int(order == 2 * NUM_STEPS)
        scale = float((weights * nodes.abs() ** order).sum(dim=1).max())
        assert_same(actual[first:], expected[row].expand(9 - first), scale=scale, roundings=1e5)


def test_rules_differ_from_each_other(run):
    nodes, _ = canonical_rules(run)[0]
    assert len(nodes[:, NUM_STEPS // 2].unique()) == len(nodes) == 9


def test_an_exhausted_space_leaves_nothing_open():
    few = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64).repeat(5)
    run = tridiagonalize(few.diag(), gaussian(15, 2, seed=1, like=few), num_steps=6)
    assert (run.lengths == 3).all()
    points = torch.tensor([-1.5, -0.5, 1.0, 2.5], dtype=torch.float64)
    lower, upper = cumulative_bounds(run, points, eps=EPS)
    assert torch.equal(lower, upper)
    assert_same(lower[:, -1], torch.ones(2, dtype=torch.float64))
    at_zero = cumulative_bounds(run, torch.zeros(1, dtype=torch.float64), eps=EPS)
    assert (at_zero[1] - at_zero[0] > 0.01).all()


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_bounds_do_not_depend_on_the_scale(starts, run, scale):
    points = torch.linspace(-0.5, 3.5, 31).double()
    scaled = tridiagonalize(scale * EIGENVALUES.diag(), starts, num_steps=NUM_STEPS)
    for actual, expected in zip(
        cumulative_bounds(scaled, scale * points, eps=EPS),
        cumulative_bounds(run, points, eps=EPS),
        strict=True,
    ):
        assert_same(actual, expected, scale=1.0, roundings=1e4)
