"""The passes of a Hessian–vector product, bound once to buffers that every product reuses.

Slicing, viewing and allocating cost as much as the arithmetic of a small field. So the calls of a
pass are listed once for a width of blocks, with all their operands, and a product only makes them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hessian_lab.probe.graphs import Call, Replayed

# A weight [k, o, fan_in] and a bias [k, o].
_Map = tuple[Tensor, Tensor]
# Widths of blocks to keep buffers of: that of most blocks, and that of the last one.
NUM_WIDTHS = 2


@dataclass(frozen=True, eq=False)
class Tile:
    """What is stored of some points, as views; the index of each list is the map."""

    inputs: list[Tensor]  # ã of the first map, then a [p, h]
    slopes: list[Tensor]  # φ′(z) [p, 1, h], hidden maps only
    deltas: list[Tensor]  # ∂L/∂z [p, o]; empty for the Gauss–Newton matrix
    bends: list[Tensor | None]  # ∂L/∂a φ″(z) [p, 1, h], hidden maps only; None where it is 0
    # ∂²L/∂f² [p, c] or [p, c, c], or what writes its products with ż [p, k, c] to another tensor.
    curvature: Tensor | Callable[[Tensor, Tensor], object]


@dataclass(frozen=True, eq=False)
class Space:
    """Where a pass writes what it computes per point, each [p, k, units]."""

    tangents: list[Tensor]  # ż of every map
    moved: list[Tensor]  # ȧ of every hidden layer; on the way back its δ̇
    curved: Tensor  # S ż of the outputs


class Block:
    """Directions cut into maps, and the sums over points that become their products.

    Of one vector the maps are views. The first takes its bias as a last column: it is too thin for
    that to cost anything, and so thin that its sum is faster transposed.
    """

    def __init__(self, num_vectors: int, weights: list[Tensor], *, full: bool) -> None:
        self.num_vectors = num_vectors
        self.full = full
        size = sum(weight.numel() + len(weight) for weight in weights)
        self.rows = weights[0].new_zeros(num_vectors, size)
        self.sums = torch.zeros_like(self.rows)
        self.tall: list[Tensor] = []  # [k o, fan_in]
        self.wide: list[Tensor] = []  # [o, k fan_in]
        self.biases: list[Tensor] = []  # [k o]
        self.left: list[Tensor] = []  # Σ δ̇ ãᵀ, like tall; of the first map its transpose
        self.right: list[Tensor] = []  # Σ δ ȧᵀ, like wide
        self.totals: list[Tensor] = []  # Σ δ̇, like biases
        self._cut: list[Call] = []
        self._join: list[Call] = []
        place = 0
        for layer, weight in enumerate(weights):
            stop = place + weight.numel()
            slices = slice(place, stop), slice(stop, stop + len(weight))
            place = slices[1].stop
            shape = num_vectors, *weight.shape
            directions, sums = (
                (each[:, slices[0]].view(shape), each[:, slices[1]])
                for each in (self.rows, self.sums)
            )
            if layer == 0:
                self._add_first(directions, sums)
            elif num_vectors == 1:
                self._add_views(directions, sums)
            else:
                self._add_copies(directions, sums)

    def bound(self, passes: Iterable[Call]) -> Replayed:
        """Return all calls of a product, for passes bound to this block."""
        return Replayed([*self._cut, *passes, *self._join], self.rows.device)

    def products(self, rows: Tensor, run: Replayed) -> Tensor:
        """Return the products [k, n] with directions [k, n], by calls bound to this block."""
        self.rows.copy_(rows)
        run()
        return self.sums.clone()

    def _add_first(self, directions: _Map, sums: _Map) -> None:
        weight, bias = directions
        num_vectors, fan_out, fan_in = weight.shape
        tall = weight.new_zeros(num_vectors, fan_out, fan_in + 1)
        left = weight.new_zeros(fan_in + 1, num_vectors, fan_out)
        self._cut += [
            partial(tall[:, :, :-1].copy_, weight),
            partial(tall[:, :, -1].copy_, bias),
            left.zero_,
            self.sums.zero_,
        ]
        self._join += [
            partial(sums[0].copy_, left[:-1].permute(1, 2, 0)),
            partial(sums[1].copy_, left[-1]),
        ]
        self.tall.append(tall.flatten(0, 1))
        self.left.append(left.flatten(1))
        for unused in (self.wide, self.biases, self.right, self.totals):
            unused.append(tall)

    def _add_views(self, directions: _Map, sums: _Map) -> None:
        weight, bias = directions[0].squeeze(0), directions[1].squeeze(0)
        total, bias_total = sums[0].squeeze(0), sums[1].squeeze(0)
        self.tall.append(weight)
        self.wide.append(weight)
        self.biases.append(bias)
        self.left.append(total)
        self.right.append(total)
        self.totals.append(bias_total)

    def _add_copies(self, directions: _Map, sums: _Map) -> None:
        weight, bias = directions
        num_vectors, fan_out, fan_in = weight.shape
        tall, left = torch.zeros_like(weight), torch.zeros_like(weight)
        biases, totals = torch.zeros_like(bias), torch.zeros_like(bias)
        self._cut += [
            partial(tall.copy_, weight),
            partial(biases.copy_, bias),
            left.zero_,
            totals.zero_,
        ]
        self._join += [partial(sums[0].copy_, left), partial(sums[1].copy_, totals)]
        self.tall.append(tall.flatten(0, 1))
        self.left.append(left.flatten(0, 1))
        self.biases.append(biases.flatten())
        self.totals.append(totals.flatten())
        # The Gauss–Newton matrix needs no second layout.
        if self.full:
            wide, right = (weight.new_zeros(fan_out, num_vectors, fan_in) for _ in range(2))
            self._cut += [partial(wide.copy_, weight.transpose(0, 1)), right.zero_]
            self._join.append(partial(sums[0].add_, right.transpose(0, 1)))
            self.wide.append(wide.flatten(1))
            self.right.append(right.flatten(1))


class Workspace:
    """The buffers of all linearizations of one network."""

    def __init__(self, weights: list[Tensor], *, full: bool) -> None:
        self.weights = weights
        self.full = full
        self.blocks: dict[int, Block] = {}
        self._spaces: dict[tuple[int, int], Space] = {}

    def block(self, num_vectors: int) -> Block:
        """Return the block of a width, and let go of what was not used last or before that."""
        block = self.blocks.pop(num_vectors, None)
        if block is None:
            block = Block(num_vectors, self.weights, full=self.full)
        self.blocks = dict([*self.blocks.items(), (num_vectors, block)][-NUM_WIDTHS:])
        self._spaces = {key: each for key, each in self._spaces.items() if key[0] in self.blocks}
        return block

    def calls(self, tile: Tile, block: Block) -> Iterator[Call]:
        """Yield the calls that add one tile of points to a block's sums."""
        space = self._space(block.num_vectors, len(tile.inputs[0]))
        yield from _push_forward(tile, self.weights, block, space)
        yield from _pull_back(tile, self.weights, block, space)

    def _space(self, num_vectors: int, num_points: int) -> Space:
        """Return where to work: fresh pages cost more than sums."""
        key = num_vectors, num_points
        if key not in self._spaces:
            like = self.weights[0]
            tangents, moved, curved = (
                [like.new_empty(num_points, num_vectors, len(weight)) for weight in weights]
                for weights in (self.weights, self.weights[:-1], self.weights[-1:])
            )
            self._spaces[key] = Space(tangents, moved, curved[0])
        return self._spaces[key]


