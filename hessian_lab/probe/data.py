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

    Raises:
        TypeError: If ``data`` is none of these, can be gone through only once, or holds something
            that cannot be cut, or ``chunk_size`` is no integer.
        ValueError: If it is empty, or ``chunk_size`` is below 1.
    """

    def __init__(self, data: Data, *, chunk_size: int | None = None) -> None:
        if chunk_size is not None and type(chunk_size) is not int:
            raise TypeError(f'chunk_size must be an integer, None or "auto", got {chunk_size!r}.')
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
        self.source = _batches(data)
        self.chunk_size = chunk_size

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.source):
            inputs, targets = _pair(batch, number)
            if self.chunk_size is None or len(targets) <= self.chunk_size:
                yield inputs, targets
                continue
            if not isinstance(inputs, Tensor):
                raise TypeError(
                    f"chunk_size needs inputs that are tensors, got {type(inputs).__name__}. "
                    "Hand in smaller batches."
                )
            yield from zip(
                inputs.split(self.chunk_size), targets.split(self.chunk_size), strict=True
            )

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
        points.source, points.chunk_size = self.source, chunk_size
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
