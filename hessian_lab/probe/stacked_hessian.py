"""The Hessians of many small networks at once: the closed form of one, with a leading axis.

For one network ``closed_form`` says what is summed, and does it with less memory; here every
product is of all networks together, so that small ones cost no more than their arithmetic: a
twentieth of the time for 1×8 on 64 points, the same for 2×16 on 256, twice for 2×32 on 1,024.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hessian_lab.fields.encoding import encode
from hessian_lab.fields.stack import FieldStack, per_field, split_maps
from hessian_lab.probe.memory import require_bytes
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.sizes import numbers_at_once

# Numbers of a panel [networks, points, units²] that is worked on at once, and panels in use.
PANEL_NUMBERS, NUM_PANELS = 1 << 22, 6


@dataclass(frozen=True)
class _Passes:
    """What is kept of a forward and a backward pass; the index of each list is the map."""

    inputs: list[Tensor]  # ã [K, p, k + 1]
    slopes: list[Tensor]  # φ′ [K, p, h]
    deltas: list[Tensor]  # ∂L/∂z [K, p, o]
    bends: list[Tensor]  # ∂L/∂a φ″ [K, p, h]
    weights: list[Tensor]  # [K, o, k]


@full_precision()
@torch.no_grad()  # type: ignore[untyped-decorator]
def stacked_hessians(stack: FieldStack, coords: Tensor, values: Tensor) -> Tensor:
    """Return the Hessian of the loss ``mse`` of every network on its own values [K, n, n].

    About ``2 p n²`` operations each, in the precision of the parameters; rows and columns in the
    order of ``named_parameters()``. A network whose parameters are not finite has no finite matrix.

    Args:
        stack: ``K`` networks.
        coords: Coordinates [p, d] of all, or [K, p, d] of each.
        values: Values [K, p, c].

    Raises:
        ValueError: If shapes do not match.
        ResourceError: If the matrices do not fit, before they are allocated.
    """
    count, size = stack.parameters.shape
    if values.ndim != 3 or len(values) != count or values.shape[1] != coords.shape[-2]:
        expected = [count, coords.shape[-2], stack.sizes[-1]]
        raise ValueError(f"values must have shape {expected}, got {list(values.shape)}.")
    widest = max(stack.sizes) + 1
    own = stack.parameters
    panel = numbers_at_once(
        PANEL_NUMBERS, device=own.device, itemsize=own.itemsize, num_buffers=NUM_PANELS
    )
    panel = max(panel, values.shape[1] * widest**2)
    require_bytes(
        own.itemsize * (count * size**2 + NUM_PANELS * panel),
        f"The Hessians of {count} networks of {size} parameters",
        device=own.device,
        cure="Measure fewer at a time.",
    )
    hessians = stack.parameters.new_zeros(count, size, size)
    step = max(1, panel // (values.shape[1] * widest**2))
    for start in range(0, count, step):
        part = slice(start, start + step)
        places = coords if coords.ndim == 2 else coords[part]
        few = FieldStack(stack.parameters[part], stack.activations, stack.sizes, stack.octaves)
        _assemble(hessians[part], _run(few, places, values[part]), stack.sizes)
    return hessians


def _run(stack: FieldStack, coords: Tensor, values: Tensor) -> _Passes:
    maps = split_maps(stack.parameters, stack.sizes)
    state = per_field(encode(coords, stack.octaves), stack.num_fields)
    inputs, slopes, seconds = [], [], []
    for place, (weight, bias) in enumerate(maps):
        inputs.append(torch.cat([state, state.new_ones(*state.shape[:2], 1)], dim=2))
        state = torch.baddbmm(bias, state, weight.transpose(1, 2))
        if place < len(maps) - 1:
            state, first, second = stack.activations[place].jet(state)
            slopes.append(first)
            seconds.append(second)
    deltas, bends = [(state - values) / values.shape[1]], []
    weights = [weight for weight, _ in maps]
    for weight, first, second in zip(weights[:0:-1], slopes[::-1], seconds[::-1], strict=True):
        arriving = deltas[-1] @ weight
        deltas.append(arriving * first)
        bends.append(arriving * second)
    return _Passes(inputs, slopes, deltas[::-1], bends[::-1], weights)


def _assemble(hessians: Tensor, passes: _Passes, sizes: tuple[int, ...]) -> None:
    """Write every block and its mirror image; see ``closed_form`` for what they are."""
    places = _places(sizes, hessians.device)
    num_points, channels = passes.inputs[0].shape[1], sizes[-1]
    one = torch.eye(channels, dtype=hessians.dtype, device=hessians.device) / num_points
    bent = one.expand(*passes.inputs[0].shape[:2], channels, channels)  # S [K, p, o, o]
    for i in range(len(passes.weights) - 1, -1, -1):
        _write(hessians, places[i], places[i], _paired(bent, passes.inputs[i], passes.inputs[i]))
        if not i:
            break
        # S W D, and through one more map for every block to the left.
        scaled = (bent @ passes.weights[i].unsqueeze(1)) * passes.slopes[i - 1].unsqueeze(2)
        walked, turned = scaled, torch.diag_embed(passes.slopes[i - 1])
        for j in range(i - 1, -1, -1):
            if j < i - 1:
                weight, slope = passes.weights[j + 1].unsqueeze(1), passes.slopes[j].unsqueeze(2)
                walked, turned = (walked @ weight) * slope, (turned @ weight) * slope
            block = _paired(walked, passes.inputs[i], passes.inputs[j])
            block[:, :, :-1] += _crossed(passes.deltas[i], turned, passes.inputs[j])
            _write(hessians, places[i], places[j], block)
            mirrored = block.permute(0, 3, 4, 1, 2)
            _write(hessians, places[j], places[i], mirrored)
        weight = passes.weights[i].unsqueeze(1)
        bent = (weight.transpose(2, 3) @ scaled) * passes.slopes[i - 1].unsqueeze(3)
        bent = bent + torch.diag_embed(passes.bends[i - 1])


def _paired(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return ``Σₚ M[r, t] a[s] b[u]`` as [K, r, s, t, u]."""
    outer = (left.unsqueeze(3) * right.unsqueeze(2)).flatten(2)
    found = matrix.flatten(2).transpose(1, 2) @ outer
    shape = len(matrix), *matrix.shape[2:], left.shape[2], right.shape[2]
    return found.view(shape).permute(0, 1, 3, 2, 4).contiguous()


def _crossed(delta: Tensor, matrix: Tensor, right: Tensor) -> Tensor:
    """Return ``Σₚ δ[r] M[s, t] b[u]`` as [K, r, s, t, u]."""
    outer = (delta.unsqueeze(3) * right.unsqueeze(2)).flatten(2)
    found = matrix.flatten(2).transpose(1, 2) @ outer
    shape = len(matrix), *matrix.shape[2:], delta.shape[2], right.shape[2]
    return found.view(shape).permute(0, 3, 1, 2, 4)


def _places(sizes: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """Return where each weight, and each bias as a last column, stands [o, k + 1], by map."""
    places, start = [], 0
    for fan_in, fan_out in pairwise(sizes):
        stop = start + fan_in * fan_out
        weight = torch.arange(start, stop, device=device).view(fan_out, fan_in)
        bias = torch.arange(stop, stop + fan_out, device=device).unsqueeze(1)
        places.append(torch.cat([weight, bias], dim=1))
        start = stop + fan_out
    return places


def _write(hessians: Tensor, rows: Tensor, columns: Tensor, block: Tensor) -> None:
    values = block.reshape(len(block), rows.numel(), columns.numel())
    hessians[:, rows.reshape(-1, 1), columns.reshape(1, -1)] = values
