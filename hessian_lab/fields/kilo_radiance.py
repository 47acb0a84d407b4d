"""Radiance fields made of many small networks, one for each occupied cell of a grid."""

import torch
from torch import Tensor, nn

from hessian_lab.fields.radiance import DENSITY, SHIFT
from hessian_lab.fields.stack import FieldStack
from hessian_lab.fields.volume import Volume

# A network's outputs are near 1 where a density before its softplus, and a colour before its
# sigmoid, are this large.
DENSITY_SCALE, COLOUR_SCALE = 10.0, 4.0


class KiloRadiance(Volume):
    """Colours of rays through a grid of cells, each with a small network of its own.

    The box [-1, 1]³ is cut into ``g³`` cells. Of a place in a cell, its network is told where it is
    between -1 and 1 along each axis; a cell without network is empty, and nothing is evaluated
    there. All networks are the rows of one parameter, so that they can be trained together on rays,
    too.

    Args:
        stack: Networks [K], each from 3 coordinates to 4 numbers.
        cells: The network of every cell [g, g, g], by x, y and z; -1 where it is empty.
        samples: Strata of a ray.

    Raises:
        ValueError: If shapes do not fit, or a cell names no network.

    References:
        Reiser et al. (2021), https://arxiv.org/abs/2103.13744.
    """

    def __init__(self, stack: FieldStack, cells: Tensor, *, samples: int) -> None:
        super().__init__(samples)
        if cells.ndim != 3 or len(set(cells.shape)) != 1:
            raise ValueError(f"cells must have shape [g, g, g], got {list(cells.shape)}.")
        if int(cells.max()) >= stack.num_fields or int(cells.min()) < -1:
            raise ValueError(f"cells must name one of {stack.num_fields} networks each, or -1.")
        if stack.sizes[-1] != 4 or stack.sizes[0] != 3 * (1 + 2 * stack.octaves):
            raise ValueError("networks must map 3 coordinates to 4 numbers.")
        self.stack = stack
        self.parameters_of_all = nn.Parameter(stack.parameters.clone())
        self.register_buffer("cells", cells.to(stack.parameters.device))

    def radiance(self, places: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return density per unit of length [p] and colour [p, 3] at places [p, 3].

        Args:
            places: In the box [-1, 1]³.
            directions: Not used: colours are the same from everywhere.
        """
        del directions
        network, local = self.located(places)
        outputs = self._outputs(network, local)
        density, colours = read_out(outputs)
        return torch.where(network >= 0, density, 0), colours

    def located(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the networks [p] of places [p, 3], and where these are in their cells [p, 3]."""
        cells: Tensor = self.get_buffer("cells")
        grid = len(cells)
        scaled = (places + 1) * (grid / 2)
        index = scaled.floor().clamp(0, grid - 1)
        x, y, z = index.long().unbind(dim=1)
        return cells[x, y, z], 2 * (scaled - index) - 1

    def _outputs(self, network: Tensor, local: Tensor) -> Tensor:
        """Return the outputs [p, 4] of each place's network; 0 in empty cells."""
        order = torch.argsort(network, stable=True)
        present, counts = torch.unique_consecutive(network[order], return_counts=True)
        parts = []
        for one, places in zip(present.tolist(), local[order].split(counts.tolist()), strict=True):
            if one < 0:
                parts.append(places.new_zeros(len(places), 4))
                continue
            row = self.parameters_of_all[one : one + 1]
            alone = FieldStack(row, self.stack.activations, self.stack.sizes, self.stack.octaves)
            parts.append(alone(places)[0])
        return torch.cat(parts)[torch.argsort(order)] if parts else local.new_zeros(0, 4)


def read_out(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the density [p] and the colour [p, 3] that outputs [p, 4] of a network stand for."""
    density = DENSITY * nn.functional.softplus(DENSITY_SCALE * outputs[:, 0] - SHIFT)
    return density, torch.sigmoid(COLOUR_SCALE * outputs[:, 1:])


def targets(outputs: Tensor) -> Tensor:
    """Return what networks of cells are to be [p, 4], for outputs [p, 4] of a ``RadianceField``.

    Densities that no light passes, and those that all light passes, are not told apart further:
    they lie in [-1, 2], and colours in [-1.5, 1.5].
    """
    return torch.cat(
        [
            (outputs[:, :1] / DENSITY_SCALE).clamp(-1, 2),
            (outputs[:, 1:] / COLOUR_SCALE).clamp(-1.5, 1.5),
        ],
        dim=1,
    )
