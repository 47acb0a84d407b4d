import math

import pytest
import torch
from scipy.sparse.linalg import aslinearoperator

import hessian_lab as hl
from hessian_lab.errors import NonFiniteError
from hessian_lab.probe.density import spectral_measure
from hessian_lab.probe.log_density import gaussian_kernel, log_kernel
from hessian_lab.probe.operators import MatrixOperator, SymmetricOperator
from hessian_lab.probe.vectors import gaussian, rademacher
from tests.reference import assert_same

SIZE = 60
BULK = torch.linspace(-1, 1, 54, dtype=torch.float64)
# A trained field in small: outliers, one of them double, a bulk, and zeros.
OUTLIERS = torch.cat([torch.tensor([9.0, 6, 6, 4, 3]), -torch.ones(3), 0.02 * torch.rand(16)])
SPECTRA = {
    "outliers and zeros": torch.cat([OUTLIERS, torch.zeros(36)]).double(),
    "bulk": torch.cat([BULK, 3 + BULK[:6]]),
    "rank 3": torch.cat([torch.tensor([2.0, 1.0, -3.0]), torch.zeros(57)]).double(),
    "positive": torch.linspace(0, 1, SIZE, dtype=torch.float64) ** 3,
    "identity": torch.ones(SIZE, dtype=torch.float64),
    "zero": torch.zeros(SIZE, dtype=torch.float64),
}


def rotated(eigenvalues, dtype=torch.float64):
    """Return a symmetric matrix [n, n] with these eigenvalues and random eigenvectors."""
    size = len(eigenvalues)
    basis = torch.linalg.qr(gaussian(size, size, seed=99, like=eigenvalues))[0]
    matrix = (basis * eigenvalues) @ basis.T
    return ((matrix + matrix.T) / 2).to(dtype)


class Counting(SymmetricOperator):
    """A matrix that counts its products and spoils one of them."""

    def __init__(self, matrix, spoiled=None):
        super().__init__(len(matrix), matrix.dtype, matrix.device)
        self.matrix, self.count, self.spoiled = matrix, 0, spoiled

    def matmat(self, block):
        result = self.matrix @ block
        self.count += block.shape[1]
        if self.spoiled is not None and self.count >= self.spoiled:
            result[0, self.spoiled - 1 - self.count] = math.nan
        return result


def exact_share(eigenvalues, points):
    return (eigenvalues.unsqueeze(1) <= points).double().mean(dim=0)


def holds(band, truth):
    """Return where a band holds the truth, up to what settled eigenvalues are known to."""
    slack = 1e-5 * truth.abs().max().clamp(min=1e-300)
    return (band.lower <= truth + slack) & (truth <= band.upper + slack)


def wasserstein(measure, eigenvalues):
    """Return the 1-Wasserstein distance of the mean quadrature to the spectrum."""
    places = torch.cat([measure.nodes.flatten(), eigenvalues])
    masses = torch.cat(
        [
            measure.weights.flatten() / measure.num_probes,
            torch.full_like(eigenvalues, -1 / len(eigenvalues)),
        ]
    )
    places, order = places.sort()
    return float((masses[order].cumsum(0)[:-1].abs() * places.diff()).sum())


# Identities


@pytest.mark.parametrize("order", range(12))
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_moments_are_exact_up_to_twice_the_steps(order, distribution):
    matrix = rotated(SPECTRA["outliers and zeros"])
    measure = spectral_measure(
        matrix, num_probes=3, num_steps=6, seed=5, distribution=distribution, settle=False
    )
    draw = rademacher if distribution == "rademacher" else gaussian
    probes = draw(SIZE, 3, seed=5, like=matrix)
    power = torch.linalg.matrix_power(matrix, order)
    expected = torch.einsum("nm,nk,km->m", probes, power, probes) / (probes**2).sum(dim=0)
    assert_same(measure.moment(order), expected, scale=9.0**order)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 1e-12),
        ({}, 1e12),
        ({"settle": False}, 1),
        ({"deflate": 4}, 1e-12),
        ({"num_probes": 1}, 1e12),
        ({"num_steps": SIZE}, 1),
    ],
)
def test_the_mass_is_one_and_nothing_is_made_up(name, dtype, options, scale):
    eigenvalues = scale * SPECTRA[name]
    measure = spectral_measure(rotated(eigenvalues, dtype), **{"num_steps": 25, **options})
    assert_same(measure.weights.sum(dim=1), torch.ones(measure.num_probes).double(), roundings=8)
    assert (measure.weights >= 0).all()
    assert measure.nodes.dtype == measure.weights.dtype == torch.float64
    rounding = 100 * torch.finfo(dtype).eps * scale * 9
    inside = (measure.nodes > eigenvalues.min() - rounding) & (
        measure.nodes < eigenvalues.max() + rounding
    )
    assert inside.all()


