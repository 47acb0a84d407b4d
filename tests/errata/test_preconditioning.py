"""Errors of the papers in the algebra of preconditioning, and what holds instead."""

import math
from itertools import pairwise

import pytest
import torch

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.optim.adahessian import AdaHessian
from hessian_lab.optim.esgd import ESGD
from hessian_lab.optim.kfac import KFAC
from hessian_lab.optim.preconditioned_sgd import PreconditionedSGD
from hessian_lab.optim.shampoo import Shampoo
from hessian_lab.probe.conditioning import condition_number
from hessian_lab.probe.conditions import conditions
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.signal import Signal
from tests.errata.states import badly_scaled, camera, hessian_of, quadratic_of, relative, symmetric
from tests.reference import assert_same, points, small_field

SIZES = (2, 5, 10, 20, 40)


def stepped(matrix, **options):
    """Return where one step of preconditioned descent by row norms leads, and from where."""
    point, closure = quadratic_of(matrix)
    start = point.detach().clone()
    optimizer = PreconditionedSGD([point], 0.1, eps=1e-30, **options)
    optimizer.step(closure)
    return start, point.detach() - start


def test_e57_descent_in_scaled_variables_divides_by_the_scale():
    matrix = badly_scaled()
    start, step = stepped(matrix, exponent=1.0)
    root = torch.linalg.vector_norm(matrix, dim=1).sqrt()

    scaled = (root * start).requires_grad_()
    loss = 0.5 * (scaled / root) @ matrix @ (scaled / root)
    (slope,) = torch.autograd.grad(loss, scaled)
    expected = (scaled.detach() - 0.1 * slope) / root - start
    assert_same(step, expected, scale=float(start.abs().max()))

    _, printed = stepped(matrix, exponent=0.5)
    best = (printed @ expected) / (printed @ printed)
    assert relative(best * printed, expected) == pytest.approx(0.87, abs=0.01)


def bound(matrix, exponent):
    """Return Guggenheimer's bound of κ with a power of the mean row norm."""
    size = len(matrix)
    mean = torch.linalg.matrix_norm(matrix) / math.sqrt(size)
    return float(2 / torch.linalg.det(matrix).abs() * mean**exponent)


def test_e62_the_bound_of_kappa_needs_its_exponent():
    for size in SIZES:
        matrices = torch.stack([symmetric(size, seed) for seed in range(200)])
        kappas = torch.linalg.cond(matrices)
        violated = {
            (power, unit): int((kappas >= bounds(unit * matrices, power)).sum())
            for power in (1, size)
            for unit in (1e-3, 1.0, 1e3)
        }
        # In other units of the loss the printed bound is always violated, or never.
        assert violated[1, 1e-3] == 0
        assert violated[1, 1.0] >= 60
        assert violated[1, 1e3] == 200
        assert all(violated[size, unit] == 0 for unit in (1e-3, 1.0, 1e3))


def bounds(matrices, exponent):
    """Return Guggenheimer's bounds of κ with a power of the mean row norm."""
    means = torch.linalg.matrix_norm(matrices) / math.sqrt(matrices.shape[-1])
    return 2 / torch.linalg.det(matrices).abs() * means**exponent


def test_e63_equilibration_divides_the_bound_and_acts_from_the_left():
    for size in SIZES:
        matrices = torch.stack([symmetric(size, seed) for seed in range(50)])
        scales = torch.linalg.vector_norm(matrices, dim=2)
        means = torch.linalg.matrix_norm(matrices) / math.sqrt(size)
        right = (scales / means.unsqueeze(1)).prod(dim=1)

        def change(scaled, matrices=matrices, size=size):
            return bounds(scaled, size) / bounds(matrices, size)

        left = change(matrices / scales.unsqueeze(2))
        torch.testing.assert_close(left, right, rtol=1e-11, atol=0)
        assert float(left.max()) <= 1
        # In units of the loss a tenth as large, the product that is printed is another number.
        printed = scales.prod(dim=1) * means**size
        larger = (10 * scales).prod(dim=1) * (10 * means) ** size
        torch.testing.assert_close(larger / printed, 100.0**size * torch.ones_like(left))
        assert float((larger / left).min()) > 1.5
        roots = scales.sqrt()
        both = change(matrices / roots.unsqueeze(2) / roots.unsqueeze(1))
        assert float((both / left - 1).abs().max()) > 0.01


