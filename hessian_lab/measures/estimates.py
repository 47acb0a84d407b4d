"""The spectrum of a curvature matrix from its products, at every checkpoint of a run."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hessian_lab.errors import NonFiniteError
from hessian_lab.losses import Loss
from hessian_lab.measures.checkpoints import (
    Checkpoint,
    along,
    along_training,
    loss_failure,
    nan_if_none,
    told,
)
from hessian_lab.measures.eigenvalues import rung_name
from hessian_lab.measures.record import Record, suffix
from hessian_lab.names import known
from hessian_lab.optim.preconditioner import Preconditioner
from hessian_lab.probe.bands import Band
from hessian_lab.probe.conditioning import condition_number
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.density import SpectralMeasure, spectral_measure
from hessian_lab.probe.eigenpairs import extreme_eigenpairs
from hessian_lab.probe.layers import layer_blocks
from hessian_lab.probe.linearized import MATRICES, Matrix
from hessian_lab.probe.log_density import LogDensity
from hessian_lab.probe.memory import undivided
from hessian_lab.probe.operators import SymmetricOperator
from hessian_lab.probe.ranks import ALONE, Ranks
from hessian_lab.probe.spectrum import LADDER, SCALARS
from hessian_lab.training.files import finite
from hessian_lab.training.run import Run

# What a dense measurement pools over training; products do not tell it.
POOLED = (
    "numerical_zero_share",
    "structural_zero_share",
    "negative_share",
    "smallest_magnitude",
)
NOTHING = (math.nan, math.nan)


@dataclass(frozen=True)
class Settings:
    """How a spectrum is estimated.

    Attributes:
        method: ``lanczos`` for the extreme eigenvalues, ``slq`` for the density too.
        matrix: ``hessian`` or ``ggn``.
        layers: Whether to measure every layer's block too.
        num: Extreme eigenvalues from each end.
        num_probes: Random vectors of the density.
        num_steps: Lanczos steps from each; less for blocks that are smaller.
        seed: Of the random vectors.
        preconditioned: Whether to measure ``P^{-1/2} A P^{-1/2}`` with the optimizer's ``P``.
    """

    method: Literal["lanczos", "slq"] = "slq"
    matrix: Matrix = "hessian"
    layers: bool = False
    num: int = 5
    num_probes: int = 10
    num_steps: int = 80
    seed: int = 0
    preconditioned: bool = False

    def __post_init__(self) -> None:
        known("method", self.method, ("lanczos", "slq"))
        known("matrix", self.matrix, MATRICES)
        for name, lowest in {"num": 1, "num_probes": 2, "num_steps": 1, "seed": 0}.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}.")
        if self.layers and self.preconditioned:
            raise ValueError("layers must be off with preconditioned: only dense has their blocks.")


@dataclass(frozen=True, eq=False)
class Estimate:
    """What products say of the spectrum of one matrix.

    Attributes:
        size: Its number of rows ``n``.
        tolerance: The rounding floor n · eps · max|λ| of the precision of the products.
        extreme_values: Eigenvalues from both ends, descending.
        residuals: ‖A v - λ v‖ of each: an eigenvalue lies that near.
        converged: Whether each residual is as small as asked for.
        condition_number: A lower bound: products bound the smallest |λ| from above only.
        trace: Mean and standard error; NaN without a density.
        frobenius_norm: Likewise.
        density: Over log10|λ|, with its band; None without one.
        shares_within: The shares of |λ| at or below some multiples of max|λ|, as far down as
            Lanczos steps resolve: ``(multiple, share, lower, upper)``.
        num_products: What all of it cost.
    """

    size: int
    tolerance: float
    extreme_values: list[float]
    residuals: list[float]
    converged: list[bool]
    condition_number: float
    trace: tuple[float, float]
    frobenius_norm: tuple[float, float]
    density: LogDensity | None
    shares_within: list[tuple[float, float, float, float]]
    num_products: int

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue found."""
        return max(self.extreme_values, default=math.nan)

    @property
    def lambda_min(self) -> float:
        """The smallest eigenvalue found, sign included."""
        return min(self.extreme_values, default=math.nan)

    @property
    def spectral_radius(self) -> float:
        """The largest |λ| found."""
        return max(map(abs, self.extreme_values), default=math.nan)

    def to_json(self) -> dict[str, Any]:
        """Return the keys of a dense spectrum, None where unknown, and what only estimates have."""
        known = {
            "lambda_min": self.lambda_min,
            "lambda_max": self.lambda_max,
            "tolerance": self.tolerance,
            "condition_number": self.condition_number,
            "condition_number_resolved": False,
            "smallest_magnitude_resolved": False,
            "trace": self.trace[0],
            "frobenius_norm": self.frobenius_norm[0],
        }
        entries: dict[str, Any] = {name: known.get(name) for name in SCALARS}
        shares = {rung_name(ratio): share for ratio, share, *_ in self.shares_within}
        entries["shares_below"] = {name: shares.get(name) for name in map(rung_name, LADDER)}
        return entries | {
            "num_parameters": self.size,
            "standard_errors": {
                "trace": self.trace[1],
                "frobenius_norm": self.frobenius_norm[1],
            },
            "extreme_values": self.extreme_values,
            "residuals": self.residuals,
            "converged": self.converged,
            "density": None if self.density is None else _density_json(self.density),
            "shares_within": [list(row) for row in self.shares_within],
            "num_products": self.num_products,
        }


