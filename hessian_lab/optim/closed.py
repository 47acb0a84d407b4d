"""Exact curvature of a closure's loss by matrix products, where its network is a plain field."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hessian_lab.optim.outputs import OutputCurvature
from hessian_lab.probe.closed_diagonal import diagonal_at
from hessian_lab.probe.closed_form import Parts, assemble
from hessian_lab.probe.closed_rows import row_norms_at
from hessian_lab.probe.hessian import has_closed_form, require_hessian
from hessian_lab.probe.precision import full_precision


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a network: what it was given and what it gave, as they were then.

    Attributes:
        coords: Its one argument; None if there was another number of them.
        outputs: What it gave.
        node: Where in the graph that is.
        version: Of the coordinates, which tells whether they were changed since.
    """

    coords: Any
    outputs: Any
    node: Any
    version: int

    @property
    def is_intact(self) -> bool:
        """Whether both are tensors with a graph that nothing has changed in place since."""
        return (
            isinstance(self.coords, Tensor)
            and isinstance(self.outputs, Tensor)
            and self.node is not None
            and self.outputs.grad_fn is self.node
            and self.coords._version == self.version
        )


@contextmanager
def calls_of(model: nn.Module | None) -> Iterator[list[Call]]:
    """Record what a network is called with inside, and what it gives; no hook is left behind."""
    calls: list[Call] = []
    if model is None:
        yield calls
        return

    def see(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], gave: Any) -> None:
        all_given = [*given, *named.values()]
        coords = all_given[0] if len(all_given) == 1 else None
        node, version = getattr(gave, "grad_fn", None), getattr(coords, "_version", 0)
        calls.append(Call(coords, gave, node, version))

    hook = model.register_forward_hook(see, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@dataclass(frozen=True, eq=False)
class ClosedCurvature:
    """The curvature of a loss whose derivatives by the outputs of a field are known.

    Attributes:
        model: A ``CoordinateMLP``.
        coords: Its inputs [p, d].
        slope: ∂L/∂f [p, c].
        blocks: ∂²L/∂f² [p, c, c] of each point.
    """

    model: Any
    coords: Tensor
    slope: Tensor
    blocks: Tensor

    @full_precision()
    def matrix(self, *, kind: Literal["hessian", "ggn"] = "hessian") -> Tensor:
        """Return the matrix [n, n], exactly symmetric, by about ``p n²`` operations.

        Raises:
            ResourceError: If it does not fit, before it is allocated.
        """
        size = sum(value.numel() for value in self.model.parameters())
        require_hessian(self.model, size, len(self.coords))
        whole = kind == "hessian"
        parts = Parts(activation=whole, cross=whole)
        return assemble(self.model, self.coords, self.slope, self.blocks, parts=parts)

    @full_precision()
    def row_norms(self) -> Tensor:
        """Return the norms [n] of the Hessian's rows, at the cost of the matrix."""
        return row_norms_at(self.model, self.coords, self.slope, self.blocks, matrix="hessian")

    @full_precision()
    def diagonal(self) -> Tensor:
        """Return the diagonal [n] of the Hessian, at a small part of that."""
        return diagonal_at(self.model, self.coords, self.slope, self.blocks, matrix="hessian")


def closed_curvature(
    model: nn.Module | None, calls: Sequence[Call], loss: Tensor, parameters: Sequence[Tensor]
) -> ClosedCurvature | None:
    """Return the curvature of a loss; None where it has no closed form, and products must do.

    It has one if the model is a ``CoordinateMLP`` as it was built with exactly these parameters,
    called once, and the loss a sum over points that depends on the parameters by its outputs alone.

    Args:
        model: The network.
        calls: Of the network, while the loss was computed.
        loss: A scalar with its graph, which is kept.
        parameters: What to differentiate by, in order.
    """
    if model is None or not has_closed_form(model) or len(calls) != 1 or not calls[0].is_intact:
        return None
    coords, outputs = calls[0].coords, calls[0].outputs
    own = list(model.parameters())
    same = [id(value) for value in parameters] == [id(value) for value in own]
    kinds = {value.dtype for value in (*own, coords, outputs)}
    if not same or len(kinds) > 1:
        return None
    if coords.ndim != 2 or _reaches(loss.grad_fn, own, past=outputs.grad_fn):
        return None
    try:
        with torch.enable_grad():
            curvature = OutputCurvature(loss, outputs)
            blocks = curvature.blocks()
            curvature.require_separable(blocks)
    except ValueError:
        return None
    return ClosedCurvature(model, coords.detach(), curvature.slope.detach(), blocks.detach())


def _reaches(root: Any, leaves: Sequence[Tensor], *, past: Any) -> bool:
    """Tell whether the graph below a node leads to leaves otherwise than by one other node."""
    wanted = {id(value) for value in leaves}
    seen, waiting = {past}, [root]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in wanted:
            return True
        waiting += [child for child, _ in node.next_functions]
    return False
