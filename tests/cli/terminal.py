"""Typing commands: in this process, or in one of their own."""

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hessian_lab.cli.main import main

# Flags of a training that takes milliseconds: 37 parameters, 36 points, 4 checkpoints.
FIELD = ("--size", "6", "--width", "3", "--depth", "1", "--octaves", "2")
TINY = (*FIELD, "--steps", "3")
# One of a second or two, to be killed half-way: 151 checkpoints.
LONG = (*FIELD, "--steps", "3000", "--optimizer", "adam", "--checkpoint-every", "20")
# What defines a training on disk.
TRAINED = ("run.json", "metrics.csv", "trajectory.npy", "resume.pt")
COMMAND = Path(sys.executable).with_name("hessian-lab")


@dataclass(frozen=True)
class Answer:
    """What a command says."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout, read strictly: no NaN, no Infinity, nothing after it."""
        return json.loads(self.out, parse_constant=refuse_constant)


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def typed(directory, *words) -> Answer:
    """Return what a command answers when it is typed in a directory, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(directory),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
    return Answer(status, out.getvalue(), err.getvalue())


def started(directory, *words) -> subprocess.Popen:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [str(COMMAND), *(str(word) for word in words)],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_refused(answer, status, message):
    """Assert the exit status, and one sentence on stderr that matches a pattern."""
    assert answer.status == status, answer.err
    assert answer.out == ""
    first, *rest = answer.err.splitlines()
    assert re.fullmatch(r"hessian-lab( \w+)?: error: .+[.?…]", first), first
    assert re.search(message, first), first
    # A usage error may say where to look further.
    assert all(re.fullmatch(r"Try: hessian-lab( \w+)? --help", line) for line in rest), rest


def contents(directory, names=TRAINED):
    """Return the bytes and times of files."""
    files = [directory / name for name in names]
    return [(path.name, path.read_bytes(), path.stat().st_mtime_ns) for path in files]


@contextlib.contextmanager
def stopped(directory, *words, sign="resume.pt"):
    """Start a command, wait until a file is in its run, let the caller stop it, and reap it."""
    process = started(directory, *words)
    try:
        deadline = time.monotonic() + 120
        while not (directory / "run" / sign).exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        yield process
        process.out, process.err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()


def assert_continues(directory, words, sign, *, whole):
    """Interrupt a measurement of ``whole`` checkpoints; the same command ends as if it were not."""
    path = directory / "run" / sign
    with stopped(directory, *words, sign=sign) as process:
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert process.err == "hessian-lab: interrupted. The same command continues.\n"
    assert 0 < path.read_bytes().count(b'"step"') < whole
    assert typed(directory, *words).status == 0
    resumed = path.read_bytes()
    path.unlink()
    assert typed(directory, *words).status == 0
    assert path.read_bytes() == resumed
