"""Volumes seen along rays: emission and absorption of light."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

# Columns of a ray: origin, unit direction, the distances at which it enters and leaves the box,
# where its samples lie within their strata, and the grey behind the box.
RAY = 10
# The golden ratio's conjugate: its multiples fill the unit interval evenly.
GOLDEN = (math.sqrt(5) - 1) / 2


class Volume(nn.Module, ABC):
    """Colours of rays through a volume of some density and colour.

    Each ray is cut into equal strata with one sample in each, at places that the ray itself fixes:
    the same rays have the same samples in every pass, so that the loss is a function of the
    parameters alone. A sample stands for its whole stratum of width Δ (emission and absorption)::

        τᵢ = σᵢ Δ,  Tᵢ = exp(-Σ_{j<i} τⱼ),  c = Σᵢ Tᵢ (1 - exp(-τᵢ)) cᵢ + T g

    with grey g behind. A subclass tells density σ and colour by ``radiance``.

    Args:
        samples: Strata of a ray.

    Raises:
        ValueError: If ``samples`` is below 1.

    References:
        Mildenhall et al. (2020), https://arxiv.org/abs/2003.08934, §4; without its hierarchical
        sampling.
    """

    def __init__(self, samples: int) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}.")
        self.samples = samples

    @abstractmethod
    def radiance(self, places: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return density per unit of length [p] and colour [p, 3] at places [p, 3].

        Args:
            places: In the box [-1, 1]³.
            directions: Unit vectors [p, 3] along which they are seen.
        """

    def forward(self, rays: Tensor) -> Tensor:
        """Return the colours [r, 3] of rays [r, 10], in [0, 1]."""
        _, weights, behind, colours = self.along(rays)
        return composited(weights, behind, colours, rays)

    def along(self, rays: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what a ray meets at each of its samples.

        Args:
            rays: Rays [r, 10].

        Returns:
            Distances of the samples [r, s], the share of light that each stratum absorbs [r, s],
            the share that passes all [r, 1], and the colours [r, s, 3].
        """
        lengths, places = self.places(rays)
        directions = rays[:, None, 3:6].expand_as(places)
        density, colours = self.radiance(places.flatten(0, 1), directions.flatten(0, 1))
        optical = density.view_as(lengths) * (rays[:, 7:8] - rays[:, 6:7]) / self.samples
        return lengths, *absorbed(optical), colours.view_as(places)

    def places(self, rays: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances [r, samples] and the places [r, samples, 3] of the samples."""
        number = torch.arange(self.samples, dtype=rays.dtype, device=rays.device)
        within = (rays[:, 8:9] + number * GOLDEN).remainder(1)
        near, far = rays[:, 6:7], rays[:, 7:8]
        lengths = near + (far - near) * (number + within) / self.samples
        return lengths, rays[:, None, :3] + lengths.unsqueeze(2) * rays[:, None, 3:6]


def absorbed(optical: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of light that each stratum absorbs [r, s], and what passes all [r, 1].

    Args:
        optical: Optical thicknesses τ [r, s] from the eye onwards.
    """
    total = optical.cumsum(dim=1)
    shares = torch.exp(optical - total) * -torch.expm1(-optical)
    return shares, torch.exp(-total[:, -1:])


def composited(weights: Tensor, behind: Tensor, colours: Tensor, rays: Tensor) -> Tensor:
    """Return the colours [r, 3] of rays, from what ``Volume.along`` tells of them."""
    return (weights.unsqueeze(2) * colours).sum(dim=1) + behind * rays[:, 9:10]
