"""Full precision inside curvature code, whatever the caller has allowed elsewhere."""

import threading
from collections.abc import Iterator
from contextlib import ContextDecorator, ExitStack, contextmanager
from typing import Any

import torch

# What may be shortened: to TF32 on a GPU, to bfloat16 on some CPUs.
_KINDS = (
    ("cuda", "matmul", "tf32"),
    ("cudnn", "conv", "tf32"),
    ("cudnn", "rnn", "tf32"),
    ("mkldnn", "matmul", "bf16"),
    ("mkldnn", "conv", "bf16"),
    ("mkldnn", "rnn", "bf16"),
)
_BACKENDS: tuple[Any, ...] = tuple(
    getattr(getattr(torch.backends, library), kind) for library, kind, _ in _KINDS
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


def shortcuts() -> list[str]:
    """Return what is on that shortens numbers, such as ``cuda.matmul tf32`` or ``autocast cpu``."""
    named = zip(_KINDS, _BACKENDS, strict=True)
    on = [
        f"{library}.{kind} {backend.fp32_precision}"
        for (library, kind, _), backend in named
        if backend.fp32_precision not in _EXACT
    ]
    return on + [f"autocast {each}" for each in _DEVICES if torch.is_autocast_enabled(each)]


@contextmanager
def switched_on() -> Iterator[None]:
    """Switch every shortcut of a backend on, to see that it goes off, and back to what it was."""
    former = [backend.fp32_precision for backend in _BACKENDS]
    try:
        for backend, (_, _, shortest) in zip(_BACKENDS, _KINDS, strict=True):
            backend.fp32_precision = shortest
        yield
    finally:
        for backend, precision in zip(_BACKENDS, former, strict=True):
            backend.fp32_precision = precision


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
