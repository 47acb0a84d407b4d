"""Trace and largest eigenvalues, from products."""

from torch import Tensor

from hessian_lab.losses import mse
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.eigenpairs import extreme_eigenpairs
from hessian_lab.probe.trace import trace
from tests.benchmarks.case import OURS, Case, Contender
from tests.benchmarks.cases.spectrum import spectrum
from tests.benchmarks.peers import curvlinops, eigenthings, pyhessian
from tests.benchmarks.problem import Problem, problem

PRODUCTS, EIGENVALUES, RTOL = 100, 5, 1e-4
# Steps that others may take: enough here for Lanczos, and ten times as many for power iteration.
LANCZOS_STEPS, POWER_STEPS = 60, 100


def _sine(quick: bool) -> Problem:
    return problem("sine", 4 if quick else 64, side=6 if quick else 50, dtype="float32")


def hutchinson(quick: bool) -> Case:
    """Equal numbers of products, from network to estimate."""
    found, num = _sine(quick), 20 if quick else PRODUCTS
    known = spectrum(found)
    # The standard deviation of a mean over random signs.
    deviate = known.off_diagonal * (2 / num) ** 0.5

    def ours() -> float:
        operator = HessianOperator(found.model, mse, found.signal)
        return trace(operator, method="hutchinson", num_products=num).mean

    return Case(
        name="trace",
        work=f"trace by Hutchinson's estimate, {num} products, {found.text}",
        ours=Contender(OURS, lambda: ours),
        contenders=(
            Contender("curvlinops", lambda: curvlinops.trace(found, num)),
            Contender("hessian-eigenthings", lambda: eigenthings.trace(found, num)),
            Contender("PyHessian", lambda: pyhessian.trace(found, num)),
        ),
        deviation=lambda answer: abs(answer - known.trace) / deviate,
        measure="off the exact trace, in the estimate's standard deviations",
        tolerance=4.0,
        rounds=1 if quick else 3,
    )


def top(quick: bool) -> Case:
    """The five of largest magnitude, from network to numbers."""
    found = _sine(quick)
    magnitudes = spectrum(found).values.abs().sort(descending=True).values[:EIGENVALUES]

    def ours() -> Tensor:
        operator = HessianOperator(found.model, mse, found.signal)
        pairs = extreme_eigenpairs(operator, num=EIGENVALUES, which="magnitude", rtol=RTOL)
        return pairs.values

    def deviation(answer: Tensor) -> float:
        got = answer.double().abs().sort(descending=True).values
        return float((got - magnitudes).abs().max() / magnitudes[0])

    return Case(
        name="eigenvalues",
        work=f"{EIGENVALUES} eigenvalues of largest magnitude, {found.text}",
        ours=Contender(OURS, lambda: ours),
        contenders=(
            Contender(
                "curvlinops",
                lambda: curvlinops.eigenvalues(found, EIGENVALUES, RTOL),
                how="by SciPy's eigsh",
            ),
            Contender(
                "hessian-eigenthings",
                lambda: eigenthings.eigenvalues(found, EIGENVALUES, RTOL, LANCZOS_STEPS),
                how=f"{LANCZOS_STEPS} Lanczos steps",
            ),
            Contender(
                "PyHessian",
                lambda: pyhessian.eigenvalues(found, EIGENVALUES, RTOL, POWER_STEPS),
                how=f"at most {POWER_STEPS} power steps each",
            ),
        ),
        deviation=deviation,
        measure="largest error of the five, over the largest",
        tolerance=10 * RTOL,
        rounds=1 if quick else 3,
    )


BUILDERS = {"trace": hutchinson, "eigenvalues": top}
