"""How smooth a loss is along a line: how far its Hessian moves, and how much it misses."""

import torch
from torch import Tensor

from analyses.study import Row
from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.losses import Loss, mse
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.signal import Signal

# Lengths of steps along a unit vector.
LENGTHS = tuple(10.0**-power for power in range(1, 8))
# The distance of two places on either side of a kink.
ACROSS = 2e-9
BISECTIONS = 60


def smoothness(model: CoordinateMLP, signal: Signal, direction: Tensor) -> Row:
    """Return how the Hessian and the gradient move along a unit vector [n].

    ``moved`` is ‖H(θ+εv) − H(θ)‖/‖H(θ)‖ and ``missed`` the relative distance of the central
    difference of the gradient from H v, each for every ε of ``LENGTHS``. ``jump`` is how far H
    moves, relatively, over ``ACROSS`` where a pre-activation first changes its sign, ``kink``.
    """
    start = flat(model)
    here = dense_hessian(model, mse, signal)
    norm = torch.linalg.matrix_norm(here)

    def hessian_at(length: float) -> Tensor:
        return dense_hessian(moved(model, start + length * direction), mse, signal)

    def change(one: Tensor, other: Tensor) -> float:
        return short(float(torch.linalg.matrix_norm(one - other) / norm))

    kink = _nearest_kink(model, signal, direction)
    sides = [hessian_at(kink + side * ACROSS / 2) for side in (1, -1)]
    return {
        "moved": [change(hessian_at(length), here) for length in LENGTHS],
        "missed": [short(missed(model, signal, direction, length)) for length in LENGTHS],
        "kink": short(kink),
        "jump": change(*sides),
    }


def missed(model: CoordinateMLP, signal: Signal, direction: Tensor, length: float) -> float:
    """Return ‖(g(θ+εv) − g(θ−εv))/2ε − Hv‖/‖Hv‖ of a unit vector [n]."""
    start = flat(model)
    known = product(model, mse, signal, direction)
    ahead, behind = (
        gradient(moved(model, start + sign * length * direction), signal) for sign in (1, -1)
    )
    return float(((ahead - behind) / (2 * length) - known).norm() / known.norm())


def _nearest_kink(model: CoordinateMLP, signal: Signal, direction: Tensor) -> float:
    """Return the least length at which a pre-activation is zero, by bisection."""
    start, small = flat(model), 1e-7

    def at(length: float) -> Tensor:
        return states(moved(model, start + length * direction), signal)

    here = at(0.0)
    lengths = -here * small / (at(small) - here)
    lengths[~(lengths > 1e-7)] = torch.inf
    place = divmod(int(lengths.argmin()), lengths.shape[1])
    low, high = 0.5 * float(lengths[place]), 2.0 * float(lengths[place])
    below = at(low)[place] > 0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if (at(middle)[place] > 0) == below:
            low = middle
        else:
            high = middle
    return high


def states(model: CoordinateMLP, signal: Signal) -> Tensor:
    """Return the pre-activations of all hidden units [p, units]."""
    found: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: found.append(output))
        for layer in model.maps[:-1]
    ]
    with torch.no_grad():
        model(signal.coords)
    for hook in hooks:
        hook.remove()
    return torch.cat(found, dim=1)


def flat(model: CoordinateMLP) -> Tensor:
    """Return the parameters of a field [n]."""
    return torch.cat([value.detach().flatten() for value in model.parameters()])


def moved(model: CoordinateMLP, place: Tensor) -> CoordinateMLP:
    """Return a copy of a field with other parameters [n]."""
    copy = CoordinateMLP(
        model.maps[0].in_features // (1 + 2 * model.octaves),
        model.maps[-1].out_features,
        model.activation,
        width=model.maps[0].out_features,
        depth=len(model.maps) - 1,
        octaves=model.octaves,
        dtype=place.dtype,
    )
    torch.nn.utils.vector_to_parameters(place, copy.parameters())
    return copy


def gradient(model: CoordinateMLP, signal: Signal) -> Tensor:
    """Return the gradient of the mean squared error [n]."""
    loss = mse(model(signal.coords), signal.values)
    parts = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


def product(model: CoordinateMLP, loss: Loss, signal: Signal, vector: Tensor) -> Tensor:
    """Return H v [n] by double backward."""
    parameters = list(model.parameters())
    value = loss(model(signal.coords), signal.values)
    slopes = torch.autograd.grad(value, parameters, create_graph=True)
    inner = torch.cat([slope.flatten() for slope in slopes]) @ vector
    parts = torch.autograd.grad(inner, parameters)
    return torch.cat([part.flatten() for part in parts])


def unit(size: int, *, seed: int) -> Tensor:
    """Return a random unit vector [n]."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(size, generator=generator, dtype=torch.float64)
    unit_vector: Tensor = vector / torch.linalg.vector_norm(vector)
    return unit_vector


def short(number: float) -> float:
    """Return a number with four digits."""
    return float(f"{number:.4g}")
