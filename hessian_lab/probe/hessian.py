"""The exact Hessian of a field's loss, whole or in its three parts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.fields.radiance import RadianceField
from hessian_lab.losses import Loss
from hessian_lab.probe.closed_bands import assemble_bands, slab_needs
from hessian_lab.probe.closed_form import Parts, assemble, slots_of, temporary_numbers
from hessian_lab.probe.closed_slabs import divide
from hessian_lab.probe.kept_graph import BLOCK_RANGE, ggn_rows, hessian_rows, trainable
from hessian_lab.probe.linearized import Matrix
from hessian_lab.probe.memory import available_bytes, require_bytes
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.rendered import has_rendered_form, rendered_matrix, rendering_numbers
from hessian_lab.probe.scratch import whole_file
from hessian_lab.probe.vectors import placed
from hessian_lab.signal import Signal

# A loss is a mean over points if moving one prediction changes no other's gradient; the two sides
# of that test are sums of a few terms and agree to this many roundings.
SEPARABLE_ROUNDINGS = 1e3
# One in how many of the free bytes a slab of a matrix in a file may take.
FILE_SHARE = 4


@dataclass(frozen=True)
class HessianTerms:
    """The Hessian as the sum of its three kinds of terms, each [n, n] and exactly symmetric.

    Attributes:
        ggn: The generalized Gauss–Newton matrix, Jᵀ (∇²_f ℓ) J.
        activation: What φ″ contributes; zero for ReLU.
        cross: The mixed derivatives of two layers' weights with φ and φ′ alone.
    """

    ggn: Tensor
    activation: Tensor
    cross: Tensor


@full_precision()
def dense_hessian(
    model: nn.Module,
    loss: Loss,
    signal: Signal,
    *,
    chunk_size: int | None = None,
    file: Path | str | None = None,
) -> Tensor:
    """Return the Hessian ``∇²_θ loss(model(coords), values)`` [n, n], exactly symmetric.

    For a ``CoordinateMLP`` and a loss that is a mean over points (``mse``, ``bce``, ``nn.MSELoss``,
    ``nn.BCEWithLogitsLoss``, ``nn.HuberLoss``, …) in closed form by matrix products, about
    ``p n²`` operations; so for a ``RadianceField`` without a head, ``p`` the samples of all rays,
    and some 17 times as fast as by products; for any other module or loss by ``n`` products with
    one kept graph, some 20 to 30 times slower. Rows and columns follow
    ``model.named_parameters()``, row-major, without those that do not require gradients. It is
    computed in the precision of the parameters: where small eigenvalues matter, pass
    ``model.double()``.

    Args:
        model: A module without randomness or batch statistics (call ``eval()`` first); its
            parameters, gradients and mode are left alone.
        loss: Maps predictions [p, c] and values [p, c] to a scalar. ``signal.loss`` is not used.
        signal: The points.
        chunk_size: Points per pass of the closed form; see ``closed_form.assemble``.
        file: Where to write a matrix larger than memory. It is assembled in slabs that fit; the
            tensor returned, on the CPU, is the mapped file: n² numbers of the parameters' dtype,
            row by row, to be read again with ``np.memmap(file, dtype, "r", shape=(n, n))`` or
            ``torch.from_file(file, shared=True, size=n * n, dtype=dtype).view(n, n)``. It has its
            name only when it is whole. ``MatrixOperator`` and ``spectrum`` take it.

    Raises:
        TypeError: If signal and parameters differ in dtype.
        ValueError: If an operation of another module has a wrong second derivative, so that the
            two triangles differ.
        ResourceError: If the matrix and its temporaries do not fit, before anything is allocated;
            with ``file``, if a slab does not fit in memory, or the matrix on the disk.
        UsageError: If ``file`` cannot be written.

    Examples:
        >>> import torch
        >>> from hessian_lab import Signal, dense_hessian, make_field, mse
        >>> coords = torch.linspace(-1, 1, 100, dtype=torch.float64).unsqueeze(1)
        >>> field = make_field("sine", 1, 1, width=8, depth=2)
        >>> dense_hessian(field, mse, Signal(coords, torch.sin(4 * coords))).shape
        torch.Size([97, 97])
    """
    return _dense(model, loss, signal, "hessian", chunk_size, file)


@full_precision()
def dense_ggn(
    model: nn.Module,
    loss: Loss,
    signal: Signal,
    *,
    chunk_size: int | None = None,
    file: Path | str | None = None,
) -> Tensor:
    """Return the Gauss–Newton matrix ``Jᵀ (∇²_f ℓ) J`` [n, n], exactly symmetric.

    Arguments, order of parameters, precision and errors are those of ``dense_hessian``. In closed
    form at its cost; for any other module or loss by ``n`` products of about three gradients each.
    """
    return _dense(model, loss, signal, "ggn", chunk_size, file)


def _dense(
    model: nn.Module,
    loss: Loss,
    signal: Signal,
    matrix: Matrix,
    chunk_size: int | None,
    file: Path | str | None,
) -> Tensor:
    size = checked_size(model, signal, chunk_size)
    if file is not None:
        with whole_file(Path(file), (size, size), dtype=signal.coords.dtype) as out:
            fill_matrix(out, model, loss, signal, matrix=matrix, chunk_size=chunk_size)
        return out
    derivatives = output_derivatives(model, loss, signal.coords, signal.values)
    require_hessian(model, size, signal.num_points, chunk_size=chunk_size)
    if derivatives is None:
        found = _rendered(model, loss, signal, matrix=matrix)
        rows = ggn_rows if matrix == "ggn" else hessian_rows
        return rows(model, loss, signal) if found is None else found
    assert isinstance(model, CoordinateMLP)
    parts = Parts() if matrix == "hessian" else Parts(activation=False, cross=False)
    return assemble(model, signal.coords, *derivatives, parts=parts, chunk_size=chunk_size)


@full_precision()
def fill_matrix(
    out: Tensor,
    model: nn.Module,
    loss: Loss,
    signal: Signal,
    *,
    matrix: Matrix,
    chunk_size: int | None = None,
) -> None:
    """Write the Hessian or the GGN to a matrix [n, n] of zeros, a mapped one, slab by slab.

    Arguments and errors are those of ``dense_hessian``.
    """
    checked_size(model, signal, chunk_size)
    numbers = slab_numbers(model, signal.num_points, chunk_size)
    derivatives = output_derivatives(model, loss, signal.coords, signal.values)
    if derivatives is not None:
        assert isinstance(model, CoordinateMLP)
        residual = matrix == "hessian"
        assemble_bands(
            model,
            signal.coords,
            *derivatives,
            matrix=matrix,
            slabs=[
                bands for bands, _ in divide(slots_of(model), residual=residual, numbers=numbers)
            ],
            out=out,
            chunk_size=chunk_size,
        )
    elif _rendered(model, loss, signal, matrix=matrix, out=out, slab_numbers=numbers) is None:
        rows = ggn_rows if matrix == "ggn" else hessian_rows
        rows(model, loss, signal, out=out)


@full_precision()
def hessian_terms(
    model: CoordinateMLP, loss: Loss, signal: Signal, *, chunk_size: int | None = None
) -> HessianTerms:
    """Return the Hessian of a ``CoordinateMLP`` as its three parts; they sum to ``dense_hessian``.

    Three times the cost and memory of ``dense_hessian``.

    Raises:
        TypeError: If the model is no ``CoordinateMLP``.
        ValueError: If the loss is no mean over points.

    References:
        Curvature-Aware Training for Coordinate Networks (2023), §4.1, items 1–3.
    """
    if not isinstance(model, CoordinateMLP):
        raise TypeError(f"model must be a CoordinateMLP, got {type(model).__name__}.")
    size = checked_size(model, signal, chunk_size)
    derivatives = output_derivatives(model, loss, signal.coords, signal.values)
    if derivatives is None:
        raise ValueError(
            "loss must be a mean over points, and model a CoordinateMLP as it was built, "
            "every parameter trainable."
        )
    require_hessian(model, size, signal.num_points, chunk_size=chunk_size, matrices=3)

    def part(**kinds: bool) -> Tensor:
        parts = Parts(**({"ggn": False, "activation": False, "cross": False} | kinds))
        return assemble(model, signal.coords, *derivatives, parts=parts, chunk_size=chunk_size)

    return HessianTerms(
        ggn=part(ggn=True), activation=part(activation=True), cross=part(cross=True)
    )


def _rendered(
    model: nn.Module,
    loss: Loss,
    signal: Signal,
    *,
    matrix: Matrix,
    out: Tensor | None = None,
    slab_numbers: int = 0,
) -> Tensor | None:
    """Return the matrix of a radiance field in closed form, or None without one."""
    if not isinstance(model, RadianceField) or closed_network(model)[0] is None:
        return None
    if out is not None and out.device != signal.coords.device:
        return None
    derivatives = prediction_derivatives(model, loss, signal.coords, signal.values)
    if derivatives is None:
        return None
    return rendered_matrix(
        model, signal.coords, *derivatives, matrix=matrix, out=out, slab_numbers=slab_numbers
    )


def require_hessian(
    model: nn.Module,
    size: int,
    num_points: int,
    *,
    chunk_size: int | None = None,
    matrices: int = 1,
    item_size: int | None = None,
) -> None:
    """Check that dense Hessians of ``size`` parameters can be had.

    Raises:
        ResourceError: If it cannot.
    """
    first = next(iter(trainable(model)))
    numbers = matrices * size**2
    numbers += closed_numbers(model, num_points, chunk_size)
    require_bytes(
        numbers * (item_size or first.element_size()),
        f"The dense Hessian of {size} parameters",
        device=first.device,
        cure="Measure a smaller network (width, depth, octaves).",
    )


def slab_numbers(model: nn.Module, num_points: int, chunk_size: int | None = None) -> int:
    """Return how many numbers a slab of a matrix in a file may have.

    A quarter of what is free, so that pages of the file stay in memory for a while; or one unit.

    Raises:
        ResourceError: If not even a unit fits.
    """
    first = trainable(model)[0]
    size = sum(value.numel() for value in trainable(model))
    field, samples = closed_network(model)
    unit, others = size, BLOCK_RANGE[1] * size
    if field is not None:
        unit, others = slab_needs(slots_of(field), num_points * samples, chunk_size, like=first)
        others += 0 if field is model else rendering_numbers(model, num_points)  # type: ignore[arg-type]
    require_bytes(
        (unit + others) * first.element_size(),
        f"A slab of the dense Hessian of {size} parameters",
        device=first.device,
        cure="Measure a smaller network (width, depth, octaves).",
    )
    there = available_bytes(first.device)
    if there is None:
        return size**2
    return max(unit, there // (FILE_SHARE * first.element_size()) - others)


def closed_numbers(model: nn.Module, num_points: int, chunk_size: int | None = None) -> int:
    """Return how many numbers a closed form keeps at most beside the matrix; 0 without one."""
    field, samples = closed_network(model)
    if field is None:
        return 0
    numbers = temporary_numbers(field, num_points * samples, chunk_size)
    return numbers if field is model else numbers + rendering_numbers(model, num_points)  # type: ignore[arg-type]


def closed_network(model: nn.Module) -> tuple[CoordinateMLP | None, int]:
    """Return the network that a closed form runs on, and its points for each point of the data.

    A ``CoordinateMLP`` itself, that of a ``RadianceField``, or None.
    """
    if has_rendered_form(model):
        assert isinstance(model, RadianceField)
        return (model.field, model.samples) if has_closed_form(model.field) else (None, 1)
    return (model, 1) if has_closed_form(model) else (None, 1)  # type: ignore[return-value]


def has_closed_form(model: nn.Module) -> bool:
    """Tell whether a module is a ``CoordinateMLP`` as it was built, and wholly trainable."""
    return is_plain_field(model) and all(value.requires_grad for value in model.parameters())


def is_plain_field(model: nn.Module) -> bool:
    """Tell whether a module is a ``CoordinateMLP`` as it was built.

    A subclass may compute anything, and so may a layer or a method that was replaced, hooked or
    reparametrized; so may one whose parameters stand in another order.
    """
    if type(model) is not CoordinateMLP or any(
        type(layer) is not nn.Linear for layer in model.layers
    ):
        return False
    expected = [
        f"layers.{layer}.{part}"
        for layer in range(len(model.layers))
        for part in ("weight", "bias")
    ]
    return [name for name, _ in model.named_parameters()] == expected and not any(
        part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
        for part in model.modules()
    )


def checked_size(model: nn.Module, signal: Signal, chunk_size: int | None) -> int:
    """Return the number of trainable parameters of a model that fits its signal.

    Raises:
        TypeError: If the two differ in dtype.
        ValueError: If nothing is trainable, or ``chunk_size`` is below 1.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
    parameters = trainable(model)
    if not parameters:
        raise ValueError("model must have parameters that require gradients, got none.")
    for value in parameters:
        if value.dtype != signal.coords.dtype:
            raise TypeError(
                f"signal must have the dtype of the parameters, {value.dtype}, "
                f"got {signal.coords.dtype}. Convert it with signal.to(dtype=…)."
            )
    return sum(value.numel() for value in parameters)


