"""The exact Hessian of a coordinate network by matrix products, without a single Hessian product.

Number the affine maps ``zᵢ = W̃ᵢ ãᵢ₋₁``, the bias as last column of W̃, a 1 appended to the
activations. Per point, ``δᵢ = ∂ℓ/∂zᵢ``, ``Sᵢ = ∂²ℓ/∂zᵢ²`` and ``Rₗⱼ = ∂ãₗ/∂zⱼ`` (its last row
is zero) give the derivative by the entries (r, s) of W̃ᵢ and (r', s') of W̃ⱼ::

    i = j:  Σₚ Sᵢ[r, r'] ãᵢ₋₁[s] ãᵢ₋₁[s']
    i > j:  Σₚ (Sᵢ Wᵢ Rᵢ₋₁,ⱼ)[r, r'] ãᵢ₋₁[s] ãⱼ₋₁[s']
          + Σₚ δᵢ[r] Rᵢ₋₁,ⱼ[s, r'] ãⱼ₋₁[s']

with ``Sᵢ₋₁ = D Wᵢᵀ Sᵢ Wᵢ D + diag(∂ℓ/∂aᵢ₋₁ φ″)``, ``D = diag φ′(zᵢ₋₁)``. Every sum over points is
one matrix product between two panels of products of pairs. The second sum, the cross-layer term,
is diagonal in (s, r') for neighbouring maps and costs next to nothing there.
"""

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hessian_lab.fields.encoding import encode
from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.probe.sizes import numbers_at_once

# Numbers in one panel of one pass, and the range of points per pass: long enough to amortize the
# calls, short enough to stay in the caches of a CPU. A GPU takes more.
PANEL_NUMBERS = 1 << 21
CHUNK_RANGE = (8, 1024)
# Buffers of that size that one pass works in.
NUM_PANELS = 6
# Numbers moved at once when a finished block is written: what fits a core's own cache; and the
# copies of them that are made on the way.
TILE_NUMBERS = 1 << 18
NUM_TILES = 3


@dataclass(frozen=True)
class Parts:
    """Which of the three kinds of terms to sum."""

    ggn: bool = True
    activation: bool = True
    cross: bool = True


@dataclass(frozen=True)
class Slot:
    """Where one affine map stands in the flat parameters: weight [o, k], then bias [o]."""

    start: int
    fan_in: int
    fan_out: int

    @property
    def weight(self) -> slice:
        """Where the weight stands among the flat parameters."""
        return slice(self.start, self.start + self.fan_in * self.fan_out)

    @property
    def bias(self) -> slice:
        """Where the bias stands among the flat parameters."""
        return slice(self.weight.stop, self.weight.stop + self.fan_out)

    @property
    def units(self) -> slice:
        """All units of the map."""
        return slice(0, self.fan_out)

    def part(self, rows: slice) -> tuple[slice, slice]:
        """Return where the weights and the biases of some units stand."""
        first = self.start + rows.start * self.fan_in
        weight = slice(first, first + (rows.stop - rows.start) * self.fan_in)
        return weight, slice(self.bias.start + rows.start, self.bias.start + rows.stop)


@dataclass(frozen=True)
class Pass:
    """One chunk of points, run forward and backward; the index of each list is the map."""

    inputs: list[Tensor]  # ã [p, k + 1]
    deltas: list[Tensor]  # ∂ℓ/∂z [p, o]
    slopes: list[Tensor]  # φ′(z) [p, o], hidden maps only
    bends: list[Tensor]  # ∂ℓ/∂a φ″(z) [p, o], likewise
    curvature: Tensor  # ∂²ℓ/∂f² [p, c, c]


