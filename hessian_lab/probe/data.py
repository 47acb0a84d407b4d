"""The points that a curvature matrix is a mean over: a signal, a pair, or batches."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from hessian_lab.signal import Signal

Data = Signal | tuple[Any, Tensor] | Iterable[tuple[Any, Tensor]]
Batch = tuple[Any, Tensor]


class Points:
    """Data in batches that can be gone through any number of times.

    Args:
        data: A ``Signal``, a pair (inputs, targets), or a re-iterable of such pairs, such as a
            ``DataLoader`` that does not shuffle what depends on the order.
        chunk_size: The most points per batch; larger ones are cut.
        share: (i, k): the i-th of k even parts of every batch alone, i from 0.

    Raises:
        TypeError: If ``data`` is none of these, can be gone through only once, or holds something
            that cannot be cut, or ``chunk_size`` is no integer.
        ValueError: If it is empty, or ``chunk_size`` is below 1.
    """

    def __init__(
        self, data: Data, *, chunk_size: int | None = None, share: tuple[int, int] = (0, 1)
    ) -> None:
        if chunk_size is not None and type(chunk_size) is not int:
            raise TypeError(f'chunk_size must be an integer, None or "auto", got {chunk_size!r}.')
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
        self.source = _batches(data)
        self.chunk_size = chunk_size
        self.share = share

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.source):
            inputs, targets = _pair(batch, number)
            place = self._place(len(targets))
            size = place.stop - place.start
            pieces = self.chunk_size or max(1, size)
            if size == len(targets) <= pieces:
                yield inputs, targets
                continue
            if not isinstance(inputs, Tensor):
                raise TypeError(
                    f"chunk_size needs inputs that are tensors, got {type(inputs).__name__}. "
                    "Hand in smaller batches."
                    if size == len(targets)
                    else "ranks need inputs that are tensors, to share the points, got "
                    f"{type(inputs).__name__}. Use one process."
                )
            if size:
                yield from zip(
                    inputs[place].split(pieces), targets[place].split(pieces), strict=True
                )

    def _place(self, num_points: int) -> slice:
        """Return which points of a batch are in the share."""
        part, parts = self.share
        return slice(part * num_points // parts, (part + 1) * num_points // parts)

    def first(self) -> Batch:
        """Return the first batch.

        Raises:
            ValueError: If there is none.
        """
        for batch in self:
            return batch
        raise ValueError("data must hold at least one batch, got none.")

    def in_chunks(self, chunk_size: int | None) -> "Points":
        """Return the same points in other chunks."""
        points = object.__new__(Points)
        points.source, points.chunk_size, points.share = self.source, chunk_size, self.share
        return points


def _batches(data: Data) -> Iterable[Batch]:
    if isinstance(data, Signal):
        return [(data.coords, data.values)]
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[1], Tensor):
        return [(data[0], data[1])]
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(
            "data must be a Signal, a pair (inputs, targets), or a re-iterable of such pairs, "
            f"got {type(data).__name__}."
        )
    if isinstance(data, Iterator):
        raise TypeError(
            f"data must be re-iterable, got a {type(data).__name__} that can be gone through only "
            "once. Pass list(data)."
        )
    return data  # type: ignore[return-value]


def _pair(batch: Any, number: int) -> Batch:
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor)):
        raise TypeError(
            f"batch {number} of data must be a pair (inputs, targets), got {type(batch).__name__}."
        )
    inputs, targets = batch
    if targets.ndim == 0 or not len(targets):
        raise ValueError(f"batch {number} of data must hold at least one point, got none.")
    if isinstance(inputs, Tensor) and len(inputs) != len(targets):
        raise ValueError(
            f"batch {number} of data must have one target per input, got {len(inputs)} inputs and "
            f"{len(targets)} targets."
        )
    return inputs, targets