@dataclass(frozen=True, eq=False)
class Estimated:
    """The estimates at one checkpoint.

    Attributes:
        step: The optimizer step.
        loss: The loss of the whole signal there, as recorded in training.
        psnr: Likewise, in dB; NaN where it is not defined.
        loss_error: See ``Measured``.
        whole: Of the whole matrix.
        layers: Of the layers' blocks, where they were asked for.
    """

    step: int
    loss: float
    psnr: float
    loss_error: float
    whole: Estimate
    layers: dict[str, Estimate] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return every number, as ``--json`` prints it."""
        entries: dict[str, Any] = {"step": self.step, "loss": self.loss, "psnr": self.psnr}
        entries |= self.whole.to_json() | {"product_error": None, "loss_error": self.loss_error}
        if self.layers:
            entries["layers"] = {name: one.to_json() for name, one in self.layers.items()}
        return entries


@dataclass(frozen=True, eq=False)
class Estimates:
    """The estimates along a run; its files lie in the run directory."""

    run: Run
    settings: Settings
    measured: list[Estimated]

    @property
    def failures(self) -> list[str]:
        """What does not hold of the results, in a sentence each; empty when all is well."""
        checked = (loss_failure(self.run, one.step, one.loss_error) for one in self.measured)
        changed = [text for text in checked if text]
        return [
            f"step {one.step}: the matrix is not finite"
            for one in self.measured
            if math.isnan(one.whole.lambda_max)
        ] + changed

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``eigs --json`` prints, with the keys of a dense measurement."""
        settings = asdict(self.settings)
        return {
            "command": "eigs",
            "run": str(self.run.path),
            "setup": self.run.setup.to_json(),
            "num_parameters": self.run.num_parameters,
            "method": settings.pop("method"),
            "matrix": settings.pop("matrix"),
            **settings,
            "spectra": told(self.run, self.measured),
            "pooled": dict.fromkeys(POOLED),
        }


def measure_estimates(
    run: Run,
    settings: Settings | None = None,
    *,
    every: int = 1,
    watch: Callable[[Estimated], None] | None = None,
    ranks: Ranks = ALONE,
    split: str = "checkpoints",
    scratch: Path | None = None,
) -> Estimates:
    """Estimate the spectrum at every ``every``-th checkpoint, and at the last, by products.

    In the precision of the training. Writes ``eigs-slq.json`` or ``eigs-lanczos.json`` beside the
    trajectory, also half-way; what is there already is not measured again. A checkpoint costs
    ``num_probes num_steps`` products for the density, and some hundreds for the extreme values
    and for ruling out that copies of them were missed. With ``preconditioned`` the run is trained
    once more, and checkpoints before its optimizer has a preconditioner are left out.

    Args:
        run: The trajectory.
        settings: How to estimate.
        every: Checkpoints from one measured to the next.
        watch: Called with every checkpoint when it is done.
        ranks: The processes that call this together; the first writes, and returns the estimates.
        split: What they divide: ``checkpoints``; ``points``, with products added up over all ranks;
            or ``probes`` of the density, and points for the rest.
        scratch: A directory for Lanczos vectors that do not fit in memory.

    Raises:
        ResourceError: If the Lanczos vectors do not fit, before they are allocated.
        NonFiniteError: If a product is not finite.
        UsageError: If the optimizer has no preconditioner, where it is asked for.
        InputError: If a run cannot be trained again here, likewise.
    """
    settings = settings or Settings()
    ending = suffix(
        method=settings.method,
        matrix=settings.matrix,
        layers=settings.layers,
        preconditioned=settings.preconditioned,
    )
    store: Record[Estimated] = Record(
        run,
        run.path / f"eigs{ending}.json",
        asdict(settings),
        parse=from_json,
        body=lambda results: finite(Estimates(run, settings, results).to_json()),
    )

    how = _How(run.loss, settings, ranks, split, scratch)

    def measure(one: Checkpoint) -> Estimated | None:
        return _measure(one, how)

    def measure_scaled(one: Checkpoint, preconditioner: Preconditioner) -> Estimated | None:
        return _measure(one, how, preconditioner)

    if settings.preconditioned:
        measured = along_training(
            run, measure_scaled, every=every, store=store, watch=watch, ranks=ranks
        )
    else:
        dealt = split == "checkpoints"
        measured = along(
            run, measure, every=every, store=store, watch=watch, ranks=ranks, dealt=dealt
        )
    return Estimates(run, settings, measured)


