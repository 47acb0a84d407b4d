"""Full precision inside curvature code, whatever the caller has allowed elsewhere."""

import threading
from contextlib import ContextDecorator, ExitStack
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


class _State(threading.local):
    depth = 0
    stack = ExitStack()


_state = _State()


class full_precision(ContextDecorator):
    """Switch TF32, bfloat16 shortcuts and autocast off, and back to what they were.

    Double precision has no shortcut, and those of half precision are never met: operators compute
    in float32 or float64.

    A context and a decorator. The outermost one of a thread asks every switch, which takes as long
    as a product of a small matrix; those inside it ask none.
    """

    def __enter__(self) -> None:
        if not _state.depth:
            _state.stack = _switched_off()
        _state.depth += 1

    def __exit__(self, *_: object) -> None:
        _state.depth -= 1
        if not _state.depth:
            _state.stack.close()


def _switched_off() -> ExitStack:
    """Switch off what is on, and return what switches it on again."""
    with ExitStack() as stack:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        for backend in _BACKENDS:
            if backend.fp32_precision not in _EXACT:
                stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "ieee"
        return stack.pop_all()
