"""From a model, a loss and a batch to products: the fastest way that is right for each module."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.fields.radiance import RadianceField
from hessian_lab.losses import Loss
from hessian_lab.probe.data import Points
from hessian_lab.probe.hessian import is_plain_field, prediction_derivatives
from hessian_lab.probe.kept_graph import KeptGradient, KeptOutputs, block_size, saved_bytes
from hessian_lab.probe.linearized import LinearizedField, Matrix, stored_numbers
from hessian_lab.probe.passes import Workspace
from hessian_lab.probe.rendered import (
    SAMPLE_NUMBERS,
    RayCurvature,
    at_samples,
    has_rendered_form,
)

# Points of the two samples from which the memory per point of a graph is told.
SAMPLES = (16, 32)


class Linearization(Protocol):
    """A batch's share of a curvature matrix, ready for products."""

    def products(self, rows: Tensor) -> Tensor:
        """Return the products [k, n] with the rows [k, n] of a block."""


class ClosedForm(Protocol):
    """``diagonal_at`` or ``row_norms_at``."""

    def __call__(
        self,
        model: CoordinateMLP,
        coords: Tensor,
        slope: Tensor,
        curvature: Tensor,
        *,
        matrix: Matrix,
    ) -> Tensor:
        """Return a vector [n]."""


