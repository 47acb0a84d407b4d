"""The losses of many fields of one shape, each on its own values, with their gradients."""

import torch
from torch import Tensor

from hessian_lab.fields.encoding import encode
from hessian_lab.fields.stack import FieldStack, per_field, split_maps
from hessian_lab.losses import Loss, mse
from hessian_lab.probe.sizes import numbers_at_once

# Numbers of one layer's activations that the CPU works on at once: they stay in the cache.
CHUNK_NUMBERS = 1 << 18


class StackedObjective:
    """The losses of ``K`` fields on their own values, with gradients, for any of them.

    An evaluation of k fields on p points takes ``6 k p n`` operations, in chunks of fields that
    stay in a CPU's cache or fill a GPU, and memory for one chunk.

    Args:
        stack: What the fields are like; its parameters are not used.
        coords: Coordinates [p, d] of all fields, or [K, p, d] of each.
        values: Values [K, p, c].
        loss: A mean over points.

    Raises:
        ValueError: If shapes do not match.
    """

    def __init__(self, stack: FieldStack, coords: Tensor, values: Tensor, loss: Loss = mse) -> None:
        count, points = values.shape[0], values.shape[1]
        if values.ndim != 3 or values.shape[2] != stack.sizes[-1]:
            expected = [stack.num_fields, "p", stack.sizes[-1]]
            raise ValueError(f"values must have shape {expected}, got {list(values.shape)}.")
        if count != stack.num_fields:
            raise ValueError(f"values must be of {stack.num_fields} fields, got {count}.")
        if coords.shape[-2] != points or (coords.ndim == 3 and len(coords) != count):
            raise ValueError(
                f"coords must be [{points}, d] or [{count}, {points}, d], got {list(coords.shape)}."
            )
        self.stack, self.values, self.loss = stack, values, loss
        self.inputs = encode(coords, stack.octaves)
        widest = max(stack.sizes[1:])
        numbers = numbers_at_once(
            CHUNK_NUMBERS,
            device=values.device,
            itemsize=values.itemsize,
            num_buffers=3 * len(stack.sizes),
        )
        self.chunk_size = max(1, numbers // (points * widest))

    @torch.no_grad()
    def __call__(self, parameters: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return losses [k] and gradients [k, n] of fields with these parameters [k, n].

        Args:
            parameters: Rows as in ``FieldStack``.
            index: Which fields' data they are to fit [k]; all by default.
        """
        losses = parameters.new_empty(len(parameters))
        gradients = torch.empty_like(parameters)
        for start in range(0, len(parameters), self.chunk_size):
            part = slice(start, min(start + self.chunk_size, len(parameters)))
            places = part if index is None else index[part]
            inputs = self.inputs if self.inputs.ndim == 2 else self.inputs[places]
            self._chunk(
                parameters[part], inputs, self.values[places], losses[part], gradients[part]
            )
        return losses, gradients

    def _chunk(
        self, parameters: Tensor, inputs: Tensor, values: Tensor, losses: Tensor, gradients: Tensor
    ) -> None:
        """Write losses and gradients of some fields."""
        maps = split_maps(parameters, self.stack.sizes)
        states, slopes, weights = [per_field(inputs, len(parameters))], [], []
        activations = self.stack.activations
        for (weight, bias), activation in zip(maps, activations, strict=False):
            if activation.unit is not None:
                weight, bias = weight * activation.frequency, bias * activation.frequency
            z = torch.baddbmm(bias, states[-1], weight.transpose(1, 2))
            state, slope = activation.jet(z)[:2] if activation.unit is None else activation.unit(z)
            states.append(state)
            slopes.append(slope)
            weights.append(weight)
        weight, bias = maps[-1]
        weights.append(weight)
        outputs = torch.baddbmm(bias, states[-1], weight.transpose(1, 2))
        losses[:], errors = _loss_and_errors(self.loss, outputs, values)
        for place in range(len(maps) - 1, -1, -1):
            weight_part, bias_part = split_maps(gradients, self.stack.sizes)[place]
            weight_part.copy_(torch.bmm(errors.transpose(1, 2), states[place]))
            bias_part.copy_(errors.sum(dim=1, keepdim=True))
            if place < len(activations) and activations[place].unit is not None:
                # What was differentiated by is ω times the map.
                weight_part *= activations[place].frequency
                bias_part *= activations[place].frequency
            if place:
                errors = torch.bmm(errors, weights[place]).mul_(slopes[place - 1])


def _loss_and_errors(loss: Loss, outputs: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each field, and its gradient with respect to the outputs [k, p, c]."""
    if loss is mse:
        errors = outputs - values
        points = errors.shape[1]
        return errors.square().sum(dim=(1, 2)) / (2 * points), errors.div_(points)
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        losses = torch.vmap(loss)(leaf, values)
        (errors,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), errors
