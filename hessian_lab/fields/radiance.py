"""Radiance fields: a coordinate network of density and colour, seen along rays."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from hessian_lab.fields.mlp import CoordinateMLP, make_field

# Columns of a ray: origin, unit direction, the distances at which it enters and leaves the box,
# where its samples lie within their strata, and the grey behind the box.
RAY = 10
# The golden ratio's conjugate: its multiples fill the unit interval evenly.
GOLDEN = (math.sqrt(5) - 1) / 2
# Density is DENSITY softplus(s - SHIFT): at the start a thin mist that light comes through from
# everywhere, later whatever is needed. Fields that start opaque learn a shell before each camera.
DENSITY, SHIFT = 10.0, 3.0


class RadianceField(nn.Module):
    """Colours of rays through a volume whose density and colour a coordinate network tells.

    Each ray is cut into equal strata with one sample in each, at places that the ray itself fixes:
    the same rays have the same samples in every pass, so that the loss is a function of the
    parameters alone. A sample stands for its whole stratum (emission and absorption)::

        τᵢ = 10 softplus(sᵢ - 3) Δ,  Tᵢ = exp(-Σ_{j<i} τⱼ),  c = Σᵢ Tᵢ (1 - exp(-τᵢ)) cᵢ + T g

    with grey g behind. Twice differentiable wherever the network is, so that every Hessian–vector
    product and Gauss–Newton product works on it.

    Args:
        field: Maps places [p, 3] to a density before its softplus and to a colour before its
            sigmoid [p, 4]; with a ``head``, to a density and ``k`` features [p, 1 + k].
        samples: Strata of a ray.
        head: Maps features and directions [p, k + 3] to a colour before its sigmoid [p, 3]: density
            does not depend on the direction of view.

    Raises:
        ValueError: If ``samples`` is below 1.

    References:
        Mildenhall et al. (2020), https://arxiv.org/abs/2003.08934, §4; without its hierarchical
        sampling, and with the softplus of Barron et al. (2021).
    """

    def __init__(
        self, field: CoordinateMLP, *, samples: int, head: CoordinateMLP | None = None
    ) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}.")
        self.field = field
        self.head = head
        self.samples = samples

    def forward(self, rays: Tensor) -> Tensor:
        """Return the colours [r, 3] of rays [r, 10], in [0, 1]."""
        _, weights, behind, colours = self.along(rays)
        return (weights.unsqueeze(2) * colours).sum(dim=1) + behind * rays[:, 9:10]

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

    def radiance(self, places: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return density per unit of length [p] and colour [p, 3] at places [p, 3].

        Args:
            places: In the box [-1, 1]³.
            directions: Unit vectors [p, 3] along which they are seen.
        """
        outputs = self.field(places)
        raw = outputs[:, 1:]
        if self.head is not None:
            raw = self.head(torch.cat([raw, directions], dim=1))
        return DENSITY * softplus(outputs[:, 0] - SHIFT), torch.sigmoid(raw)

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


def make_radiance_field(
    name: str,
    *,
    width: int = 16,
    depth: int = 4,
    samples: int = 32,
    directions: bool = False,
    seed: int = 0,
    **options: Any,
) -> RadianceField:
    """Return a radiance field on coordinate networks of one activation.

    Args:
        name: A key of ``ACTIVATIONS``.
        width: Units per hidden layer.
        depth: Hidden layers.
        samples: Strata of a ray.
        directions: Whether colours depend on the direction of view: then the network tells a
            density and ``width`` features, and a head of one hidden layer of half the width makes a
            colour of them and the direction.
        seed: Of the initialisation.
        options: What else ``make_field`` takes; the head has no encoding.

    Raises:
        ValueError: As ``make_field`` and ``RadianceField`` raise it.
    """
    outputs = 1 + width if directions else 4
    field = make_field(name, 3, outputs, width=width, depth=depth, seed=seed, **options)
    if not directions:
        return RadianceField(field, samples=samples)
    narrow = max(1, width // 2)
    # An ω of each layer is that of the network's own layers.
    single = {key: value for key, value in options.items() if not isinstance(value, tuple | list)}
    head = make_field(
        name, width + 3, 3, width=narrow, depth=1, seed=seed + 1, **single | {"octaves": 0}
    )
    return RadianceField(field, samples=samples, head=head)
