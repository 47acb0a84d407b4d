"""The exact row norms of a coordinate network's Hessian, without the matrix."""

from torch import Tensor

from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.losses import Loss
from hessian_lab.probe.closed_bands import largest_unit, panel_numbers, sum_slab
from hessian_lab.probe.closed_diagonal import closed_derivatives, flat, zeros
from hessian_lab.probe.closed_form import Scratch, slots_of
from hessian_lab.probe.closed_kernel import kernel_squares
from hessian_lab.probe.closed_slabs import divide, unit_numbers
from hessian_lab.probe.linearized import Matrix
from hessian_lab.probe.memory import available_bytes, require_bytes
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.sizes import numbers_at_once
from hessian_lab.signal import Signal

# Numbers in a slab on the CPU, unless so many units of a map have more: the derivatives by z that
# every slab starts from cost as much as a few units.
SLAB_NUMBERS = 1 << 24
LEAST_UNITS = 8


@full_precision()
def exact_row_norms(
    model: CoordinateMLP,
    loss: Loss,
    signal: Signal,
    *,
    matrix: Matrix = "hessian",
    chunk_size: int | None = None,
) -> Tensor:
    """Return ‖A_{i,·}‖₂ [n] of the Hessian, or of the GGN, ``A`` of a ``CoordinateMLP``.

    Exact up to rounding; their norm is the exact ‖A‖_F. About ``p n²`` operations, as many as
    ``dense_hessian``; in place of the matrix a slab of it: 2²⁴ numbers, or eight units of a map,
    up to ``16 depth h³``, whichever is more (fewer units where memory is short); beside it six
    panels of ``chunk_size × h²`` numbers. For sine 4×64 on 2,500 points in float64: the time of
    ``dense_hessian``, and 0.3 GiB in place of 1.4 GiB.

    For the GGN with ``p c² <= n`` only ``(p c)² n`` operations and ``(p c)²`` numbers, in float64:
    there a fifth of the time, and 0.2 GiB. Squares are computed, with an error of some roundings
    of ``λmax A_ii``: the norm of a row with a small ``A_ii / λmax`` has fewer digits than others.

    Args:
        model: A ``CoordinateMLP`` as it was built, every parameter trainable.
        loss: A mean over points, as for the closed form of ``dense_hessian``.
        signal: The points.
        matrix: ``"hessian"``, or ``"ggn"`` for Jᵀ (∇²_f ℓ) J.
        chunk_size: Points per pass; by default as many as keep each panel near 16 MiB.

    Raises:
        TypeError: If the model is no ``CoordinateMLP``, or signal and parameters differ in dtype.
        ValueError: If model or loss has no closed form: estimate the norms instead.
        ResourceError: If not even a slab of one unit fits, before it is allocated.

    Examples:
        >>> import torch
        >>> from hessian_lab import Signal, dense_hessian, make_field, mse
        >>> coords = torch.linspace(-1, 1, 100, dtype=torch.float64).unsqueeze(1)
        >>> field, signal = make_field("tanh", 1, 1, width=8), Signal(coords, coords.sin())
        >>> norms = exact_row_norms(field, mse, signal)
        >>> torch.allclose(norms, dense_hessian(field, mse, signal).norm(dim=1))
        True
    """
    slope, curvature = closed_derivatives(
        model, loss, signal, matrix=matrix, chunk_size=chunk_size, estimator="row_norms"
    )
    return row_norms_at(
        model, signal.coords, slope, curvature, matrix=matrix, chunk_size=chunk_size
    )


def row_norms_at(
    model: CoordinateMLP,
    coords: Tensor,
    slope: Tensor,
    curvature: Tensor,
    *,
    matrix: Matrix,
    chunk_size: int | None = None,
) -> Tensor:
    """Return ``exact_row_norms`` from ∂L/∂f [p, c] and ∂²L/∂f² [p, c, c] at coordinates [p, d]."""
    size = slots_of(model)[-1].bias.stop
    if matrix == "ggn" and slope.numel() * slope.shape[1] <= size:
        totals = kernel_squares(model, coords, slope, curvature)
    else:
        totals = _slab_squares(
            model, coords, slope, curvature, residual=matrix == "hessian", chunk_size=chunk_size
        )
    # Rounding may leave a tiny square of the kernel's below 0.
    return flat(totals).clamp_(min=0).sqrt_().to(slope.dtype)


def _slab_squares(
    model: CoordinateMLP,
    coords: Tensor,
    slope: Tensor,
    curvature: Tensor,
    *,
    residual: bool,
    chunk_size: int | None,
) -> list[Tensor]:
    """Return the squared row norms, a float64 table [o, k + 1] for every map."""
    slots = slots_of(model)
    panels = panel_numbers(slots, len(coords), chunk_size, like=slope)
    least = [
        min(LEAST_UNITS, slot.fan_out) * unit_numbers(slots, i, residual=residual)
        for i, slot in enumerate(slots)
    ]
    slab_numbers = numbers_at_once(SLAB_NUMBERS, device=slope.device, itemsize=slope.itemsize)
    unit, numbers = largest_unit(slots, residual=residual), max(slab_numbers, *least)
    there = available_bytes(slope.device)
    if there is not None:
        numbers = max(unit, min(numbers, there // (2 * slope.itemsize) - panels))
    plan = divide(slots, residual=residual, numbers=numbers)
    # A unit at a time is squared, in float64.
    require_bytes(
        (panels + max(total for _, total in plan)) * slope.element_size() + 8 * unit,
        f"A slab of the matrix of {slots[-1].bias.stop} parameters",
        device=slope.device,
        cure="Pass a smaller chunk_size, or estimate the norms: row_norms(operator).",
    )
    totals, space = zeros(model, like=slope), Scratch(slope)
    for bands, _ in plan:
        slab = sum_slab(
            model,
            coords,
            slope,
            curvature,
            bands=bands,
            residual=residual,
            space=space,
            chunk_size=chunk_size,
        )
        slab.fold(totals)
    return totals
