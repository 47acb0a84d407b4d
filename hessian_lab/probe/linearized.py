"""Hessian–vector products of a coordinate network, forward over reverse over stored activations.

Number the affine maps ``zᵢ = W̃ᵢ ãᵢ₋₁``. For a direction Ṽ and per point, with ``sᵢ = φ′(zᵢ)``,
``δᵢ = ∂L/∂zᵢ``, ``cᵢ = ∂L/∂aᵢ φ″(zᵢ)`` and S the loss's own curvature, all stored once::

    żᵢ = Ṽᵢ ãᵢ₋₁ + Wᵢ ȧᵢ₋₁         ȧᵢ = sᵢ żᵢ
    δ̇ = S ż at the last map;        δ̇ᵢ = sᵢ (Wᵢ₊₁ᵀ δ̇ᵢ₊₁ + Vᵢ₊₁ᵀ δᵢ₊₁) + cᵢ żᵢ
    (H Ṽ)ᵢ = Σₚ δ̇ᵢ ãᵢ₋₁ᵀ + δᵢ ȧᵢ₋₁ᵀ

Six products of [h, h] by [h, p] per hidden map and three elementwise passes; the transcendental
functions are never evaluated again. Without the terms in V δ, c and δ ȧ it is the Gauss–Newton
matrix, at four products.

References:
    Pearlmutter (1994), https://doi.org/10.1162/neco.1994.6.1.147.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hessian_lab.fields.encoding import encode
from hessian_lab.fields.mlp import CoordinateMLP

Matrix = Literal["hessian", "ggn"]
MATRICES = ("hessian", "ggn")
# Numbers of one buffer [points, vectors, units]: what stays in the caches of a few cores, and on a
# GPU what keeps it busy.
TILE_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 25}
# Buffers of that size that a product works in, beside those kept of each hidden layer.
NUM_SPARE = 2


class LinearizedField:
    """The derivatives of a mean loss at one point of parameter space, ready for products.

    Keeps four numbers per point and hidden unit (two for the Gauss–Newton matrix). Not for use by
    several threads at a time: the buffers are shared.

    Args:
        model: A field as it was built; nothing of it is kept but its weights, which must not be
            changed afterwards.
        coords: Coordinates [p, d].
        slope: ∂L/∂f [p, c], the mean over points included.
        curvature: ∂²L/∂f² [p, c, c] of each point, likewise.
        matrix: Which matrix to multiply with.
    """

    def __init__(
        self,
        model: CoordinateMLP,
        coords: Tensor,
        slope: Tensor,
        curvature: Tensor,
        *,
        matrix: Matrix = "hessian",
    ) -> None:
        self.weights = [layer.weight.detach() for layer in model.maps]
        self.curvature = _compact(curvature)
        self.full = matrix == "hessian"
        self._buffers: dict[tuple[int, int], list[Tensor]] = {}
        self._cut: dict[int, list[_Tile]] = {}
        with torch.no_grad():
            self._store(model, coords, slope)

    @torch.no_grad()
    def products(self, rows: Tensor) -> Tensor:
        """Return ``V A`` [k, n] for the rows of ``V`` [k, n]; about six gradients each at most."""
        sums = _Sums(rows, self.weights, full=self.full)
        for tile in self._tiles(self._tile_size(len(rows))):
            tangents, moved, outputs = self._push_forward(tile, sums)
            self._pull_back(tile, tangents, moved, outputs, sums)
        return sums.flat()

    def _tiles(self, size: int) -> list["_Tile"]:
        """Return what is stored, cut into tiles; views cost time too, and are made once."""
        if size not in self._cut:
            places = [slice(start, start + size) for start in range(0, len(self.inputs[0]), size)]
            self._cut[size] = [
                _Tile(
                    inputs=[layer[place] for layer in self.inputs],
                    slopes=[layer[place].unsqueeze(1) for layer in self.slopes],
                    deltas=[layer[place] for layer in self.deltas],
                    bends=[
                        None if layer is None else layer[place].unsqueeze(1) for layer in self.bends
                    ],
                    curvature=self.curvature[place],
                )
                for place in places
            ]
        return self._cut[size]

    def _store(self, model: CoordinateMLP, coords: Tensor, slope: Tensor) -> None:
        state = encode(coords, model.octaves)
        ones = state.new_ones(len(state), 1)
        # The first map takes its bias as a last column: it is too thin for that to cost anything.
        self.inputs, self.slopes = [torch.cat([state, ones], dim=1)], []
        seconds: list[Tensor] = []
        for layer in model.maps[:-1]:
            state, first, second = model.activation.jet(
                torch.addmm(layer.bias, state, layer.weight.T)
            )
            self.inputs.append(state)
            self.slopes.append(first)
            if self.full:
                seconds.append(second)
        self.deltas: list[Tensor] = [slope]
        self.bends: list[Tensor | None] = []
        if not self.full:
            return
        for weight, first, second in zip(
            self.weights[:0:-1], self.slopes[::-1], seconds[::-1], strict=True
        ):
            arriving = self.deltas[-1] @ weight
            self.deltas.append(arriving * first)
            # ReLU has no φ″: a pass saved.
            bend = arriving.mul_(second)
            self.bends.append(bend if bool(bend.any()) else None)
        self.deltas.reverse()
        self.bends.reverse()

    def _tile_size(self, num_vectors: int) -> int:
        """Return how many points one pass takes."""
        numbers = TILE_NUMBERS.get(self.inputs[0].device.type, TILE_NUMBERS["cuda"])
        widest = max(max(weight.shape) for weight in self.weights)
        most = max(64, numbers // (widest * num_vectors))
        num_points = len(self.inputs[0])
        return math.ceil(num_points / math.ceil(num_points / most))

    def _space(self, num_points: int, num_vectors: int) -> list[Tensor]:
        """Return buffers [p, k, h] that every product reuses: fresh pages cost more than sums."""
        key = (self._tile_size(num_vectors), num_vectors)
        if key not in self._buffers:
            hidden = [weight.shape[0] for weight in self.weights[:-1]]
            widths = hidden * 2 + [max(hidden, default=0)] * NUM_SPARE
            like = self.inputs[0]
            self._buffers = {key: [like.new_empty(*key, width) for width in widths]}
        return [buffer[:num_points] for buffer in self._buffers[key]]

    def _push_forward(
        self, tile: "_Tile", sums: "_Sums"
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return ż and ȧ of every hidden layer, and ż of the output, each [p, k, units]."""
        inputs = tile.inputs
        num_points, num_vectors = len(inputs[0]), sums.num_vectors
        depth = len(self.slopes)
        space = self._space(num_points, num_vectors)
        tangents, moved = space[:depth], space[depth : 2 * depth]
        for layer in range(depth + 1):
            fan_out = self.weights[layer].shape[0]
            tangent = (
                tangents[layer]
                if layer < depth
                else inputs[0].new_empty(num_points, num_vectors, fan_out)
            )
            flat = tangent.view(num_points, -1)
            if layer:
                torch.addmm(sums.biases[layer], inputs[layer], sums.tall[layer].T, out=flat)
                tangent.flatten(0, 1).addmm_(moved[layer - 1].flatten(0, 1), self.weights[layer].T)
            else:
                torch.mm(inputs[0], sums.tall[0].T, out=flat)
            if layer < depth:
                torch.mul(tangent, tile.slopes[layer], out=moved[layer])
        return tangents, moved, tangent

    def _pull_back(
        self,
        tile: "_Tile",
        tangents: list[Tensor],
        moved: list[Tensor],
        outputs: Tensor,
        sums: "_Sums",
    ) -> None:
        """Add one tile of points to the sums."""
        spare = self._space(len(outputs), sums.num_vectors)[-NUM_SPARE:]
        delta = _curved(outputs, tile.curvature)
        for layer in range(len(self.slopes), 0, -1):
            weight = self.weights[layer]
            known = tile.deltas[layer] if self.full else None
            sums.add(layer, delta, tile.inputs[layer], known, moved[layer - 1])
            shape = *delta.shape[:2], weight.shape[1]
            arriving = spare[layer % NUM_SPARE].flatten()[: math.prod(shape)].view(shape)
            torch.mm(delta.flatten(0, 1), weight, out=arriving.view(-1, weight.shape[1]))
            if known is not None:
                arriving.view(len(arriving), -1).addmm_(known, sums.wide[layer])
            arriving *= tile.slopes[layer - 1]
            bend = tile.bends[layer - 1] if self.full else None
            if bend is not None:
                arriving.addcmul_(bend, tangents[layer - 1])
            delta = arriving
        sums.add_first(delta, tile.inputs[0])


