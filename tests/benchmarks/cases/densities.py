"""The density of all eigenvalues, by stochastic Lanczos quadrature."""

import math

import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from hessian_lab.losses import mse
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.density import spectral_measure
from tests.benchmarks.case import BEST, OURS, Case, Contender, Target
from tests.benchmarks.cases.spectrum import spectrum
from tests.benchmarks.peers import curvlinops, eigenthings, pyhessian
from tests.benchmarks.problem import Problem, problem

GRID = 1024
# Widths of the smoothing by which a grid goes on beyond everything that is smoothed.
BEYOND = 6
MEASURE = (
    "1-Wasserstein distance to the dense spectrum, both smoothed by range / steps, in the standard "
    "deviations of a mean over as many random vectors"
)
# As the trace: four standard deviations.
TOLERANCE = 4.0
Nodes = tuple[Tensor, Tensor]


def distance(nodes: Tensor, weights: Tensor, exact: Tensor) -> float:
    """Return the 1-Wasserstein distance to a spectrum, in units of its mean magnitude."""
    known = weights > 0
    found = wasserstein_distance(nodes[known].double(), exact, weights[known].double())
    return found / float(exact.abs().mean())


def smoothed_distance(nodes: Tensor, weights: Tensor, exact: Tensor, *, num_steps: int) -> float:
    """Return the 1-Wasserstein distance to a spectrum, both smoothed, in standard deviations.

    Smoothed by what ``num_steps`` steps resolve, range / steps, no quadrature is off but by its
    random vectors: the mean of as many has the standard deviation √(2 / m) ‖λ‖ / n, and is never
    farther off than that distance.

    Args:
        nodes: Ritz values [m, k].
        weights: Theirs; the rows sum to 1.
        exact: All eigenvalues [n], ascending.
        num_steps: Lanczos steps.
    """
    nodes, weights, exact = (each.double().cpu() for each in (nodes, weights, exact))
    if not (nodes.isfinite().all() and weights.isfinite().all()):
        return math.nan
    width = float(exact[-1] - exact[0]) / num_steps
    low = min(float(exact[0]), float(nodes.min())) - BEYOND * width
    high = max(float(exact[-1]), float(nodes.max())) + BEYOND * width
    grid = torch.linspace(low, high, GRID, dtype=torch.float64)
    gaps = [_below(nodes.flatten(), place, width) @ weights.flatten() for place in grid]
    gap = torch.stack(gaps) / len(nodes)
    gap -= torch.stack([_below(exact, place, width).mean() for place in grid])
    deviate = (2 / len(nodes)) ** 0.5 * float(exact.norm()) / len(exact)
    return float(torch.trapezoid(gap.abs(), grid)) / deviate


def _below(places: Tensor, place: Tensor, width: float) -> Tensor:
    """Return which share of each place, smoothed, lies below one."""
    return torch.special.ndtr((place - places) / width)


def our_density(found: Problem, num_probes: int, num_steps: int) -> Nodes:
    """From network to density."""
    operator = HessianOperator(found.model, mse, found.signal)
    measure = spectral_measure(operator, num_probes=num_probes, num_steps=num_steps)
    low, high = float(measure.nodes.min()), float(measure.nodes.max())
    grid = torch.linspace(low, high, GRID, dtype=torch.float64)
    measure.density(grid, bandwidth=(high - low) / num_steps)
    return measure.nodes, measure.weights


def slq(quick: bool) -> Case:
    """From network to density: construction, Lanczos and smoothing."""
    width, num_probes, num_steps = (4, 4, 6) if quick else (64, 10, 80)
    found = problem("sine", width, side=6 if quick else 50, dtype="float32")
    exact = spectrum(found).values
    sizes = {"num_probes": num_probes, "num_steps": num_steps}
    return Case(
        name="density",
        work=f"spectral density, {num_probes} probes × {num_steps} steps, {found.text}",
        ours=Contender(OURS, lambda: lambda: our_density(found, num_probes, num_steps)),
        contenders=(
            Contender(
                "curvlinops", lambda: curvlinops.density(found, **sizes, grid=GRID, lean=False)
            ),
            Contender(
                "curvlinops",
                lambda: curvlinops.density(found, **sizes, grid=GRID, lean=True),
                how="unchecked, bounds given",
            ),
            Contender(
                "hessian-eigenthings", lambda: eigenthings.density(found, **sizes, grid=GRID)
            ),
            Contender("PyHessian", lambda: pyhessian.density(found, **sizes)),
        ),
        deviation=lambda answer: smoothed_distance(*answer, exact, num_steps=num_steps),
        measure=MEASURE,
        tolerance=TOLERANCE,
        rounds=1 if quick else 3,
        targets=(Target(BEST, 2),),
    )


BUILDERS = {"density": slq}
