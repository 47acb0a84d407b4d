"""What must give the same on a GPU as on the CPU: every path of the package, on small problems.

Each case says how often the host may wait for the device meanwhile.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab import (
    FieldStack,
    GGNOperator,
    HessianOperator,
    ScaledOperator,
    Setup,
    Signal,
    StackedLBFGS,
    StackedObjective,
    bce,
    condition_number,
    dense_ggn,
    dense_hessian,
    diagonal,
    equilibration,
    exact_diagonal,
    exact_row_norms,
    extreme_eigenpairs,
    frobenius_norm,
    hessian_terms,
    jacobi,
    layer_blocks,
    make_field,
    make_radiance_field,
    make_stack,
    mse,
    row_norms,
    spectral_measure,
    spectrum,
    stacked_hessians,
    trace,
    train,
)
from hessian_lab.optim import OPTIMIZERS, make_optimizer
from hessian_lab.probe.lanczos import tridiagonalize
from hessian_lab.probe.vectors import gaussian
from tests.reference import points, small_field

STEPS = 4
# One of each kind: with φ″, without it, with an encoding, with a formula of its own near 0.
ACTS = ("sine", "relu", "relu_pe", "sinc")
# Waits per step of an optimizer. A line search waits for every trial, an adapted damping for every
# trial too, conjugate gradients for every product.
OPTIMIZER_WAITS = {
    "sgd": 1,
    "adam": 1,
    "esgd": 1,
    "esgd_max": 1,
    "adahessian": 1,
    "psgd": 2,
    "shampoo": 2,
    "kfac": 7,
    "ekfac": 4,
    "bfgs": 9,
    "lbfgs": 10,
    "newton": 11,
    "newton_cg": 12,
    "nonlinear_cg": 13,
    "gauss_newton": 14,
}


@dataclass(frozen=True)
class Case:
    """A path of the package.

    Attributes:
        make: Makes what is worked on, on a device.
        work: Returns a tensor, or a number.
        waits: How often the host may wait for the device in ``work``.
        stays: Whether the result is on the device.
        roundings: By how many the results may differ.
    """

    make: Callable[[str], Any]
    work: Callable[[Any], Any]
    waits: int
    stays: bool = True
    roundings: float = 1e5


class Plain(nn.Module):
    """A module of no kind that the package knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 5).double()
        self.last = nn.Linear(5, 1).double()
        with torch.no_grad():
            for number, value in enumerate(self.parameters()):
                values = torch.arange(value.numel(), dtype=torch.float64).view_as(value)
                value.copy_((values + number).sin())

    def forward(self, coords: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(coords)))


def coupled(predictions: Tensor, values: Tensor) -> Tensor:
    """Return a loss whose channels are not independent."""
    return (predictions - values).sum(dim=1).square().mean() / 2


