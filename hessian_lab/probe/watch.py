"""Ranks that watch over each other: one that fails or falls silent ends all, with its reason."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Seconds between two signs of life, and after how many without one a rank counts as dead.
BEAT, SILENCE = 1.0, 30.0
# How long the first sign may take: ranks start at different times.
COMING = 60.0
# Seconds that a rank has to end by itself once it knows; it may be deep in a library.
GRACE = 5.0
# Keys of the store: why the job fails, and how many know it.
FAILED, KNOWN = "watch/failed", "watch/known"
# What a rank that has left adds to its beats.
LEFT = 1 << 40

# Watches of this process that run now.
_running: list["Watch"] = []

logger = logging.getLogger(__name__)


@contextmanager
def unheard() -> Iterator[None]:
    """Excuse the silence of this rank during work that keeps Python's lock from all threads.

    If it is stopped meanwhile, others wait; if it is killed, they see it by their connections.
    """
    watches = list(_running)
    for one in watches:
        one.excuse()
    try:
        yield
    finally:
        for one in watches:
            one.resume()


class Watch(threading.Thread):
    """A thread that tells the other ranks that this one lives, and sees whether they do.

    Collectives cannot be trusted with that: a rank may compute for hours while the others wait, so
    their timeouts are long, and what waits in one does not listen. When a rank has failed, or given
    no sign for half a minute (killed, stopped, cut off), every other one logs its reason and, if it
    has not ended by itself a few seconds later, exits with status 1. Files are written whole or not
    at all, so what was saved is intact. A job that is suspended as a whole goes on when resumed.

    Args:
        store: A ``torch.distributed.Store`` of this thread's own.
        rank: The number of this rank.
        count: How many there are.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        super().__init__(name="hessian-lab-watch", daemon=True)
        self.store = store
        self.rank = rank
        self.others = [other for other in range(count) if other != rank]
        self.count = count
        self.reason: str | None = None
        self._stopped = threading.Event()
        self._noticed = threading.Event()
        self._beats: dict[int, tuple[int, float]] = {}
        self._looked = time.monotonic()

    def run(self) -> None:
        """Beat, and look after the others, until stopped."""
        _running.append(self)
        try:
            self._watch()
        finally:
            _running.remove(self)

    def excuse(self) -> None:
        """Tell the others that no beats will come for a while."""
        with contextlib.suppress(RuntimeError):
            self.store.add(_excuse_of(self.rank), 1)

    def resume(self) -> None:
        """Beat, and take the excuse back."""
        with contextlib.suppress(RuntimeError):
            self.store.add(_beat_of(self.rank), 1)
            self.store.add(_excuse_of(self.rank), -1)

    def _watch(self) -> None:
        stopped = False
        while not stopped:
            try:
                self.store.add(_beat_of(self.rank), 1)
                reason = self._failure() or self._silence()
            except RuntimeError:
                reason = "the rank or launcher that the others meet at is gone"
            if reason and not self._stopped.is_set():
                self._end(reason)
            stopped = self._stopped.wait(BEAT)

    def stop(self) -> None:
        """Leave the others in peace: this rank is done.

        The first waits a moment until all have said so: they may meet at a store of its process.
        """
        self._stopped.set()
        self.join()
        with contextlib.suppress(RuntimeError):
            self.store.add(_beat_of(self.rank), LEFT)
            deadline = time.monotonic() + GRACE
            waits = self.rank == 0 and not self._noticed.is_set()
            for other in self.others if waits else ():
                while self.store.add(_beat_of(other), 0) < LEFT and time.monotonic() < deadline:
                    time.sleep(BEAT / 100)

    def fail(self, reason: str) -> None:
        """Tell the others why this rank ends, and give them a moment to take note."""
        self._stopped.set()
        if self._noticed.is_set():
            return
        with contextlib.suppress(RuntimeError):
            self.store.compare_set(FAILED, "", f"rank {self.rank}: {reason}")
            known = self.store.add(KNOWN, 1)
            deadline = time.monotonic() + GRACE
            while known < self.count and time.monotonic() < deadline:
                time.sleep(BEAT / 10)
                known = self.store.add(KNOWN, 0)

    def reason_now(self) -> str | None:
        """Return why the job fails, waiting a moment for whoever knows to say it."""
        self._noticed.wait(GRACE)
        return self.reason

    def _failure(self) -> str | None:
        """Return the reason of a rank that has failed, or None."""
        return self.store.get(FAILED).decode() if self.store.check([FAILED]) else None

    def _silence(self) -> str | None:
        """Return which rank has given no sign of life for too long, or None."""
        now = time.monotonic()
        # This rank was suspended, or its lock was kept: it has not heard what the others said.
        deaf, self._looked = now - self._looked > SILENCE / 2, now
        for other in self.others:
            beats = self.store.add(_beat_of(other), 0)
            last, since = self._beats.get(other, (-1, now))
            if deaf or beats != last or beats >= LEFT:
                self._beats[other] = beats, now
                continue
            patience = SILENCE if beats else COMING
            if now - since > patience and not self._excused(other, beats):
                return f"rank {other} has given no sign of life for {patience:.0f} s"
        return None

    def _excused(self, other: int, beats: int) -> bool:
        """Return whether a rank had said that it will be silent, or has just beaten."""
        excused = self.store.add(_excuse_of(other), 0) > 0
        return bool(excused or self.store.add(_beat_of(other), 0) != beats)

    def _end(self, reason: str) -> None:
        """Log why, let the rank end by itself, and else end it."""
        self.reason = reason
        logger.error("error: %s", reason)
        with contextlib.suppress(RuntimeError):
            self.store.add(KNOWN, 1)
        self._noticed.set()
        if not self._stopped.wait(GRACE):
            os._exit(1)


def _beat_of(rank: int) -> str:
    return f"watch/beats/{rank}"


def _excuse_of(rank: int) -> str:
    return f"watch/excused/{rank}"