@dataclass(frozen=True)
class _How:
    """What the estimates at every checkpoint have in common; see ``measure_estimates``."""

    loss: Loss
    settings: Settings
    ranks: Ranks
    split: str
    scratch: Path | None


def _measure(
    one: Checkpoint, how: _How, preconditioner: Preconditioner | None = None
) -> Estimated | None:
    """Return the estimates at a checkpoint; None on ranks that only take part in them."""
    if how.split != "checkpoints":
        return _measured_together(one, how)
    plain = _operator(one, how)
    if preconditioner is None:
        named = _named(plain, how.settings)
    else:
        named = {"": preconditioner.precondition(plain)}
    found = {
        name: _estimate_or_nan(each, how.settings, how.scratch) for name, each in named.items()
    }
    return _estimated(one, found)


def _estimated(one: Checkpoint, found: dict[str, Estimate]) -> Estimated:
    """Return what was found of the whole, whose name is empty, and of the layers."""
    layers = {name: each for name, each in found.items() if name}
    return Estimated(one.step, one.loss, one.psnr, one.loss_error, found[""], layers)


def _operator(one: Checkpoint, how: _How, ranks: Ranks = ALONE) -> HessianOperator | GGNOperator:
    kind = GGNOperator if how.settings.matrix == "ggn" else HessianOperator
    return kind(one.model, how.loss, one.signal, chunk_size="auto", check=False, ranks=ranks)


def _named(
    operator: HessianOperator | GGNOperator, settings: Settings
) -> dict[str, SymmetricOperator]:
    """Return the matrix, whose name is empty, and the blocks of the layers where asked for."""
    return {"": operator, **(layer_blocks(operator) if settings.layers else {})}


def _measured_together(one: Checkpoint, how: _How) -> Estimated | None:
    """Return the estimates on the first rank, which leads products that all ranks share."""
    settings, by_probes = how.settings, how.split == "probes"
    shared = _operator(one, how, how.ranks)
    found: dict[str, Estimate] = {}
    if not how.ranks.first:
        shared.serve()
    else:
        only = replace(settings, method="lanczos") if by_probes else settings
        # The basis of all is on this rank alone.
        with undivided(), shared.leading():
            for name, each in _named(shared, settings).items():
                found[name] = _estimate_or_nan(each, only, how.scratch)
    if by_probes:
        _add_densities(found, one, how)
    return _estimated(one, found) if how.ranks.first else None


def _add_densities(found: dict[str, Estimate], one: Checkpoint, how: _How) -> None:
    """Add the densities of all ranks' probes to what the first has found."""
    whole = _named(_operator(one, how), how.settings)
    for name in how.ranks.told([name for name, each in found.items() if each.extreme_values]):
        try:
            measure = _density(whole[name], how.settings, how.ranks, how.scratch)
        except NonFiniteError:
            found[name] = _not_finite(whole[name].size)
            continue
        if how.ranks.first:
            found[name] = _with_density(found[name], measure)


def _estimate_or_nan(
    operator: SymmetricOperator, settings: Settings, scratch: Path | None
) -> Estimate:
    """Return the estimates of a matrix, or NaN for each where a product is not finite."""
    try:
        found = _extremes(operator, settings, scratch)
        if settings.method == "lanczos":
            return found
        return _with_density(found, _density(operator, settings, ALONE, scratch))
    except NonFiniteError:
        return _not_finite(operator.size)


def _not_finite(size: int) -> Estimate:
    return Estimate(size, math.nan, [], [], [], math.nan, NOTHING, NOTHING, None, [], 0)


def _density(
    operator: SymmetricOperator, settings: Settings, ranks: Ranks, scratch: Path | None
) -> SpectralMeasure:
    return spectral_measure(
        operator,
        num_probes=settings.num_probes,
        num_steps=min(settings.num_steps, operator.size),
        seed=settings.seed,
        ranks=ranks,
        scratch=scratch,
    )


