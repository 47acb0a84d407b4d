"""Calls on fixed buffers that a GPU records once and replays as one.

A product of a small field is some fifty calls, each of which takes the host longer to launch than
the device to do. A CUDA graph launches them all at once.

Steps of optimizers are not recorded: their closure is the user's, which may look at the device or
give its tensors another place each time. Nor are products of other modules, which autograd makes.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Call = Callable[[], object]
# The run that is recorded: what is used but once is not worth it.
RECORDED_RUN = 2

logger = logging.getLogger(__name__)


class Graph(Protocol):
    """Calls that were recorded."""

    def replay(self) -> None:
        """Make them all."""


class Recorder(Protocol):
    """What records calls on one device."""

    def warm(self, calls: Sequence[Call]) -> None:
        """Make calls where they are to be recorded."""

    def record(self, calls: Sequence[Call]) -> Graph:
        """Return calls as a graph, without making them.

        Raises:
            RuntimeError: If one of them cannot be recorded.
        """


class CudaRecorder:
    """Records on a stream of its own of a CUDA device.

    What calls allocate for themselves lies in a pool of each graph's own. The stream's cuBLAS
    workspace is allocated by the run that warms it up, outside of any pool; all graphs of a device
    share it, so that one may not run beside another, on several threads or streams.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def warm(self, calls: Sequence[Call]) -> None:
        """Make calls on the stream, after what came before and before what follows."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            make(calls)
        current.wait_stream(self.stream)

    def record(self, calls: Sequence[Call]) -> Graph:
        """Return calls as a graph, without making them.

        Raises:
            RuntimeError: If one of them cannot be recorded: it waits for the device, say.
        """
        with torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            current = torch.cuda.current_stream()
            recording = torch.cuda.graph(
                graph, stream=self.stream, capture_error_mode="thread_local"
            )
            try:
                with recording:
                    make(calls)
            finally:
                # A recording that fails leaves its own stream behind.
                torch.cuda.set_stream(current)
        return graph


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}


class Replayed:
    """A list of calls whose operands stay where they are, to be made again and again.

    On the CPU they are made one by one. On a CUDA device the first run makes them, the second
    makes them on the stream on which it then records them, and all others replay what was recorded.
    Where that fails they are made one by one again; it is logged.

    Args:
        calls: Kept, and with them the buffers that a graph writes to without owning them.
        device: Where the buffers are.
    """

    def __init__(self, calls: Sequence[Call], device: torch.device) -> None:
        self.calls = calls
        self.device = device
        self.graph: Graph | None = None
        self._runs = 0

    def __call__(self) -> None:
        """Make the calls."""
        if self.graph is not None:
            self.graph.replay()
            return
        self._runs += 1
        recorder = recorder_of(self.device) if self._runs == RECORDED_RUN else None
        if recorder is None:
            make(self.calls)
            return
        recorder.warm(self.calls)
        try:
            self.graph = recorder.record(self.calls)
        except RuntimeError as error:
            _tell(str(error).splitlines()[0])
            # What the recording left of the buffers is not known.
            make(self.calls)


@functools.cache
def recorder_of(device: torch.device) -> Recorder | None:
    """Return what records on a device, or None where nothing is recorded."""
    kind = RECORDERS.get(device.type)
    return None if kind is None else kind(device)


def make(calls: Sequence[Call]) -> None:
    """Make calls one by one."""
    for call in calls:
        call()


@functools.cache
def _tell(reason: str) -> None:
    """Log once why products are not replayed."""
    logger.warning("products are not replayed as a CUDA graph: %s", reason)
