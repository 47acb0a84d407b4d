"""The checks of ``doctor`` on curvature: products, closed forms, repetition, estimates."""

import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

from hessian_lab.losses import mse
from hessian_lab.measures.doctor_case import ROUNDINGS, Case, Outcome, found, within
from hessian_lab.probe.density import spectral_measure
from hessian_lab.probe.eigenpairs import extreme_eigenpairs
from hessian_lab.probe.kept_graph import KeptGradient, trainable
from hessian_lab.probe.operators import MatrixOperator
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.trace import TraceMethod, trace
from hessian_lab.probe.vectors import gaussian, rademacher
from hessian_lab.training.loop import train, using_threads
from hessian_lab.training.setup import Setup

VECTORS = 4
# Of what is small and says nothing of threads: on a busy machine they wait for one another.
REFERENCE_THREADS = 1
# Steps of the differences, each a quarter of the one before, in parameter space.
LONGEST_STEP, NUM_STEPS = 1e-2, 9
# Differences of a gradient in double precision that do not settle to this show nothing.
SETTLED = 1e-7
# How often the intervals of estimates hold; the vectors are always the same.
LEVEL = 0.999
LANCZOS_RTOL = 1e-8
# The sharpest last; as many products each.
TRACES: tuple[TraceMethod, ...] = ("hutchinson", "hutch++", "xtrace")
NUM_PRODUCTS = 180
NUM_PROBES, NUM_LANCZOS_STEPS = 6, 80
# Of the matrix whose spectrum is known.
KNOWN_SIZE, KNOWN_COPIES = 120, 15


def symmetry(case: Case) -> Outcome:
    """Check that uᵀ H v = vᵀ H u for random u, v."""
    operator = case.operator()
    left, right = (gaussian(operator.size, VECTORS, seed=seed, like=operator) for seed in (1, 2))
    ahead, back = (operator @ right).double(), (operator @ left).double()
    gap = (left.double().T @ ahead - back.T @ right.double()).abs().max()
    scale = torch.linalg.matrix_norm(ahead) * torch.linalg.matrix_norm(left.double())
    return within(float(gap / scale), ROUNDINGS * case.eps)


def finite_differences(case: Case) -> Outcome:
    """Compare products with central differences of the gradient, in double precision.

    Two differences, at h and h/2, are extrapolated to h⁴; how far the halves still are from that
    tells the error, and the step whose error is least is taken.
    """
    operator = case.operator()
    vectors = gaussian(operator.size, 2, seed=3, like=operator)
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=0)
    products = (operator @ vectors).double()
    errors, unsettled = [], []
    for vector, product in zip(vectors.double().T, products.T, strict=True):
        with using_threads(REFERENCE_THREADS):
            best, error = _difference(case.double, vector)
        size = float(torch.linalg.vector_norm(best))
        errors.append(float(torch.linalg.vector_norm(product - best)) / size)
        unsettled.append(error / size)
    if not max(unsettled) <= SETTLED:
        return within(max(unsettled), SETTLED, "differences do not settle:")
    return within(max(errors), max(SETTLED, ROUNDINGS * case.eps))


def _difference(case: Case, vector: Tensor) -> tuple[Tensor, float]:
    """Return the derivative [n] of the gradient along a vector, and about how wrong it is."""
    steps = [LONGEST_STEP / 4**place for place in range(NUM_STEPS)]
    candidates = []
    for step in steps:
        whole, half = (_central(case, vector, length) for length in (step, step / 2))
        best = (4 * half - whole) / 3
        candidates.append((float(torch.linalg.vector_norm(best - half)), best))
    error, best = min(candidates, key=lambda pair: pair[0])
    return best, error


def _central(case: Case, vector: Tensor, step: float) -> Tensor:
    return (_gradient(case, step * vector) - _gradient(case, -step * vector)) / (2 * step)


def _gradient(case: Case, offset: Tensor) -> Tensor:
    """Return the gradient [n] at the parameters plus an offset."""
    values = dict(case.model.named_parameters())
    parts = offset.split([value.numel() for value in values.values()])
    moved = {
        name: (value.detach() + part.view_as(value)).requires_grad_()
        for (name, value), part in zip(values.items(), parts, strict=True)
    }
    outputs = torch.func.functional_call(case.model, moved, (case.signal.coords,))
    found_parts = torch.autograd.grad(mse(outputs, case.signal.values), list(moved.values()))
    return torch.cat([part.reshape(-1) for part in found_parts])


