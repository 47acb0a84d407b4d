"""The linear maps of a module, what flows through them in one step, and its second moments."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """One ``nn.Linear`` and the places of its parameters among the optimizer's.

    Attributes:
        name: Of the module.
        module: The module; its bias is the last column of its matrix.
        weight: The place of the weight.
        bias: The place of the bias, or None where there is none to train.
    """

    name: str
    module: nn.Linear
    weight: int
    bias: int | None

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return [outputs, inputs + 1] of a tensor per parameter."""
        weight = tensors[self.weight]
        return weight if self.bias is None else torch.cat([weight, tensors[self.bias][:, None]], 1)

    def parts(self, matrix: Tensor) -> list[tuple[int, Tensor]]:
        """Return the places and tensors that a matrix is made of."""
        if self.bias is None:
            return [(self.weight, matrix)]
        return [(self.weight, matrix[:, :-1]), (self.bias, matrix[:, -1])]

    def homogeneous(self, inputs: Tensor) -> Tensor:
        """Return inputs [points, inputs], with a column of ones for a bias."""
        inputs = inputs.reshape(-1, inputs.shape[-1])
        ones = inputs.new_ones(len(inputs), 1)
        return inputs if self.bias is None else torch.cat([inputs, ones], dim=1)


def linear_layers(model: nn.Module) -> list[LinearLayer]:
    """Return every linear map that is trained, in the order of ``model.named_parameters()``.

    Raises:
        ValueError: If the model is wrapped, trains nothing, or trains anything else.
    """
    _require_bare(model)
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    places = {id(value): place for place, (_, value) in enumerate(named)}
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and id(module.weight) in places:
            bias = None if module.bias is None else places.get(id(module.bias))
            layers.append(LinearLayer(name, module, places[id(module.weight)], bias))
    covered = [place for each in layers for place in (each.weight, each.bias) if place is not None]
    missing = [name for place, (name, _) in enumerate(named) if place not in covered]
    if missing or not layers:
        raise ValueError(
            "model must have nn.Linear layers, and train nothing but them: each is one Kronecker "
            f"block. It also trains {', '.join(missing) or 'nothing'}. Freeze that with "
            "requires_grad_(False), or use another optimizer."
        )
    if len(set(covered)) < len(covered):
        raise ValueError("model must not share a parameter between layers.")
    return sorted(layers, key=lambda layer: layer.weight)


def _require_bare(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not its parameters, got {type(model)}.")
    wrapper = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise ValueError(f"model must not be compiled, got {wrapper}. Pass the module itself.")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(f"model must be on one device, got {wrapper}. Pass model.module.")


class Recorded:
    """The inputs and the outputs of every layer in one evaluation.

    Attributes:
        inputs: Detached [points, inputs], by layer.
        outputs: Where in the graph the outputs are, by layer: a tensor would follow an activation
            that works in place.
    """

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: list[GradientEdge] = []

    @property
    def num_points(self) -> int:
        """How many points flow through the first layer."""
        first = self.inputs[0]
        return len(first.reshape(-1, first.shape[-1]))


@contextmanager
def recording(layers: Sequence[LinearLayer], *, wanted: bool) -> Iterator[Recorded | None]:
    """Record what flows through the layers inside; no hook is left behind.

    Raises:
        ValueError: If a layer is not called exactly once.
    """
    if not wanted:
        yield None
        return
    seen: dict[nn.Module, list[tuple[Tensor, GradientEdge]]] = {each.module: [] for each in layers}

    def see(module: nn.Module, given: tuple[Tensor, ...], gave: Tensor) -> None:
        seen[module].append((given[0].detach(), get_gradient_edge(gave)))

    hooks = [layer.module.register_forward_hook(see) for layer in layers]
    recorded = Recorded()
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        calls = seen[layer.module]
        if len(calls) != 1:
            raise ValueError(
                f"closure must call every layer of the model once, got {len(calls)} calls of "
                f"{layer.name or 'the model'}."
            )
        recorded.inputs.append(calls[0][0])
        recorded.outputs.append(calls[0][1])


@dataclass(frozen=True, eq=False)
class Flow:
    """What one layer's block is made of: ``Σ (δ δᵀ) ⊗ (ã ãᵀ)``, over points and passes.

    Attributes:
        inputs: ``ã`` [points, inputs + 1].
        slopes: ``δ`` [points, outputs] of each pass, scaled so that the sum above is the block.
    """

    inputs: Tensor
    slopes: list[Tensor]

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return ``Σ δ δᵀ`` and the mean of ``ã ãᵀ``."""
        slopes = torch.cat(self.slopes)
        return slopes.T @ slopes, self.inputs.T @ self.inputs / len(self.inputs)

    def moments(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the block's diagonal in the basis ``left ⊗ right``, as [outputs, inputs + 1]."""
        squares = (self.inputs @ right).square()
        slopes = torch.stack([(slope @ left).square() for slope in self.slopes]).sum(dim=0)
        return slopes.T @ squares
