"""The exact row norms of a coordinate network's GGN from the kernel of its points.

A row of ``G = Jᵀ C J``, ``C = ∂²ℓ/∂f²`` of every point, has the squared norm ``zᵀ (J Jᵀ) z``, where
``z`` is C times a column of J: that of W̃ᵢ[r, s] is ``Uᵢ[:, r] ãᵢ₋₁[s]``, with ``Uᵢ = ∂f/∂zᵢ``. The
kernel of all pairs of points and outputs is a sum over the maps, ``Σᵢ (Uᵢ Uᵢᵀ) ∘ (ãᵢ₋₁ ãᵢ₋₁ᵀ)``. No
entry of the matrix is formed.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.probe.closed_diagonal import jacobians, zeros
from hessian_lab.probe.closed_form import run_pass, slots_of, widest_map
from hessian_lab.probe.memory import require_bytes
from hessian_lab.probe.sizes import numbers_at_once

# Numbers in the panel of vectors z that a CPU multiplies at once, if one unit has no more.
PANEL_NUMBERS = 1 << 22
# Steps that the lower triangle of the kernel is divided into: nearly half of all products.
NUM_STEPS = 8


def kernel_squares(
    model: CoordinateMLP, coords: Tensor, slope: Tensor, curvature: Tensor
) -> list[Tensor]:
    """Return the squared row norms of the GGN, a float64 table [o, k + 1] for every map.

    About ``(p c)² n`` operations, in float64. Memory: ``1.3 (p c)²`` numbers and two panels.

    Args:
        model: The network.
        coords: Coordinates [p, d].
        slope: ∂L/∂f [p, c].
        curvature: ∂²L/∂f² [p, c, c] of each point.

    Raises:
        ResourceError: If the kernel does not fit, before it is allocated.
    """
    count = slope.numel()
    panel = numbers_at_once(PANEL_NUMBERS, device=slope.device, itemsize=8, num_buffers=2)
    panel = max(panel, count * widest_map(slots_of(model)))
    require_bytes(
        8 * (count**2 + 2 * count**2 // NUM_STEPS + 2 * panel),
        f"The kernel of {count} outputs",
        device=slope.device,
        cure="Measure it on fewer points.",
    )
    with torch.no_grad():
        chunk = run_pass(model, coords, slope, curvature)
        weights = [layer.weight for layer in model.maps]
        turned = dict(jacobians(chunk, weights))
        inputs = [part.double() for part in chunk.inputs]
        kernel = _kernel([turned[i].double().flatten(0, 1) for i in range(len(inputs))], inputs)
        totals = zeros(model, like=slope)
        for i, total in enumerate(totals):
            curved = (curvature @ turned[i]).double()  # [p, c, o]
            height = max(1, panel // (count * total.shape[1]))
            for start in range(0, len(total), height):
                units = slice(start, start + height)
                vectors = curved[:, :, units].unsqueeze(3) * inputs[i][:, None, None]
                total[units] = _quadratic(kernel, vectors.view(count, -1)).view_as(total[units])
        return totals


def _steps(count: int) -> Iterator[slice]:
    height = -(-count // NUM_STEPS)
    for start in range(0, count, height):
        yield slice(start, min(start + height, count))


def _kernel(turned: list[Tensor], inputs: list[Tensor]) -> Tensor:
    """Return ``J Jᵀ`` [pc, pc] folded onto its lower triangle of steps; the rest is not set."""
    count = len(turned[0])
    kernel = turned[0].new_empty(count, count)
    spread = [part.repeat_interleave(count // len(part), dim=0) for part in inputs]
    for rows in _steps(count):
        part = kernel[rows, : rows.stop].zero_()
        for left, right in zip(turned, spread, strict=True):
            products = left[rows] @ left[: rows.stop].T
            products *= right[rows] @ right[: rows.stop].T
            part += products
        part[:, : rows.start] *= 2
    return kernel


def _quadratic(kernel: Tensor, vectors: Tensor) -> Tensor:
    """Return ``zᵀ (J Jᵀ) z`` for every column of ``vectors`` [pc, m]."""
    total = vectors.new_zeros(vectors.shape[1])
    for rows in _steps(len(kernel)):
        product = kernel[rows, : rows.stop] @ vectors[: rows.stop]
        total += product.mul_(vectors[rows]).sum(dim=0)
    return total
