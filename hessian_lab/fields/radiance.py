"""Radiance fields: a coordinate network of density and colour, seen along rays."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from hessian_lab.fields.mlp import CoordinateMLP, make_field
from hessian_lab.fields.volume import Volume

# Density is DENSITY softplus(s - SHIFT): at the start a thin mist that light comes through from
# everywhere, later whatever is needed. Fields that start opaque learn a shell before each camera.
DENSITY, SHIFT = 10.0, 3.0


class RadianceField(Volume):
    """A volume whose density ``10 softplus(s - 3)`` and colour a coordinate network tells.

    Twice differentiable wherever the network is, so that every Hessian–vector product and
    Gauss–Newton product works on it.

    Args:
        field: Maps places [p, 3] to a density before its softplus and to a colour before its
            sigmoid [p, 4]; with a ``head``, to a density and ``k`` features [p, 1 + k].
        samples: Strata of a ray.
        head: Maps features and directions [p, k + 3] to a colour before its sigmoid [p, 3]: density
            does not depend on the direction of view.

    Raises:
        ValueError: If ``samples`` is below 1.

    References:
        Mildenhall et al. (2020), https://arxiv.org/abs/2003.08934, §4, with the softplus of Barron
        et al. (2021).
    """

    def __init__(
        self, field: CoordinateMLP, *, samples: int, head: CoordinateMLP | None = None
    ) -> None:
        super().__init__(samples)
        self.field = field
        self.head = head

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
        return self.density(outputs[:, 0]), torch.sigmoid(raw)

    @staticmethod
    def density(outputs: Tensor) -> Tensor:
        """Return the density per unit of length that outputs of the network stand for."""
        return DENSITY * softplus(outputs - SHIFT)


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
