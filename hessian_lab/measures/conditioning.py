"""Condition numbers of a curvature matrix, before and after diagonal scaling, along a run."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from hessian_lab.errors import UsageError
from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.losses import Loss
from hessian_lab.measures.checkpoints import (
    Checkpoint,
    along,
    along_training,
    loss_failure,
    nan_if_none,
    told,
)
from hessian_lab.measures.planning import dense_bytes, num_parameters
from hessian_lab.measures.record import Record, suffix
from hessian_lab.measures.scaled import preconditioned_matrix, reordered
from hessian_lab.names import known
from hessian_lab.optim.preconditioner import Preconditioner
from hessian_lab.probe.conditioning import ConditionEnclosure
from hessian_lab.probe.conditions import Conditioning, conditioning, conditions
from hessian_lab.probe.hessian import dense_ggn, dense_hessian
from hessian_lab.probe.kept_graph import trainable
from hessian_lab.probe.linearized import MATRICES, Matrix
from hessian_lab.probe.memory import require_bytes
from hessian_lab.probe.parameters import Layout, selected_names
from hessian_lab.probe.ranks import ALONE, Ranks
from hessian_lab.signal import Signal
from hessian_lab.training.run import Run

Precision = Literal["double", "extended"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# Interval arithmetic at 500 parameters takes about half a minute per checkpoint.
MAX_EXTENDED = 500


@dataclass(frozen=True)
class Settings:
    """How condition numbers are measured.

    Attributes:
        matrix: ``hessian`` or ``ggn``.
        precision: ``extended`` adds proven intervals of κ, in interval arithmetic.
        layers: Whether to measure every layer's block too.
        estimated: Probes of the estimated scalings; 0 for the exact ones alone.
        seed: Of the probes.
        preconditioned: Whether to scale by the optimizer's own ``P`` too; the run is trained once
            more for it.
    """

    matrix: Matrix = "hessian"
    precision: Precision = "double"
    layers: bool = False
    estimated: int = 0
    seed: int = 0
    preconditioned: bool = False

    def __post_init__(self) -> None:
        known("matrix", self.matrix, MATRICES)
        known("precision", self.precision, PRECISIONS)
        if self.estimated < 0 or self.estimated == 1:
            raise ValueError(
                f"estimated must be 0 or at least 2 for an error bar, got {self.estimated}."
            )


@dataclass(frozen=True)
class ConditionAt:
    """The condition numbers at one checkpoint, by the name of the scaling.

    Attributes:
        step: The optimizer step.
        loss: The loss of the whole signal there, as recorded in training.
        psnr: Likewise, in dB; NaN where it is not defined.
        loss_error: The difference between the loss recorded and computed again.
        scaled: ``identity`` for the matrix itself, ``equilibrated`` for ``D^E``, ``jacobi`` for
            ``D^J``, ``equilibrated_estimated`` and ``jacobi_estimated`` from products, and
            ``optimizer`` for the optimizer's own preconditioner.
        exact: What is proven of κ, where asked for.
        layers: ``scaled`` of the layers' blocks, where asked for.
    """

    step: int
    loss: float
    psnr: float
    loss_error: float
    scaled: dict[str, Conditioning]
    exact: dict[str, ConditionEnclosure] = field(default_factory=dict)
    layers: dict[str, dict[str, Conditioning]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Conditions:
    """The condition numbers along a run."""

    run: Run
    settings: Settings
    measured: list[ConditionAt]

    @property
    def failures(self) -> list[str]:
        """What does not hold of the results, in a sentence each."""
        failures = []
        for one in self.measured:
            changed = loss_failure(self.run, one.step, one.loss_error)
            failures += [changed] if changed else []
            whole = one.scaled["identity"]
            # All eigenvalues of a zero matrix are at its floor; of one that is not finite, none is.
            if math.isnan(whole.kappa) and not whole.num_below:
                failures.append(f"step {one.step}: the matrix is not finite")
            for name, interval in one.exact.items():
                if not interval.known:
                    failures.append(
                        f"step {one.step}: κ ({name}) is not enclosed with {interval.bits} bits; "
                        "the matrix may be singular"
                    )
        return failures

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``cond --json`` prints."""
        return {
            "command": "cond",
            "run": str(self.run.path),
            "setup": self.run.setup.to_json(),
            "num_parameters": self.run.num_parameters,
            **asdict(self.settings),
            "spectra": told(self.run, self.measured),
        }


def measure_conditions(
    run: Run,
    settings: Settings | None = None,
    *,
    every: int = 1,
    watch: Callable[[ConditionAt], None] | None = None,
    ranks: Ranks = ALONE,
) -> Conditions:
    """Measure κ of the Hessian, and of its scaled forms, at every ``every``-th checkpoint.

    In double precision, whatever the training's: ``p n² + 4 n³`` operations per checkpoint. With
    ``precision="extended"`` the true κ too, with proof, some seconds at 300 parameters. Writes
    ``cond.json`` beside the trajectory, also half-way; what is there already is not measured again.
    With ``preconditioned``, checkpoints before the optimizer has a preconditioner are left out.
    Several ``ranks`` that call it together measure other checkpoints each; the first writes, and
    returns the results.

    Raises:
        UsageError: For extended precision without python-flint, of more than 500 parameters, or of
            a module, loss or activation that it does not know; or for an optimizer that has no
            preconditioner.
        InputError: If a run cannot be trained again here, as ``preconditioned`` asks.
        ResourceError: If the matrix does not fit, before it is allocated.
    """
    settings = settings or Settings()
    if settings.precision == "extended":
        model = run.model(run.steps[0])
        require_extended(model, run.setup.act)
        _require_exact(model, run.loss)
    method = "extended" if settings.precision == "extended" else "dense"
    kind = suffix(
        method=method,
        matrix=settings.matrix,
        layers=settings.layers,
        preconditioned=settings.preconditioned,
    )

    def measure(one: Checkpoint, preconditioner: Preconditioner | None = None) -> ConditionAt:
        return _measure(one, run, settings, preconditioner)

    go = along_training if settings.preconditioned else along
    measured = go(
        run,
        measure,
        every=every,
        store=Record(
            run,
            run.path / f"cond{kind}.json",
            asdict(settings),
            parse=from_json,
            body=lambda results: Conditions(run, settings, results).to_json(),
        ),
        watch=watch,
        ranks=ranks,
    )
    return Conditions(run, settings, measured)


