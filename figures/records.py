"""The records that figures are drawn from."""

from pathlib import Path
from typing import Any

from hessian_lab.errors import InputError
from hessian_lab.training.files import read_json

RESULTS = Path(__file__).parents[1] / "data" / "results"
# What makes a record that no study makes.
MADE_BY = {"benchmarks": "tests.benchmarks --record data/results/benchmarks.json"}


def read(name: str, directory: Path = RESULTS) -> dict[str, Any]:
    """Return a record.

    Raises:
        InputError: If there is none, with the command that makes it.
    """
    path = directory / f"{name}.json"
    if not path.exists():
        command = MADE_BY.get(name, f"analyses.{name}")
        raise InputError(f"record {path} must exist: make it with python -m {command}.")
    return read_json(path, "a record")
