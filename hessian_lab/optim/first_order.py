"""torch's SGD and Adam, with closures that leave the backward pass to the optimizer."""

from collections.abc import Callable

import torch
from torch import Tensor


def filling_gradients(
    optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    """Return a closure that also fills ``.grad``, as torch's own optimizers expect."""

    def filled() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = closure()
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return filled


class SGD(torch.optim.SGD):
    """``torch.optim.SGD`` with a closure that returns the loss and does not call backward."""

    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take one step; return the loss before it."""
        return super().step(filling_gradients(self, closure))  # type: ignore[no-any-return, arg-type]


class Adam(torch.optim.Adam):
    """``torch.optim.Adam`` with a closure that returns the loss and does not call backward."""

    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take one step; return the loss before it."""
        return super().step(filling_gradients(self, closure))  # type: ignore[no-any-return]
