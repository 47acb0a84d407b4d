"""The density of all eigenvalues, by stochastic Lanczos quadrature."""

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
from tests.benchmarks.timing import seconds

GRID = 1024
# Quadrature of k steps resolves range / k, here 1.7 mean |λ|, and no library comes nearer than a
# quarter of mean |λ|; a lump of everything at zero would be off by 1.
TOLERANCE = 0.4
Nodes = tuple[Tensor, Tensor]


def distance(nodes: Tensor, weights: Tensor, exact: Tensor) -> float:
    """Return the 1-Wasserstein distance to a spectrum, in units of its mean magnitude."""
    known = weights > 0
    found = wasserstein_distance(nodes[known].double(), exact, weights[known].double())
    return found / float(exact.abs().mean())


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
        deviation=lambda answer: distance(*answer, exact),
        measure="1-Wasserstein distance of nodes and weights to the dense spectrum, over mean |λ|",
        tolerance=0.9 if quick else TOLERANCE,
        rounds=1 if quick else 3,
        targets=(Target(BEST, 2),),
    )


def quadrature_seconds(found: Problem, num_probes: int, num_steps: int) -> float:
    """Return the time of our quadrature, for curves."""
    operator = HessianOperator(found.model, mse, found.signal)
    return seconds(lambda: spectral_measure(operator, num_probes=num_probes, num_steps=num_steps))


BUILDERS = {"density": slq}
