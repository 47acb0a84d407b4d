"""Modules around modules, under which gradients stay local or second derivatives fail."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

# name of the wrapper -> where the module inside is.
DISTRIBUTED = {
    "DistributedDataParallel": "model.module",
    "FullyShardedDataParallel": "model.module",
}
WRAPPERS = DISTRIBUTED | {
    "DataParallel": "model.module",
    "OptimizedModule": "model._orig_mod",
}
# What torch says of a compiled graph that is differentiated twice.
COMPILED = ("double backward", "donated buffer")


@contextmanager
def wrappers_called() -> Iterator[list[str]]:
    """Record which wrappers for several ranks are called inside, by whatever module."""
    found: list[str] = []
    # Where there are no ranks, nothing is hooked: compiled graphs would be compiled anew for it.
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        yield found
        return

    def see(module: nn.Module, _: object) -> None:
        if type(module).__name__ in DISTRIBUTED:
            found.append(type(module).__name__)

    hook = register_module_forward_pre_hook(see)
    try:
        yield found
    finally:
        hook.remove()


def refuse(found: list[str], optimizer: str, *, may_fill: bool) -> None:
    """Check what a closure called that left differentiation to the optimizer.

    Args:
        found: Names of wrappers.
        optimizer: Its class.
        may_fill: Whether it also takes gradients that the closure has filled in.

    Raises:
        RuntimeError: If there is a wrapper: the ranks would go different ways.
    """
    for name in found:
        cure = "call loss.backward() in the closure" if may_fill else "use sgd or adam"
        raise RuntimeError(
            f"closure must not call a {name}: it sums gradients over ranks in loss.backward() "
            f"alone, and {optimizer} differentiates otherwise, so each rank would go its own way. "
            f"Call {WRAPPERS[name]} and sum the loss over ranks, or {cure}."
        )


@contextmanager
def explained(optimizer: str) -> Iterator[None]:
    """Say what to do where a compiled graph cannot be differentiated twice.

    Raises:
        RuntimeError: In place of torch's own.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in COMPILED):
            raise
        raise RuntimeError(
            f"closure must not call a compiled module: {optimizer} differentiates twice, which "
            f"its graphs do not survive. Call {WRAPPERS['OptimizedModule']}."
        ) from error
