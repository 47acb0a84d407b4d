"""What a measurement writes to and reads from the disk, where memory is too small."""

from collections.abc import Sequence
from dataclasses import dataclass

from hessian_lab.probe.lanczos import STEP_VECTORS
from hessian_lab.probe.scratch import DiskRates

# How often a measurement reads a dense matrix: for its checks, and for the eigenvalue problem.
DENSE_READS = 7


@dataclass(frozen=True)
class Traffic:
    """Bytes of scratch files.

    Attributes:
        held: The most at a time.
        written: In all.
        read: In all, from the disk itself.
    """

    held: int = 0
    written: int = 0
    read: int = 0

    def seconds(self, rates: DiskRates) -> float:
        """Return the time that a disk of some speed takes."""
        return self.written / rates.write + self.read / rates.read


@dataclass(frozen=True)
class Basis:
    """The vectors of Lanczos runs that advance together.

    Attributes:
        starts: How many runs.
        steps: The vectors of each.
        vector: The bytes of one.
        blocks: How often such a basis is built anew, one after the other.
    """

    starts: int
    steps: int
    vector: int
    blocks: float = 1.0

    @property
    def held(self) -> int:
        """Its bytes."""
        return self.starts * (self.steps + 1) * self.vector

    @property
    def working(self) -> int:
        """The bytes of the vectors beside it that a step works in."""
        return STEP_VECTORS * self.starts * self.vector

    def traffic(self, room: int) -> Traffic:
        """Return what it writes and reads as a file, with so much memory left for its pages.

        A step multiplies all vectors so far with the new one, and subtracts their multiples from
        it: two passes, of which the second finds the vectors of one start in memory if they fit.
        """
        num_vectors = self.starts * self.steps
        passes = 1 if (self.steps + 1) * self.vector <= room else 2
        read = passes * num_vectors * self.steps * self.vector / 2
        return Traffic(
            self.held, round(self.blocks * num_vectors * self.vector), round(self.blocks * read)
        )


def basis_traffic(bases: Sequence[Basis], room: int | None) -> tuple[int, Traffic]:
    """Return the most memory that bases take one after the other, and the traffic of the others.

    Args:
        bases: In any order.
        room: The bytes that are free; None if none need a file.
    """
    kept = [base for base in bases if room is None or base.held + base.working <= room]
    filed = [base for base in bases if base not in kept]
    needed = max(
        [base.held + base.working for base in kept] + [base.working for base in filed], default=0
    )
    found = [base.traffic(max(0, (room or 0) - base.working)) for base in filed]
    return needed, Traffic(
        max((one.held for one in found), default=0),
        sum(one.written for one in found),
        sum(one.read for one in found),
    )


def dense_traffic(size: int, room: int) -> Traffic:
    """Return the traffic of a dense matrix of doubles [n, n] in a file.

    Nothing is read again where its pages stay in memory until the eigenvalue problem takes that.
    """
    held = 8 * size**2
    return Traffic(held, held, held * (1 if held <= room else DENSE_READS))
