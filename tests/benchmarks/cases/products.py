"""Products with the Hessian and the Gauss–Newton matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

from hessian_lab.losses import mse
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.vectors import gaussian
from tests.benchmarks.case import OURS, Case, Contender, Target, Unit
from tests.benchmarks.peers import backpack, curvlinops, double_backward, eigenthings, pyhessian
from tests.benchmarks.problem import (
    Problem,
    ggn_reference,
    hessian_reference,
    problem,
    relative,
)

BLOCK = 16
MEASURE = "off the product by torch.func in float64, over its norm"
# Some float32 roundings, which ω = 30 makes larger from layer to layer.
TOLERANCE = 1e-4
FLOOR = "the six h×h products per map"


def _vectors(problem: Problem, num: int) -> Tensor:
    return gaussian(problem.size, num, seed=1, like=problem.parameters[0])


def _gradients(problem: Problem, num: int) -> Unit:
    """Gradients by autograd, as a training takes them: one for each vector."""
    parameters = problem.parameters

    def run() -> None:
        for _ in range(num):
            torch.autograd.grad(problem.loss(), parameters)

    return Unit(_each(num), lambda: run)


def _each(num: int) -> str:
    return "a gradient" if num == 1 else f"{num} gradients"


def _floor(problem: Problem, times: int) -> Unit:
    """Nothing but the matrix products that a Hessian–vector product cannot do without."""
    width, points = problem.model.maps[0].out_features, problem.signal.num_points
    states = [torch.randn(points, width) for _ in range(2)]
    weights = [torch.randn(width, width) for _ in range(2)]
    outs = [torch.empty(points, width) for _ in range(2)]
    square = torch.empty(width, width)

    def run() -> None:
        for _ in range(times * (len(problem.model.maps) - 2)):
            for state, weight, out in zip(states, weights, outs, strict=True):
                torch.mm(state, weight.T, out=out)
                torch.mm(state, weight, out=out)
            torch.mm(states[0].T, states[1], out=square)
            torch.mm(states[1].T, states[0], out=square)

    return Unit(FLOOR, lambda: run)


def _peers(problem: Problem, vectors: Tensor) -> tuple[Contender, ...]:
    num = vectors.shape[1]
    blocks = (
        Contender(
            "kept double backward",
            lambda: double_backward.batched(problem, vectors, BLOCK),
            how="as one batch",
        ),
    )
    return (
        Contender("kept double backward", lambda: double_backward.product(problem, vectors)),
        *(blocks if num > 1 else ()),
        Contender("curvlinops", lambda: curvlinops.product(problem, vectors)),
        Contender("hessian-eigenthings", lambda: eigenthings.product(problem, vectors)),
        Contender("PyHessian", lambda: pyhessian.product(problem, vectors)),
        Contender("BackPACK", lambda: backpack.product(problem, vectors)),
    )


def _case(
    name: str,
    found: Problem,
    num: int,
    work: str,
    *,
    rounds: int,
    targets: tuple[Target, ...],
    generic: bool = False,
) -> Case:
    vectors = _vectors(found, num)
    reference = hessian_reference(found, vectors)
    model = found.sequential if generic else found.model
    operator = HessianOperator(model, mse, found.signal)
    units = (_gradients(found, num),)
    units += () if generic else (_floor(found, num),)
    return Case(
        name=name,
        work=f"{work}, {found.text}",
        ours=Contender(OURS, lambda: lambda: operator @ vectors),
        contenders=_peers(found, vectors),
        deviation=lambda answer: relative(answer, reference),
        measure=MEASURE,
        tolerance=TOLERANCE,
        rounds=rounds,
        units=units,
        targets=targets,
    )


def _sine(quick: bool) -> Problem:
    return problem("sine", 4 if quick else 64, side=6 if quick else 50, dtype="float32")


def one(quick: bool) -> Case:
    """One vector."""
    targets = (Target(_each(1), 0.9), Target(FLOOR, 1.45))
    work = "Hessian times a vector"
    return _case("product", _sine(quick), 1, work, rounds=1 if quick else 21, targets=targets)


def block(quick: bool) -> Case:
    """Sixteen at once."""
    targets = (Target(_each(BLOCK), 0.9), Target(FLOOR, 1.45))
    work = f"Hessian times {BLOCK} vectors"
    return _case("block", _sine(quick), BLOCK, work, rounds=1 if quick else 9, targets=targets)


def wide(quick: bool) -> Case:
    """A wide field on many points, where matrix products are all there is."""
    found = problem("gaussian", 5 if quick else 256, side=6 if quick else 128, dtype="float32")
    work = "Hessian times a vector"
    return _case(
        "product-wide", found, 1, work, rounds=1 if quick else 5, targets=(Target(FLOOR, 1.15),)
    )


def module(quick: bool) -> Case:
    """A network that we know nothing of."""
    work = "Hessian of an nn.Sequential times a vector"
    return _case(
        "product-module",
        _sine(quick),
        1,
        work,
        rounds=1 if quick else 21,
        targets=(Target(_each(1), 2.5),),
        generic=True,
    )


def ggn(quick: bool) -> Case:
    """The Gauss–Newton matrix."""
    found = _sine(quick)
    vectors = _vectors(found, BLOCK)
    reference = ggn_reference(found, vectors)
    operator = GGNOperator(found.model, mse, found.signal)
    peers: dict[str, Callable[[], Callable[[], Tensor]]] = {
        "curvlinops": lambda: curvlinops.product(found, vectors, "GGN"),
        "hessian-eigenthings": lambda: eigenthings.product(found, vectors, "GGN"),
        "BackPACK": lambda: backpack.ggn_product(found, vectors),
    }
    return Case(
        name="ggn",
        work=f"Gauss–Newton matrix times {BLOCK} vectors, {found.text}",
        ours=Contender(OURS, lambda: lambda: operator @ vectors),
        contenders=tuple(Contender(name, prepare) for name, prepare in peers.items()),
        deviation=lambda answer: relative(answer, reference),
        measure=MEASURE,
        tolerance=TOLERANCE,
        rounds=1 if quick else 7,
        units=(_gradients(found, BLOCK),),
    )


BUILDERS = {
    "product": one,
    "block": block,
    "product-wide": wide,
    "product-module": module,
    "ggn": ggn,
}