def double_backward(case: Case) -> Outcome:
    """Compare products with double backward on a kept graph, in double precision."""
    operator, double = case.operator(), case.double
    vectors = gaussian(operator.size, VECTORS, seed=4, like=operator)
    with full_precision(), using_threads(REFERENCE_THREADS):
        value = mse(double.model(double.signal.coords), double.signal.values)
        kept = KeptGradient(value, trainable(double.model)).products(vectors.double().T)
    gap = torch.linalg.vector_norm((operator @ vectors).double() - kept.T, dim=0)
    return within(float((gap / torch.linalg.vector_norm(kept, dim=1)).max()), ROUNDINGS * case.eps)


def closed_form(case: Case) -> Outcome:
    """Compare the closed form with products, column by column."""
    dense = case.hessian.double()
    gap = (case.operator().dense().double() - dense).abs().max() / dense.abs().max()
    return within(float(gap), ROUNDINGS * case.eps)


def functional_hessian(case: Case) -> Outcome:
    """Compare the closed form with ``torch.func.hessian``, in double precision."""
    double = case.double
    names = [name for name, _ in double.model.named_parameters()]
    parts = [value.detach() for value in double.model.parameters()]

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([part.numel() for part in parts])
        views = (piece.view_as(part) for piece, part in zip(pieces, parts, strict=True))
        values = dict(zip(names, views, strict=True))
        outputs = torch.func.functional_call(double.model, values, (double.signal.coords,))
        return mse(outputs, double.signal.values)

    with warnings.catch_warnings(), full_precision(), using_threads(REFERENCE_THREADS):
        # Of torch's own use of torch.jit.
        warnings.simplefilter("ignore", DeprecationWarning)
        whole = torch.func.hessian(loss)(torch.cat([part.reshape(-1) for part in parts]))
    gap = (case.hessian.double() - whole).abs().max() / whole.abs().max()
    return within(float(gap), ROUNDINGS * case.eps)


def repeated_product(case: Case) -> Outcome:
    """Check that a product, the loss and its gradient are the same again, bit for bit."""
    operator = case.operator()
    vectors = gaussian(operator.size, VECTORS, seed=5, like=operator)
    first = operator @ vectors
    twins = {
        "a product": (first, operator @ vectors),
        "a product of another operator": (first, case.operator() @ vectors),
        "the loss": (_loss(case), _loss(case)),
        "the gradient": (_gradient(case, 0 * first[:, 0]), _gradient(case, 0 * first[:, 0])),
    }
    faults = [
        f"{name} differs by {float((one - other).abs().max()):.1e}"
        for name, (one, other) in twins.items()
        if not torch.equal(one, other)
    ]
    return found(faults, "product, loss and gradient bit for bit")


def _loss(case: Case) -> Tensor:
    return mse(case.model(case.signal.coords), case.signal.values).detach()


def repeated_training(case: Case) -> Outcome:
    """Check that a training is the same again from the same seed, bit for bit."""
    dtype = str(case.dtype).removeprefix("torch.")
    faults = []
    for optimizer, batch in (("lbfgs", None), ("adam", 16)):
        setup = Setup(
            signal="sines",
            size=40,
            act="sine",
            width=8,
            depth=2,
            optimizer=optimizer,
            batch_size=batch,
            steps=4,
            dtype=dtype,
            device=str(case.device),
        )
        with tempfile.TemporaryDirectory() as directory:
            one, other = (
                torch.from_numpy(train(setup, out=Path(directory) / name).trajectory.copy())
                for name in ("one", "other")
            )
        if not torch.equal(one, other):
            step = int((one != other).any(dim=1).nonzero()[0])
            faults.append(f"{optimizer} differs from step {step}")
    return found(faults, "lbfgs and adam, bit for bit")


@using_threads(REFERENCE_THREADS)
def lanczos(case: Case) -> Outcome:
    """Compare extreme eigenvalues by Lanczos with those of the dense eigenvalue problem."""
    dense = case.hessian.double()
    values = torch.linalg.eigvalsh(dense).cpu()
    pairs = extreme_eigenpairs(MatrixOperator(dense), num=3, which="both", rtol=LANCZOS_RTOL)
    exact = torch.cat([values[:3], values[-3:]])
    gap = (pairs.values.sort().values - exact).abs().max() / values.abs().max()
    return within(float(gap), 10 * LANCZOS_RTOL)