class Linearizer:
    """A copy of a model's parameters and buffers, and the ways to differentiate at them.

    Args:
        model: The module; its parameters and buffers are copied.
        loss: Maps predictions and targets to a scalar.
        names: The parameters to differentiate by.
        matrix: Which curvature matrix.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, names: Sequence[str], *, matrix: Matrix
    ) -> None:
        self.loss = loss
        self.matrix = matrix
        self.field, self.rendering = _field_of(model)
        weights = [layer.weight.detach() for layer in self.field.maps] if self.field else []
        self.workspace = Workspace(weights, full=matrix == "hessian")
        self.model = model
        self.modes = [(part, part.training) for part in model.modules()]
        self.buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
        self.parameters = {
            name: value.detach().clone().requires_grad_(name in names)
            for name, value in model.named_parameters()
        }
        self.leaves = [self.parameters[name] for name in names]
        first = self.leaves[0]
        self.dtype, self.device = first.dtype, first.device
        self.per_point = 0.0

    def outputs(self, inputs: Any, *, differentiable: bool = False) -> Any:
        """Return the model's predictions, at the copied parameters and in its modes of then.

        Gradients are on even where the parameters are not to be differentiated by: the forward pass
        of a module may take derivatives of its own. Fused attention has no second derivative.
        """
        parameters = self.parameters
        if not differentiable:
            parameters = {name: value.detach() for name, value in parameters.items()}
        with torch.enable_grad(), _modes(self.modes), sdpa_kernel(SDPBackend.MATH):
            return functional_call(self.model, parameters | self.buffers, (inputs,))

    def value(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the loss of a batch.

        Raises:
            ValueError: If it is no scalar.
        """
        value = self.loss(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"loss must return the mean over points, a scalar, got {shape}. "
                "Use reduction='mean', or take the mean over points of what it returns."
            )
        return value

    def placed(self, inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """Return a batch on the parameters' device.

        Raises:
            TypeError: If a floating-point tensor of it has another precision.
        """
        for name, value in (("inputs", inputs), ("targets", targets)):
            if (
                isinstance(value, Tensor)
                and value.is_floating_point()
                and value.dtype != self.dtype
            ):
                raise TypeError(
                    f"{name} must have the dtype of the parameters, {self.dtype}, got "
                    f"{value.dtype}. Convert the data, with signal.to(dtype={self.dtype}), or the "
                    "model."
                )
        if isinstance(inputs, Tensor):
            inputs = inputs.to(self.device)
        return inputs, targets.to(self.device)

    def each(self, points: Points, num_points: int) -> Iterator[Linearization]:
        """Yield every batch linearized, weighed by its share of all points."""
        for inputs, targets in points:
            yield self.linearized(*self.placed(inputs, targets), len(targets) / num_points)

    @torch.enable_grad()  # type: ignore[untyped-decorator]
    def linearized(self, inputs: Any, targets: Tensor, share: float) -> Linearization:
        """Return one batch, ready for products with ``share`` times its curvature matrix."""
        derivatives = self._output_derivatives(inputs, targets, share)
        if derivatives is None:
            return self._kept(inputs, targets, share)
        assert self.field is not None
        slope, curvature = derivatives
        bent: Tensor | RayCurvature = curvature
        if self.rendering is not None:
            with torch.no_grad():
                places, found = at_samples(self.rendering, inputs, slope)
            bent = RayCurvature(found, curvature, self.matrix == "hessian")
            inputs, slope = places.flatten(0, 1), found.slope.flatten(0, 1)
        return self._restricted(
            LinearizedField(
                self.field, inputs, slope, bent, matrix=self.matrix, workspace=self.workspace
            )
        )

    @torch.enable_grad()  # type: ignore[untyped-decorator]
    def closed(self, points: Points, num_points: int, find: ClosedForm) -> Tensor | None:
        """Return what a closed form says of the whole parameters and all points, or None."""
        if self.field is None or self.rendering is not None:
            return None
        parts = []
        for batch in points:
            inputs, targets = self.placed(*batch)
            derivatives = self._output_derivatives(inputs, targets, len(targets) / num_points)
            if derivatives is None:
                return None
            parts.append((inputs, *derivatives))
        coords, slope, curvature = (torch.cat(part) for part in zip(*parts, strict=True))
        return find(self.field, coords, slope, curvature, matrix=self.matrix)

    def _output_derivatives(
        self, inputs: Any, targets: Tensor, share: float
    ) -> tuple[Tensor, Tensor] | None:
        """Return ``share`` times ∂L/∂f and ∂²L/∂f², or None without a closed form."""
        if self.field is None or not _is_plain(inputs, targets):
            return None
        whole = self.field if self.rendering is None else self.rendering
        derivatives = prediction_derivatives(whole, self.value, inputs, targets)
        if derivatives is None:
            return None
        slope, curvature = derivatives
        return slope * share, curvature * share

    def bytes_per_point(self, points: Points) -> float:
        """Return what linearizing one more point keeps; told from a few of them."""
        self.per_point = self._bytes_per_point(points)
        return self.per_point

    def _bytes_per_point(self, points: Points) -> float:
        inputs, targets = self.placed(*points.in_chunks(None).first())
        if self.field is not None and _is_plain(inputs, targets):
            numbers = stored_numbers(self.field, 1, matrix=self.matrix)
            if self.rendering is not None:
                numbers = self.rendering.samples * (numbers + SAMPLE_NUMBERS)
            return numbers * self.leaves[0].itemsize
        if not isinstance(inputs, Tensor):
            return self._graph_bytes(inputs, targets) / len(targets)
        sizes = [min(size, len(targets)) for size in SAMPLES]
        try:
            counts = [self._graph_bytes(inputs[:size], targets[:size]) for size in sizes]
        except (RuntimeError, ValueError, IndexError):
            # A loss may be one of this very batch.
            return self._graph_bytes(inputs, targets) / len(targets)
        if sizes[0] == sizes[1]:
            return counts[0] / sizes[0]
        return max(0.0, (counts[1] - counts[0]) / (sizes[1] - sizes[0]))

    @torch.enable_grad()  # type: ignore[untyped-decorator]
    def _graph_bytes(self, inputs: Any, targets: Tensor) -> int:
        with saved_bytes() as saved:
            self._kept(inputs, targets, 1.0)
        return saved.total

    def _kept(self, inputs: Any, targets: Tensor, share: float) -> Linearization:
        """Return one batch linearized by autograd."""
        # The graph keeps the data: they must not change under it.
        inputs = inputs.detach().clone() if isinstance(inputs, Tensor) else inputs
        targets = targets.detach().clone()
        outputs = self.outputs(inputs, differentiable=True)
        if self.matrix == "hessian":
            value = self.value(outputs, targets) * share
            return KeptGradient(value, self.leaves, block=self._block(len(targets)))
        if not isinstance(outputs, Tensor):
            raise TypeError(
                "model must return a tensor for the Gauss–Newton matrix, got "
                f"{type(outputs).__name__}."
            )
        return KeptOutputs(outputs, lambda leaf: self.value(leaf, targets) * share, self.leaves)

    def _block(self, num_points: int) -> int:
        """Return how many rows to pull back at once."""
        # On the CPU a loop over rows is as fast as a batch of them, and always works.
        if self.device.type == "cpu":
            return 1
        return block_size(int(self.per_point * num_points), self.device)

    def _restricted(self, whole: LinearizedField) -> Linearization:
        """Return products with the block of the chosen parameters alone."""
        places = self.places()
        if len(places) == len(self.parameters):
            return whole
        return _Restricted(whole, places, sum(map(Tensor.numel, self.parameters.values())))

    def places(self) -> list[slice]:
        """Return where the chosen parameters stand among all."""
        places: list[slice] = []
        start = 0
        for value in self.parameters.values():
            stop = start + value.numel()
            if value.requires_grad:
                places.append(slice(start, stop))
            start = stop
        return places


class _Restricted:
    """The diagonal block of some parameters, by products of the whole."""

    def __init__(self, whole: Linearization, places: list[slice], size: int) -> None:
        self.whole = whole
        self.places = places
        self.size = size

    def products(self, rows: Tensor) -> Tensor:
        embedded = rows.new_zeros(len(rows), self.size)
        widths = [place.stop - place.start for place in self.places]
        for place, part in zip(self.places, rows.split(widths, dim=1), strict=True):
            embedded[:, place] = part
        products = self.whole.products(embedded)
        return torch.cat([products[:, place] for place in self.places], dim=1)


def _field_of(model: nn.Module) -> tuple[CoordinateMLP | None, RadianceField | None]:
    """Return a copy of a coordinate network as it was built, and of what renders it, or None.

    Frozen parameters are no matter.
    """
    if has_rendered_form(model) and is_plain_field(model.field):  # type: ignore[arg-type]
        rendering: RadianceField = copy.deepcopy(model).requires_grad_(True)  # type: ignore[assignment]
        return rendering.field, rendering
    if not isinstance(model, CoordinateMLP) or not is_plain_field(model):
        return None, None
    return copy.deepcopy(model).requires_grad_(True), None


def _is_plain(inputs: Any, targets: Tensor) -> bool:
    """Tell whether a batch is points [p, d] and values [p, c]."""
    return (
        isinstance(inputs, Tensor)
        and inputs.ndim == targets.ndim == 2
        and inputs.is_floating_point()
        and targets.is_floating_point()
    )


@contextmanager
def _modes(modes: Sequence[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Give every module the training mode it had, and back."""
    present = [(part, part.training) for part, _ in modes]
    try:
        for part, mode in modes:
            part.training = mode
        yield
    finally:
        for part, mode in present:
            part.training = mode