def assemble(
    model: CoordinateMLP,
    coords: Tensor,
    slope: Tensor,
    curvature: Tensor,
    *,
    parts: Parts,
    chunk_size: int | None = None,
) -> Tensor:
    """Return the Hessian [n, n] of a loss whose derivatives by the outputs are known.

    About ``p n²`` operations, all but a few percent of them in matrix products.

    Args:
        model: The network; its parameters are read, not changed.
        coords: Coordinates [p, d].
        slope: ∂L/∂f [p, c], the mean over points included.
        curvature: ∂²L/∂f² [p, c, c] of each point, likewise.
        parts: The kinds of terms to sum.
        chunk_size: Points per pass; by default as many as keep each of six panels near 16 MiB,
            and at least 8; on a GPU as many as its memory holds. The last pass may be shorter.
    """
    maps = model.maps
    slots = slots_of(model)
    size = slots[-1].bias.stop
    chunk_size = chunk_size or default_chunk_size(slots, len(coords), like=coords)
    space = Scratch(coords)
    blocks = _Blocks(slots, like=coords, parts=parts, space=space)
    with torch.no_grad():
        weights = [layer.weight for layer in maps]
        for chunk in range(0, len(coords), chunk_size):
            rows = slice(chunk, chunk + chunk_size)
            blocks.add(run_pass(model, coords[rows], slope[rows], curvature[rows]), weights)
        hessian = coords.new_empty(size, size)
        blocks.write(hessian)
    return hessian


def num_parameters(model: CoordinateMLP) -> int:
    """Return the parameters of a field's affine maps, from their sizes."""
    return int(slots_of(model)[-1].bias.stop)


def temporary_numbers(model: CoordinateMLP, num_points: int, chunk_size: int | None = None) -> int:
    """Return how many numbers ``assemble`` keeps at most beside the matrix itself."""
    slots = slots_of(model)
    sums = sum(math.prod(curved) + math.prod(crossed) for _, curved, crossed in _sums(slots))
    weight = model.maps[0].weight
    points = min(num_points, chunk_size or default_chunk_size(slots, num_points, like=weight))
    panels = NUM_PANELS * points * widest_map(slots) ** 2
    tiles = 0 if weight.device.type == "cpu" else NUM_TILES * _tile_numbers(weight)
    return sums + max(panels, tiles)


def _sums(
    slots: list[Slot],
) -> Iterator[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]:
    """Yield each block ``i >= j`` with the shapes of its curved and of its crossed sum."""
    for i, high in enumerate(slots):
        for j, low in enumerate(slots[: i + 1]):
            if i == j:
                stairs = Stairs(high.fan_out), Stairs(high.fan_in + 1)
                curved = stairs[0].numbers, stairs[1].numbers
            else:
                curved = high.fan_out * low.fan_out, (high.fan_in + 1) * (low.fan_in + 1)
            crossed = (low.fan_out * high.fan_in, high.fan_out * (low.fan_in + 1))
            yield (i, j), curved, crossed if i - j >= 2 else (0, 0)


def slots_of(model: CoordinateMLP) -> list[Slot]:
    """Return the place of every map, first to last."""
    slots: list[Slot] = []
    start = 0
    for layer in model.maps:
        slots.append(Slot(start, layer.in_features, layer.out_features))
        start = slots[-1].bias.stop
    return slots


def widest_map(slots: list[Slot]) -> int:
    """Return the largest side of a map, its bias counted as an input."""
    return max(max(slot.fan_in + 1, slot.fan_out) for slot in slots)


def default_chunk_size(slots: list[Slot], num_points: int, *, like: Tensor) -> int:
    """Return how many points fill a panel of ``like``'s type, where it is."""
    wanted = panel_points(PANEL_NUMBERS, slots, like=like, num_panels=NUM_PANELS)
    return math.ceil(num_points / math.ceil(num_points / wanted))