def _push_forward(tile: Tile, weights: list[Tensor], block: Block, space: Space) -> Iterator[Call]:
    """Yield what computes ż of every map, and ȧ of every hidden layer."""
    for layer, tangent in enumerate(space.tangents):
        flat = tangent.flatten(1)
        operands = tile.inputs[layer], block.tall[layer].T
        if layer:
            moved = space.moved[layer - 1].flatten(0, 1)
            yield partial(torch.addmm, block.biases[layer], *operands, out=flat)
            yield partial(tangent.flatten(0, 1).addmm_, moved, weights[layer].T)
        else:
            yield partial(torch.mm, *operands, out=flat)
        if layer < len(space.moved):
            yield partial(torch.mul, tangent, tile.slopes[layer], out=space.moved[layer])


def _pull_back(tile: Tile, weights: list[Tensor], block: Block, space: Space) -> Iterator[Call]:
    """Yield what computes δ̇ of every map, from the last, and adds what it brings to the sums."""
    delta = space.curved
    if not isinstance(tile.curvature, Tensor):
        yield partial(tile.curvature, space.tangents[-1], delta)
    elif tile.curvature.ndim == 2:
        yield partial(torch.mul, space.tangents[-1], tile.curvature.unsqueeze(1), out=delta)
    else:
        yield partial(torch.bmm, space.tangents[-1], tile.curvature, out=delta)
    ones = delta.new_ones(len(delta))
    for layer in range(len(weights) - 1, 0, -1):
        flat = delta.flatten(1)
        yield partial(block.left[layer].addmm_, flat.T, tile.inputs[layer])
        yield partial(block.totals[layer].addmv_, flat.T, ones)
        # ȧ is used up once it is in the sum, and makes room for the δ̇ that arrives.
        arriving = space.moved[layer - 1]
        known = tile.deltas[layer] if block.full else None
        if known is not None:
            yield partial(block.right[layer].addmm_, known.T, arriving.flatten(1))
        yield partial(torch.mm, delta.flatten(0, 1), weights[layer], out=arriving.flatten(0, 1))
        if known is not None:
            yield partial(arriving.flatten(1).addmm_, known, block.wide[layer])
        yield partial(arriving.mul_, tile.slopes[layer - 1])
        bend = tile.bends[layer - 1] if block.full else None
        if bend is not None:
            yield partial(arriving.addcmul_, bend, space.tangents[layer - 1])
        delta = arriving
    yield partial(block.left[0].addmm_, tile.inputs[0].T, delta.flatten(1))