@pytest.mark.parametrize("name", ["rank 3", "identity", "zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_space_that_ends_leaves_eigenvalues_alone(name, dtype):
    measure = spectral_measure(rotated(SPECTRA[name], dtype), num_steps=20)
    distances = (measure.nodes.unsqueeze(2) - SPECTRA[name]).abs().amin(dim=2)
    assert distances.max() < 50 * torch.finfo(dtype).eps
    assert measure.exhausted
    assert measure.num_products <= 4 * measure.num_probes


def test_settled_eigenvalues_have_their_exact_mass():
    measure = spectral_measure(rotated(SPECTRA["outliers and zeros"]), num_steps=25)
    top = torch.tensor([9.0, 6, 6, 4, 3], dtype=torch.float64)
    assert_same(measure.settled[:5], top)
    assert len(measure.settled) == measure.known.num
    at_top = measure.weights[:, : measure.known.num]
    assert_same(at_top, torch.full_like(at_top, 1 / SIZE), roundings=8)


def test_moments_are_those_of_the_spectrum_once_all_is_settled():
    eigenvalues = SPECTRA["bulk"]
    measure = spectral_measure(rotated(eigenvalues), num_steps=SIZE)
    assert measure.known.num == SIZE
    for order in range(6):
        expected = (eigenvalues**order).mean().expand(measure.num_probes)
        assert_same(measure.moment(order), expected, scale=4.0**order)


def test_density_is_the_smoothed_spectrum_once_all_is_settled():
    eigenvalues = SPECTRA["bulk"]
    measure = spectral_measure(rotated(eigenvalues), num_steps=SIZE)
    grid = torch.linspace(-2, 4, 50, dtype=torch.float64)
    expected = gaussian_kernel(eigenvalues, grid, bandwidth=0.3).mean(dim=0)
    assert_same(measure.density(grid, bandwidth=0.3), expected)
    band = measure.density_band(grid, bandwidth=0.3)
    assert_same(band.lower, expected)
    assert_same(band.upper, expected)


def test_the_kernel_is_the_normal_density():
    grid = torch.linspace(-3, 3, 20, dtype=torch.float64)
    centres = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    normal = torch.distributions.Normal(centres.unsqueeze(1), 0.7)
    assert_same(gaussian_kernel(centres, grid, bandwidth=0.7), normal.log_prob(grid).exp())


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
@pytest.mark.parametrize("deflate", [0, 3])
def test_everything_scales_with_the_operator(factor, deflate):
    matrix = rotated(SPECTRA["outliers and zeros"])
    one, scaled = (
        spectral_measure(each, num_steps=20, deflate=deflate) for each in (matrix, factor * matrix)
    )
    assert_same(scaled.nodes / factor, one.nodes)
    assert_same(scaled.weights, one.weights, scale=1.0, roundings=1e5)
    for name in ("bandwidth", "resolution", "floor", "radius"):
        assert getattr(scaled, name) / factor == pytest.approx(getattr(one, name), rel=1e-12)
    assert_same(scaled.grid() / factor, one.grid())
    assert_same(scaled.density() * factor, one.density(), roundings=1e6)
    ours, theirs = scaled.log_density(), one.log_density()
    assert_same(ours.grid - math.log10(factor), theirs.grid, scale=20.0)
    assert_same(ours.density.upper, theirs.density.upper, roundings=1e6)


def test_a_negative_factor_turns_the_spectrum_over():
    matrix = rotated(SPECTRA["bulk"])
    one, turned = (spectral_measure(sign * matrix, num_steps=15) for sign in (1, -1))
    assert_same(turned.grid(), -one.grid().flip(0))
    assert_same(turned.density(), one.density().flip(0), roundings=1e5)


def test_the_same_seed_gives_the_same_bits():
    matrix = rotated(SPECTRA["bulk"])
    first, again = (spectral_measure(matrix, num_steps=12, seed=3) for _ in range(2))
    assert torch.equal(first.nodes, again.nodes)
    assert torch.equal(first.weights, again.weights)


def test_seeds_share_no_probe():
    matrix = rotated(SPECTRA["bulk"])
    runs = [spectral_measure(matrix, num_steps=5, seed=seed, settle=False) for seed in range(4)]
    nodes = torch.cat([run.nodes for run in runs])
    assert len(nodes.unique(dim=0)) == 40


def test_more_probes_keep_the_first_ones():
    matrix = rotated(SPECTRA["bulk"])
    few, many = (
        spectral_measure(matrix, num_probes=num, num_steps=8, settle=False) for num in (3, 7)
    )
    assert_same(many.nodes[:3], few.nodes)


def test_the_block_size_does_not_matter():
    operator = Counting(rotated(SPECTRA["outliers and zeros"]))
    whole = spectral_measure(operator, num_steps=15)
    assert operator.count == whole.num_products == 150
    parts = spectral_measure(operator, num_steps=15, block_size=4)
    assert parts.num_products == 150
    assert_same(parts.nodes, whole.nodes)
    assert_same(parts.weights, whole.weights, scale=1.0, roundings=1e5)


def test_blocks_may_end_after_different_numbers_of_steps():
    eigenvalues = torch.cat([torch.tensor([5.0, -2.0]), torch.zeros(2)]).double()
    measure = spectral_measure(eigenvalues.diag(), num_steps=4, num_probes=9, block_size=1)
    assert_same(measure.weights.sum(dim=1), torch.ones(9).double())
    assert_same(measure.cumulative(-1.0), torch.tensor([0.25]).double())


def test_single_precision_has_accumulators_in_double():
    matrix = rotated(SPECTRA["outliers and zeros"])
    single, double = (spectral_measure(matrix.to(dtype), num_steps=8) for dtype in DTYPES)
    assert single.nodes.dtype == torch.float64
    assert single.eps == torch.finfo(torch.float32).eps
    gap = (single.density(single.grid()) - double.density(single.grid())).abs().max()
    assert gap < 1e-4 * double.density(single.grid()).max()


DTYPES = (torch.float32, torch.float64)


def test_scipy_operators_are_taken():
    matrix = rotated(SPECTRA["bulk"])
    foreign = spectral_measure(aslinearoperator(matrix.numpy()), num_steps=8)
    assert_same(foreign.nodes, spectral_measure(matrix, num_steps=8).nodes)


# Deflation


def test_deflated_pairs_are_exact_and_counted():
    operator = Counting(rotated(SPECTRA["outliers and zeros"]))
    measure = spectral_measure(operator, num_probes=2, num_steps=10, deflate=4)
    assert operator.count == measure.num_products > 20
    assert_same(measure.settled, torch.tensor([9.0, 6, 6, 4], dtype=torch.float64), roundings=1e5)
    assert measure.nodes[:, 4:].abs().max() < 3.01
    expected = 4 * (math.pi / 20) ** 2 * 3
    assert measure.resolution == pytest.approx(expected, rel=1e-3)


def test_deflation_takes_the_noise_of_the_outliers():
    matrix = rotated(SPECTRA["outliers and zeros"])
    spread = {}
    for deflate in (0, 5):
        moments = [
            spectral_measure(
                matrix, num_probes=2, num_steps=10, seed=seed, deflate=deflate, settle=False
            ).moment(2)
            for seed in range(20)
        ]
        spread[deflate] = float(torch.stack(moments).mean(dim=1).std())
    assert spread[5] < spread[0] / 20


def test_deflating_the_whole_range_leaves_zeros():
    measure = spectral_measure(rotated(SPECTRA["rank 3"]), num_steps=20, deflate=5)
    assert float(measure.nullity_bound().share) == pytest.approx(57 / 60, abs=1e-9)
    assert float(measure.cumulative(1e-9)) == pytest.approx(58 / 60, abs=1e-12)


# References


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_steps", [10, 25])
def test_settling_brings_the_measure_closer_to_the_spectrum(seed, num_steps):
    eigenvalues = SPECTRA["outliers and zeros"]
    matrix = rotated(eigenvalues)
    settled, plain = (
        wasserstein(
            spectral_measure(matrix, num_steps=num_steps, seed=seed, settle=settle), eigenvalues
        )
        for settle in (True, False)
    )
    assert settled < plain / 3


@pytest.mark.parametrize("name", SPECTRA)
def test_views_have_mass_one(name):
    measure = spectral_measure(rotated(SPECTRA[name]), num_steps=12)
    density = torch.trapezoid(measure.density(), measure.grid())
    assert float(density) == pytest.approx(1, abs=2e-4)
    assert_same(measure.cumulative(100.0), torch.ones(1).double(), roundings=8)
    log = measure.log_density()
    mass = torch.trapezoid(log.density.estimate, log.grid) + log.lump.estimate
    assert float(mass) == pytest.approx(1, abs=2e-4)
    for band in (log.density, measure.density_band(), measure.cumulative_band(measure.grid(9))):
        assert (band.lower <= band.estimate).all()
        assert (band.estimate <= band.upper).all()
        assert (band.lower >= 0).all()


def test_mass_below_the_resolution_is_a_lump():
    measure = spectral_measure(rotated(SPECTRA["outliers and zeros"]), num_steps=20)
    log = measure.log_density()
    assert log.floor == measure.resolution == 4 * (math.pi / 40) ** 2 * measure.radius
    assert float(log.grid[0]) == pytest.approx(math.log10(measure.resolution))
    assert float(log.lump.estimate) == float(measure.mass_within().estimate)
    assert str(log).startswith("share of |λ| ≤ 0.22: 0.8")
    below = measure.log_density(log.grid[:1] - torch.tensor([0.5]))
    assert float(below.density.estimate) == 0


def test_the_log_kernel_is_folded_at_the_floor():
    nodes = torch.tensor([-0.01, 0.02, 1e-4, 0.0], dtype=torch.float64)
    grid = torch.linspace(-2.5, 2, 5001, dtype=torch.float64)
    bumps = log_kernel(nodes, grid, bandwidth=0.2, floor=0.005)
    masses = torch.trapezoid(bumps, grid)
    assert masses[:2].tolist() == pytest.approx([1, 1], abs=5e-3)
    assert masses[2:].tolist() == [0, 0]
    assert (bumps[:, grid < math.log10(0.005)] == 0).all()


def test_bandwidth_is_the_range_over_the_steps():
    measure = spectral_measure(rotated(SPECTRA["bulk"]), num_steps=12)
    spread = float(measure.nodes.max() - measure.nodes.min())
    assert measure.bandwidth == pytest.approx(spread / 12)
    alone = spectral_measure(3 * torch.eye(9).double(), num_steps=2)
    assert alone.bandwidth == pytest.approx(3)
    assert spectral_measure(torch.zeros(9, 9).double(), num_steps=2).bandwidth == 1


# Statistics

NUM_SEEDS = 150
# Four standard errors of so many seeds below 95 %.
LEAST_RATE = 0.95 - 4 * (0.95 * 0.05 / NUM_SEEDS) ** 0.5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small ReLU field with encoding: 16 % of its eigenvalues are zero."""
    signal = hl.load_signal("camera", size=12)
    setup = hl.Setup(act="relu_pe", width=6, depth=2, steps=25, threads=1)
    run = hl.train(setup, signal=signal, out=tmp_path_factory.mktemp("trained"))
    matrix = hl.dense_hessian(run.model(25), run.loss, signal)
    return matrix, torch.linalg.eigvalsh(matrix)


@pytest.fixture(scope="module", params=["trained", "60 % zeros"])
def calibration(request, trained):
    """A matrix, its eigenvalues, and NUM_SEEDS measures of it."""
    if request.param == "trained":
        matrix, eigenvalues = trained
    else:
        some = 10 ** -torch.linspace(0, 5, 48, dtype=torch.float64)
        some[::4] *= -0.1
        eigenvalues = torch.cat([some, torch.zeros(72, dtype=torch.float64)])
        matrix = rotated(eigenvalues)
    options = {"num_probes": 4, "num_steps": 14}
    return (
        matrix,
        eigenvalues,
        [spectral_measure(matrix, seed=s, **options) for s in range(NUM_SEEDS)],
    )


def test_bands_hold_the_spectrum_as_often_as_they_say(calibration):
    _, eigenvalues, measures = calibration
    top = float(eigenvalues.abs().max())
    points = top * torch.tensor([-0.02, 1e-9, 1e-3, 0.02, 0.1, 0.4], dtype=torch.float64)
    grid = top * torch.tensor([-0.1, 0.0, 0.06, 0.12, 0.5, 1.0], dtype=torch.float64)
    density = gaussian_kernel(eigenvalues, grid, bandwidth=top / 7).mean(dim=0)
    share = exact_share(eigenvalues, points)
    hits = []
    for measure in measures:
        densities = measure.density_band(grid, bandwidth=top / 7)
        hits.append(
            torch.cat([holds(measure.cumulative_band(points), share), holds(densities, density)])
        )
    rates = torch.stack(hits).double().mean(dim=0)
    assert rates.min() >= LEAST_RATE
    assert rates.mean() >= 0.94


def test_log_densities_and_lumps_are_in_their_bands(calibration):
    _, eigenvalues, measures = calibration
    offsets = torch.tensor([0.0, 0.2, 0.5, 0.9], dtype=torch.float64)
    hits = []
    for measure in measures:
        log = measure.log_density(math.log10(measure.resolution) + offsets)
        kernel = log_kernel(eigenvalues, log.grid, bandwidth=log.bandwidth, floor=log.floor)
        lump = (eigenvalues.abs() <= log.floor).double().mean()
        hits.append([*holds(log.density, kernel.mean(dim=0)), holds(log.lump, lump)])
    rates = torch.tensor(hits).double().mean(dim=0)
    assert rates[:-1].min() >= LEAST_RATE
    assert rates[-1] >= 0.93


def test_the_nullity_is_below_its_bound(calibration):
    _, eigenvalues, measures = calibration
    bounds = [measure.nullity_bound() for measure in measures]
    zeros = [(eigenvalues.abs() <= bound.floor).double().mean() for bound in bounds]
    hits = [share <= bound.share + 1e-9 for share, bound in zip(zeros, bounds, strict=True)]
    assert sum(hits) >= 0.93 * len(hits)


def test_bands_are_no_wider_than_they_must_be(calibration):
    """Away from zero the width is that of the probes' randomness, not of what is left open."""
    matrix, eigenvalues, measures = calibration
    point = torch.tensor([0.4 * float(eigenvalues.abs().max())])
    errors = torch.stack([measure.cumulative(point) for measure in measures]) - exact_share(
        eigenvalues, point
    )
    widths = [measure.cumulative_band(point) for measure in measures[:20]]
    half = float(torch.stack([band.upper - band.lower for band in widths]).mean()) / 2
    # An eigenvalue or so may hide at the edge, where a probe or two had not converged.
    assert half < 4 * float(errors.square().mean().sqrt()) + 2 / len(matrix)


# What is said, and refused


def test_nothing_is_said_of_narrower_windows():
    measure = spectral_measure(rotated(SPECTRA["outliers and zeros"]), num_steps=20)
    at_resolution = measure.mass_within(measure.resolution)
    assert float(at_resolution.estimate) == float(measure.mass_within().estimate)
    with pytest.raises(
        ValueError, match=r"radius must be at least 0\.222\d*, which is what 20 steps resolve, got"
    ):
        measure.mass_within(0.99 * measure.resolution)
    text = str(measure)
    assert f"{measure.known.num} of 60 eigenvalues known one by one" in text
    assert "200 products" in text
    assert f"share of |λ| ≤ {measure.resolution:.2g}: 0.8" in text
    assert "zero: ≤ " in text
    assert "only a bound: 20 steps do not tell zero from |λ| < 0.22" in text


def test_the_bound_of_an_exhausted_space_says_why_it_is_one():
    bound = spectral_measure(rotated(SPECTRA["rank 3"]), num_steps=20).nullity_bound(level=0.9)
    assert str(bound).startswith("zero: ≤ 95.0% (90%); only a bound: the probes are a sample")
    assert bound.share == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, r"num_steps must be in \[1, 60\], got 0\."),
        ({"num_steps": 61}, r"num_steps must be in \[1, 60\], got 61\."),
        ({"num_probes": 0}, r"num_probes must be at least 1, got 0\."),
        ({"deflate": -1}, r"deflate must be in \[0, 59\], got -1\."),
        ({"deflate": 60}, r"deflate must be in \[0, 59\], got 60\."),
        ({"block_size": 0}, r"block_size must be at least 1, got 0\."),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*64\), got -1\."),
        ({"distribution": "normal"}, "distribution must be one of rademacher, gaussian, got"),
    ],
)
def test_rejects(options, message):
    operator = Counting(rotated(SPECTRA["bulk"]))
    with pytest.raises(ValueError, match=message):
        spectral_measure(operator, **{"num_steps": 5, **options})
    assert operator.count == 0