def rays(device: str) -> Signal:
    """Return a few rays with colours."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(12, 9, dtype=torch.float64, generator=generator)
    ahead = nn.functional.normalize(numbers[:, 3:6] - 0.5, dim=1)
    rest = torch.tensor([[0.5, 2.0, 0.0, 1.0]], dtype=torch.float64).expand(12, 4)
    found = torch.cat([numbers[:, :3] / 10, ahead, rest], dim=1)
    return Signal(found, numbers[:, 6:]).to(device=device)


def field_and_points(
    device: str, act: str = "sine", channels: int = 1, num_points: int = 37
) -> tuple[nn.Module, Signal]:
    """Return a small field and its signal on a device."""
    signal = points(num_points=num_points, num_outputs=channels).to(device=device)
    return small_field(act, channels).to(device), signal


def operator(device: str, kind: type = HessianOperator, loss: Any = mse, **options: Any) -> Any:
    """Return a curvature operator of a small field."""
    names = {name: options.pop(name) for name in ("act", "channels") if name in options}
    return kind(*_with_loss(field_and_points(device, **names), loss), **options)


def _with_loss(pair: tuple[nn.Module, Signal], loss: Any) -> tuple[nn.Module, Any, Signal]:
    return pair[0], loss, pair[1]


def plain(device: str, kind: type = HessianOperator) -> Any:
    """Return a curvature operator of a module of no known kind."""
    return kind(Plain().to(device), mse, points().to(device=device))


def rendered(device: str, kind: type = HessianOperator) -> Any:
    """Return a curvature operator of a radiance field."""
    model = make_radiance_field("relu_pe", width=8, depth=2, samples=5).to(device)
    return kind(model, mse, rays(device))


def scaled(device: str) -> ScaledOperator:
    """Return a scaled curvature operator."""
    inner = operator(device)
    return ScaledOperator(inner, torch.linspace(1, 2, inner.size, dtype=torch.float64))


def _with_block(make: Callable[[str], Any], num: int) -> Callable[[str], tuple[Any, Tensor]]:
    def both(device: str) -> tuple[Any, Tensor]:
        made = make(device)
        return made, gaussian(made.size, num, seed=0, like=made)

    return both


def _products(pair: tuple[Any, Tensor]) -> Tensor:
    """Multiply four times: what is recorded at the second is replayed after it."""
    made, block = pair
    return torch.stack([made @ block for _ in range(4)])


def product(make: Callable[[str], Any], num: int = 5, waits: int = 0) -> Case:
    """Return the case of products with an operator, in which the host does not wait."""
    return Case(_with_block(make, num), _products, waits)


PRODUCTS = {
    **{f"product {act}": product(partial(operator, act=act)) for act in ACTS},
    "product one vector": product(operator, 1),
    "product many vectors": product(operator, 40),
    "product ggn": product(partial(operator, kind=GGNOperator)),
    "product bce": product(partial(operator, loss=bce, channels=3)),
    "product coupled": product(partial(operator, loss=coupled, channels=3)),
    "product some": product(partial(operator, parameters="layers.1.*")),
    "product module": product(plain),
    "product module ggn": product(partial(plain, kind=GGNOperator)),
    "product rays": product(rendered),
    "product rays ggn": product(partial(rendered, kind=GGNOperator)),
    "product scaled": product(scaled),
    # Each of the four linearizes five chunks anew, and looks at each five times.
    "product chunked": product(partial(operator, chunk_size=8), waits=4 * 5 * 5),
}


def _dense(kind: Callable[..., Any], **options: Any) -> Callable[[Any], Any]:
    return lambda pair: kind(pair[0], mse, pair[1], **options)


def _plain_and_points(device: str) -> tuple[nn.Module, Signal]:
    return Plain().to(device), points().to(device=device)


def _rendered_and_rays(device: str) -> tuple[nn.Module, Signal]:
    return make_radiance_field("relu_pe", width=8, depth=2, samples=5).to(device), rays(device)


def _terms(pair: tuple[Any, Signal]) -> Tensor:
    found = hessian_terms(pair[0], mse, pair[1])
    return torch.stack([found.ggn, found.activation, found.cross])


def _stack(device: str) -> tuple[FieldStack, Tensor, Tensor]:
    stack = make_stack("sine", 3, 2, 1, width=5, depth=2)
    signal = points().to(device=device)
    values = torch.stack([signal.values, signal.values**2, signal.values / 2])
    moved = FieldStack(stack.parameters.to(device), stack.activations, stack.sizes, stack.octaves)
    return moved, signal.coords, values


FEW = {"num_points": 5, "channels": 2}
DENSE = {
    **{
        f"hessian {act}": Case(partial(field_and_points, act=act), _dense(dense_hessian), 1)
        for act in ACTS
    },
    "hessian chunked": Case(field_and_points, _dense(dense_hessian, chunk_size=8), 1),
    "hessian module": Case(_plain_and_points, _dense(dense_hessian), 2),
    "hessian rays": Case(_rendered_and_rays, _dense(dense_hessian), 2),
    "ggn": Case(field_and_points, _dense(dense_ggn), 1),
    "ggn module": Case(_plain_and_points, _dense(dense_ggn), 2),
    "ggn rays": Case(_rendered_and_rays, _dense(dense_ggn), 2),
    "terms": Case(field_and_points, _terms, 1),
    "dense": Case(operator, lambda made: made.dense(), 0),
    "diagonal": Case(field_and_points, _dense(exact_diagonal), 3),
    "diagonal ggn": Case(field_and_points, _dense(exact_diagonal, matrix="ggn"), 1),
    "row norms": Case(field_and_points, _dense(exact_row_norms), 1),
    "row norms ggn": Case(field_and_points, _dense(exact_row_norms, matrix="ggn"), 1),
    "row norms kernel": Case(
        partial(field_and_points, **FEW), _dense(exact_row_norms, matrix="ggn"), 1
    ),
    "stack": Case(_stack, lambda parts: stacked_hessians(*parts), 0),
    "spectrum": Case(
        lambda device: dense_hessian(*_with_loss(field_and_points(device, "relu"), mse)),
        lambda matrix: spectrum(matrix).values,
        5,
        stays=False,
    ),
    "layer": Case(
        operator, lambda made: torch.cat([*map(_all, layer_blocks(made).values())]), 9 * 3
    ),
}


def _all(block: Any) -> Tensor:
    return block.dense().flatten()


def _tridiagonal(pair: tuple[Any, Tensor]) -> Tensor:
    run = tridiagonalize(*pair, num_steps=20)
    return torch.cat([run.alphas, run.betas])


def _pairs(made: Any) -> Tensor:
    return extreme_eigenpairs(made, num=3).values


def _density(made: Any) -> Tensor:
    measure = spectral_measure(made, num_probes=5, num_steps=15)
    grid = torch.linspace(-1, 2, 30, dtype=torch.float64)
    return measure.density(grid, bandwidth=0.1)


def _estimated(kind: Callable[..., Any], **options: Any) -> Callable[[Any], Any]:
    return lambda made: kind(made, num_products=12, **options).mean


ESTIMATES = {
    # Twenty steps are looked at six times; lengths, alphas, betas and starts once each.
    "tridiagonalize": Case(_with_block(operator, 3), _tridiagonal, 10, stays=False, roundings=1e7),
    "spectral measure": Case(operator, _density, 60, stays=False, roundings=1e6),
    "extreme pairs": Case(operator, _pairs, 30, stays=False, roundings=1e6),
    "condition number": Case(
        operator, lambda made: condition_number(made, num_steps=10).largest, 18, roundings=1e7
    ),
    "trace": Case(operator, _estimated(trace), 5),
    "trace module": Case(plain, _estimated(trace), 5),
    "trace hutch++": Case(operator, _estimated(trace, method="hutch++"), 10),
    "trace xtrace": Case(operator, _estimated(trace, method="xtrace"), 12),
    "trace exact": Case(operator, _estimated(trace, method="exact"), 6),
    "estimated diagonal": Case(operator, _estimated(diagonal), 2),
    "estimated diagonal xdiag": Case(operator, _estimated(diagonal, method="xdiag"), 16),
    "estimated rows": Case(operator, _estimated(row_norms), 16),
    "estimated rows hutchinson": Case(operator, _estimated(row_norms, method="hutchinson"), 2),
    "estimated norm": Case(operator, _estimated(frobenius_norm), 5),
    "equilibration": Case(operator, lambda made: equilibration(made).scale, 25),
    "jacobi": Case(operator, lambda made: jacobi(made).scale, 4),
}


def _steps(parts: tuple[nn.Module, Signal, Any]) -> Tensor:
    model, signal, optimizer = parts

    def closure() -> Any:
        outputs = model(signal.coords)
        loss = mse(outputs, signal.values)
        return (loss, outputs) if optimizer.takes_outputs else loss

    for _ in range(STEPS):
        optimizer.step(closure)
    return torch.cat([value.detach().flatten() for value in model.parameters()])


def _optimized(device: str, name: str) -> tuple[nn.Module, Signal, Any]:
    model = make_field("tanh", 2, 1, width=5, depth=2, seed=1).to(device)
    return model, points().to(device=device), make_optimizer(name, model)


def _stacked_steps(parts: tuple[FieldStack, Tensor, Tensor]) -> Tensor:
    stack, coords, values = parts
    optimizer = StackedLBFGS(StackedObjective(stack, coords, values), stack.parameters)
    for _ in range(STEPS):
        optimizer.step()
    return optimizer.parameters


def _trained(device: str, name: str) -> Tensor:
    """Train on mini-batches, with the device's name in the setup."""
    setup = Setup(
        act="tanh", width=5, depth=2, optimizer=name, steps=STEPS, batch_size=20, device=device
    )
    with tempfile.TemporaryDirectory() as folder:
        run = train(setup, out=f"{folder}/run", signal=points())
        return torch.from_numpy(run.trajectory.copy())


OPTIMIZED = {
    **{
        f"step {name}": Case(
            partial(_optimized, name=name), _steps, STEPS * OPTIMIZER_WAITS[name], roundings=1e7
        )
        for name in OPTIMIZERS
    },
    "step stacked": Case(_stack, _stacked_steps, STEPS * 18, roundings=1e7),
    # Two a step, ten a checkpoint, and those of the optimizer.
    **{
        f"train {name}": Case(
            lambda device: device,
            partial(_trained, name=name),
            STEPS * (2 + OPTIMIZER_WAITS[name]) + 10 * (STEPS + 1),
            stays=False,
            roundings=1e7,
        )
        for name in ("adam", "kfac")
    },
}
CASES = PRODUCTS | DENSE | ESTIMATES | OPTIMIZED
