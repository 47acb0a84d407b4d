"""What was measured of a run, for a page: what could be read back, and what is missing."""

import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import hessian_lab
from hessian_lab.cli.output import NAMES, matrix_name
from hessian_lab.errors import InputError
from hessian_lab.measures import conditioning, eigenvalues, estimates, sparsity, traces
from hessian_lab.measures.known import (
    known_conditions,
    known_eigenvalues,
    known_estimates,
    known_sparsity,
    known_traces,
)
from hessian_lab.measures.record import suffix
from hessian_lab.plots.report_data import (
    Conditions,
    Estimates,
    Measurement,
    Spectra,
    Traces,
    Zeros,
)
from hessian_lab.plots.report_text import Cell, count, percent, written
from hessian_lab.probe.linearized import MATRICES
from hessian_lab.training.files import read_json
from hessian_lab.training.run import Run

Found = TypeVar("Found")
Read = Callable[[], Any]


class _Shelf:
    """The measurements of a run, as they are found."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.parts: list[Measurement] = []
        self.notes: list[str] = []

    def best(self, reads: dict[str, Read], show: Callable[[str, Any], Measurement]) -> None:
        """Show the one of several records of a kind that has the most checkpoints, if any.

        Args:
            reads: What reads each record, by the name of its file; the first wins a tie.
            show: Makes of the name and the record what a page tells.
        """
        found = []
        for name, read in reads.items():
            try:
                result = read()
            except InputError as error:
                self.notes.append(str(error))
                continue
            if result is not None and result.measured:
                found.append((name, result))
        if not found:
            return
        name, result = max(found, key=lambda pair: len(pair[1].measured))
        self.parts.append(show(name, result))
        self.notes += [f"{name}: {failure}." for failure in result.failures]
        self._compare_versions(name)

    def _compare_versions(self, name: str) -> None:
        version = read_json(self.run.path / name, "results").get("hessian_lab")
        if version != hessian_lab.__version__:
            self.notes.append(f"{name} was measured by hessian-lab {version}.")


def results(run: Run, path: str) -> tuple[list[Measurement], list[str], list[tuple[str, str]]]:
    """Return what was measured of a run, notes on it, and what was not with its command."""
    shelf = _Shelf(run)
    for matrix in MATRICES:
        for scaled in (False, True):
            shelf.best(_eigenvalues(run, matrix, scaled=scaled), _spectra)
            for method in ("slq", "lanczos"):
                shelf.best(_estimates(run, method, matrix, scaled=scaled), _estimated)
    for matrix in MATRICES:
        shelf.best(_files(run, "cond", known_conditions, matrix), _conditions)
        extended = _files(run, "cond-extended", known_conditions, matrix)
        shelf.best(extended, _conditions)
    for matrix in MATRICES:
        shelf.best(_files(run, "trace", known_traces, matrix), _traces)
    shelf.best(
        {
            f"{name}.json": lambda name=name: known_sparsity(run, name)  # type: ignore[misc]
            for name in ("sparsity", "sparsity-dense")
        },
        _zeros,
    )
    return shelf.parts, shelf.notes, _missing(run, path, shelf.parts)


def _missing(run: Run, path: str, parts: Sequence[Measurement]) -> list[tuple[str, str]]:
    wanted = {
        "eigs": ("The spectrum of the Hessian:", (Spectra, Estimates)),
        "cond": ("Condition numbers before and after scaling:", Conditions),
        "trace": ("The trace:", Traces),
        "sparsity": ("Zeros of Hessian–vector products:", Zeros),
    }
    there = [part for part in parts if getattr(part, "plain", True)]
    left = {
        name: lead
        for name, (lead, kinds) in wanted.items()
        if not any(isinstance(part, kinds) for part in there)  # type: ignore[arg-type]
    }
    if left and (run.record["own_module"] or run.record["own_loss"]):
        hand = "model=…" if run.record["own_module"] else "loss=…"
        lead = "A module or a loss of your own is measured in Python, from"
        return [(lead, f"hessian_lab.load_run({path!r}, {hand})")]
    named = shlex.quote(path)
    return [(lead, f"hessian-lab {name} --run {named}") for name, lead in left.items()]


def _eigenvalues(run: Run, matrix: Any, *, scaled: bool) -> dict[str, Read]:
    def name(layers: bool) -> str:
        kind = suffix(matrix=matrix, layers=layers, preconditioned=scaled)
        return f"{eigenvalues.RECORD}{kind}.json"

    def read(layers: bool) -> Read:
        return lambda: known_eigenvalues(run, matrix=matrix, layers=layers, preconditioned=scaled)

    return {name(layers): read(layers) for layers in (True, False)}


def _estimates(run: Run, method: str, matrix: str, *, scaled: bool) -> dict[str, Read]:
    names = [
        f"eigs{suffix(method=method, matrix=matrix, layers=layers, preconditioned=scaled)}"
        for layers in (True, False)
    ]
    return {f"{name}.json": _reader(run, known_estimates, name) for name in names}


def _files(run: Run, stem: str, known: Callable[[Run, str], Any], matrix: str) -> dict[str, Read]:
    names = [f"{stem}{suffix(matrix=matrix, layers=layers)}" for layers in (True, False)]
    return {f"{name}.json": _reader(run, known, name) for name in names}


def _reader(run: Run, known: Callable[[Run, str], Any], name: str) -> Read:
    return lambda: known(run, name)


def _common(title: str, origin: str, measured: Sequence[Any]) -> dict[str, Any]:
    """Return what every measurement has."""
    return {
        "title": title,
        "origin": origin,
        "steps": [one.step for one in measured],
        "losses": [_known_number(one.loss) for one in measured],
        "psnrs": [_known_number(one.psnr) for one in measured],
    }


def _known_number(value: float | None) -> float:
    return math.nan if value is None else value


def _checkpoints(measured: Sequence[Any]) -> str:
    return f"{len(measured)} checkpoint{'' if len(measured) == 1 else 's'}"


def _spectra(name: str, found: eigenvalues.Eigenvalues) -> Measurement:
    what = matrix_name(found.run, found.matrix, preconditioned=found.preconditioned)
    return Spectra(
        **_common(
            f"Eigenvalues of {what}",
            f"All of them, exact (dense, float64), at {_checkpoints(found.measured)}; {name}",
            found.measured,
        ),
        spectra=found.spectra,
        layers=found.measured[-1].layers,
        plain=found.matrix == "hessian" and not found.preconditioned,
    )


def _estimated(name: str, found: estimates.Estimates) -> Measurement:
    settings = found.settings
    what = matrix_name(found.run, settings.matrix, preconditioned=settings.preconditioned)
    how = f"{settings.num} extreme eigenvalues from each end"
    if settings.method == "slq":
        how += f", and the density from {settings.num_probes} × {settings.num_steps} Lanczos steps"
    wholes = [one.whole for one in found.measured]
    return Estimates(
        **_common(
            f"Spectrum of {what}, estimated",
            f"By products: {how}, seed {settings.seed}, {found.run.setup.dtype}, at "
            f"{_checkpoints(found.measured)}; {name}",
            found.measured,
        ),
        extremes=[(one.lambda_min, one.lambda_max) for one in wholes],
        densities=[one.density for one in wholes],
        kappas=[one.condition_number for one in wholes],
        traces=[one.trace for one in wholes],
        floors=[one.tolerance for one in wholes],
        plain=settings.matrix == "hessian" and not settings.preconditioned,
    )


def _traces(name: str, found: traces.Traces) -> Measurement:
    settings = found.settings
    how = (
        "in closed form"
        if settings.method == "exact"
        else (f"{settings.method}, {settings.num_products} products, seed {settings.seed}")
    )
    values = [one.trace for one in found.measured]
    return Traces(
        **_common(
            f"Trace of {NAMES[settings.matrix]}",
            f"{how}, at {_checkpoints(found.measured)}; {name}",
            found.measured,
        ),
        means=[one.mean for one in values],
        errors=[one.standard_error for one in values],
        lows=[one.low for one in values],
        highs=[one.high for one in values],
        level=settings.level,
    )


def _conditions(name: str, found: conditioning.Conditions) -> Measurement:
    settings, measured = found.settings, found.measured
    proven = " and interval arithmetic" if settings.precision == "extended" else ""
    probes = f"; estimated: {settings.estimated} products" if settings.estimated else ""
    exact = list(dict.fromkeys(key for one in measured for key in one.exact))
    return Conditions(
        **_common(
            f"Condition numbers of {NAMES[settings.matrix]}, before and after scaling",
            "H itself, and scaled by the norms of its rows (Dᴱ) and by the magnitudes of its "
            f"diagonal (Dᴶ); dense, float64{proven}{probes}, at {_checkpoints(measured)}; {name}",
            measured,
        ),
        scaled={key: [one.scaled[key] for one in measured] for key in measured[-1].scaled},
        exact={key: [one.exact.get(key) for one in measured] for key in exact},
    )


def _zeros(name: str, found: sparsity.Sparsity) -> Measurement:
    settings, measured = found.settings, found.measured
    curves = {"H v exactly 0": [one.whole.zero.mean for one in measured]}
    for place, rtol in enumerate(settings.rtols):
        shares = [one.whole.within[place].mean for one in measured]
        curves[f"|H v| ≤ {written(rtol, 1)} max"] = shares
    curves["gradient exactly 0"] = [one.whole.gradient_zero for one in measured]
    last, bounds = measured[-1], [f"≤ {written(rtol, 1)}" for rtol in settings.rtols]
    parts: list[tuple[str, Sequence[Cell]]] = [
        (
            part_name,
            [
                count(part.size),
                percent(part.zero.mean),
                *(percent(each.mean) for each in part.within),
                percent(part.gradient_zero),
            ],
        )
        for part_name, part in ({"all": last.whole} | last.layers).items()
    ]
    return Zeros(
        **_common(
            "Zeros of Hessian–vector products",
            f"Mean over {settings.num_probes} Rademacher vectors, {settings.batch_size} points, "
            f"{found.run.setup.dtype}, seed {settings.seed}, at {_checkpoints(measured)}; {name}",
            measured,
        ),
        curves=curves,
        head=["", "entries", "H v = 0", *bounds, "g = 0"],
        parts=parts,
        told=f"By layer, at step {last.step}; ≤: at most so many times the largest |H v|",
    )