@torch.enable_grad()  # type: ignore[untyped-decorator]
def output_derivatives(
    model: nn.Module, loss: Loss, coords: Tensor, values: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return ∂L/∂f [p, c] and ∂²L/∂f² [p, c, c] of each point, or None without a closed form."""
    return prediction_derivatives(model, loss, coords, values) if has_closed_form(model) else None


@torch.enable_grad()  # type: ignore[untyped-decorator]
def prediction_derivatives(
    model: nn.Module, loss: Loss, coords: Tensor, values: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return ∂L/∂f [p, c] and ∂²L/∂f² [p, c, c] of any module's predictions f [p, c] at points.

    None if the loss is no mean over points.
    """
    with torch.no_grad():
        outputs = model(coords)
    outputs.requires_grad_()
    value = loss(outputs, values)
    if not value.requires_grad:
        return torch.zeros_like(outputs).detach(), outputs.new_zeros(
            *outputs.shape, outputs.shape[1]
        )
    (slope,) = torch.autograd.grad(value, outputs, create_graph=True, materialize_grads=True)
    channels = outputs.shape[1]
    # Points do not interact, so the derivative of a sum over points holds each point's own row.
    rows = [_derivative(slope[:, channel].sum(), outputs) for channel in range(channels)]
    curvature = torch.stack(rows, dim=1)
    if not _separable(slope, outputs, curvature):
        return None
    return slope.detach(), curvature


def _derivative(value: Tensor, outputs: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(outputs).detach()
    (derivative,) = torch.autograd.grad(
        value, outputs, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return derivative


def _separable(slope: Tensor, outputs: Tensor, curvature: Tensor) -> bool:
    """Tell whether ∂²L/∂f² v is the points' own curvature times v, for a random v."""
    generator = torch.Generator("cpu").manual_seed(0)
    options: dict[str, Any] = {"dtype": torch.float64, "device": "cpu", "generator": generator}
    probe = placed(torch.randn(outputs.shape, **options), outputs.device).to(outputs.dtype)
    product = _derivative((slope * probe).sum(), outputs)
    expected = torch.einsum("pij,pj->pi", curvature, probe)
    scale = curvature.abs().sum(dim=2).max()
    tolerance = SEPARABLE_ROUNDINGS * torch.finfo(outputs.dtype).eps * scale
    return bool(((product - expected).abs() <= tolerance).all())
