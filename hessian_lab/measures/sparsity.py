"""How many entries of Hessian–vector products, of gradient and Hessian are zero, by layer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.losses import Loss
from hessian_lab.measures.checkpoints import Checkpoint, along, checkpoint, loss_failure, told
from hessian_lab.measures.checkpoints import nan_if_none as nan
from hessian_lab.measures.record import Record
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.probe.kept_graph import trainable
from hessian_lab.probe.parameters import Layout, selected_names
from hessian_lab.probe.ranks import ALONE, Ranks
from hessian_lab.probe.vectors import rademacher
from hessian_lab.signal import Signal
from hessian_lab.training.run import Run

RTOLS = (1e-7, 1e-3)
NAME = "sparsity"


@dataclass(frozen=True)
class Settings:
    """How zeros are counted.

    Attributes:
        num_probes: Rademacher vectors v.
        rtols: Beside exact zeros, entries are counted whose magnitude is at most ``rtol`` times the
            largest of the same part.
        batch_size: Points that the loss is a mean over, a random batch that is the same at every
            checkpoint; None for as many as a step of the training took.
        dense: Whether to count the zeros of the Hessian itself too.
        seed: Of probes and batch.
    """

    num_probes: int = 8
    rtols: tuple[float, ...] = RTOLS
    batch_size: int | None = None
    dense: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_probes < 1:
            raise ValueError(f"num_probes must be at least 1, got {self.num_probes}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        for rtol in self.rtols:
            if not 0 < rtol < 1:
                raise ValueError(f"rtol must be in (0, 1), got {rtol:g}.")


@dataclass(frozen=True)
class Range:
    """The mean over probes, the least and the most."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Shares:
    """What part of the entries of H v and of the gradient g is zero.

    Attributes:
        size: The number of entries.
        zero: Share of entries of H v that are exactly 0.
        within: Share of entries at or below ``rtol · max``, for each rtol.
        gradient_zero: Share of entries of g that are exactly 0.
        gradient_zero_where_zero: P(g_i = 0 | (H v)_i = 0) over entries and probes; NaN where H v
            has no zero.
        zero_where_gradient: P((H v)_i = 0 | g_i ≠ 0): the share of live parameters that a scale
            made of H v does not see.
    """

    size: int
    zero: Range
    within: tuple[Range, ...]
    gradient_zero: float
    gradient_zero_where_zero: float
    zero_where_gradient: float


@dataclass(frozen=True)
class DenseShares:
    """What part of the entries of the Hessian, or of a layer's diagonal block, is zero.

    Attributes:
        size: The number of rows.
        zero: Share of entries that are exactly 0.
        within: Share of entries at or below ``rtol · max``, for each rtol.
        zero_rows: Share of rows of which every entry is exactly 0.
    """

    size: int
    zero: float
    within: tuple[float, ...]
    zero_rows: float


