"""What earlier measurements have left in a run directory, read back whatever their settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hessian_lab.errors import InputError
from hessian_lab.measures import conditioning, eigenvalues, estimates, sparsity, traces
from hessian_lab.measures.record import suffix
from hessian_lab.probe.linearized import Matrix
from hessian_lab.training.files import read_json
from hessian_lab.training.run import Run

Result = TypeVar("Result")


def known_eigenvalues(
    run: Run, *, matrix: Matrix = "hessian", layers: bool = False, preconditioned: bool = False
) -> eigenvalues.Eigenvalues | None:
    """Return the spectra that ``measure_eigenvalues`` has left, whole or half-way, or None.

    Raises:
        InputError: If they are damaged, or those of another run.
    """
    kind = suffix(matrix=matrix, layers=layers, preconditioned=preconditioned)
    path = run.path / f"{eigenvalues.RECORD}{kind}.json"

    def parse(record: dict[str, Any]) -> eigenvalues.Eigenvalues:
        rows = np.load(run.path / f"{eigenvalues.VALUES}{kind}.npy")
        # A process killed between the two files leaves more rows than entries, or some of others.
        pairs = zip(record["spectra"], rows[: len(record["spectra"])], strict=True)
        found = [eigenvalues.from_json(entry, row, run.num_parameters) for entry, row in pairs]
        measured = [one for one in found if one is not None]
        if found and not measured:
            raise ValueError("its eigenvalues are those of another measurement")
        return eigenvalues.Eigenvalues(run, measured, matrix, preconditioned)

    return _known(run, path, parse)


def known_estimates(run: Run, name: str) -> estimates.Estimates | None:
    """Return the estimates that ``measure_estimates`` has left under a name, or None.

    Args:
        run: What was measured.
        name: Of the file, ``eigs-slq`` or ``eigs-lanczos-ggn``.

    Raises:
        InputError: If they are damaged, or those of another run.
    """

    def parse(record: dict[str, Any]) -> estimates.Estimates:
        settings = estimates.Settings(**record["settings"])
        measured = [estimates.from_json(entry) for entry in record["spectra"]]
        return estimates.Estimates(run, settings, measured)

    return _known(run, run.path / f"{name}.json", parse)


def known_traces(run: Run, name: str = "trace") -> traces.Traces | None:
    """Return the traces that ``measure_traces`` has left under a name, or None.

    Raises:
        InputError: If they are damaged, or those of another run.
    """

    def parse(record: dict[str, Any]) -> traces.Traces:
        settings = traces.Settings(**record["settings"])
        return traces.Traces(run, settings, [traces.from_json(each) for each in record["spectra"]])

    return _known(run, run.path / f"{name}.json", parse)


def known_conditions(run: Run, name: str = "cond") -> conditioning.Conditions | None:
    """Return the condition numbers that ``measure_conditions`` has left under a name, or None.

    Raises:
        InputError: If they are damaged, or those of another run.
    """

    def parse(record: dict[str, Any]) -> conditioning.Conditions:
        settings = conditioning.Settings(**record["settings"])
        measured = [conditioning.from_json(each) for each in record["spectra"]]
        return conditioning.Conditions(run, settings, measured)

    return _known(run, run.path / f"{name}.json", parse)


def known_sparsity(run: Run, name: str = "sparsity") -> sparsity.Sparsity | None:
    """Return the zeros that ``measure_sparsity`` has counted under a name, or None.

    Raises:
        InputError: If they are damaged, or those of another run.
    """

    def parse(record: dict[str, Any]) -> sparsity.Sparsity:
        kept = record["settings"]
        settings = sparsity.Settings(**(kept | {"rtols": tuple(kept["rtols"])}))
        measured = [sparsity.from_json(each) for each in record["spectra"]]
        return sparsity.Sparsity(run, settings, measured)

    return _known(run, run.path / f"{name}.json", parse)


def _known(run: Run, path: Path, parse: Callable[[dict[str, Any]], Result]) -> Result | None:
    if not path.exists():
        return None
    record = read_json(path, "results")
    if record.get("run_id") != run.record["id"]:
        raise InputError(f"results must be of this run, {path} is of another. Remove it.")
    try:
        return parse(record)
    except (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"results must be readable, {path} is damaged: {error}. Remove it, and measure again."
        ) from error