@using_threads(REFERENCE_THREADS)
def trace_interval(case: Case) -> Outcome:
    """Check that the interval of every estimator of the trace holds the trace."""
    dense = case.hessian.double()
    exact, shown, faults = float(dense.diagonal().sum()), "", []
    for method in TRACES:
        estimate = trace(MatrixOperator(dense), method=method, num_products=NUM_PRODUCTS)
        low, high = estimate.interval(LEVEL)
        shown = f"{exact:.4f} in [{low:.4f}, {high:.4f}] of {method}"
        if not low <= exact <= high:
            faults.append(shown.replace(" in ", " is not in "))
    return found(faults, shown)


@using_threads(REFERENCE_THREADS)
def spectral_band(case: Case) -> Outcome:
    """Check that the band of stochastic Lanczos quadrature holds the eigenvalues' own shares.

    And that its third moment is that of its probes, which a Gauss quadrature has exactly.
    """
    dense = case.hessian.double()
    operator = MatrixOperator(dense)
    values = torch.linalg.eigvalsh(dense).cpu()
    places = [len(values) * sixth // 6 for sixth in range(1, 6)]
    points = torch.stack([(values[place - 1] + values[place]) / 2 for place in places])
    exact = torch.tensor([place / len(values) for place in places], dtype=torch.float64)
    measure = spectral_measure(operator, num_probes=NUM_PROBES, num_steps=NUM_LANCZOS_STEPS)
    band = measure.cumulative_band(points, level=LEVEL)
    rounding = len(values) * torch.finfo(torch.float64).eps
    inside = (band.lower - rounding <= exact) & (exact <= band.upper + rounding)
    if not inside.all():
        return Outcome(False, f"holds {int(inside.sum())} of {len(places)} shares of eigenvalues")
    plain = spectral_measure(operator, num_probes=2, num_steps=2, settle=False)
    moments, probe = plain.moment(3), rademacher(len(values), 2, seed=0, like=dense)
    direct = (probe * (dense @ (dense @ (dense @ probe)))).mean(dim=0).cpu()
    gap = (moments - direct).abs().max() / values.abs().max() ** 3
    return within(float(gap), ROUNDINGS * torch.finfo(torch.float64).eps, "holds; third moment:")


def eigensolver(case: Case) -> Outcome:
    """Solve a matrix whose eigenvalues are known: small ones, zeros and copies among them.

    It is diagonal but for reflections, ``A = R D Rᵀ``, which no solver has a part in.
    """
    magnitudes = torch.logspace(-14, 0, KNOWN_SIZE - 2 * KNOWN_COPIES, dtype=torch.float64)
    signs = torch.ones(len(magnitudes), dtype=torch.float64)
    signs[::3] = -1
    copies = torch.tensor([0.0, 0.5], dtype=torch.float64).repeat(KNOWN_COPIES)
    known = torch.cat([magnitudes * signs, copies]).to(case.device)
    matrix = _reflected(torch.diag(known))
    values, vectors = torch.linalg.eigh(matrix)
    identity = torch.eye(KNOWN_SIZE, dtype=torch.float64, device=case.device)
    exact = known.sort().values
    errors = {
        "an eigenvalue": (values - exact).abs().max(),
        "a value of eigvalsh": (torch.linalg.eigvalsh(matrix) - exact).abs().max(),
        "the residual": torch.linalg.vector_norm(matrix @ vectors - vectors * values, dim=0).max(),
        "orthogonality": (vectors.T @ vectors - identity).abs().max(),
    }
    worst = max(errors, key=lambda name: float(errors[name].nan_to_num(torch.inf)))
    tolerance = KNOWN_SIZE * torch.finfo(torch.float64).eps
    return within(float(errors[worst]), tolerance, f"{worst}:")


@using_threads(REFERENCE_THREADS)
def _reflected(matrix: Tensor) -> Tensor:
    """Return ``R A Rᵀ`` with an ``R`` of four reflections, exactly symmetric."""
    for vector in gaussian(len(matrix), 4, seed=6, like=matrix).T:
        unit = vector / torch.linalg.vector_norm(vector)
        matrix = matrix - 2 * torch.outer(unit, unit @ matrix)
        matrix = matrix - 2 * torch.outer(matrix @ unit, unit)
    return (matrix + matrix.T) / 2