def _extremes(operator: SymmetricOperator, settings: Settings, scratch: Path | None) -> Estimate:
    """Return the extreme eigenvalues and the bound on κ, without a density."""
    size, seed = operator.size, settings.seed
    pairs = extreme_eigenpairs(
        operator, num=min(settings.num, size), which="both", seed=seed, scratch=scratch
    )
    kappa = condition_number(operator, seed=seed, scratch=scratch)
    return Estimate(
        size=size,
        tolerance=kappa.floor,
        extreme_values=pairs.values.tolist(),
        residuals=pairs.residuals.tolist(),
        converged=pairs.converged.tolist(),
        condition_number=kappa.value,
        trace=NOTHING,
        frobenius_norm=NOTHING,
        density=None,
        shares_within=[],
        num_products=pairs.num_products + pairs.num_check_products + kappa.num_products,
    )


def _with_density(found: Estimate, measure: SpectralMeasure) -> Estimate:
    """Return extremes with what a density adds to them."""
    square, error = _mean(measure.moment(2) * found.size)
    return replace(
        found,
        trace=_mean(measure.moment(1) * found.size),
        frobenius_norm=(square**0.5, error / (2 * square**0.5) if square else 0.0),
        density=measure.log_density(),
        shares_within=_shares_within(measure, found.spectral_radius),
        num_products=found.num_products + measure.num_products,
    )


def _shares_within(
    measure: SpectralMeasure, spectral_radius: float
) -> list[tuple[float, float, float, float]]:
    """Return the shares below half decades of max|λ|, down to what is resolved."""
    rows = []
    for ratio in (10.0 ** (-half / 2) for half in range(1, 28)):
        if ratio * spectral_radius < measure.resolution:
            break
        band = measure.mass_within(ratio * spectral_radius)
        rows.append((ratio, float(band.estimate), float(band.lower), float(band.upper)))
    return rows


def _mean(samples: Tensor) -> tuple[float, float]:
    """Return the mean of independent samples and its standard error."""
    return float(samples.mean()), float(samples.std() / len(samples) ** 0.5)


def _density_json(one: LogDensity) -> dict[str, Any]:
    return {
        "log10_magnitude": one.grid.tolist(),
        "per_decade": one.density.estimate.tolist(),
        "lower": one.density.lower.tolist(),
        "upper": one.density.upper.tolist(),
        "level": one.density.level,
        "floor": one.floor,
        "share_below_floor": {
            "estimate": float(one.lump.estimate),
            "lower": float(one.lump.lower),
            "upper": float(one.lump.upper),
        },
        "bandwidth": one.bandwidth,
    }


def _density_from(entries: dict[str, Any]) -> LogDensity:
    def tensor(numbers: Any) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64)

    level, lump = entries["level"], entries["share_below_floor"]
    return LogDensity(
        grid=tensor(entries["log10_magnitude"]),
        density=Band(
            tensor(entries["per_decade"]), tensor(entries["lower"]), tensor(entries["upper"]), level
        ),
        floor=entries["floor"],
        lump=Band(tensor(lump["estimate"]), tensor(lump["lower"]), tensor(lump["upper"]), level),
        bandwidth=entries["bandwidth"],
    )


def from_json(entries: dict[str, Any]) -> Estimated:
    """Return the estimates at one checkpoint from what ``to_json`` wrote."""
    return Estimated(
        step=entries["step"],
        loss=nan_if_none(entries["loss"]),
        psnr=nan_if_none(entries["psnr"]),
        loss_error=nan_if_none(entries["loss_error"]),
        whole=_estimate_from(entries),
        layers={name: _estimate_from(one) for name, one in entries.get("layers", {}).items()},
    )


def _estimate_from(entries: dict[str, Any]) -> Estimate:
    errors, density = entries["standard_errors"], entries["density"]

    def pair(name: str) -> tuple[float, float]:
        return nan_if_none(entries[name]), nan_if_none(errors[name])

    return Estimate(
        size=entries["num_parameters"],
        tolerance=nan_if_none(entries["tolerance"]),
        extreme_values=entries["extreme_values"],
        residuals=entries["residuals"],
        converged=entries["converged"],
        condition_number=nan_if_none(entries["condition_number"]),
        trace=pair("trace"),
        frobenius_norm=pair("frobenius_norm"),
        density=None if density is None else _density_from(density),
        shares_within=[tuple(row) for row in entries["shares_within"]],
        num_products=entries["num_products"],
    )
