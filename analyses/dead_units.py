"""Which rows of a ReLU field's Hessian are zero, from which units are active where."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hessian_lab.fields.encoding import encode
from hessian_lab.fields.mlp import CoordinateMLP


@dataclass(frozen=True)
class Paths:
    """Where a field's units are active, and from where they reach the output.

    Attributes:
        inputs: Per map, whether each of its inputs is non-zero, 1 for the bias last [p, k + 1].
        active: Per hidden map, where each unit's slope is non-zero [p, o].
        reach: Per map, where a change of each output changes the field's [p, o].
    """

    inputs: list[Tensor]
    active: list[Tensor]
    reach: list[Tensor]


def paths_of(model: CoordinateMLP, coords: Tensor) -> Paths:
    """Return the paths of a field on coordinates [p, d]; weights count as non-zero."""
    state = encode(coords, model.octaves)
    inputs, active = [_with_one(state)], []
    with torch.no_grad():
        for layer in model.maps[:-1]:
            state, slope, _ = model.activation.jet(torch.addmm(layer.bias, state, layer.weight.T))
            active.append(slope != 0)
            inputs.append(_with_one(state))
    reach = [torch.ones(len(coords), model.maps[-1].out_features, dtype=torch.bool)]
    for slopes in reversed(active):
        reach.append(slopes & reach[-1].any(dim=1, keepdim=True))
    return Paths(inputs, active, reach[::-1])


def _with_one(state: Tensor) -> Tensor:
    return torch.cat([state != 0, torch.ones(len(state), 1, dtype=torch.bool)], dim=1)


def explained(paths: Paths) -> dict[str, Tensor]:
    """Return which parameters [n] cannot move the output, by the first reason that holds.

    ``dead``: the unit that it feeds, or that feeds it, is inactive on every point. ``cut``: the
    unit that it feeds reaches the output from no point where it is active. ``apart``: the two
    units of a weight are never active together.
    """
    found: dict[str, list[Tensor]] = {"dead": [], "cut": [], "apart": []}
    hidden = len(paths.active)
    for place, (inputs, reach) in enumerate(zip(paths.inputs, paths.reach, strict=True)):
        silent = ~inputs.any(dim=0).expand(reach.shape[1], -1)
        if place < hidden:
            silent = silent | ~paths.active[place].any(dim=0).unsqueeze(1)
        cut = ~reach.any(dim=0).unsqueeze(1).expand_as(silent) & ~silent
        apart = (reach.double().T @ inputs.double() == 0) & ~silent & ~cut
        for name, table in (("dead", silent), ("cut", cut), ("apart", apart)):
            found[name] += [table[:, :-1].flatten(), table[:, -1]]
    return {name: torch.cat(tables) for name, tables in found.items()}


def dead_by_layer(paths: Paths) -> list[int]:
    """Return how many units of each hidden layer are inactive on every point."""
    return [int((~active.any(dim=0)).sum()) for active in paths.active]


def rescalings(model: CoordinateMLP, paths: Paths) -> Tensor:
    """Return, per unit that is active somewhere, the direction that a rescaling moves along [n, k].

    Its incoming weights and bias grow as its outgoing weights shrink: the field stays as it is.
    """
    sizes = [value.numel() for value in model.parameters()]
    columns = []
    for place, active in enumerate(paths.active):
        layer, above = model.maps[place], model.maps[place + 1]
        for unit in active.any(dim=0).nonzero().flatten().tolist():
            parts = [torch.zeros(size, dtype=torch.float64) for size in sizes]
            rows = parts[2 * place].view(layer.weight.shape)
            rows[unit] = layer.weight.detach()[unit]
            parts[2 * place + 1][unit] = layer.bias.detach()[unit]
            parts[2 * place + 2].view(above.weight.shape)[:, unit] = -above.weight.detach()[:, unit]
            columns.append(torch.cat(parts))
    return torch.stack(columns, dim=1)