@dataclass(frozen=True)
class SparsityAt:
    """The zeros at one checkpoint.

    Attributes:
        step: The optimizer step.
        loss: The loss of the whole signal, as recorded in training.
        psnr: Likewise, in dB; NaN where it is not defined.
        loss_error: See ``Checkpoint``.
        whole: Of all parameters.
        weights: Of all weights, without biases.
        layers: Of each layer, weights and biases together.
        layer_weights: Of each weight alone, by its parameter's name.
        dense: Of the Hessian itself, and of each layer's diagonal block, where asked for.
    """

    step: int
    loss: float
    psnr: float
    loss_error: float
    whole: Shares
    weights: Shares
    layers: dict[str, Shares]
    layer_weights: dict[str, Shares]
    dense: dict[str, DenseShares] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Sparsity:
    """The zeros along a run."""

    run: Run
    settings: Settings
    measured: list[SparsityAt]

    @property
    def failures(self) -> list[str]:
        """What does not hold of the results, in a sentence each."""
        checked = (loss_failure(self.run, one.step, one.loss_error) for one in self.measured)
        failures = [text for text in checked if text]
        for one in self.measured:
            if not math.isfinite(one.whole.zero.mean):
                failures.append(f"step {one.step}: H v is not finite")
        return failures

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``sparsity --json`` prints."""
        return {
            "command": NAME,
            "run": str(self.run.path),
            "setup": self.run.setup.to_json(),
            "num_parameters": self.run.num_parameters,
            **asdict(self.settings),
            "spectra": told(self.run, self.measured),
        }


def measure_sparsity(
    run: Run,
    settings: Settings | None = None,
    *,
    every: int = 1,
    watch: Callable[[SparsityAt], None] | None = None,
    ranks: Ranks = ALONE,
) -> Sparsity:
    """Count the zeros of H v at every ``every``-th checkpoint, and at the last.

    In the precision of the training, by ``num_probes`` products of ``HessianOperator``: they sum
    what autograd sums, so that an entry that no point contributes to is exactly 0. Writes
    ``sparsity.json`` (``sparsity-dense.json``) beside the trajectory, also half-way; what is there
    already is not measured again. Several ``ranks`` that call it together measure other checkpoints
    each; the first writes, and returns the results.

    Raises:
        ResourceError: If the dense Hessian was asked for and does not fit.

    References:
        Preconditioners for the Stochastic Training of Neural Fields (2025), §4.4 and Fig. 4.
    """
    settings = resolved(run, settings or Settings())
    path = run.path / f"{NAME}{'-dense' if settings.dense else ''}.json"
    measured = along(
        run,
        lambda one: _measure(one, run.loss, settings),
        every=every,
        store=Record(
            run,
            path,
            # JSON knows lists alone.
            asdict(settings) | {"rtols": list(settings.rtols)},
            parse=from_json,
            body=lambda results: Sparsity(run, settings, results).to_json(),
        ),
        watch=watch,
        ranks=ranks,
    )
    return Sparsity(run, settings, measured)


def resolved(run: Run, settings: Settings) -> Settings:
    """Return settings with the number of points that are measured on."""
    num_points = int(run.record["data"]["num_points"])
    asked = settings.batch_size or run.setup.batch_size or num_points
    return replace(settings, batch_size=min(asked, num_points))


def batch_of(signal: Signal, batch_size: int, seed: int) -> Signal:
    """Return random points of a signal, a function of the seed; the signal itself if all."""
    if batch_size >= signal.num_points:
        return signal
    generator = torch.Generator().manual_seed(seed % (1 << 63))
    chosen = torch.randperm(signal.num_points, generator=generator)[:batch_size]
    chosen = chosen.sort().values.to(signal.coords.device)
    return Signal(signal.coords[chosen], signal.values[chosen], signal.loss)


def product_matrices(run: Run, settings: Settings, step: int) -> dict[str, Tensor]:
    """Return H v of the first probe at a checkpoint: each weight's part, [out, in], by name."""
    settings = resolved(run, settings)
    one = checkpoint(run, run.signal(), step)
    products, _ = products_and_gradient(one.model, run.loss, one.signal, settings, num_probes=1)
    shapes = _weight_shapes(one.model)
    slices = Layout(one.model, selected_names(one.model, None)).slices
    return {
        name: products[slices[name], 0].view(shape).flatten(1) for name, shape in shapes.items()
    }


