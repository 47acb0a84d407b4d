"""A CUDA device that is pretended: what would go wrong on one shows on a machine without.

Inside ``pretended_cuda()`` tensors can be made on ``"cuda:0"`` and moved there. They say that they
live there, and compute on the CPU. As on a real device, an operation on tensors of both places
raises, and whatever makes the host wait for the device is noted: reading a number, copies from and
to the host, results whose size depends on data.
"""

import contextlib
import itertools
import traceback
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hessian_lab.probe import graphs

CUDA = torch.device("cuda", 0)
FREE_BYTES = 1 << 36
aten = torch.ops.aten
# Results whose size only the device knows, and solvers that report whether they succeeded.
WAITS = {
    aten._local_scalar_dense.default,
    aten._linalg_check_errors.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
}


class OnCuda(torch.Tensor):
    """A tensor that says it is on the device, around one on the CPU."""

    # To torch's own C++ it is on the meta device, which computes nothing and needs no driver.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        size = inner.untyped_storage().nbytes() // inner.element_size()
        whole = torch.empty(size, dtype=inner.dtype, device="meta")
        shape = whole.as_strided(inner.shape, inner.stride(), inner.storage_offset())
        return torch.Tensor._make_subclass(cls, shape)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} outside of pretended_cuda()")

    @property
    def device(self):
        return CUDA

    @property
    def is_cuda(self):
        return True

    def tolist(self):
        return self.cpu().tolist()

    def new_tensor(self, data, *, dtype=None):
        return torch.tensor(data, dtype=dtype or self.dtype, device=CUDA)

    def __reduce_ex__(self, protocol):
        # What is loaded is on the CPU, as with map_location="cpu".
        return self.inner.detach().clone().__reduce_ex__(protocol)

    def __repr__(self):
        return f"OnCuda({self.inner})"


class Pretended(TorchDispatchMode):
    """Runs every operation, and knows what the host did meanwhile.

    ``waits`` names what made it wait, with its place; ``recorded`` counts graphs.
    """

    def __init__(self):
        super().__init__()
        self.waits = []
        self.recorded = 0

    @contextlib.contextmanager
    def waiting(self):
        """Note only what happens inside."""
        former, self.waits = self.waits, []
        try:
            yield self.waits
        finally:
            self.waits = former

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = any(isinstance(x, OnCuda) for x in tensors)
        target = kwargs.get("device")
        goes = None if target is None else torch.device(target).type != "cpu"
        if not there and not goes:
            return function(*args, **kwargs)
        self._require_one_place(function, args, tensors)
        if self._waits(function, args, kwargs, goes):
            self.waits.append(f"{function} at {_place()}")
        if goes:
            kwargs["device"] = torch.device("cpu")
        out = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        written = _written(function, args, kwargs)
        if written:
            return written[0] if len(written) == 1 else tuple(written)
        if goes is False:
            return out
        return tree_map(lambda x: OnCuda(x) if isinstance(x, torch.Tensor) else x, out)

    @staticmethod
    def _require_one_place(function, args, tensors):
        here = [x for x in tensors if not isinstance(x, OnCuda)]
        if function in COPIES or all(x.ndim == 0 for x in here):
            return
        if function in INDEXED:
            # Indices on the host are copied to the device; nothing else is.
            rest = [args[0], *args[2:3]]
            places = {isinstance(x, OnCuda) for x in rest if x.ndim}
            if places == {True}:
                return
        raise RuntimeError(f"{function} got tensors on cuda:0 and on the cpu, at {_place()}.")

    @staticmethod
    def _waits(function, args, kwargs, goes):
        if function in WAITS:
            return True
        if function is aten.where.self:
            # Numbers of the host are moved first.
            return not all(isinstance(x, OnCuda) for x in args)
        if function is aten._to_copy.default:
            beside = kwargs.get("non_blocking") and getattr(args[0], "pinned", False)
            return goes is not None and goes != isinstance(args[0], OnCuda) and not beside
        if function is aten.copy_.default:
            return len({isinstance(x, OnCuda) for x in args[:2]}) == 2
        if function in INDEXED:
            indices = [x for x in tree_leaves(args[1]) if x is not None]
            if any(not isinstance(x, OnCuda) for x in indices):
                return True
            filled = function is not aten.index.Tensor and args[2].numel() == 1
            return not filled and any(x.dtype == torch.bool for x in indices)
        return False


def _written(function, args, kwargs):
    """Return the tensors that an operation writes to and gives back."""
    schema = function._schema
    given = list(itertools.zip_longest(schema.arguments, args))
    found = []
    for argument, value in given[: len(schema.arguments)]:
        value = kwargs.get(argument.name, value)
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(value)
    return found if schema.returns else []


def _inner(value):
    return value.inner if isinstance(value, OnCuda) else value


def _place():
    frames = [one for one in traceback.extract_stack() if "hessian_lab" in one.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "a test"


class _Recorder:
    """In place of a CUDA graph: a call that waits for the device cannot be recorded."""

    def __init__(self, mode):
        self.mode = mode

    def warm(self, calls):
        graphs.make(calls)

    def record(self, calls):
        with self.mode.waiting() as waits:
            graphs.make(calls)
        if waits:
            raise RuntimeError(f"operation not permitted when stream is capturing: {waits[0]}")
        self.mode.recorded += 1
        return mock.Mock(replay=lambda: graphs.make(calls))


def _pinned(tensor):
    found = tensor.clone()
    found.pinned = True
    return found


@contextlib.contextmanager
def pretended_cuda():
    """Pretend a device inside; yield what notes when the host waits for it."""
    lifted = torch._C._only_lift_cpu_tensors()
    known = {
        "_lazy_init": None,
        "mem_get_info": (FREE_BYTES, 2 * FREE_BYTES),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "device_count": 1,
        "get_device_name": "pretended",
        "synchronize": None,
    }
    torch._C._set_only_lift_cpu_tensors(True)
    graphs.recorder_of.cache_clear()
    try:
        with contextlib.ExitStack() as stack:
            for name, value in known.items():
                stack.enter_context(mock.patch(f"torch.cuda.{name}", return_value=value))
            stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", _pinned))
            mode = stack.enter_context(Pretended())
            record = {"cuda": lambda _: _Recorder(mode)}
            stack.enter_context(mock.patch.dict(graphs.RECORDERS, record))
            yield mode
    finally:
        graphs.recorder_of.cache_clear()
        torch._C._set_only_lift_cpu_tensors(lifted)
