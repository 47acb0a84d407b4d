"""A slab of a coordinate network's Hessian: sums over points, to be written or squared.

A slab holds bands of some units of a map against every map up to it: the blocks of ``closed_form``
on and below the diagonal, row by row. Its entries are written to a matrix together with their
mirror image above the diagonal, or squared and added up along the rows and columns of both.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hessian_lab.probe.closed_form import (
    Pass,
    Scratch,
    Slot,
    Stairs,
    pull_back,
    tile_slices,
    times_matrix,
    write_columns,
    write_rows,
)

# Panels of points × width² numbers that one pass works in.
NUM_PANELS = 6
# Sums over points, by the kind of their terms and the lower map.
Sums = dict[tuple[str, int], Tensor]


@dataclass(frozen=True)
class Band:
    """Some units of a map."""

    index: int
    rows: slice

    @property
    def units(self) -> int:
        """How many units."""
        return int(self.rows.stop - self.rows.start)

    def steps(self, slot: Slot) -> Iterator[tuple[slice, slice]]:
        """Yield the units of the band in each step of the stairs, and all units of that step."""
        for step, _ in Stairs(slot.fan_out).steps():
            start, stop = max(step.start, self.rows.start), min(step.stop, self.rows.stop)
            if start < stop:
                yield slice(start, stop), step

    def shapes(self, slots: list[Slot], *, residual: bool) -> dict[tuple[str, int], list[int]]:
        """Return the shapes of the sums; the diagonal block's is packed as two lower triangles."""
        i, high = self.index, slots[self.index]
        places = sum((rows.stop - rows.start) * step.stop for rows, step in self.steps(high))
        shapes = {("curved", i): [places, Stairs(high.fan_in + 1).numbers]}
        for j, low in enumerate(slots[:i]):
            pairs = (high.fan_in + 1) * (low.fan_in + 1)
            shapes["curved", j] = [self.units * low.fan_out, pairs]
            if residual and j < i - 1:
                shapes["crossed", j] = [high.fan_in * low.fan_out, self.units * (low.fan_in + 1)]
        return shapes

    def numbers(self, slots: list[Slot], *, residual: bool) -> int:
        """Return how many numbers the sums have."""
        return sum(map(math.prod, self.shapes(slots, residual=residual).values()))


def unit_numbers(slots: list[Slot], i: int, *, residual: bool) -> int:
    """Return how many numbers the largest unit of a map has."""
    last = slots[i].fan_out
    return Band(i, slice(last - 1, last)).numbers(slots, residual=residual)


