"""How many bytes of tensors are alive at once while something runs."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(run: Callable[[], object], *, held: Iterable[Tensor]) -> int:
    """Return the most bytes of tensors that are alive at once during a call.

    On a GPU what torch's allocator counts, less what else is alive there; on a CPU the tensors that
    operations return, in forward and backward passes, without the work space inside of them.

    Args:
        run: What to measure.
        held: Tensors that are alive before, to count from; an iterator, if the call frees some of
            them.
    """
    live, on_gpu = _LiveBytes(), False
    others = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    for value in held:
        live.see(value)
        on_gpu |= value.is_cuda
        # What the call frees must not be kept alive here.
        del value
    if not on_gpu:
        with live:
            run()
        return live.most
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated()) - (others - live.now)


class _LiveBytes(TorchDispatchMode):
    """Counts the storages of all tensors that operations return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}
        self.now = 0
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.see(value)
        return result

    def see(self, value: Tensor) -> None:
        """Count the storage of a tensor, once."""
        storage = value.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        former = self.sizes.get(place)
        if former is None:
            weakref.finalize(storage, self._free, place)
        self.sizes[place] = size
        self.now += size - (former or 0)
        self.most = max(self.most, self.now)

    def _free(self, place: int) -> None:
        self.now -= self.sizes.pop(place)