def panel_points(cached: int, slots: list[Slot], *, like: Tensor, num_panels: int) -> int:
    """Return how many points to take per pass, for panels of ``cached`` numbers on the CPU."""
    least, most = CHUNK_RANGE
    panel = numbers_at_once(
        cached, device=like.device, itemsize=like.itemsize, num_buffers=num_panels
    )
    wanted = max(panel // widest_map(slots) ** 2, least)
    return min(wanted, most) if like.device.type == "cpu" else wanted


def run_pass(model: CoordinateMLP, coords: Tensor, slope: Tensor, curvature: Tensor) -> Pass:
    """Run one chunk forward and backward."""
    maps = model.maps
    state = encode(coords, model.octaves)
    ones = state.new_ones(len(state), 1)
    inputs, slopes, seconds = [torch.cat([state, ones], dim=1)], [], []
    for layer, activation in zip(maps[:-1], model.activations, strict=True):
        state, first, second = activation.jet(torch.addmm(layer.bias, state, layer.weight.T))
        inputs.append(torch.cat([state, ones], dim=1))
        slopes.append(first)
        seconds.append(second)

    deltas, bends = [slope], []
    for layer, first, second in zip(maps[:0:-1], slopes[::-1], seconds[::-1], strict=True):
        arriving = deltas[-1] @ layer.weight
        deltas.append(arriving * first)
        bends.append(arriving * second)
    return Pass(inputs, deltas[::-1], slopes, bends[::-1], curvature)


def times_matrix(stack: Tensor, matrix: Tensor, *, out: Tensor) -> Tensor:
    """Return ``stack @ matrix`` for [p, a, b] and [b, c], as one product."""
    torch.mm(stack.flatten(0, 1), matrix, out=out.flatten(0, 1))
    return out


def pull_back(scaled: Tensor, weight: Tensor, slope: Tensor, space: "Scratch") -> Tensor:
    """Return ``D (Wᵀ S W) D`` [p, k, k] from ``S W`` [p, o, k], which is overwritten."""
    scaled *= slope.unsqueeze(1)
    bent = space("bent", len(scaled), weight.shape[1], weight.shape[1])
    torch.bmm(weight.T.expand(len(scaled), -1, -1), scaled, out=bent)
    bent *= slope.unsqueeze(2)
    return bent


@dataclass(frozen=True)
class Stairs:
    """The lower triangle of a symmetric matrix, packed in steps of a few rows of equal length.

    Nearly half of the products of a diagonal block, in a handful of calls instead of one per row.
    """

    size: int

    def steps(self) -> Iterator[tuple[slice, slice]]:
        """Yield the rows of each step, and where its rows × (columns up to its end) are packed."""
        height = max(4, self.size // 8)
        place = 0
        for start in range(0, self.size, height):
            stop = min(start + height, self.size)
            yield slice(start, stop), slice(place, place + (stop - start) * stop)
            place += (stop - start) * stop

    @property
    def numbers(self) -> int:
        """How many numbers the packed form has."""
        return int(max(place.stop for _, place in self.steps()))

    def unfold(self, device: torch.device) -> Tensor:
        """Return the place [size, size] of each entry, upper triangle included."""
        table = torch.empty(self.size, self.size, dtype=torch.long, device=device)
        for rows, place in self.steps():
            step = torch.arange(place.start, place.stop, device=device).view(-1, rows.stop)
            table[rows, : rows.stop] = step
        return torch.tril(table) + torch.tril(table, -1).T


class Scratch:
    """Buffers that every chunk reuses: faulting in fresh pages costs more than filling them."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.kept: dict[Hashable, Tensor] = {}

    def __call__(self, name: Hashable, *shape: int) -> Tensor:
        """Return the buffer of this name in the given shape, with whatever it held."""
        numbers = math.prod(shape)
        if name not in self.kept or self.kept[name].numel() < numbers:
            self.kept[name] = self.like.new_empty(numbers)
        return self.kept[name][:numbers].view(shape)


class _Blocks:
    """Sums over points of every block ``i >= j``, in the order that the products leave them in."""

    def __init__(self, slots: list[Slot], *, like: Tensor, parts: Parts, space: Scratch) -> None:
        self.slots = slots
        self.parts = parts
        self.space = space
        sizes = {size for slot in slots for size in (slot.fan_out, slot.fan_in + 1)}
        self.stairs = {size: Stairs(size) for size in sizes}
        self.curved: dict[tuple[int, int], Tensor] = {}  # [o_i o_j, (k_i + 1) (k_j + 1)]
        self.crossed: dict[tuple[int, int], Tensor] = {}  # [o_j k_i, o_i (k_j + 1)]
        for place, curved, crossed in _sums(slots):
            self.curved[place] = like.new_zeros(curved)
            if math.prod(crossed) and parts.cross:
                self.crossed[place] = like.new_zeros(crossed)

    def add(self, chunk: Pass, weights: list[Tensor]) -> None:
        """Add one chunk of points to every block."""
        if self.parts.ggn or self.parts.activation:
            self._add_curved(chunk, weights)
        if self.parts.cross:
            for j in range(len(self.slots) - 1):
                self._add_neighbour(j + 1, chunk)
                self._add_crossed(j, chunk, weights)

    def _add_curved(self, chunk: Pass, weights: list[Tensor]) -> None:
        """Add ``(ãᵢ₋₁ ãᵢ₋₁ᵀ) ⊗ Sᵢ`` and its row of blocks for every map, last to first."""
        bent = self.space("bent", *chunk.curvature.shape)  # S [p, o, o]
        if self.parts.ggn:
            bent.copy_(chunk.curvature)
        else:
            bent.zero_()
        for i in range(len(self.slots) - 1, -1, -1):
            self._add_diagonal(i, bent, chunk)
            if i:
                # S W D with D = diag φ′: a row of blocks and the next S both start from it.
                scaled = times_matrix(bent, weights[i], out=self._stack("scaled", bent, weights[i]))
                scaled *= chunk.slopes[i - 1].unsqueeze(1)
                self._add_row(i, scaled, chunk, weights)
                bent = self._bend(i, scaled, chunk, weights[i])

    def _bend(self, i: int, scaled: Tensor, chunk: Pass, weight: Tensor) -> Tensor:
        """Return ``Sᵢ₋₁ = D (Wᵢᵀ Sᵢ Wᵢ) D + diag(∂ℓ/∂a φ″)`` [p, k, k] from ``Sᵢ Wᵢ D``."""
        turned = self.space("left", len(scaled), scaled.shape[2], scaled.shape[1])
        turned.copy_(scaled.transpose(1, 2))
        bent = times_matrix(turned, weight, out=self._stack("bent", turned, weight))
        bent *= chunk.slopes[i - 1].unsqueeze(1)
        if self.parts.activation:
            bent.diagonal(dim1=1, dim2=2).add_(chunk.bends[i - 1])
        return bent

    def _stack(self, name: str, left: Tensor, matrix: Tensor) -> Tensor:
        """Return a buffer for the product of a stack [p, a, b] and a matrix [b, c]."""
        return self.space(name, *left.shape[:2], matrix.shape[1])

    def _add_diagonal(self, i: int, curvature: Tensor, chunk: Pass) -> None:
        outer = self._packed("right", chunk.inputs[i].unsqueeze(2), chunk.inputs[i].unsqueeze(1))
        bent = self._packed("left", curvature, None)
        self.curved[i, i].addmm_(bent.T, outer)

    def _packed(self, name: str, left: Tensor, right: Tensor | None) -> Tensor:
        """Return the lower triangles of ``left``, or of outer products, packed [p, numbers]."""
        stairs = self.stairs[left.shape[1]]
        packed = self.space(name, len(left), stairs.numbers)
        for rows, place in stairs.steps():
            target = packed[:, place].unflatten(1, (-1, rows.stop))
            if right is None:
                target.copy_(left[:, rows, : rows.stop])
            else:
                torch.mul(left[:, rows], right[:, :, : rows.stop], out=target)
        return packed

    def _add_row(self, i: int, scaled: Tensor, chunk: Pass, weights: list[Tensor]) -> None:
        """Add ``(ãᵢ₋₁ ãⱼ₋₁ᵀ) ⊗ Sᵢ Wᵢ Rᵢ₋₁,ⱼ`` for every j < i, one more map at a time."""
        for j in range(i - 1, -1, -1):
            if j < i - 1:
                target = self._stack(f"walked {j % 2}", scaled, weights[j + 1])
                scaled = times_matrix(scaled, weights[j + 1], out=target)
                scaled *= chunk.slopes[j].unsqueeze(1)
            outer = self._outer(chunk.inputs[i], chunk.inputs[j])
            self.curved[i, j].addmm_(scaled.flatten(1).T, outer)

    def _add_crossed(self, j: int, chunk: Pass, weights: list[Tensor]) -> None:
        """Add ``(δᵢ ãⱼ₋₁ᵀ) ⊗ Rᵢ₋₁,ⱼ`` for every i > j + 1; the Jacobian is kept as Rᵀ [p, o, k]."""
        for i in range(j + 2, len(self.slots)):
            weight = weights[i - 1].T
            if i == j + 2:
                target = self.space("walked 0", len(chunk.slopes[j]), *weight.shape)
                turned = torch.mul(chunk.slopes[j].unsqueeze(2), weight, out=target)
            else:
                turned = times_matrix(
                    turned, weight, out=self._stack(f"walked {(i - j) % 2}", turned, weight)
                )
            turned *= chunk.slopes[i - 1].unsqueeze(1)
            outer = self._outer(chunk.deltas[i], chunk.inputs[j])
            self.crossed[i, j].addmm_(turned.flatten(1).T, outer)

    def _add_neighbour(self, i: int, chunk: Pass) -> None:
        """Add the cross-layer term of the maps ``i`` and ``i - 1``: diagonal in (k_i, o_{i-1})."""
        high, low = self.slots[i], self.slots[i - 1]
        outer = self._outer(chunk.deltas[i], chunk.slopes[i - 1])
        term = (outer.T @ chunk.inputs[i - 1]).view(high.fan_out, high.fan_in, low.fan_in + 1)
        block = self.curved[i, i - 1].view(
            high.fan_out, low.fan_out, high.fan_in + 1, low.fan_in + 1
        )
        block[:, :, :-1].diagonal(dim1=1, dim2=2).add_(term.transpose(1, 2))

    def _outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the products of every pair of columns, [p, a b]."""
        panel = self.space("right", len(left), left.shape[1], right.shape[1])
        torch.mul(left.unsqueeze(2), right.unsqueeze(1), out=panel)
        return panel.flatten(1)

    def write(self, hessian: Tensor) -> None:
        """Write every block, and its mirror image, where it belongs; the sums are freed."""
        for i, j in list(self.curved):
            block = self.curved.pop((i, j))
            if i == j:
                self._write_diagonal(hessian, i, block)
            else:
                self._write_pair(hessian, i, j, block, self.crossed.pop((i, j), None))

    def _write_diagonal(self, hessian: Tensor, i: int, block: Tensor) -> None:
        slot = self.slots[i]
        outputs = self.stairs[slot.fan_out].unfold(block.device)
        inputs = self.stairs[slot.fan_in + 1].unfold(block.device)
        for rows in tile_slices(slot.fan_out, slot.fan_out * inputs.numel(), like=block):
            tile = block[outputs[rows].flatten()][:, inputs.flatten()]
            tile = tile.view(-1, slot.fan_out, *inputs.shape)
            write_rows(hessian, slot, slot, rows, slot.units, tile)

    def _write_pair(
        self, hessian: Tensor, i: int, j: int, block: Tensor, crossed: Tensor | None
    ) -> None:
        high, low = self.slots[i], self.slots[j]
        block = block.view(high.fan_out, low.fan_out, high.fan_in + 1, low.fan_in + 1)
        if crossed is not None:
            crossed = crossed.view(low.fan_out, high.fan_in, high.fan_out, low.fan_in + 1)
        for rows in tile_slices(high.fan_out, block[0].numel(), like=block):
            tile = block[rows]
            if crossed is not None:
                tile[:, :, :-1] += crossed[:, :, rows].permute(2, 0, 1, 3)
            write_rows(hessian, high, low, rows, low.units, tile)
            write_columns(hessian, high, low, rows, low.units, tile)


def tile_slices(count: int, numbers: int, *, like: Tensor) -> Iterator[slice]:
    """Yield slices of ``count`` rows of ``numbers`` numbers each, of about one tile."""
    step = max(1, _tile_numbers(like) // numbers)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _tile_numbers(like: Tensor) -> int:
    return numbers_at_once(
        TILE_NUMBERS, device=like.device, itemsize=like.itemsize, num_buffers=NUM_TILES
    )


def write_rows(
    matrix: Tensor, high: Slot, low: Slot, rows: slice, columns: slice, tile: Tensor
) -> None:
    """Write the rows of some units of a map, in the columns of some of another or of its own.

    ``tile`` is [units, others, k_i + 1, k_j + 1]; in each row runs of ``others · k_j`` numbers.
    """
    weight, bias = high.part(rows)
    others, edges = low.part(columns)
    units, shape = len(tile), (tile.shape[1], low.fan_in)
    corner = matrix[weight, others].unflatten(0, (units, high.fan_in)).unflatten(2, shape)
    corner.copy_(tile[:, :, :-1, :-1].transpose(1, 2))
    edge = matrix[weight, edges].unflatten(0, (units, high.fan_in))
    edge.copy_(tile[:, :, :-1, -1].transpose(1, 2))
    matrix[bias, others].unflatten(1, shape).copy_(tile[:, :, -1, :-1])
    matrix[bias, edges].copy_(tile[:, :, -1, -1])


def write_columns(
    matrix: Tensor, high: Slot, low: Slot, rows: slice, columns: slice, tile: Tensor
) -> None:
    """Write the mirror image of ``write_rows``."""
    write_rows(matrix, low, high, columns, rows, tile.permute(1, 0, 3, 2))
