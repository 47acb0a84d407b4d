"""Several ranks as processes of their own, forked from a server that has imported torch."""

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "pytest",
        "torch",
        "hessian_lab.measures.conditioning",
        "hessian_lab.measures.estimates",
        "hessian_lab.measures.traces",
        "hessian_lab.probe.sharding",
        "hessian_lab.cli.main",
        "hessian_lab.cli.output",
        "hessian_lab.cli.progress",
    ]
)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment(rank, count, port):
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _child(work, arguments, variables, folder, pipe):
    import torch

    os.environ.update(variables)
    # The server ignores it, and with it its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    os.chdir(folder)
    rank = variables["RANK"]
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False, buffering=1)
    status = 0
    try:
        pipe.send(work(*arguments))
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


class Job:
    """Ranks that are running; ``end`` waits for them and gathers what they leave."""

    def __init__(self, work, count, *arguments, folder=None, variables=None):
        self.folder = Path(folder or tempfile.mkdtemp())
        port = free_port()
        self.pipes, self.ranks = [], []
        for rank in range(count):
            ours, its = CONTEXT.Pipe(duplex=False)
            told = environment(rank, count, port)
            told |= (variables or {}).get(rank, {})
            one = CONTEXT.Process(target=_child, args=(work, arguments, told, self.folder, its))
            one.start()
            its.close()
            self.pipes.append(ours)
            self.ranks.append(one)

    def end(self, timeout=60):
        """Return the results (None where there is none), exit statuses, and what was printed."""
        deadline = time.monotonic() + timeout
        results = []
        for pipe, one in zip(self.pipes, self.ranks, strict=True):
            result = None
            while one.is_alive() and not pipe.poll(0.05) and time.monotonic() < deadline:
                pass
            if pipe.poll():
                try:
                    result = pipe.recv()
                except EOFError:
                    result = None
            results.append(result)
        for one in self.ranks:
            one.join(max(0.0, deadline - time.monotonic()))
        hanging = [rank for rank, one in enumerate(self.ranks) if one.is_alive()]
        for one in self.ranks:
            if one.is_alive():
                one.kill()
        assert not hanging, f"ranks {hanging} hang; {self.text('err')}"
        return results, [one.exitcode for one in self.ranks]

    def text(self, name, rank=None):
        """Return what the ranks have printed to ``out`` or ``err``."""
        numbers = range(len(self.ranks)) if rank is None else [rank]
        paths = [self.folder / f"{name}-{number}" for number in numbers]
        return "".join(path.read_text() for path in paths if path.exists())


def results_of(work, count, *arguments, **options):
    """Return what every rank returns, all of which must end well."""
    job = Job(work, count, *arguments, **options)
    results, statuses = job.end()
    assert set(statuses) == {0}, job.text("err")
    return results
