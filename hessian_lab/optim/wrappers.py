"""Modules around modules, under which second derivatives fail or gradients stay local."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

# name of the wrapper -> where the module inside is.
DISTRIBUTED = {
    "DataParallel": "model.module",
    "DistributedDataParallel": "model.module",
    "FullyShardedDataParallel": "model.module",
}
WRAPPERS = DISTRIBUTED | {"OptimizedModule": "model._orig_mod"}


@contextmanager
def wrappers_called() -> Iterator[list[str]]:
    """Record the names of the wrappers that are called inside, by whatever module."""
    found: list[str] = []

    def see(module: nn.Module, _: object) -> None:
        if type(module).__name__ in WRAPPERS:
            found.append(type(module).__name__)

    hook = register_module_forward_pre_hook(see)
    try:
        yield found
    finally:
        hook.remove()


def refuse(found: list[str], optimizer: str, *, needs_graph: bool) -> None:
    """Check what a closure called that left differentiation to the optimizer.

    Raises:
        RuntimeError: If a wrapper would make the result wrong.
    """
    for name in found:
        if name in DISTRIBUTED:
            raise RuntimeError(
                f"closure must not call a {name}: it sums gradients over ranks in loss.backward() "
                f"alone, and {optimizer} differentiates otherwise, so each rank would go its own "
                f"way. Call {WRAPPERS[name]} and sum the loss over ranks, "
                + (
                    "or use sgd or adam."
                    if needs_graph
                    else "or call loss.backward() in the closure."
                )
            )
        if needs_graph:
            raise RuntimeError(
                f"closure must not call an {name}: {optimizer} differentiates twice, which "
                f"compiled graphs do not survive. Call {WRAPPERS[name]}."
            )