def products_and_gradient(
    model: nn.Module,
    loss: Loss,
    signal: Signal,
    settings: Settings,
    *,
    num_probes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return H v of every probe [n, m], and the gradient [n], on a batch of the signal."""
    batch = batch_of(signal, settings.batch_size or signal.num_points, settings.seed)
    operator = HessianOperator(model, loss, batch, chunk_size="auto", check=False)
    probes = rademacher(
        operator.size, num_probes or settings.num_probes, seed=settings.seed, like=operator
    )
    with torch.enable_grad():
        value = loss(model(batch.coords), batch.values)
        parts = torch.autograd.grad(
            value, trainable(model), allow_unused=True, materialize_grads=True
        )
    return operator @ probes, torch.cat([part.reshape(-1) for part in parts])


def shares_of(products: Tensor, gradient: Tensor, rtols: Sequence[float]) -> Shares:
    """Return the shares of zeros of products [k, m] and a gradient [k]; NaN if not finite."""
    if not (products.isfinite().all() and gradient.isfinite().all()):
        missing = Range(math.nan, math.nan, math.nan)
        return Shares(len(gradient), missing, (missing,) * len(rtols), *(math.nan,) * 3)
    magnitudes = products.abs()
    zero, still = magnitudes == 0, (gradient == 0).unsqueeze(1)
    num_zero, num_live = int(zero.sum()), int((~still).sum()) * products.shape[1]
    return Shares(
        size=len(gradient),
        zero=_range(zero),
        within=tuple(_range(magnitudes <= rtol * magnitudes.amax(dim=0)) for rtol in rtols),
        gradient_zero=float(still.double().mean()),
        gradient_zero_where_zero=int((zero & still).sum()) / num_zero if num_zero else math.nan,
        zero_where_gradient=int((zero & ~still).sum()) / num_live if num_live else math.nan,
    )


def dense_shares_of(matrix: Tensor, rtols: Sequence[float]) -> DenseShares:
    """Return the shares of zeros of a matrix [k, k]; NaN if it is not finite."""
    if not matrix.isfinite().all():
        return DenseShares(len(matrix), math.nan, (math.nan,) * len(rtols), math.nan)
    magnitudes = matrix.abs()
    zero, largest = magnitudes == 0, magnitudes.max()
    return DenseShares(
        size=len(matrix),
        zero=_share(zero),
        within=tuple(_share(magnitudes <= rtol * largest) for rtol in rtols),
        zero_rows=_share(zero.all(dim=1)),
    )


def _measure(one: Checkpoint, loss: Loss, settings: Settings) -> SparsityAt:
    products, gradient = products_and_gradient(one.model, loss, one.signal, settings)
    layout = Layout(one.model, selected_names(one.model, None))
    weights = {name: [layout.slices[name]] for name in _weight_shapes(one.model)}

    def part(places: list[slice]) -> Shares:
        cut = [torch.cat([each[place] for place in places]) for each in (products, gradient)]
        return shares_of(cut[0], cut[1], settings.rtols)

    every_weight = [place for places in weights.values() for place in places]
    return SparsityAt(
        step=one.step,
        loss=one.loss,
        psnr=one.psnr,
        loss_error=one.loss_error,
        whole=shares_of(products, gradient, settings.rtols),
        weights=part(every_weight or [slice(0, layout.size)]),
        layers={name: part(places) for name, places in layout.layers().items()},
        layer_weights={name: part(places) for name, places in weights.items()},
        dense=_dense(one, loss, settings, layout) if settings.dense else {},
    )


def _dense(
    one: Checkpoint, loss: Loss, settings: Settings, layout: Layout
) -> dict[str, DenseShares]:
    size = settings.batch_size or one.signal.num_points
    matrix = dense_hessian(one.model, loss, batch_of(one.signal, size, settings.seed))
    found = {"whole": dense_shares_of(matrix, settings.rtols)}
    for name, places in layout.layers().items():
        index = torch.cat([torch.arange(place.start, place.stop) for place in places])
        found[name] = dense_shares_of(matrix[index][:, index], settings.rtols)
    return found


def _weight_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of what is no vector among the trainable parameters, by name."""
    return {
        name: value.shape
        for name, value in model.named_parameters()
        if value.requires_grad and value.ndim >= 2
    }


def _share(chosen: Tensor) -> float:
    return int(chosen.sum()) / chosen.numel()


def _range(chosen: Tensor) -> Range:
    """Return the share of true entries of columns [k, m], over the columns."""
    shares = chosen.double().mean(dim=0)
    return Range(float(shares.mean()), float(shares.min()), float(shares.max()))


def from_json(entry: dict[str, Any]) -> SparsityAt:
    """Return the zeros at one checkpoint from what ``to_json`` wrote."""

    def span(part: dict[str, float | None]) -> Range:
        return Range(**{name: nan(value) for name, value in part.items()})

    def shares(part: dict[str, Any]) -> Shares:
        rest = ("gradient_zero", "gradient_zero_where_zero", "zero_where_gradient")
        return Shares(
            part["size"],
            span(part["zero"]),
            tuple(span(each) for each in part["within"]),
            **{name: nan(part[name]) for name in rest},
        )

    def dense(part: dict[str, Any]) -> DenseShares:
        within = tuple(nan(value) for value in part["within"])
        return DenseShares(part["size"], nan(part["zero"]), within, nan(part["zero_rows"]))

    def named(parts: dict[str, Any]) -> dict[str, Shares]:
        return {name: shares(part) for name, part in parts.items()}

    return SparsityAt(
        step=entry["step"],
        loss=nan(entry["loss"]),
        psnr=nan(entry["psnr"]),
        loss_error=nan(entry["loss_error"]),
        whole=shares(entry["whole"]),
        weights=shares(entry["weights"]),
        layers=named(entry["layers"]),
        layer_weights=named(entry["layer_weights"]),
        dense={name: dense(part) for name, part in entry["dense"].items()},
    )
