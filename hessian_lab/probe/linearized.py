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
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor

from hessian_lab.fields.encoding import encode
from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.probe.graphs import Call, Replayed
from hessian_lab.probe.passes import Block, Tile, Workspace
from hessian_lab.probe.sizes import numbers_at_once

Matrix = Literal["hessian", "ggn"]
MATRICES = ("hessian", "ggn")
# Numbers of one buffer [points, vectors, units]: what stays in the caches of a few cores. A GPU
# takes more.
TILE_NUMBERS = 1 << 19


class Coupling(Protocol):
    """A curvature ∂²L/∂f² that couples consecutive points in groups of ``period``."""

    @property
    def period(self) -> int:
        """Points of a group."""

    def __getitem__(self, place: slice) -> Callable[[Tensor, Tensor], object]:
        """Return what writes the products of some whole groups with ż [p, k, c]."""


class LinearizedField:
    """The derivatives of a mean loss at one point of parameter space, ready for products.

    Keeps four numbers per point and hidden unit (two for the Gauss–Newton matrix). Not for use by
    several threads at a time: the buffers are shared.

    Args:
        model: A field as it was built; nothing of it is kept but its weights, which must not be
            changed afterwards.
        coords: Coordinates [p, d].
        slope: ∂L/∂f [p, c], the mean over points included.
        curvature: ∂²L/∂f² [p, c, c] of each point, likewise; or one that couples points.
        matrix: Which matrix to multiply with.
        workspace: Buffers to share with other linearizations of the same weights; else its own.
    """

    def __init__(
        self,
        model: CoordinateMLP,
        coords: Tensor,
        slope: Tensor,
        curvature: "Tensor | Coupling",
        *,
        matrix: Matrix = "hessian",
        workspace: Workspace | None = None,
    ) -> None:
        self.weights = [layer.weight.detach() for layer in model.maps]
        self.curvature = _compact(curvature) if isinstance(curvature, Tensor) else curvature
        self.full = matrix == "hessian"
        self._workspace = workspace or Workspace(self.weights, full=self.full)
        self._bound: dict[Block, Replayed] = {}
        with torch.no_grad():
            self._store(model, coords, slope)

    @torch.no_grad()
    def products(self, rows: Tensor) -> Tensor:
        """Return ``V A`` [k, n] for the rows of ``V`` [k, n]; about six gradients each at most."""
        block = self._workspace.block(len(rows))
        run = self._bound.get(block)
        if run is None:
            alive = self._workspace.blocks.values()
            self._bound = {known: self._bound[known] for known in alive if known in self._bound}
            run = self._bound[block] = block.bound(self._calls(block))
        return block.products(rows, run)

    def _calls(self, block: Block) -> Iterator[Call]:
        size = self._tile_size(block.num_vectors)
        for start in range(0, len(self.inputs[0]), size):
            yield from self._workspace.calls(self._tile(slice(start, start + size)), block)

    def _tile(self, place: slice) -> Tile:
        return Tile(
            inputs=[layer[place] for layer in self.inputs],
            slopes=[layer[place].unsqueeze(1) for layer in self.slopes],
            deltas=[layer[place] for layer in self.deltas],
            bends=[None if layer is None else layer[place].unsqueeze(1) for layer in self.bends],
            curvature=self.curvature[place],
        )

    def _store(self, model: CoordinateMLP, coords: Tensor, slope: Tensor) -> None:
        state = encode(coords, model.octaves)
        ones = state.new_ones(len(state), 1)
        # The first map takes its bias as a last column: it is too thin for that to cost anything.
        self.inputs, self.slopes = [torch.cat([state, ones], dim=1)], []
        seconds: list[Tensor] = []
        for layer, activation in zip(model.maps[:-1], model.activations, strict=True):
            state, first, second = activation.jet(torch.addmm(layer.bias, state, layer.weight.T))
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
        like = self.inputs[0]
        numbers = numbers_at_once(
            TILE_NUMBERS,
            device=like.device,
            itemsize=like.itemsize,
            num_buffers=2 * len(self.weights),
        )
        widest = max(max(weight.shape) for weight in self.weights)
        most = max(64, numbers // (widest * num_vectors))
        num_points = len(self.inputs[0])
        if not isinstance(self.curvature, Tensor):
            return max(1, most // self.curvature.period) * self.curvature.period
        return math.ceil(num_points / math.ceil(num_points / most))


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
    passing = 2 * sum(hidden) + 2 * max(hidden, default=0)
    channels = last.out_features
    return num_points * (kept + passing + first.in_features + 1 + channels * (2 + 2 * channels))
