"""Steps of optimizers, from the same start."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.optim.adahessian import AdaHessian
from hessian_lab.optim.lbfgs import LBFGS
from hessian_lab.optim.shampoo import Shampoo
from tests.benchmarks.case import OURS, Case, Contender
from tests.benchmarks.peers import optimizers as peers
from tests.benchmarks.problem import Problem, flat, problem, relative

STEPS, RATE, EPS = 10, 1e-3, 1e-4
BETAS = 0.9, 0.999
MEASURE = "off a float64 run by hand, over the way from the start"


def _sine(quick: bool, dtype: str = "float32") -> Problem:
    return problem("sine", 4 if quick else 64, side=6 if quick else 50, dtype=dtype)


def _psnr(found: Problem, model: nn.Module) -> float:
    with torch.no_grad():
        return -10 * math.log10(2 * float(found.loss(model)))


def lbfgs(quick: bool) -> Case:
    """Iterations from the same start; searches differ, so paths part, and ends must not."""
    found, double = _sine(quick), _sine(quick, "float64")
    steps = 3 if quick else 50
    goal = _psnr(double, peers.torch_lbfgs(double, steps)())

    def ours() -> nn.Module:
        model = found.fresh()
        optimizer = LBFGS(model.parameters())
        for _ in range(steps):
            optimizer.step(lambda: found.loss(model))
        return model

    return Case(
        name="lbfgs",
        work=f"{steps} iterations of L-BFGS, strong Wolfe, {found.text}",
        ours=Contender(OURS, lambda: ours),
        contenders=(Contender("torch.optim.LBFGS", lambda: peers.torch_lbfgs(found, steps)),),
        deviation=lambda model: abs(_psnr(found, model) - goal),
        measure=f"dB from the PSNR of torch.optim.LBFGS in float64, {goal:.1f} dB",
        tolerance=0.5,
        rounds=1 if quick else 5,
    )


def _weights(found: Problem) -> list[nn.Parameter]:
    return peers.weights_of(found.fresh())


def _ours(found: Problem, make: Callable[[list[nn.Parameter]], Any]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        model = found.fresh()
        weights = peers.weights_of(model)
        optimizer = make(weights)
        for _ in range(STEPS):
            optimizer.step(lambda: found.loss(model))
        return flat(weights)

    return run


def _by_hand(
    found: Problem, update: Callable[[int, list[Tensor], list[nn.Parameter]], list[Tensor]]
) -> Tensor:
    """Return the weights [n] after some steps of an update of gradients (with their graphs)."""
    model = found.fresh()
    weights = peers.weights_of(model)
    for step in range(STEPS):
        gradients = torch.autograd.grad(found.loss(model), weights, create_graph=True)
        moves = update(step, list(gradients), weights)
        with torch.no_grad():
            for weight, move in zip(weights, moves, strict=True):
                weight -= RATE * move
    return flat(weights)


def _case(
    name: str, found: Problem, reference: Tensor, ours: Callable[[], Tensor], contender: Contender
) -> Case:
    start = flat(_weights(found)).double()
    return Case(
        name=name,
        work=f"{STEPS} steps of {contender.how} on the weights, {found.text}",
        ours=Contender(OURS, lambda: ours),
        contenders=(contender,),
        deviation=lambda answer: relative(answer.double() - start, reference - start),
        measure=MEASURE,
        tolerance=1e-2,
        rounds=1 if found.size < 100 else 9,
    )


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.pow(-0.25) @ vectors.T


def shampoo(quick: bool) -> Case:
    """Both take fourth roots of both sides in every step."""
    found, double = _sine(quick), _sine(quick, "float64")
    sides: list[tuple[Tensor, Tensor]] = [
        tuple(EPS * torch.eye(size, dtype=torch.float64) for size in weight.shape)
        for weight in _weights(double)
    ]

    def update(_step: int, gradients: list[Tensor], _weights: object) -> list[Tensor]:
        moves = []
        for (left, right), gradient in zip(sides, gradients, strict=True):
            known = gradient.detach()
            left += known @ known.T
            right += known.T @ known
            moves.append(_root(left) @ known @ _root(right))
        return moves

    def theirs() -> Callable[[], Tensor]:
        import pytorch_optimizer

        return peers.steps_of(
            found,
            lambda weights: pytorch_optimizer.Shampoo(weights, RATE, matrix_eps=EPS),
            STEPS,
            graph=False,
        )

    ours = _ours(found, lambda weights: Shampoo(weights, RATE, eps=EPS))
    contender = Contender("pytorch_optimizer", theirs, how="Shampoo")
    return _case("shampoo", found, _by_hand(double, update), ours, contender)


def adahessian(quick: bool) -> Case:
    """One probe per step; the answers that are compared come from the same probes."""
    found, double = _sine(quick), _sine(quick, "float64")
    options = {"betas": BETAS, "eps": EPS}
    drawn = AdaHessian(_weights(double), RATE, **options)
    means = [torch.zeros_like(weight) for weight in _weights(double)]
    squares = [torch.zeros_like(weight) for weight in _weights(double)]

    def update(step: int, gradients: list[Tensor], weights: list[nn.Parameter]) -> list[Tensor]:
        products = torch.autograd.grad(gradients, weights, drawn._vectors(step))
        moves = []
        for mean, square, gradient, product in zip(
            means, squares, gradients, products, strict=True
        ):
            mean.lerp_(gradient.detach(), 1 - BETAS[0])
            square.lerp_(product.detach().square(), 1 - BETAS[1])
            root = (square / (1 - BETAS[1] ** (step + 1))).sqrt()
            moves.append(mean / (1 - BETAS[0] ** (step + 1)) / (root + EPS))
        return moves

    def make(weights: list[nn.Parameter]) -> Any:
        import pytorch_optimizer

        return pytorch_optimizer.AdaHessian(weights, RATE, **options)

    def from_our_probes() -> Tensor:
        model = found.fresh()
        weights = peers.weights_of(model)
        optimizer, probes = make(weights), AdaHessian(_weights(found), RATE, **options)
        for step in range(STEPS):
            vectors = probes._vectors(step)
            gradients = torch.autograd.grad(found.loss(model), weights, create_graph=True)
            products = torch.autograd.grad(gradients, weights, vectors)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.detach()
            estimates = [one * other for one, other in zip(vectors, products, strict=True)]
            optimizer.step(hessian=estimates)
        return flat(weights)

    ours = _ours(found, lambda weights: AdaHessian(weights, RATE, **options))
    contender = Contender(
        "pytorch_optimizer",
        lambda: peers.steps_of(found, make, STEPS, graph=True),
        how="AdaHessian",
        check=from_our_probes,
    )
    return _case("adahessian", found, _by_hand(double, update), ours, contender)


BUILDERS = {"lbfgs": lbfgs, "shampoo": shampoo, "adahessian": adahessian}
