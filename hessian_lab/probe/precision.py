"""Full precision inside curvature code, whatever the caller has allowed elsewhere."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

# What may be shortened: to TF32 on a GPU, to bfloat16 on some CPUs.
_BACKENDS: tuple[Any, ...] = (
    torch.backends.cuda.matmul,
    *(
        getattr(library, kind)
        for library, kinds in (
            (torch.backends.cudnn, ("conv", "rnn")),
            (torch.backends.mkldnn, ("matmul", "conv", "rnn")),
        )
        for kind in kinds
    ),
)
_EXACT = ("ieee", "none")
_DEVICES = ("cpu", "cuda")


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32, bfloat16 shortcuts and autocast off, and back to what they were."""
    with ExitStack() as stack:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        for backend in _BACKENDS:
            if backend.fp32_precision not in _EXACT:
                stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "ieee"
        yield
