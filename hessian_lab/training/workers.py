"""Processes that train, and end with the one that began them."""

import multiprocessing
import os
import signal as signals
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import Any

# Seconds between looks at the parent, and those that an orphan has for saving what it trains.
PERIOD, PATIENCE = 1.0, 60.0

# Of a worker process: whether to begin nothing more, and whether it is training.
_stopping: Event | None = None
_busy = threading.Event()


@contextmanager
def worker_pool(jobs: int) -> Iterator[tuple[ProcessPoolExecutor, Event]]:
    """Yield a pool of processes, and an event that tells them to begin nothing more.

    A worker whose parent is killed saves what it trains, and ends.
    """
    context = multiprocessing.get_context("spawn")
    stopping = context.Event()
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin, initargs=(stopping,)
    ) as pool:
        yield pool, stopping


@contextmanager
def working() -> Iterator[None]:
    """Do a worker's task, unless all were told to stop; an interrupt stops the others too.

    Raises:
        KeyboardInterrupt: If they were.
    """
    if _stopping is None:
        yield
        return
    if _stopping.is_set():
        raise KeyboardInterrupt
    _busy.set()
    try:
        yield
    except KeyboardInterrupt:
        _stopping.set()
        raise
    finally:
        _busy.clear()


def _begin(stopping: Any) -> None:
    """Let Ctrl-C reach a worker, which then saves what it has, and watch its parent."""
    global _stopping
    _stopping = stopping
    signals.signal(signals.SIGINT, signals.default_int_handler)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        time.sleep(PERIOD)
    if _stopping is not None:
        _stopping.set()
    if _busy.is_set():
        os.kill(os.getpid(), signals.SIGINT)
    deadline = time.monotonic() + PATIENCE
    while _busy.is_set() and time.monotonic() < deadline:
        time.sleep(0.05)
    os._exit(1)