def require_dense(model: nn.Module, num_points: int) -> None:
    """Check that the matrix, a scaled copy and its decomposition fit, before anything is trained.

    Raises:
        ResourceError: If they do not.
    """
    size = num_parameters(model)
    require_bytes(
        dense_bytes(model, num_points) + 3 * 8 * size**2,
        f"The dense Hessian of {size} parameters and its copies for the condition numbers",
        device=trainable(model)[0].device,
        cure="Measure a smaller network (--width, --depth, --octaves).",
    )


def require_extended(model: nn.Module, act: str) -> None:
    """Check that κ of a field can be had in interval arithmetic, before it is trained.

    Raises:
        UsageError: If it cannot, with what to do.
    """
    try:
        from hessian_lab.probe.extended import JETS
    except ImportError as error:
        raise UsageError(f"{error}, or use precision double.") from None
    size = sum(value.numel() for value in model.parameters())
    if size > MAX_EXTENDED:
        raise UsageError(
            f"precision extended takes at most {MAX_EXTENDED} parameters, got {size}. Use "
            "precision double, or a smaller field (width, depth)."
        )
    if act not in JETS:
        raise UsageError(
            f"precision extended takes the activations {', '.join(JETS)}, got {act}. Use precision "
            "double."
        )


def _require_exact(model: nn.Module, loss: Loss) -> None:
    from hessian_lab.probe.extended import require_exact

    require_exact(model, loss)


def _measure(
    one: Checkpoint, run: Run, settings: Settings, preconditioner: Preconditioner | None
) -> ConditionAt:
    model, signal = one.model.double(), one.signal.to(dtype=torch.float64)
    dense = dense_ggn if settings.matrix == "ggn" else dense_hessian
    matrix = dense(model, run.loss, signal)
    again = dense(model, run.loss, reordered(signal))
    probes = {"estimated": settings.estimated, "seed": settings.seed}
    layers = {}
    if settings.layers:
        for name, places in Layout(model, selected_names(model, None)).layers().items():
            index = torch.cat([torch.arange(place.start, place.stop) for place in places])
            block, other = (part[index][:, index] for part in (matrix, again))
            layers[name] = conditions(block, again=other, **probes)
    finite = bool(matrix.isfinite().all())
    exact = finite and settings.precision == "extended"
    scaled = conditions(matrix, again=again, **probes)
    if preconditioner is not None:
        # The last use of both matrices: they may be overwritten.
        other, rounding = preconditioned_matrix(preconditioner, matrix, again)
        scaled["optimizer"] = conditioning(other, rounding=rounding)
    return ConditionAt(
        step=one.step,
        loss=one.loss,
        psnr=one.psnr,
        loss_error=one.loss_error,
        scaled=scaled,
        exact=_intervals(model, run, signal, settings.matrix) if exact else {},
        layers=layers,
    )


def _intervals(
    model: nn.Module, run: Run, signal: Signal, matrix: Matrix
) -> dict[str, ConditionEnclosure]:
    from hessian_lab.probe.extended import Formula, exact_condition_numbers

    setup = run.setup
    formula = Formula(setup.act, setup.omega, setup.sigma)
    model, signal = model.cpu(), signal.to(device="cpu")
    assert isinstance(model, CoordinateMLP)
    found = exact_condition_numbers(model, run.loss, signal, formula, matrix=matrix)
    return {str(name): one for name, one in found.items()}


def from_json(entry: dict[str, Any]) -> ConditionAt:
    """Return the condition numbers at one checkpoint from what ``to_json`` wrote."""

    def parts(found: dict[str, Any]) -> dict[str, Conditioning]:
        return {
            name: Conditioning(**{key: _number(value) for key, value in one.items()})
            for name, one in found.items()
        }

    def interval(one: dict[str, Any]) -> ConditionEnclosure:
        ends = {name: math.inf if one[name] is None else one[name] for name in ("lower", "upper")}
        return ConditionEnclosure(**(one | ends))

    return ConditionAt(
        step=entry["step"],
        loss=nan_if_none(entry["loss"]),
        psnr=nan_if_none(entry["psnr"]),
        loss_error=nan_if_none(entry["loss_error"]),
        scaled=parts(entry["scaled"]),
        exact={name: interval(one) for name, one in entry["exact"].items()},
        layers={name: parts(found) for name, found in entry["layers"].items()},
    )


def _number(value: Any) -> Any:
    return math.nan if value is None else value
