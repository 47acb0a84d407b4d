"""The dense Hessian by several processes: slabs of its rows and columns, or of its points."""

from typing import Any

from torch import Tensor, nn

from hessian_lab.errors import UsageError
from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.losses import Loss
from hessian_lab.probe.closed_bands import split, sum_slab
from hessian_lab.probe.closed_form import Scratch, slots_of
from hessian_lab.probe.closed_slabs import Band, Slab
from hessian_lab.probe.hessian import (
    checked_size,
    dense_ggn,
    dense_hessian,
    output_derivatives,
    require_hessian,
)
from hessian_lab.probe.kept_graph import symmetrize
from hessian_lab.probe.linearized import MATRICES, Matrix
from hessian_lab.probe.memory import undivided
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.ranks import Ranks
from hessian_lab.signal import Signal

# Slabs per rank: what arrives late is small, and the recursion that each repeats still cheap.
SLABS_PER_RANK = 4
# What writing a matrix takes, in units of summing it: the first rank's own work, so it sums less.
WRITING_SHARE = 0.25


@full_precision()
def shared_hessian(
    model: nn.Module, loss: Loss, signal: Signal, *, ranks: Ranks, matrix: Matrix = "hessian"
) -> Tensor | None:
    """Return the dense Hessian or GGN [n, n] on the first rank, None on the others.

    All ranks call it with the same arguments. For a ``CoordinateMLP`` each sums some slabs of the
    lower triangle over all points and sends them to the first, which writes them: in all half a
    matrix of traffic, and one slab of memory per rank beside the matrix itself. For any other
    module each takes its share of the points, and matrices are added up: a matrix of memory and
    two of traffic per rank.

    Raises:
        ValueError: For another matrix.
        UsageError: For fewer points than ranks.
        TypeError: If signal and parameters differ in dtype.
        ResourceError: If the matrix does not fit, before it is allocated.
    """
    if matrix not in MATRICES:
        raise ValueError(f"matrix must be one of {', '.join(MATRICES)}, got {matrix!r}.")
    _require_points(signal, ranks)
    size = checked_size(model, signal, None)
    derivatives = output_derivatives(model, loss, signal.coords, signal.values)
    if derivatives is None:
        return _summed(model, loss, signal, matrix, ranks)
    assert isinstance(model, CoordinateMLP)
    if ranks.first:
        with undivided():
            require_hessian(model, size, signal.num_points)
    work = _Slabs(model, signal.coords, derivatives, matrix, ranks)
    if ranks.first:
        return work.written(size)
    work.send()
    return None


def own_points(signal: Signal, ranks: Ranks) -> Signal:
    """Return a rank's share of a signal: consecutive points, as many as each other's.

    Raises:
        UsageError: For fewer points than ranks.
    """
    _require_points(signal, ranks)
    ends = (rank * signal.num_points // ranks.count for rank in (ranks.rank, ranks.rank + 1))
    place = slice(*ends)
    return Signal(signal.coords[place], signal.values[place], signal.loss)


def _require_points(signal: Signal, ranks: Ranks) -> None:
    if signal.num_points < ranks.count:
        raise UsageError(
            f"signal must have a point for every rank, got {signal.num_points} for {ranks.count} "
            "ranks. Start fewer."
        )


def _summed(
    model: nn.Module, loss: Loss, signal: Signal, matrix: Matrix, ranks: Ranks
) -> Tensor | None:
    own = own_points(signal, ranks)
    dense = dense_ggn if matrix == "ggn" else dense_hessian
    found = dense(model, loss, own).mul_(own.num_points / signal.num_points)
    total = ranks.total(found)
    if not ranks.first:
        return None
    # Entries that mirror each other may have been added up in different orders.
    symmetrize(total)
    return total


class _Slabs:
    """Which rank sums which slab, and how the sums come to the first."""

    def __init__(
        self,
        model: CoordinateMLP,
        coords: Tensor,
        derivatives: tuple[Tensor, Tensor],
        matrix: Matrix,
        ranks: Ranks,
    ) -> None:
        self.model, self.coords, self.derivatives = model, coords, derivatives
        self.residual = matrix == "hessian"
        self.ranks = ranks
        self.slots = slots_of(model)
        self.scratch: dict[int, Scratch] = {}
        slabs = split(self.slots, SLABS_PER_RANK * ranks.count, residual=self.residual)
        self.own = dealt(slabs, ranks.count)

    def written(self, size: int) -> Tensor:
        """Return the matrix, with the slabs of all ranks."""
        matrix = self.coords.new_empty(size, size)
        others = range(1, self.ranks.count)
        for turn in range(max(map(len, self.own))):
            due = [rank for rank in others if turn < len(self.own[rank])]
            expected = [self._expected(rank, self.own[rank][turn]) for rank in due]
            if turn < len(self.own[0]):
                self._sum(self.own[0][turn]).write(matrix)
            for slab, handle in expected:
                self.ranks.arrived(handle)
                slab.write(matrix)
        return matrix

    def send(self) -> None:
        """Send this rank's slabs."""
        for bands in self.own[self.ranks.rank]:
            self.ranks.send(self._sum(bands).sums)

    def _expected(self, rank: int, bands: list[Band]) -> tuple[Slab, Any]:
        """Return a slab that a rank is going to send, and what tells that it is there."""
        space = self.scratch.setdefault(rank, Scratch(self.coords))
        slab = Slab(self.slots, bands, residual=self.residual, space=space)
        return slab, self.ranks.receive(slab.sums, rank)

    def _sum(self, bands: list[Band]) -> Slab:
        return sum_slab(
            self.model,
            self.coords,
            *self.derivatives,
            bands=bands,
            residual=self.residual,
            space=self.scratch.setdefault(0, Scratch(self.coords)),
        )


def dealt(slabs: list[list[Band]], count: int) -> list[list[list[Band]]]:
    """Return the slabs of every rank; the first has fewer, as it writes those of all."""
    share = max(0.0, 1 - WRITING_SHARE * (count - 1)) / count
    few = round(share * len(slabs))
    rest = slabs[few:]
    return [slabs[:few], *(rest[rank :: count - 1] for rank in range(count - 1))]