def test_rejects_what_is_no_operator():
    with pytest.raises(TypeError, match="operator must have shape and @"):
        spectral_measure("matrix")
    with pytest.raises(ValueError, match="operator must be symmetric"):
        spectral_measure(torch.ones(5, 5).double().triu(), num_steps=3)
    with pytest.raises(TypeError, match=r"float32 or float64, got torch\.float16"):
        spectral_measure(torch.eye(5).half(), num_steps=3)


def test_rejects_a_deflation_that_leaves_nothing_of_a_probe():
    matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"deflate must leave something of every probe, got 1 pairs of 2\."
    ):
        spectral_measure(matrix, num_steps=2, deflate=1)


@pytest.mark.parametrize(("spoiled", "block_size"), [(1, 16), (17, 16), (38, 5)])
def test_reports_the_product_that_is_not_finite(spoiled, block_size):
    operator = Counting(rotated(SPECTRA["bulk"]), spoiled)
    per_block = 4 * min(block_size, 10)
    number = (spoiled - 1) % per_block + 1
    after = "after 5 probes, " if spoiled > per_block else ""
    with pytest.raises(NonFiniteError, match=rf"^{after}product {number} of the operator"):
        spectral_measure(operator, num_steps=4, block_size=block_size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.density(bandwidth=0), r"bandwidth must be positive and finite, got 0\."),
        (lambda m: m.density_band(bandwidth=-1), "bandwidth must be positive and finite, got -1"),
        (lambda m: m.log_density(bandwidth=math.inf), "bandwidth must be positive and finite, got"),
        (lambda m: m.density(torch.zeros(2, 2)), r"grid must be finite and a number or \[g\], got"),
        (lambda m: m.log_density(torch.zeros(2, 2)), "grid must be finite and a number or"),
        (lambda m: m.cumulative(math.nan), r"points must be finite and a number or \[g\], got"),
        (lambda m: m.moment(-1), r"order must be at least 0, got -1\."),
        (lambda m: m.grid(1), r"num must be at least 2, got 1\."),
        (lambda m: m.mass_within(math.nan), "radius must be at least"),
        (lambda m: m.mass_within(math.inf), "radius must be at least"),
        (lambda m: m.mass_within(level=1.0), r"level must be in \(0, 1\), got 1\.0\."),
        (lambda m: m.cumulative_band(0.0, level=0), r"level must be in \(0, 1\), got 0\."),
    ],
)
def test_views_reject(call, message):
    measure = spectral_measure(MatrixOperator(rotated(SPECTRA["bulk"])), num_steps=5)
    with pytest.raises(ValueError, match=message):
        call(measure)
