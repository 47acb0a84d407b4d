"""The diagonal blocks of a curvature matrix, layer by layer."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.operators import SymmetricOperator


class LayerBlock(SymmetricOperator):
    """One layer's diagonal block of a curvature matrix; a product costs one of the whole's.

    Args:
        operator: The whole matrix.
        places: Where the layer's parameters stand in it.
    """

    def __init__(self, operator: SymmetricOperator, places: list[slice]) -> None:
        self.operator = operator
        self.places = places
        size = sum(place.stop - place.start for place in places)
        super().__init__(size, operator.dtype, operator.device)

    def matmat(self, block: Tensor) -> Tensor:
        """Return the block's product [m, k] with a block of columns [m, k]."""
        return self.cut(self.operator @ self.embedded(block))

    def known_diagonal(self) -> Tensor | None:
        """Return the layer's entries [m] of the whole's diagonal, where that is known."""
        whole = self.operator.known_diagonal()
        return None if whole is None else self.cut(whole)

    def embedded(self, block: Tensor) -> Tensor:
        """Return columns [m, k] of the layer as columns [n, k] of the whole, zero elsewhere."""
        rows = torch.zeros(
            block.shape[1], self.operator.size, dtype=block.dtype, device=block.device
        )
        widths = [place.stop - place.start for place in self.places]
        for place, part in zip(self.places, block.T.split(widths, dim=1), strict=True):
            rows[:, place] = part
        return rows.T

    def cut(self, columns: Tensor) -> Tensor:
        """Return the layer's rows [m, k] of columns [n, k]."""
        return torch.cat([columns[place] for place in self.places])


class LayerBlocks(SymmetricOperator, Mapping[str, LayerBlock]):
    """The block-diagonal part of a curvature matrix, and a mapping from layers to their blocks.

    Its product with one vector is *one* block product of the whole with as many columns as there
    are layers, which is what makes all layers cheaper together than one by one.
    """

    def __init__(self, operator: HessianOperator | GGNOperator) -> None:
        self.operator = operator
        layers = operator.layout.layers()
        self.blocks = {name: LayerBlock(operator, places) for name, places in layers.items()}
        super().__init__(operator.size, operator.dtype, operator.device)

    def __getitem__(self, name: str) -> LayerBlock:
        return self.blocks[name]

    # A mapping would be compared, and not hashed, by its items.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __iter__(self) -> Iterator[str]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    def known_diagonal(self) -> Tensor | None:
        """Return the diagonal [n] of the whole, where that is known."""
        return self.operator.known_diagonal()

    def matmat(self, block: Tensor) -> Tensor:
        """Return ``diag(A₁₁, …, A_ll) V`` [n, k]."""
        num = block.shape[1]
        masked = [each.embedded(each.cut(block)) for each in self.blocks.values()]
        products = self.operator @ torch.cat([part.T for part in masked]).T
        out = torch.empty_like(block)
        for each, columns in zip(self.blocks.values(), products.split(num, dim=1), strict=True):
            for place in each.places:
                out[place] = columns[place]
        return out


def layer_blocks(operator: HessianOperator | GGNOperator) -> LayerBlocks:
    """Return the diagonal block of every layer of a curvature matrix.

    The parameters of one module are one layer. Every block is an operator for any algorithm::

        for name, block in layer_blocks(hessian).items():
            print(name, extreme_eigenpairs(block, num=1).values)

    The result itself is the block-diagonal matrix; the diagonal, row norms and traces of all layers
    together cost the products of one.
    """
    if not isinstance(operator, HessianOperator | GGNOperator):
        raise TypeError(
            f"operator must be a HessianOperator or a GGNOperator, got {type(operator).__name__}."
        )
    return LayerBlocks(operator)
