"""Many coordinate networks of one shape, evaluated together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hessian_lab.fields.activations import Activation
from hessian_lab.fields.encoding import encode
from hessian_lab.fields.mlp import CoordinateMLP, make_field


@dataclass(frozen=True, eq=False)
class FieldStack:
    """``K`` coordinate networks of one shape, their parameters in the rows of one matrix.

    Attributes:
        parameters: [K, n], each row in the order of ``named_parameters()`` of a
            ``CoordinateMLP``.
        activations: The nonlinearity of every hidden layer.
        sizes: Inputs of the first map, units of the hidden layers, channels.
        octaves: Octaves of the positional encoding; 0 feeds the coordinates as they are.
    """

    parameters: Tensor
    activations: tuple[Activation, ...]
    sizes: tuple[int, ...]
    octaves: int = 0

    @property
    def num_fields(self) -> int:
        """The number of networks ``K``."""
        return len(self.parameters)

    def field(self, index: int) -> CoordinateMLP:
        """Return one network, with a copy of its parameters."""
        num_inputs = self.sizes[0] // (1 + 2 * self.octaves)
        model = CoordinateMLP(
            num_inputs,
            self.sizes[-1],
            self.activations,
            width=self.sizes[1] if len(self.sizes) > 2 else 1,
            depth=len(self.sizes) - 2,
            octaves=self.octaves,
            dtype=self.parameters.dtype,
            device=self.parameters.device,
        )
        start = 0
        with torch.no_grad():
            for value in model.parameters():
                part = self.parameters[index, start : start + value.numel()]
                value.copy_(part.view_as(value))
                start += value.numel()
        return model

    def __call__(self, coords: Tensor) -> Tensor:
        """Return the values [K, p, c] at coordinates [p, d] of all, or [K, p, d] of each."""
        state = per_field(encode(coords, self.octaves), self.num_fields)
        maps = split_maps(self.parameters, self.sizes)
        for place, (weight, bias) in enumerate(maps):
            state = torch.baddbmm(bias, state, weight.transpose(1, 2))
            if place < len(maps) - 1:
                state = self.activations[place].value(state)
        return state


def make_stack(
    name: str, num_fields: int, num_inputs: int, num_outputs: int, *, seed: int = 0, **options: Any
) -> FieldStack:
    """Return ``K`` networks; the k-th is ``make_field(name, …, seed=seed + k)``.

    Args:
        name: A key of ``ACTIVATIONS``.
        num_fields: ``K``.
        num_inputs: Coordinates per point.
        num_outputs: Channels.
        seed: Of the first network's initialisation.
        options: As of ``make_field``.

    Raises:
        ValueError: For an unknown name, a size out of range, or no field at all.
    """
    if num_fields < 1:
        raise ValueError(f"num_fields must be at least 1, got {num_fields}.")
    return stack_fields(
        [
            make_field(name, num_inputs, num_outputs, seed=seed + index, **options)
            for index in range(num_fields)
        ]
    )


def stack_fields(fields: Sequence[CoordinateMLP]) -> FieldStack:
    """Return networks of one shape and activation as a stack, with copies of their parameters.

    Raises:
        ValueError: If there is none, or shapes differ.
    """
    if not fields:
        raise ValueError("fields must hold at least one network, got none.")
    shapes = [(_sizes(one), one.octaves) for one in fields]
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(f"fields must have one shape, {shapes[0]}, field {index} has {shape}.")
        if not _alike(fields[index], fields[0]):
            raise ValueError(f"fields must have one activation, field {index} has another.")
    rows = [torch.cat([value.detach().flatten() for value in one.parameters()]) for one in fields]
    sizes, octaves = shapes[0]
    return FieldStack(torch.stack(rows), tuple(fields[0].activations), sizes, octaves)


def split_maps(parameters: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Return views of the weights [K, out, in] and biases [K, 1, out] of every map."""
    maps, start, count = [], 0, len(parameters)
    for fan_in, fan_out in pairwise(sizes):
        middle, stop = start + fan_in * fan_out, start + (fan_in + 1) * fan_out
        weight = parameters[:, start:middle].view(count, fan_out, fan_in)
        maps.append((weight, parameters[:, middle:stop].unsqueeze(1)))
        start = stop
    return maps


def per_field(inputs: Tensor, count: int) -> Tensor:
    """Return inputs [p, d] of all fields as [count, p, d]; those of each as they are."""
    return inputs if inputs.ndim == 3 else inputs.expand(count, *inputs.shape)


def _alike(one: CoordinateMLP, other: CoordinateMLP) -> bool:
    """Tell whether two fields have the same activations, by what these do to some numbers."""
    z = torch.linspace(-2, 2, 17, dtype=torch.float64)
    pairs = zip(one.activations, other.activations, strict=True)
    return all(
        first is second or torch.equal(first.value(z), second.value(z)) for first, second in pairs
    )


def _sizes(field: CoordinateMLP) -> tuple[int, ...]:
    maps = field.maps
    return (maps[0].in_features, *(one.out_features for one in maps))
