"""The density of a spectrum over log10|λ|, down to what Lanczos steps can resolve."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hessian_lab.probe.bands import Band


@dataclass(frozen=True, eq=False)
class LogDensity:
    """A density over log10|λ| and the mass at its floor; together they are 1.

    Attributes:
        grid: Values of log10|λ| [g], from the floor up.
        density: Mass per decade [g], with its intervals.
        floor: The |λ| where the density ends.
        lump: The share of |λ| at or below the floor: its place there is not known.
        bandwidth: The standard deviation of the kernel, in decades.
    """

    grid: Tensor
    density: Band
    floor: float
    lump: Band
    bandwidth: float

    def __str__(self) -> str:
        return f"share of |λ| ≤ {self.floor:.2g}: {self.lump}; a density over log10|λ| above it"


def gaussian_kernel(nodes: Tensor, grid: Tensor, *, bandwidth: float) -> Tensor:
    """Return normal densities of standard deviation ``bandwidth`` around nodes [..., c, g]."""
    distance = (grid - nodes.unsqueeze(-1)) / bandwidth
    return torch.exp(-(distance**2) / 2) / (bandwidth * math.sqrt(2 * math.pi))


def log_kernel(nodes: Tensor, grid: Tensor, *, bandwidth: float, floor: float) -> Tensor:
    """Return normal densities around log10|node|, folded at the floor; 0 for nodes below it."""
    decades = nodes.abs().clamp(min=floor).log10()
    end = math.log10(floor)
    bumps = gaussian_kernel(decades, grid, bandwidth=bandwidth)
    bumps += gaussian_kernel(2 * end - decades, grid, bandwidth=bandwidth)
    return bumps * ((nodes.abs() > floor).unsqueeze(-1) & (grid >= end))
