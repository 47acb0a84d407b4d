"""Pointwise nonlinearities φ, each with φ′ and φ″ in closed form."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Below |ω x| = 1 the quotients of sinc cancel; eleven terms of the series are exact there to 1e-17.
SERIES_RADIUS = 1.0
SERIES_TERMS = 11


@dataclass(frozen=True)
class Activation:
    """A nonlinearity φ, applied elementwise.

    Attributes:
        value: Maps ``z`` to φ(z), twice differentiable by autograd.
        jet: Maps ``z`` to (φ(z), φ′(z), φ″(z)) in closed form, sharing what the three have in
            common.
        frequency: The ω of a φ(z) = ψ(ω z); what multiplies weights by it need not multiply ``z``.
        unit: Maps ω z to (ψ, ψ′) there, and may overwrite it; None where there is only ``jet``.
    """

    value: Callable[[Tensor], Tensor]
    jet: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    frequency: float = 1.0
    unit: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


def relu(omega: float | None = None, sigma: float | None = None) -> Activation:
    """Return max(z, 0), with φ′(0) = φ″(0) = 0 as in autograd."""

    def jet(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.relu(z), (z > 0).to(z.dtype), torch.zeros_like(z)

    return Activation(torch.relu, jet)


def tanh(omega: float | None = None, sigma: float | None = None) -> Activation:
    """Return tanh z."""

    def jet(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value = torch.tanh(z)
        slope = 1 - value.square()
        return value, slope, -2 * value * slope

    return Activation(torch.tanh, jet)


def sine(omega: float = 30.0, sigma: float | None = None) -> Activation:
    """Return sin(ω z).

    The papers write sin(2πω z); SIREN and the papers' code use sin(ω z), and so do we.

    References:
        Sitzmann et al. (2020), https://arxiv.org/abs/2006.09661.
    """

    def value(z: Tensor) -> Tensor:
        return torch.sin(omega * z)

    def jet(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        phase = omega * z
        wave = torch.sin(phase)
        return wave, omega * torch.cos(phase), -(omega**2) * wave

    def unit(phase: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(phase), phase.cos_()

    return Activation(value, jet, omega, unit)


def gaussian(omega: float | None = None, sigma: float = 0.1) -> Activation:
    """Return exp(-z² / 2σ²).

    The papers drop the minus sign in two places.

    References:
        Ramasinghe & Lucey (2022), https://arxiv.org/abs/2111.15135.
    """
    precision = 1 / sigma**2

    def value(z: Tensor) -> Tensor:
        return torch.exp(-precision / 2 * z.square())

    def jet(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bell = value(z)
        slope = -precision * z * bell
        return bell, slope, -precision * (bell + z * slope)

    return Activation(value, jet)


def wavelet(omega: float = 10.0, sigma: float = 0.0707) -> Activation:
    """Return cos(ω z) exp(-z² / 2σ²), the real Gabor wavelet of one linear map.

    σ = 0.0707 is the papers' s₀ = 10 in exp(-s₀² z²).

    References:
        Saragadam et al. (2023), https://arxiv.org/abs/2301.05187.
    """
    precision = 1 / sigma**2

    def value(z: Tensor) -> Tensor:
        return torch.cos(omega * z) * torch.exp(-precision / 2 * z.square())

    def jet(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bell = torch.exp(-precision / 2 * z.square())
        even = torch.cos(omega * z) * bell
        odd = torch.sin(omega * z) * bell
        slope = -omega * odd - precision * z * even
        # z times a vanished bell is 0, where z² alone may overflow.
        curvature = precision * z * (precision * z * even + 2 * omega * odd)
        return even, slope, curvature - (precision + omega**2) * even

    return Activation(value, jet)


def sinc(omega: float = 10.0, sigma: float | None = None) -> Activation:
    """Return sin(ω z) / (ω z), and 1 at 0.

    ``torch.sinc`` has a NaN second derivative at 0 and a wrong one nearby; here a series takes over
    for ``|ω z| < 1``.
    """

    def value(z: Tensor) -> Tensor:
        x = omega * z
        near = x.abs() < SERIES_RADIUS
        # Each branch sees only arguments at which its derivatives are finite.
        far = torch.where(near, torch.ones_like(x), x)
        return torch.where(near, _sinc_series(x * near, 0), torch.sin(far) / far)

    def jet(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = omega * z
        near = x.abs() < SERIES_RADIUS
        far = torch.where(near, torch.ones_like(x), x)
        wave, cosine = torch.sin(far), torch.cos(far)
        quotient = wave / far
        slope = (cosine - quotient) / far
        curvature = -quotient - 2 * slope / far
        small = x * near
        return (
            torch.where(near, _sinc_series(small, 0), quotient),
            omega * torch.where(near, _sinc_series(small, 1), slope),
            omega**2 * torch.where(near, _sinc_series(small, 2), curvature),
        )

    return Activation(value, jet)


def _sinc_series(x: Tensor, order: int) -> Tensor:
    """Return the derivative of sin(x)/x of the given order by its series, for ``|x| <= 1``."""
    square = x.square()
    total = torch.zeros_like(x)
    for k in reversed(range((order + 1) // 2, SERIES_TERMS + 1)):
        falling = math.perm(2 * k, order)
        total = total * square + (-1) ** k * falling / math.factorial(2 * k + 1)
    return total * x if order % 2 else total
