"""The record of a run: what figure and README are made from."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from hessian_lab.training.files import finite, make_directory, write_atomically
from hessian_lab.training.provenance import git_commit
from tests.benchmarks.peers import LIBRARIES, installed


def header(*, quick: bool) -> dict[str, Any]:
    """Return what a record says of its run: versions and machine, and no path."""
    found = {name: installed(name) for name, home in LIBRARIES.items() if home != "torch"}
    return {
        "study": "benchmarks",
        "kind": "quick" if quick else "full",
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "libraries": {name: each for name, each in found.items() if each is not None},
        "missing": [name for name, each in found.items() if each is None],
    }


def cpu_name() -> str:
    """Return what the processor calls itself (Linux), or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record, a row or a curve to a line."""
    parts = []
    for name, value in record.items():
        if name in ("rows", "curves"):
            lines = ",\n".join(json.dumps(finite(row), ensure_ascii=False) for row in value)
            parts.append(f"{json.dumps(name)}: [\n{lines}\n]")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(finite(value), ensure_ascii=False)}")
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    make_directory(path.parent)
    write_atomically(path, lambda stream: stream.write(text.encode()))
