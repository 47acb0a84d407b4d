"""The exact diagonal of the Hessian."""

import torch

from hessian_lab.losses import mse
from hessian_lab.probe.closed_diagonal import exact_diagonal
from tests.benchmarks.case import OURS, Case, Contender
from tests.benchmarks.cases.dense import SMALL_BLOCKS
from tests.benchmarks.peers import backpack, curvlinops
from tests.benchmarks.problem import Problem, hessian_reference, problem, relative, units

MEASURE = "off n products by torch.func, over the norm"


def _case(found: Problem, name: str, *, rounds: int) -> Case:
    everywhere = torch.arange(found.size)
    reference = hessian_reference(found, units(found.size, everywhere, torch.float64)).diagonal()
    return Case(
        name=name,
        work=f"exact diagonal of the Hessian, {found.text}",
        ours=Contender(OURS, lambda: lambda: exact_diagonal(found.model, mse, found.signal)),
        contenders=(
            Contender("BackPACK", lambda: backpack.diagonal(found)),
            Contender(
                "curvlinops", lambda: curvlinops.diagonal(found, SMALL_BLOCKS[0]), how="n products"
            ),
        ),
        deviation=lambda answer: relative(answer, reference),
        measure=MEASURE,
        tolerance=1e-10,
        rounds=rounds,
    )


def tanh(quick: bool) -> Case:
    """An activation that BackPACK knows."""
    found = problem("tanh", 3 if quick else 16, side=6 if quick else 50)
    return _case(found, "diagonal", rounds=1 if quick else 5)


def sine(quick: bool) -> Case:
    """One that it does not."""
    found = problem("sine", 3 if quick else 16, side=6 if quick else 50)
    return _case(found, "diagonal-sine", rounds=1 if quick else 3)


BUILDERS = {"diagonal": tanh, "diagonal-sine": sine}