def divide(slots: list[Slot], *, residual: bool, numbers: int) -> list[tuple[list[Band], int]]:
    """Return slabs of at most ``numbers`` numbers, or of one unit, each with what it has.

    The bands of a map are of even height; from the last map on, as many to a slab as fit.
    """
    slabs: list[tuple[list[Band], int]] = []
    for i in range(len(slots) - 1, -1, -1):
        units = slots[i].fan_out
        most = max(1, numbers // unit_numbers(slots, i, residual=residual))
        height = math.ceil(units / math.ceil(units / most))
        for start in range(0, units, height):
            band = Band(i, slice(start, min(start + height, units)))
            needed = band.numbers(slots, residual=residual)
            if slabs and slabs[-1][1] + needed <= numbers:
                bands, total = slabs[-1]
                slabs[-1] = [*bands, band], total + needed
            else:
                slabs.append(([band], needed))
    return slabs


class Slab:
    """The sums over points of some bands, last map first.

    Attributes:
        sums: All of them in one flat tensor, in an order that follows from ``slots`` and ``bands``:
            another process's, of the same bands, may be added or copied into it.

    Args:
        slots: The maps.
        bands: What to sum.
        residual: Whether the terms beyond the GGN are summed too.
        space: The buffers, those of the sums included; one slab at a time.
    """

    def __init__(
        self, slots: list[Slot], bands: list[Band], *, residual: bool, space: Scratch
    ) -> None:
        self.slots = slots
        self.residual = residual
        self.space = space
        self.bands: list[tuple[Band, Sums]] = []
        shapes = [band.shapes(slots, residual=residual) for band in bands]
        sizes = [math.prod(shape) for named in shapes for shape in named.values()]
        self.sums = space("slab", sum(sizes)).zero_()
        parts = iter(self.sums.split(sizes))
        for band, named in zip(bands, shapes, strict=True):
            self.bands.append(
                (band, {name: next(parts).view(shape) for name, shape in named.items()})
            )

    def add(self, chunk: Pass, weights: list[Tensor]) -> None:
        """Add one chunk of points."""
        lowest = self.bands[-1][0].index
        bent = chunk.curvature  # S [p, o, o]
        for i in range(len(weights) - 1, lowest - 1, -1):
            scaled = self._times("scaled", bent, weights[i]) if i else None
            for band, sums in self.bands:
                if band.index == i:
                    self._add_band(band, sums, bent, scaled, chunk, weights)
            if scaled is not None and i > lowest:
                bent = pull_back(scaled, weights[i], chunk.slopes[i - 1], self.space)
                if self.residual:
                    bent.diagonal(dim1=1, dim2=2).add_(chunk.bends[i - 1])

    def _add_band(
        self,
        band: Band,
        sums: Sums,
        bent: Tensor,
        scaled: Tensor | None,
        chunk: Pass,
        weights: list[Tensor],
    ) -> None:
        """Add to one band from ``S`` and ``S W`` of its map."""
        self._add_diagonal(band, sums["curved", band.index], bent, chunk)
        if scaled is not None:
            self._add_curved(band, sums, scaled, chunk, weights)
            if self.residual:
                self._add_neighbour(band, sums["curved", band.index - 1], chunk)
        if self.residual and band.index >= 2:
            self._add_crossed(band, sums, chunk, weights)

    def _add_diagonal(self, band: Band, total: Tensor, bent: Tensor, chunk: Pass) -> None:
        """Add ``(ãᵢ₋₁ ãᵢ₋₁ᵀ) ⊗ Sᵢ``, lower triangles only."""
        left = self.space("left", len(bent), len(total))
        place = 0
        for rows, step in band.steps(self.slots[band.index]):
            part = bent[:, rows, : step.stop]
            stop = place + part[0].numel()
            left[:, place:stop].unflatten(1, part.shape[1:]).copy_(part)
            place = stop
        inputs = chunk.inputs[band.index]
        right = self.space("right", len(bent), total.shape[1])
        for rows, places in Stairs(inputs.shape[1]).steps():
            target = right[:, places].unflatten(1, (-1, rows.stop))
            torch.mul(inputs[:, rows].unsqueeze(2), inputs[:, : rows.stop].unsqueeze(1), out=target)
        total.addmm_(left.T, right)

    def _add_curved(
        self, band: Band, sums: Sums, scaled: Tensor, chunk: Pass, weights: list[Tensor]
    ) -> None:
        """Add ``(ãᵢ₋₁ ãⱼ₋₁ᵀ) ⊗ Sᵢ Wᵢ Rᵢ₋₁,ⱼ`` for every j < i."""
        i, last = band.index, band.index - 1
        stack = self.space(f"walked {last % 2}", len(scaled), band.units, scaled.shape[2])
        stack.copy_(scaled[:, band.rows])
        for j, walked in self._walk(stack, last, chunk, weights):
            outer = self._outer(chunk.inputs[i], chunk.inputs[j])
            sums["curved", j].addmm_(walked.flatten(1).T, outer)

    def _add_neighbour(self, band: Band, total: Tensor, chunk: Pass) -> None:
        """Add the cross-layer term of two neighbours: diagonal in (k_i, o_{i-1})."""
        i, high, low = band.index, self.slots[band.index], self.slots[band.index - 1]
        outer = self._outer(chunk.deltas[i][:, band.rows], chunk.slopes[i - 1])
        term = (outer.T @ chunk.inputs[i - 1]).unflatten(0, (band.units, high.fan_in))
        block = total.view(band.units, low.fan_out, high.fan_in + 1, low.fan_in + 1)
        block[:, :, :-1].diagonal(dim1=1, dim2=2).add_(term.transpose(1, 2))

    def _add_crossed(self, band: Band, sums: Sums, chunk: Pass, weights: list[Tensor]) -> None:
        """Add ``(δᵢ ãⱼ₋₁ᵀ) ⊗ Rᵢ₋₁,ⱼ`` for every j < i - 1."""
        i, last = band.index, band.index - 2
        deltas = chunk.deltas[i][:, band.rows]
        stack = self.space(f"walked {last % 2}", len(deltas), *weights[i - 1].shape)
        torch.mul(chunk.slopes[i - 1].unsqueeze(2), weights[i - 1], out=stack)
        for j, walked in self._walk(stack, last, chunk, weights):
            sums["crossed", j].addmm_(walked.flatten(1).T, self._outer(deltas, chunk.inputs[j]))

    def _walk(
        self, stack: Tensor, last: int, chunk: Pass, weights: list[Tensor]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield ``stack D`` at map ``last``, and ``stack D W D …`` at every lower one."""
        for j in range(last, -1, -1):
            if j < last:
                stack = self._times(f"walked {j % 2}", stack, weights[j + 1])
            stack *= chunk.slopes[j].unsqueeze(1)
            yield j, stack

    def _times(self, name: str, stack: Tensor, matrix: Tensor) -> Tensor:
        """Return ``stack @ matrix`` for [p, a, b] and [b, c] in a buffer of its own."""
        return times_matrix(stack, matrix, out=self.space(name, *stack.shape[:2], matrix.shape[1]))

    def _outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the products of every pair of columns, [p, a b]."""
        panel = self.space("right", len(left), left.shape[1], right.shape[1])
        torch.mul(left.unsqueeze(2), right.unsqueeze(1), out=panel)
        return panel.flatten(1)

    def write(self, matrix: Tensor) -> None:
        """Write every entry, and its mirror image, to the whole matrix [n, n], anywhere.

        The sums are overwritten. Rows of the matrix are gone through once for a band and a lower
        map, and written in runs as wide as the band: a matrix in a file is paged in and out little.
        """
        for band, sums in self.bands:
            self._write_diagonal(band, sums["curved", band.index], matrix)
            for j in range(band.index):
                self._write_pair(band, j, sums, matrix)

    def _write_diagonal(self, band: Band, block: Tensor, matrix: Tensor) -> None:
        slot, place = self.slots[band.index], 0
        inputs = Stairs(slot.fan_in + 1).unfold(block.device)
        for rows, step in band.steps(slot):
            height = rows.stop - rows.start
            part = block[place : place + height * step.stop].unflatten(0, (height, step.stop))
            place += height * step.stop
            for tile in tile_slices(height, step.stop * inputs.numel(), like=block):
                units = slice(rows.start + tile.start, rows.start + tile.stop)
                full = part[tile, : units.stop].flatten(0, 1)[:, inputs.flatten()]
                full = full.view(-1, units.stop, *inputs.shape)
                before, own = slice(0, units.start), full[:, units.start :]
                write_rows(matrix, slot, slot, units, before, full[:, before])
                write_columns(matrix, slot, slot, units, before, full[:, before])
                # Of two entries that mirror each other the lower one counts.
                places = torch.arange(len(own), device=own.device)
                row, column = places.unsqueeze(1), places
                own = own[torch.maximum(row, column), torch.minimum(row, column)]
                write_rows(matrix, slot, slot, units, units, own)

    def _write_pair(self, band: Band, j: int, sums: Sums, matrix: Tensor) -> None:
        high, low = self.slots[band.index], self.slots[j]
        block = self._pair(band, j, sums)
        for tile in tile_slices(band.units, block[0].numel(), like=block):
            units = slice(band.rows.start + tile.start, band.rows.start + tile.stop)
            write_rows(matrix, high, low, units, low.units, block[tile])
        for others in tile_slices(low.fan_out, block[:, 0].numel(), like=block):
            write_columns(matrix, high, low, band.rows, others, block[:, others])

    def fold(self, totals: list[Tensor]) -> None:
        """Add every entry's square to its row's total and to its mirror image's.

        The sums are overwritten; ``totals`` are float64 tables [o, k + 1].
        """
        for band, sums in self.bands:
            self._fold_diagonal(band, sums["curved", band.index], totals[band.index])
            for j in range(band.index):
                self._fold_pair(band, j, sums, totals)

    def _fold_diagonal(self, band: Band, block: Tensor, total: Tensor) -> None:
        slot, place = self.slots[band.index], 0
        owners = _owners(slot.fan_in + 1, like=total)
        for rows, step in band.steps(slot):
            for tile in tile_slices(rows.stop - rows.start, step.stop * block.shape[1], like=block):
                stop = place + (tile.stop - tile.start) * step.stop
                squares = block[place:stop].to(total.dtype).square_() @ owners
                squares = squares.unflatten(0, (-1, step.stop))
                total[rows][tile] += squares.sum(dim=1)
                # The columns of the step itself are there in both triangles.
                total[: step.start] += squares[:, : step.start].sum(dim=0)
                place = stop

    def _fold_pair(self, band: Band, j: int, sums: Sums, totals: list[Tensor]) -> None:
        block = self._pair(band, j, sums)
        for tile in tile_slices(band.units, block[0].numel(), like=block):
            squares = block[tile].to(totals[j].dtype).square_()
            totals[band.index][band.rows][tile] += squares.sum(dim=(1, 3))
            totals[j] += squares.sum(dim=(0, 2))

    def _pair(self, band: Band, j: int, sums: Sums) -> Tensor:
        """Return the block of a lower map [units, o_j, k_i + 1, k_j + 1], both sums in one."""
        high, low = self.slots[band.index], self.slots[j]
        block = sums["curved", j].view(-1, low.fan_out, high.fan_in + 1, low.fan_in + 1)
        crossed = sums.pop(("crossed", j), None)
        if crossed is not None:
            crossed = crossed.view(high.fan_in, low.fan_out, -1, low.fan_in + 1)
            for tile in tile_slices(band.units, block[0].numel(), like=block):
                block[tile][:, :, :-1] += crossed[:, :, tile].permute(2, 1, 0, 3)
        return block


def _owners(size: int, *, like: Tensor) -> Tensor:
    """Return which rows s and s' each packed entry (s, s') of a triangle belongs to."""
    stairs = Stairs(size)
    owners = like.new_zeros(stairs.numbers, size)
    rows = torch.arange(size, device=like.device).unsqueeze(1)
    owners[stairs.unfold(like.device), rows] = 1
    return owners
