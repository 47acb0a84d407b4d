"""Initialisations of linear maps, drawn from a generator of their own."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hessian_lab.fields import per_layer


def initialise(
    layers: list[nn.Linear],
    init: str,
    *,
    omega: float | Sequence[float] | None,
    generator: torch.Generator,
) -> None:
    """Fill every linear map in place, weights then bias, first map first.

    The numbers are drawn in float64 on the CPU and rounded, so that one seed gives one network in
    every precision and on every device. Biases are U(±1/√n_in) under all three.

    Args:
        layers: The linear maps, first to last.
        init: ``siren`` (first map U(±1/n_in), others U(±√(6/n_in)/ω)), ``kaiming`` (PyTorch's
            default, U(±1/√n_in)) or ``xavier_normal`` (N(0, 2/(n_in + n_out))).
        omega: The ω of ``siren``, one or one for each hidden map; 1 where the activation has none.
            The last map, which no sine follows, takes that of the hidden one before it.
        generator: The source of randomness, on the CPU.
    """
    hidden = per_layer("omega", 1.0 if omega is None else omega, len(layers) - 1)
    omegas = (*hidden, *(hidden[-1:] or (1.0,)))
    for index, layer in enumerate(layers):
        fan_out, fan_in = layer.weight.shape
        if init == "xavier_normal":
            deviation = math.sqrt(2 / (fan_in + fan_out))
            noise = torch.randn(fan_out, fan_in, dtype=torch.float64, generator=generator)
            weight = deviation * noise
        else:
            weight = _uniform(
                (fan_out, fan_in), _bound(init, index, fan_in, omegas[index]), generator
            )
        bias = _uniform((fan_out,), 1 / math.sqrt(fan_in), generator)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)


def _bound(init: str, index: int, fan_in: int, omega: float) -> float:
    if init == "kaiming":
        return 1 / math.sqrt(fan_in)
    return 1 / fan_in if index == 0 else math.sqrt(6 / fan_in) / omega


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    unit = torch.rand(shape, dtype=torch.float64, generator=generator)
    return bound * (2 * unit - 1)
