"""The dense Hessian of a radiance field: a closed form through the rendering of rays.

The colour of a ray is ``C = Σ Tⱼ (1 - exp(-τⱼ)) cⱼ + T g``. With ``Dⱼ = ∂C/∂τⱼ``, what the sample
adds less what it hides, the second derivatives are first ones again::

    ∂²C/∂τⱼ∂τₖ = -D_max(j,k)        ∂²C/∂τⱼ∂cᵢ = Tⱼ₊₁ if i = j, -Tᵢ (1 - exp(-τᵢ)) if i > j, else 0

So samples i ≠ j of one ray are coupled in three ways alone: through the colour of the ray itself,
rank 3; and, with ``aⱼ = ∇τⱼ`` and ``gᵢ`` the part of the ray's gradient that goes through sample i,
by ``-Σ_{j<i} (aⱼ gᵢᵀ + gᵢ aⱼᵀ)``. All else belongs to single samples, as in any other field.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.fields.radiance import DENSITY, SHIFT, RadianceField
from hessian_lab.fields.volume import absorbed
from hessian_lab.probe.closed_bands import assemble_bands
from hessian_lab.probe.closed_form import Parts, Pass, assemble, run_pass, slots_of
from hessian_lab.probe.closed_slabs import divide
from hessian_lab.probe.kept_graph import FILE_TILE, symmetrize
from hessian_lab.probe.linearized import Matrix
from hessian_lab.probe.sizes import numbers_at_once

# What says how a field is seen: replaced in one of them, it has no closed form.
METHODS = {"forward", "along", "places", "radiance", "density"}
# Numbers of a panel of per-sample gradients on the CPU, and such panels at a time.
PANEL_NUMBERS = 1 << 22
NUM_PANELS = 4


@dataclass(frozen=True)
class Rendered:
    """Derivatives of a mean loss over rays by the network's outputs at their samples.

    Attributes:
        slope: ∂L/∂f [r, s, 4].
        own: What second derivatives of the rendering bring to single samples [r, s, 4, 4].
        thickness: ∂τ/∂f₀ [r, s].
        colour: ∂C/∂f by channel [r, s, 3, 4].
    """

    slope: Tensor
    own: Tensor
    thickness: Tensor
    colour: Tensor


@dataclass(frozen=True)
class RayCurvature:
    """∂²L/∂f² of a loss over rays by the outputs at their samples, known by its products.

    Attributes:
        found: Derivatives by the outputs.
        curvature: ∂²L/∂C² [r, 3, 3].
        full: Whether second derivatives of the rendering count; not in the Gauss–Newton matrix.
    """

    found: Rendered
    curvature: Tensor
    full: bool

    @property
    def period(self) -> int:
        """Samples of a ray."""
        return self.found.slope.shape[1]

    def __getitem__(self, place: slice) -> Callable[[Tensor, Tensor], object]:
        """Return what writes the products of the rays of some samples."""
        rays = slice(place.start // self.period, -(-place.stop // self.period))
        kept = Rendered(**{name: value[rays] for name, value in vars(self.found).items()})
        return RayCurvature(kept, self.curvature[rays], self.full).write

    def write(self, tangents: Tensor, out: Tensor) -> None:
        """Write products with directions [r s, k, 4] to a tensor of their shape."""
        num_rays, samples = self.found.thickness.shape
        moved = tangents.view(num_rays, samples, -1, 4)
        target = out.view_as(moved)
        seen = torch.einsum("rsco,rsko->rkc", self.found.colour, moved) @ self.curvature
        torch.sum(self.found.colour.unsqueeze(2) * seen[:, None, :, :, None], dim=3, out=target)
        if not self.full:
            return
        target += moved @ self.found.own
        nearer = self.found.thickness.unsqueeze(2) * moved[..., 0]
        pulled = torch.einsum("rso,rsko->rsk", self.found.slope, moved)
        before = nearer.cumsum(dim=1) - nearer
        target[..., 0] -= self.found.thickness.unsqueeze(2) * _behind(pulled)
        target -= self.found.slope.unsqueeze(2) * before.unsqueeze(3)


def has_rendered_form(model: nn.Module) -> bool:
    """Tell whether a module is a ``RadianceField`` without a head as it was built."""
    return (
        type(model) is RadianceField
        and model.head is None
        and not METHODS & vars(model).keys()
        and not (model._forward_hooks or model._forward_pre_hooks)
        and type(model.field) is CoordinateMLP
    )


# What derivatives keep of every sample: slope, own curvature, thickness, colour.
SAMPLE_NUMBERS = 4 + 16 + 1 + 12


def rendering_numbers(model: RadianceField, num_rays: int) -> int:
    """Return how many numbers ``rendered_matrix`` keeps at most beside matrix and network."""
    size = sum(value.numel() for value in model.parameters())
    panel = max(_panel_numbers(model), size * model.samples)
    return NUM_PANELS * panel + 2 * SAMPLE_NUMBERS * num_rays * model.samples


def _panel_numbers(model: RadianceField) -> int:
    weight = model.field.maps[0].weight
    return numbers_at_once(
        PANEL_NUMBERS, device=weight.device, itemsize=weight.itemsize, num_buffers=NUM_PANELS
    )


def rendered_matrix(
    model: RadianceField,
    rays: Tensor,
    slope: Tensor,
    curvature: Tensor,
    *,
    matrix: Matrix,
    out: Tensor | None = None,
    slab_numbers: int = 0,
) -> Tensor:
    """Return the Hessian or the GGN [n, n] of a loss over rays, exactly symmetric.

    About ``2 r s n²`` operations for the Hessian in matrix products, and as many as for a network
    on ``r s`` points; for the GGN ``3 r n²``, and ``r s`` backward passes of three directions.

    Args:
        model: Without a head, every parameter trainable; ``has_rendered_form``.
        rays: Rays [r, 10].
        slope: ∂L/∂C [r, 3].
        curvature: ∂²L/∂C² [r, 3, 3].
        matrix: ``"hessian"`` or ``"ggn"``.
        out: Where to write it, [n, n] of zeros; by default a new tensor.
        slab_numbers: Numbers of ``out`` that are worked on at a time: those of a few rows, all rays
            again for each.
    """
    with torch.no_grad():
        places, found = at_samples(model, rays, slope)
        total = _own(model, places, found, matrix=matrix, out=out, slab_numbers=slab_numbers)
        step = len(total) if out is None else max(1, slab_numbers // len(total))
        for start in range(0, len(total), step):
            part = slice(start, start + step)
            for rows, chunk in _chunks(model, places, found.slope):
                along = _gradients(model, chunk, found.colour[rows])  # [r, 3, n]
                bent = (curvature[rows] @ along).flatten(0, 1)
                total[part].addmm_(along[..., part].flatten(0, 1).T, bent)
                if matrix == "hessian":
                    _couple(total[part], model, chunk, rows, found, part)
        if out is None:
            symmetrize(total)
        else:
            symmetrize(total, tile=FILE_TILE)
        return total


def _own(
    model: RadianceField,
    places: Tensor,
    found: Rendered,
    *,
    matrix: Matrix,
    out: Tensor | None,
    slab_numbers: int,
) -> Tensor:
    """Return what belongs to single samples [n, n]: nothing of the Gauss–Newton matrix."""
    size = slots_of(model.field)[-1].bias.stop
    points = places.flatten(0, 1), found.slope.flatten(0, 1), found.own.flatten(0, 1)
    if matrix == "ggn":
        return places.new_zeros(size, size) if out is None else out
    if out is None:
        return assemble(model.field, *points, parts=Parts())
    plan = divide(slots_of(model.field), residual=True, numbers=slab_numbers)
    slabs = [bands for bands, _ in plan]
    assemble_bands(model.field, *points, matrix=matrix, slabs=slabs, out=out)
    return out


def at_samples(model: RadianceField, rays: Tensor, slope: Tensor) -> tuple[Tensor, Rendered]:
    """Return the places [r, s, 3] of the samples of rays, and derivatives by the outputs there."""
    _, places = model.places(rays)
    raw = model.field(places.flatten(0, 1)).view(*places.shape[:2], 4)
    return places, derivatives(raw, rays, slope)


def derivatives(raw: Tensor, rays: Tensor, slope: Tensor) -> Rendered:
    """Return the derivatives by a network's outputs.

    Args:
        raw: Outputs [r, s, 4] before softplus and sigmoid.
        rays: Rays [r, 10].
        slope: ∂L/∂C [r, 3].
    """
    width = DENSITY * (rays[:, 7:8] - rays[:, 6:7]) / raw.shape[1]
    share = torch.sigmoid(raw[..., 0] - SHIFT)
    optical = width * nn.functional.softplus(raw[..., 0] - SHIFT)
    first, second = width * share, width * share * (1 - share)
    shade = torch.sigmoid(raw[..., 1:])
    shade_first = shade * (1 - shade)
    passed = torch.exp(-optical.cumsum(dim=1)).unsqueeze(2)  # Tⱼ₊₁ [r, s, 1]
    weight = absorbed(optical)[0].unsqueeze(2)
    added = weight * shade
    hidden = _behind(added) + passed[:, -1:] * rays[:, None, 9:10]
    seen = passed * shade - hidden  # D [r, s, 3]
    pull = (slope.unsqueeze(1) * seen).sum(dim=2)  # ∂L/∂τ [r, s]
    colour = raw.new_zeros(*raw.shape[:2], 3, 4)
    colour[..., 0] = seen * first.unsqueeze(2)
    colour[..., 1:] = torch.diag_embed(weight * shade_first)
    own = raw.new_zeros(*raw.shape[:2], 4, 4)
    own[..., 0, 0] = pull * (second - first.square())
    crossed = slope.unsqueeze(1) * passed * shade_first * first.unsqueeze(2)
    own[..., 0, 1:], own[..., 1:, 0] = crossed, crossed
    bent = slope.unsqueeze(1) * weight * shade_first * (1 - 2 * shade)
    own[..., 1:, 1:] = torch.diag_embed(bent)
    slopes = torch.einsum("rc,rsck->rsk", slope, colour)
    return Rendered(slopes, own, first, colour)


def _chunks(model: RadianceField, places: Tensor, slope: Tensor) -> Iterator[tuple[slice, Pass]]:
    """Yield rays with a forward pass over their samples."""
    size = sum(value.numel() for value in model.parameters())
    step = max(1, _panel_numbers(model) // (size * model.samples))
    for start in range(0, len(places), step):
        rows = slice(start, start + step)
        points = places[rows].flatten(0, 1)
        zero = slope.new_zeros(len(points), 4, 4)
        yield rows, run_pass(model.field, points, slope[rows].flatten(0, 1), zero)


def _couple(
    total: Tensor, model: RadianceField, chunk: Pass, rows: slice, found: Rendered, part: slice
) -> None:
    """Add ``-2 Σ_{j<i} aⱼ gᵢᵀ`` of some rays to a part of the rows of the matrix.

    Its symmetric part is what couples samples.
    """
    thickness = torch.zeros_like(found.slope[rows])
    thickness[..., 0] = found.thickness[rows]
    near = _gradients(model, chunk, thickness.unsqueeze(2), each=True)  # aⱼ [r, s, n]
    far = _gradients(model, chunk, found.slope[rows].unsqueeze(2), each=True)  # gᵢ
    total.addmm_(near[..., part].flatten(0, 1).T, _behind(far).flatten(0, 1), alpha=-2)


def _behind(values: Tensor) -> Tensor:
    """Return for every sample [r, s, …] the sum over those of its ray that lie behind it."""
    return values.flip(1).cumsum(dim=1).flip(1) - values


def _gradients(
    model: RadianceField, chunk: Pass, cotangents: Tensor, *, each: bool = False
) -> Tensor:
    """Return ``Σₛ cotangentᵀ ∂f/∂θ`` of rays [r, k, n] for cotangents [r, s, k, 4].

    With ``each`` not summed over samples, of one cotangent: [r, s, n].
    """
    num_rays, samples, count, _ = cotangents.shape
    moved = cotangents.flatten(0, 1)  # [p, k, o]
    parts: list[Tensor] = []
    for i in range(len(model.field.maps) - 1, -1, -1):
        inputs = chunk.inputs[i].view(num_rays, samples, -1)
        turned = moved.view(num_rays, samples, count, -1)
        if each:
            product = turned[:, :, 0, :, None] * inputs[:, :, None]  # [r, s, o, k + 1]
        else:
            flat = turned.flatten(2).transpose(1, 2) @ inputs
            product = flat.view(num_rays, count, -1, inputs.shape[2])
        parts += [product[..., -1], product[..., :-1].flatten(2)]
        if i:
            moved = (moved @ model.field.maps[i].weight) * chunk.slopes[i - 1].unsqueeze(1)
    return torch.cat(parts[::-1], dim=2)
