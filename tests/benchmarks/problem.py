"""What everyone works on: a field and its points, and products that none of them computed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from hessian_lab.fields.mlp import CoordinateMLP, make_field
from hessian_lab.losses import mse
from hessian_lab.signal import Signal
from hessian_lab.signals import load_signal

# Columns of a reference that are differentiated at once.
BLOCK = 8
MODULES = {"tanh": nn.Tanh}


class Bend(nn.Module):
    """The activation of a field as a module."""

    def __init__(self, value: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.value = value

    def forward(self, state: Tensor) -> Tensor:
        return self.value(state)


class PointMean(nn.Module):
    """``mse`` for libraries that want a module that says its reduction."""

    reduction = "mean"

    def forward(self, predictions: Tensor, values: Tensor) -> Tensor:
        return mse(predictions, values)


@dataclass(frozen=True, eq=False)
class Problem:
    """A field, its points, and the same network as ``nn.Sequential`` with the same parameters."""

    model: CoordinateMLP
    signal: Signal
    text: str
    sequential: nn.Sequential

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def size(self) -> int:
        return sum(value.numel() for value in self.parameters)

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        return self.signal.coords, self.signal.values

    def loss(self, model: nn.Module | None = None) -> Tensor:
        return mse((model or self.model)(self.signal.coords), self.signal.values)

    def parts(self, vector: Tensor) -> list[Tensor]:
        """Return a vector [n] in the shapes of the parameters."""
        values = self.parameters
        cut = vector.split([value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(cut, values, strict=True)]

    def fresh(self) -> CoordinateMLP:
        """Return a copy of the field, to train."""
        copy = CoordinateMLP(
            self.model.maps[0].in_features,
            self.model.maps[-1].out_features,
            self.model.activations,
            width=self.model.maps[0].out_features,
            depth=len(self.model.activations),
            dtype=self.parameters[0].dtype,
        )
        copy.load_state_dict(self.model.state_dict())
        return copy


def flat(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts])


@cache
def problem(act: str, width: int, *, side: int = 50, dtype: str = "float64") -> Problem:
    """Return a field of four hidden layers on ``side``² points of the camera image, at its start.

    Larger grids than the image's 512² are not asked for.
    """
    kind = getattr(torch, dtype)
    signal = load_signal("camera", side).to(dtype=kind)
    model = make_field(act, 2, 1, width=width, depth=4, dtype=kind)
    *hidden, last = model.maps
    layers = [
        part
        for layer in hidden
        for part in (layer, MODULES[act]() if act in MODULES else Bend(model.activation.value))
    ]
    size = sum(value.numel() for value in model.parameters())
    text = f"{act} 4×{width}, n = {size:,}, {signal.num_points:,} points, {dtype}"
    return Problem(model, signal, text, nn.Sequential(*layers, last))


def _in_double(found: Problem) -> tuple[dict[str, Tensor], Callable[[dict[str, Tensor]], Tensor]]:
    values = {name: value.detach().double() for name, value in found.model.named_parameters()}
    coords = found.signal.coords.double()
    return values, lambda named: functional_call(found.model, named, (coords,))


def _by_name(found: Problem, vector: Tensor) -> dict[str, Tensor]:
    names = [name for name, _ in found.model.named_parameters()]
    return dict(zip(names, found.parts(vector), strict=True))


def _blockwise(product: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
    return torch.cat([vmap(product)(some) for some in vectors.T.double().split(BLOCK)]).T


def hessian_reference(found: Problem, vectors: Tensor) -> Tensor:
    """Return ``H V`` [n, k] in float64, by ``torch.func``'s forward over reverse."""
    values, predict = _in_double(found)
    targets = found.signal.values.double()

    def product(vector: Tensor) -> Tensor:
        slope = jacrev(lambda named: mse(predict(named), targets))
        return flat(tuple(jvp(slope, (values,), (_by_name(found, vector),))[1].values()))

    return _blockwise(product, vectors)


def ggn_reference(found: Problem, vectors: Tensor) -> Tensor:
    """Return ``G V`` [n, k] in float64, by ``torch.func``: ``Jᵀ (∇²ℓ) J v``."""
    values, predict = _in_double(found)
    targets = found.signal.values.double()

    def product(vector: Tensor) -> Tensor:
        outputs, moved = jvp(predict, (values,), (_by_name(found, vector),))
        _, curved = jvp(grad(lambda outs: mse(outs, targets)), (outputs,), (moved,))
        pulled = torch.func.vjp(predict, values)[1](curved)[0]
        return flat(tuple(pulled.values()))

    return _blockwise(product, vectors)


def units(size: int, places: Tensor, dtype: torch.dtype) -> Tensor:
    """Return unit vectors as columns [n, k]."""
    block = torch.zeros(size, len(places), dtype=dtype)
    block[places, torch.arange(len(places))] = 1
    return block


def relative(answer: Tensor, reference: Tensor) -> float:
    """Return how far an answer is from the reference, in norms of the reference."""
    return float((answer.double() - reference).norm() / reference.norm())
