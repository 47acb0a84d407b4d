"""A signal: coordinates and the values that a field is to take there."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hessian_lab.losses import Loss, mse


@dataclass(frozen=True)
class Source:
    """Where a signal comes from: name, licence and author, and the SHA-256 of its bytes."""

    name: str
    attribution: str
    sha256: str


@dataclass(frozen=True)
class Signal:
    """Points of a signal, and the loss that a field is fitted with.

    Attributes:
        coords: Coordinates [p, d]; those of the bundled signals lie in [-1, 1].
        values: Values [p, c], in the dtype and on the device of ``coords``.
        loss: Maps predictions [p, c] and values [p, c] to their mean loss.
        shape: The grid that the points fill in row-major order, (rows, columns) of an image.
        source: What the run record says of the data.

    Raises:
        TypeError: If coordinates or values are no floating-point tensors, or of two dtypes.
        ValueError: If shapes do not match, there is no point, or a number is not finite.
    """

    coords: Tensor
    values: Tensor
    loss: Loss = mse
    shape: tuple[int, ...] | None = None
    source: Source | None = None

    def __post_init__(self) -> None:
        for name in ("coords", "values"):
            tensor = getattr(self, name)
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                kind = getattr(tensor, "dtype", type(tensor).__name__)
                raise TypeError(f"{name} must be a floating-point tensor, got {kind}.")
            if tensor.ndim != 2 or 0 in tensor.shape:
                expected = "[p, d]" if name == "coords" else "[p, c]"
                raise ValueError(f"{name} must have shape {expected}, got {list(tensor.shape)}.")
            if not tensor.isfinite().all():
                raise ValueError(f"{name} must be finite, got NaN or Inf.")
        if len(self.coords) != len(self.values):
            raise ValueError(
                f"values must have one row per point, {len(self.coords)}, got {len(self.values)}."
            )
        if self.coords.dtype != self.values.dtype:
            raise TypeError(
                f"values must have the dtype of coords, {self.coords.dtype}, "
                f"got {self.values.dtype}."
            )

    @property
    def num_points(self) -> int:
        """The number of points ``p``."""
        return len(self.coords)

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> "Signal":
        """Return the signal in another precision or on another device."""
        target: dict[str, Any] = {"dtype": dtype, "device": device}
        return replace(self, coords=self.coords.to(**target), values=self.values.to(**target))
