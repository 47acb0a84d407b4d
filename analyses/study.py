"""A question over many networks: independent cells, one record on disk, verdicts on claims."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from figures.records import RESULTS
from hessian_lab.errors import DivergenceError, InputError, ResourceError, UsageError
from hessian_lab.training.files import finite, make_directory, write_atomically
from hessian_lab.training.provenance import provenance
from hessian_lab.training.setup import digest
from hessian_lab.training.workers import worker_pool, working

Row = dict[str, Any]
Answer = Literal["holds", "holds only under", "does not hold", "not yet measured"]

logger = logging.getLogger("analyses")


@dataclass(frozen=True)
class Verdict:
    """What a record says of one claim.

    Attributes:
        claim: Its id, ``C01``.
        answer: The verdict.
        measured: The numbers, with their range over seeds or their interval.
        settings: What they were measured on, and what the answer depends on.
    """

    claim: str
    answer: Answer
    measured: str
    settings: str


@dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
        name: Of the record, and of the figure that draws it.
        question: In a sentence.
        full: The configuration of the committed record, a frozen dataclass.
        quick: One of minutes.
        cells: What a configuration measures: independent of each other, each a JSON object.
        measure: Measures one cell; gives one row, or several.
        verdicts: What the rows say of the papers' claims.
    """

    name: str
    question: str
    full: Any
    quick: Any
    cells: Callable[[Any], list[Row]]
    measure: Callable[[Any, Row], Row | list[Row]]
    verdicts: Callable[[pd.DataFrame], list[Verdict]]

    def run(
        self, config: Any, *, out: Path = RESULTS, kind: str = "full", jobs: int = 1
    ) -> pd.DataFrame:
        """Measure every cell and write the record; cells that a killed run has done are kept.

        Args:
            config: Of the type of ``full``.
            out: Where ``<name>.json`` is written, and ``<name>.part.jsonl`` meanwhile.
            kind: What the record says of its configuration.
            jobs: Processes, each with its share of the cores.
        """
        make_directory(out)
        cells = self.cells(config)
        part = _Part(out / f"{self.name}.part.jsonl", digest({"config": asdict(config)}))
        done = part.read()
        waiting = [cell for cell in cells if _key(cell) not in done]
        for count, (cell, rows) in enumerate(_measured(self, config, waiting, jobs), 1):
            part.add(_key(cell), rows)
            done[_key(cell)] = rows
            logger.info("%s %d/%d %s", self.name, count, len(waiting), _key(cell))
        rows = [row for cell in cells for row in done[_key(cell)]]
        record = {
            "study": self.name,
            "question": self.question,
            "kind": kind,
            "config": asdict(config),
            "provenance": _origin(),
            "seconds": sum(row.get("seconds", 0.0) for row in rows),
            "rows": rows,
        }
        write_record(out / f"{self.name}.json", record)
        part.path.unlink(missing_ok=True)
        return pd.DataFrame(finite(rows))


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, a row to a line."""
    head = {name: value for name, value in record.items() if name != "rows"}
    entries = [
        f"{json.dumps(name)}: {json.dumps(finite(value), ensure_ascii=False)}"
        for name, value in head.items()
    ]
    rows = ",\n".join(json.dumps(finite(row), ensure_ascii=False) for row in record["rows"])
    text = "{\n" + ",\n".join(entries) + ',\n"rows": [\n' + rows + "\n]\n}\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))


def main(study: Study) -> None:
    """Run a study from the command line."""
    parser = argparse.ArgumentParser(description=study.question)
    parser.add_argument("--quick", action="store_true", help="minutes on two cores, to look at")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the record goes")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = args.out or (Path("runs") / "quick" if args.quick else RESULTS)
    kind = "quick" if args.quick else "full"
    config = study.quick if args.quick else study.full
    try:
        rows = study.run(config, out=out, kind=kind, jobs=max(1, args.jobs))
    except (UsageError, InputError, ResourceError, DivergenceError) as error:
        sys.exit(f"{study.name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{study.name}: interrupted. The same command continues.")
    for one in study.verdicts(rows):
        print(f"{one.claim} {one.answer}: {one.measured} [{one.settings}]")
    print(out / f"{study.name}.json")


class _Part:
    """The cells that are done, a line each, for a run that is killed."""

    def __init__(self, path: Path, config: str) -> None:
        self.path = path
        self.config = config

    def read(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        if self.path.exists():
            for text in self.path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    # The line that a killed process was writing.
                    continue
                if line["config"] == self.config:
                    found[line["cell"]] = line["rows"]
        return found

    def add(self, cell: str, rows: list[Row]) -> None:
        entry = {"config": self.config, "cell": cell, "rows": finite(rows)}
        with self.path.open("a") as stream:
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _measured(
    study: Study, config: Any, cells: list[Row], jobs: int
) -> Iterator[tuple[Row, list[Row]]]:
    if jobs == 1:
        for cell in cells:
            yield cell, _rows(study, config, cell)
        return
    share = max(1, (os.cpu_count() or 1) // jobs)
    with worker_pool(jobs) as (pool, stopping):
        futures = {pool.submit(_apart, study, config, cell, share): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _apart(study: Study, config: Any, cell: Row, threads: int) -> list[Row]:
    """Measure a cell in a worker, with its share of the cores."""
    with working():
        torch.set_num_threads(threads)
        return _rows(study, config, cell)


def _rows(study: Study, config: Any, cell: Row) -> list[Row]:
    start = time.perf_counter()
    found = study.measure(config, cell)
    rows = found if isinstance(found, list) else [found]
    seconds = (time.perf_counter() - start) / max(1, len(rows))
    return [{**cell, **row, "seconds": seconds} for row in rows]


def _key(cell: Row) -> str:
    return json.dumps(cell, sort_keys=True, ensure_ascii=False)


def _origin() -> dict[str, Any]:
    entries = provenance(torch.device("cpu"))
    entries.pop("command")
    return entries
