"""Results of a run by checkpoint, as JSON that a killed measurement continues from."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import hessian_lab
from hessian_lab.training.files import write_json
from hessian_lab.training.run import Run

# Writing partial results may take this share of the time.
SAVING_SHARE = 0.05

Result = TypeVar("Result")


def mark(run: Run) -> dict[str, Any]:
    """Return what results must carry to be taken for results of a run."""
    return {
        "run_id": run.record["id"],
        "hessian_lab": hessian_lab.__version__,
        "handed_in": not can_read_back(run),
    }


def can_read_back(run: Run) -> bool:
    """Tell whether results of a run may be taken over from its files.

    Not those of a module or a loss that was handed in: no file can tell that it is the same one.
    """
    return run.module is None and run.own_loss is None


def suffix(
    *,
    method: str = "dense",
    matrix: str = "hessian",
    layers: bool = False,
    preconditioned: bool = False,
) -> str:
    """Return what the names of results files end in, for each kind of measurement."""
    parts = [method] if method != "dense" else []
    parts += [matrix] if matrix != "hessian" else []
    parts += ["layers"] if layers else []
    parts += ["preconditioned"] if preconditioned else []
    return "".join(f"-{part}" for part in parts)


@dataclass
class Throttle:
    """Says when partial results are to be written: often, but at no more than 5 % of the time."""

    cost: float = 0.0
    last: float = field(default_factory=time.perf_counter)

    @property
    def due(self) -> bool:
        """Whether enough time has passed."""
        return time.perf_counter() - self.last >= self.cost / SAVING_SHARE

    def run(self, work: Callable[[], None]) -> None:
        """Do the writing, and count what it takes."""
        start = time.perf_counter()
        work()
        self.last = time.perf_counter()
        self.cost = self.last - start


class Record(Generic[Result]):
    """A JSON file with one entry per checkpoint.

    Args:
        run: What is measured.
        path: The file.
        settings: What defines the measurement; entries of other settings are not taken over.
        parse: Makes a result of one entry of the file.
        body: Makes what the file holds of all results, the entries under ``spectra``.
    """

    def __init__(
        self,
        run: Run,
        path: Path,
        settings: dict[str, Any],
        *,
        parse: Callable[[dict[str, Any]], Result],
        body: Callable[[list[Result]], dict[str, Any]],
    ) -> None:
        self.path = path
        self.head = mark(run) | {"settings": settings}
        self.parse = parse
        self.body = body
        self.usable = can_read_back(run)

    def known(self) -> list[Result]:
        """Return what an earlier measurement of this very kind has left, whole or half-way."""
        if not self.usable:
            return []
        try:
            record = json.loads(self.path.read_text())
            if any(record[name] != value for name, value in self.head.items()):
                return []
            return [self.parse(entry) for entry in record["spectra"]]
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            return []

    def save(self, results: list[Result]) -> None:
        """Write all results, under the mark of this measurement."""
        write_json(self.path, self.body(results) | self.head)