def test_e61_kappa_is_a_ratio_of_magnitudes():
    matrix = hessian_of("sine", 50)
    values = torch.linalg.eigvalsh(matrix)
    assert float(values[-1] / values[0]) < 0
    assert 0.05 <= float((values < 0).double().mean()) <= 0.52

    singular = torch.linalg.svdvals(matrix)
    kappa = condition_number(matrix)
    assert kappa.resolved
    assert float(kappa) == pytest.approx(float(singular[0] / singular[-1]), rel=1e-6)


def test_e58_alg_2_divides_by_zero_and_its_steps_decay():
    matrix = torch.diag(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    point, closure = quadratic_of(matrix)
    (gradient,) = torch.autograd.grad(closure(), point)
    kept = torch.zeros(3, dtype=torch.float64)
    assert not (gradient * kept**-0.5).isfinite().any()

    truth = matrix.diagonal()
    for accumulate, growth in (("sum", 20.0), ("mean", 1.0), ("ema", 1.0)):
        optimizer = ESGD([point], 1e-6, accumulate=accumulate, eps=1e-30, update_every=1)
        for _ in range(400):
            optimizer.step(closure)
        # Signs see the row norms of a diagonal matrix exactly.
        ratio = optimizer.preconditioner().scale / truth
        assert_same(ratio, torch.full_like(truth, growth), roundings=1e4)


def test_e60_the_moving_average_needs_its_decay():
    matrix = torch.diag(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    point, closure = quadratic_of(matrix)
    steps, decay = 1000, 0.999
    optimizer = AdaHessian([point], 1e-6, betas=(0.9, decay), estimator="jacobi", eps=1e-30)
    for _ in range(steps):
        optimizer.step(closure)
    truth = matrix.diagonal()
    assert_same(optimizer.preconditioner().scale, truth, roundings=1e4)

    squares = truth.square() * steps
    printed = ((1 - decay) * squares / (1 - decay**steps)).sqrt()
    assert_same(printed / truth, torch.full_like(truth, 1.2577), roundings=1e12)
    weights = decay ** torch.arange(steps, dtype=torch.float64)
    right = ((1 - decay) * truth.square() * weights.sum() / (1 - decay**steps)).sqrt()
    assert_same(right, truth)


def test_e16_what_is_called_jacobi_is_the_root_of_the_equilibrated_scale():
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    matrix = 50 * (noise + noise.T)
    matrix.diagonal().mul_(0.2)
    norms = torch.linalg.vector_norm(matrix, dim=1)
    scales = {}
    for estimator in ("equilibrated", "jacobi", "pn-jacobi"):
        point, closure = quadratic_of(matrix)
        optimizer = AdaHessian(
            [point], 1e-9, betas=(0.9, 0.9999), estimator=estimator, eps=1e-30, num_probes=20
        )
        for _ in range(100):
            optimizer.step(closure)
        scales[estimator] = optimizer.preconditioner().scale
    assert relative(scales["equilibrated"], norms) < 0.03
    assert float((scales["jacobi"] - matrix.diagonal().abs()).abs().max()) < 0.1 * norms.max()
    assert relative(scales["pn-jacobi"], (0.8 * norms).sqrt()) < 0.05
    assert relative(scales["pn-jacobi"], matrix.diagonal().abs()) > 0.5


def test_e64_a_preconditioner_takes_n_squared_to_store_and_n_cubed_to_invert():
    sizes, numbers = [], []
    for width in (8, 16, 32):
        matrix = hessian_of("sine", size=10, depth=1, width=width)
        sizes.append(len(matrix))
        numbers.append(matrix.numel())
    assert numbers == [size**2 for size in sizes]

    counts = [multiplications(size) for size in (20, 40, 80)]
    slopes = [math.log2(more / less) for less, more in pairwise(counts)]
    assert all(2.9 < slope < 3.05 for slope in slopes)


def multiplications(size):
    """Return how many multiplications and divisions an inverse by elimination takes."""
    matrix = badly_scaled(size, 0.0).tolist()
    rows = [[*row, *(float(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    count = 0
    for i in range(size):
        rows[i] = [entry / rows[i][i] for entry in rows[i]]
        count += 2 * size
        for k in range(size):
            if k != i:
                factor = rows[k][i]
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
                count += 2 * size
    inverse = torch.tensor([row[size:] for row in rows], dtype=torch.float64)
    identity = torch.eye(size, dtype=torch.float64)
    assert_same(inverse @ badly_scaled(size, 0.0), identity, roundings=1e6)
    return count


def test_e65_the_hessian_grows_with_the_square_of_the_parameters():
    sizes, entries = [], []
    for width in (4, 8, 16, 32):
        model = small_field(width=width)
        sizes.append(sum(value.numel() for value in model.parameters()))
        entries.append(dense_hessian(model, mse, points()).numel())
    logs = [math.log(entry) / math.log(size) for entry, size in zip(entries, sizes, strict=True)]
    assert logs == pytest.approx([2.0] * 4)
    # An exponential law through the first two would have 10⁹ times the entries of the last.
    rate = math.log(entries[1] / entries[0]) / (sizes[1] - sizes[0])
    assert math.log(entries[0]) + rate * (sizes[3] - sizes[0]) > math.log(1e9 * entries[3])


def test_e69_shampoo_acts_on_both_sides_and_keeps_sums_of_outer_products():
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))
    start, eps, rate = weight.detach().clone(), 1e-3, 0.1
    optimizer = Shampoo([weight], rate, eps=eps)
    targets = torch.randn(6, 4, 3, generator=generator, dtype=torch.float64)
    left, right = eps * torch.eye(4).double(), eps * torch.eye(3).double()
    expected = start
    for target in targets:
        gradient = (expected - target) ** 3
        left, right = left + gradient @ gradient.T, right + gradient.T @ gradient
        expected = expected - rate * root_of(left) @ gradient @ root_of(right)
        optimizer.step(lambda target=target: ((weight - target) ** 4).sum() / 4)
    assert_same(weight.detach(), expected, roundings=1e4)

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        root_of(left) @ gradient @ root_of(left)
    # The sums are no Gauss–Newton matrix, which is the identity here at every step.
    assert relative(left, torch.eye(4).double()) > 1


def root_of(matrix):
    """Return A^{-1/4}."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values**-0.25) @ vectors.T


def test_e56_the_factors_of_kfac_are_singular_without_damping():
    signal = camera(12)
    model = small_field("relu", width=8)
    with torch.no_grad():
        model.layers[0].bias[0] = -10.0
        state = model.activation.value(model.layers[0](signal.coords))
    inputs = torch.cat([state, torch.ones(len(state), 1).double()], dim=1)
    factor = inputs.T @ inputs / len(inputs)
    assert torch.linalg.matrix_rank(factor) < len(factor)
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.inv(factor)

    damped = factor + 0.1 * torch.eye(len(factor)).double()
    ceiling = 1 + float(torch.linalg.eigvalsh(factor)[-1]) / 0.1
    assert float(torch.linalg.cond(damped)) <= ceiling * (1 + 1e-12)
    with pytest.raises(ValueError, match="damping must be positive"):
        KFAC(model, damping=0.0)
    optimizer = KFAC(model, damping=0.1)

    def closure():
        outputs = model(signal.coords)
        return mse(outputs, signal.values), outputs

    before = optimizer.step(closure)
    assert float(optimizer.step(closure)) < float(before)


def test_e15_kappa_along_a_run_and_kappa_before_and_after_are_two_things():
    coords = torch.linspace(-1, 1, 100, dtype=torch.float64).unsqueeze(1)
    signal = Signal(coords, torch.sin(2 * math.pi * coords) + torch.sin(6 * math.pi * coords))
    for seed in (3,):
        ends = {}
        for preconditioner, rate in (("identity", 1e-3), ("equilibrated", 0.1)):
            model = make_field("sine", 1, 1, width=16, depth=2, seed=seed)
            optimizer = PreconditionedSGD(
                model.parameters(), rate, preconditioner=preconditioner, model=model
            )
            for _ in range(30):
                optimizer.step(lambda model=model: mse(model(coords), signal.values))
            ends[preconditioner] = conditions(dense_hessian(model, mse, signal))
        for end in ends.values():
            # What P3 says of one matrix, before and after scaling, holds here …
            assert end["identity"].resolved
            assert end["equilibrated"].kappa < end["identity"].kappa
        # … and what P2 says of two trajectories does not.
        kappas = {name: end["identity"].kappa for name, end in ends.items()}
        assert kappas["equilibrated"] > 4 * kappas["identity"]