@dataclass(frozen=True, eq=False)
class _Tile:
    """What is stored of some points, as views; the index of each list is the map."""

    inputs: list[Tensor]  # ã of the first map, then a [p, h]
    slopes: list[Tensor]  # φ′(z) [p, 1, h], hidden maps only
    deltas: list[Tensor]  # ∂L/∂z [p, o]
    bends: list[Tensor | None]  # ∂L/∂a φ″(z) [p, 1, h], hidden maps only; None where it is 0
    curvature: Tensor  # ∂²L/∂f² [p, c] or [p, c, c]


def _curved(outputs: Tensor, curvature: Tensor) -> Tensor:
    """Return ``S ż`` [p, k, c], in place where S is diagonal."""
    if curvature.ndim == 2:
        return outputs.mul_(curvature.unsqueeze(1))
    return torch.bmm(outputs, curvature)


class _Sums:
    """A block of directions cut into maps, and the sums over points that become its product."""

    def __init__(self, rows: Tensor, weights: list[Tensor], *, full: bool) -> None:
        self.num_vectors = len(rows)
        self.shapes = [tuple(weight.shape) for weight in weights]
        self.tall: list[Tensor] = []  # [k o, fan_in], the bias as last column of the first
        self.wide: list[Tensor] = []  # [o, k fan_in]
        self.biases: list[Tensor] = []  # [k o]
        place = 0
        for fan_out, fan_in in self.shapes:
            weight = rows[:, place : place + fan_out * fan_in].unflatten(1, (fan_out, fan_in))
            place += fan_out * fan_in
            bias = rows[:, place : place + fan_out]
            place += fan_out
            if not self.tall:
                weight = torch.cat([weight, bias.unsqueeze(2)], dim=2)
            self.tall.append(weight.reshape(-1, weight.shape[2]))
            # One vector needs no second layout; the Gauss–Newton matrix needs none at all.
            lone = self.num_vectors == 1 or not full
            turned = weight[:1] if lone else weight
            self.wide.append(turned.transpose(0, 1).reshape(fan_out, -1))
            self.biases.append(bias.reshape(-1))
        self.left = [torch.zeros_like(tall) for tall in self.tall]
        single = self.num_vectors == 1
        self.right = self.left if single else [torch.zeros_like(wide) for wide in self.wide]
        self.totals = [torch.zeros_like(bias) for bias in self.biases]
        self.full = full

    def add(
        self, layer: int, delta: Tensor, inputs: Tensor, known: Tensor | None, moved: Tensor
    ) -> None:
        """Add ``Σₚ δ̇ ãᵀ + δ ȧᵀ`` of one map."""
        flat = delta.flatten(1)
        self.left[layer].addmm_(flat.T, inputs)
        self.totals[layer].addmv_(flat.T, inputs.new_ones(len(inputs)))
        if known is not None:
            self.right[layer].addmm_(known.T, moved.view(len(moved), -1))

    def add_first(self, delta: Tensor, inputs: Tensor) -> None:
        """Add the first map, whose inputs do not move."""
        self.left[0].addmm_(delta.flatten(1).T, inputs)

    def flat(self) -> Tensor:
        """Return the products [k, n]."""
        parts = []
        for layer, (fan_out, fan_in) in enumerate(self.shapes):
            weight = self.left[layer].view(self.num_vectors, fan_out, -1)
            if layer == 0:
                parts += [weight[:, :, :-1].flatten(1), weight[:, :, -1]]
                continue
            if self.full and self.num_vectors > 1:
                turned = self.right[layer].view(fan_out, self.num_vectors, fan_in)
                weight += turned.transpose(0, 1)
            parts += [weight.flatten(1), self.totals[layer].view(self.num_vectors, fan_out)]
        return torch.cat(parts, dim=1)


def _compact(curvature: Tensor) -> Tensor:
    """Return ∂²L/∂f² as [p, c] where it is diagonal, as it is for most losses, else [p, c, c]."""
    diagonal = curvature.diagonal(dim1=1, dim2=2)
    off = curvature - torch.diag_embed(diagonal)
    return curvature if bool(off.any()) else diagonal.contiguous()


def stored_numbers(model: CoordinateMLP, num_points: int, *, matrix: Matrix = "hessian") -> int:
    """Return how many numbers linearizing at ``num_points`` points keeps and works in at most."""
    first, last = model.maps[0], model.maps[-1]
    hidden = [layer.out_features for layer in model.maps[:-1]]
    kept = (4 if matrix == "hessian" else 2) * sum(hidden)
    passing = sum(hidden) + 4 * max(hidden, default=0)
    channels = last.out_features
    return num_points * (kept + passing + first.in_features + 1 + channels * (2 + 2 * channels))
