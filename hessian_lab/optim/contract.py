"""What all optimizers here have in common: one closure, counters, diagnostics, a preconditioner.

``loss = optimizer.step(closure)``: the closure returns the loss of one fixed batch *with its
graph*, and does not call backward. It may be evaluated several times per step.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hessian_lab.errors import DivergenceError
from hessian_lab.optim.preconditioner import Preconditioner
from hessian_lab.optim.wrappers import explained, refuse, wrappers_called
from hessian_lab.probe.precision import full_precision

Closure = Callable[[], Any]
# Steps in a row without a finite loss or curvature, after which there is nothing to wait for.
MOST_SKIPPED = 10
COUNTERS = ("step", "evaluations", "products", "curvature_updates", "skipped", "skipped_in_row")


class Contract(torch.optim.Optimizer):
    """The base of every optimizer here; a subclass is final and implements ``step``.

    Counters are whole numbers in the first parameter group, so that they are saved with the state.
    """

    # Whether the closure returns ``(loss, outputs)``.
    takes_outputs: ClassVar[bool] = False
    # Whether the graph of the loss is needed, so that a closure must not have called backward.
    needs_graph: ClassVar[bool] = True
    # Whether parameter groups with settings of their own mean something.
    takes_groups: ClassVar[bool] = False

    # Attributes that copies and pickles of an optimizer keep, beside torch's own.
    carried: ClassVar[tuple[str, ...]] = ()

    # Whether the preconditioner is diagonal, so that its scale is told with every checkpoint.
    is_diagonal: ClassVar[bool] = False

    _length: float | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [value for group in self.param_groups for value in group["params"]]

    @property
    def counters(self) -> dict[str, int]:
        """How many steps, evaluations, products, … there were so far."""
        counters: dict[str, int] = self.param_groups[0].setdefault(
            "counters", dict.fromkeys(COUNTERS, 0)
        )
        return counters

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in (*self.carried, "_length")}
        return {**super().__getstate__(), **own}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, where more than one group means something.

        Raises:
            ValueError: If it does not.
            TypeError: For complex or sparse parameters, or others than float32 and float64.
        """
        if self.param_groups and not self.takes_groups:
            raise ValueError(
                f"{type(self).__name__} takes one parameter group: its step is one vector. Pass "
                "all parameters together."
            )
        super().add_param_group(param_group)
        try:
            self._check_group()
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _check_group(self) -> None:
        for value in self.param_groups[-1]["params"]:
            if value.dtype not in (torch.float32, torch.float64) or value.is_sparse:
                kind = "sparse" if value.is_sparse else str(value.dtype)
                raise TypeError(f"parameters must be dense float32 or float64, got {kind}.")
            if not value.requires_grad:
                raise ValueError(
                    "parameters must require gradients. Leave the frozen ones out: "
                    "[p for p in model.parameters() if p.requires_grad]."
                )

    def should_create_graph(self) -> bool:
        """Tell whether ``loss.backward`` must keep the graph of the gradient for the next step."""
        return False

    def preconditioner(self, model: nn.Module | None = None) -> Preconditioner:  # noqa: ARG002
        """Return ``P`` of the present step ``-η P⁻¹ m``.

        Args:
            model: Whose order of parameters to use; by default that of the groups.

        Raises:
            ValueError: If it has none, or none yet.
        """
        raise ValueError(f"{type(self).__name__} has no preconditioner.")

    def diagnostics(self) -> dict[str, float]:
        """Return what the steps so far took, and what the last of them was.

        ``evaluations``, ``products``, ``curvature_updates`` and ``skipped`` are totals;
        ``step_length`` is the 2-norm of the last step where the optimizer knows it without more
        work; ``scale_min``, ``scale_median`` and ``scale_max`` are those of the preconditioner
        where it is diagonal.
        """
        numbers = {
            name: float(self.counters[name])
            for name in ("evaluations", "products", "curvature_updates", "skipped")
        }
        scale = None
        if self.is_diagonal:
            with contextlib.suppress(ValueError):
                scale = self.preconditioner().scale
        if scale is not None:
            numbers |= {
                "scale_min": float(scale.min()),
                "scale_median": float(scale.median()),
                "scale_max": float(scale.max()),
            }
        return numbers if self._length is None else {"step_length": self._length, **numbers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state bit for bit, lists of tensors included.

        Torch itself casts it to the dtype of the parameters.
        """
        super().load_state_dict(state_dict)
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        for value, index in zip(self.parameters, saved, strict=True):
            for name, entry in state_dict["state"].get(index, {}).items():
                if isinstance(entry, Tensor):
                    # Torch keeps Adam's count of steps on the CPU.
                    device = self.state[value][name].device
                    self.state[value][name] = entry.detach().clone().to(device)
                elif isinstance(entry, list):
                    self.state[value][name] = [
                        each.detach().clone().to(value.device) for each in entry
                    ]

    # What subclasses are made of.

    def _evaluate(self, closure: Closure) -> Any:
        """Return what the closure returns; ``.grad`` is empty before.

        It is filled after only by a closure that called backward, where that is allowed.

        Raises:
            RuntimeError: If the closure called backward and must not, if its loss has no graph, or
                if it called a module that cannot be differentiated here.
        """
        self.zero_grad(set_to_none=True)
        self.counters["evaluations"] += 1
        with torch.enable_grad(), wrappers_called() as wrappers:
            result = closure()
        filled = any(value.grad is not None for value in self.parameters)
        if filled and not self.needs_graph:
            return torch.as_tensor(result)
        name = type(self).__name__
        if filled:
            raise RuntimeError(
                "closure must return the loss with its graph and not call backward: "
                f"{name} differentiates it itself. Delete loss.backward() from the closure."
            )
        refuse(wrappers, name, may_fill=not self.needs_graph)
        loss = result[0] if self.takes_outputs else result
        if not (isinstance(loss, Tensor) and loss.requires_grad):
            raise RuntimeError(
                f"closure must return the loss with its graph{self._or_backward()}, got "
                f"{'a tensor without one' if isinstance(loss, Tensor) else type(loss).__name__}. "
                "Return it without detach() or item(), and not under torch.no_grad()."
            )
        return result

    def _or_backward(self) -> str:
        return "" if self.needs_graph else ", or call backward and return the loss"

    @full_precision()
    def _gradients(
        self, loss: Tensor, *, create_graph: bool = False, retain_graph: bool = False
    ) -> list[Tensor]:
        """Return the gradient, a tensor per parameter, zero for one that the loss does not use.

        Raises:
            ValueError: If a parameter was frozen meanwhile.
        """
        if not all(value.requires_grad for value in self.parameters):
            raise ValueError(
                "parameters must require gradients, one was frozen after the optimizer was made. "
                f"Make a new {type(self).__name__} of those that are trained."
            )
        with explained(type(self).__name__):
            return list(
                torch.autograd.grad(
                    loss,
                    self.parameters,
                    create_graph=create_graph,
                    retain_graph=create_graph or retain_graph,
                    allow_unused=True,
                    materialize_grads=True,
                )
            )

    @full_precision()
    def _products(
        self, gradients: Sequence[Tensor], vectors: Sequence[Tensor], *, more: bool = False
    ) -> list[Tensor]:
        """Return ``H v``, a tensor per parameter, from gradients with their graph."""
        self.counters["products"] += 1
        used = [each for each in zip(gradients, vectors, strict=True) if each[0].requires_grad]
        if not used:
            return [torch.zeros_like(value) for value in self.parameters]
        outputs, directions = zip(*used, strict=True)
        with explained(type(self).__name__):
            return list(
                torch.autograd.grad(
                    outputs,
                    self.parameters,
                    directions,
                    retain_graph=more,
                    allow_unused=True,
                    materialize_grads=True,
                )
            )

    def _keep_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Leave the gradient, detached, in ``.grad``."""
        for value, gradient in zip(self.parameters, gradients, strict=True):
            value.grad = gradient.detach()

    def _skip(self, reason: str) -> None:
        """Count a step that is not taken.

        Raises:
            DivergenceError: If there were too many in a row.
        """
        self.counters["skipped"] += 1
        self.counters["skipped_in_row"] += 1
        self._length = 0.0
        if self.counters["skipped_in_row"] >= MOST_SKIPPED:
            raise DivergenceError(
                f"{reason} in {MOST_SKIPPED} steps in a row, the last of them step "
                f"{self.counters['step'] + 1}."
            )
        self.counters["step"] += 1

    def _took(self) -> None:
        """Count a step that was taken."""
        self.counters["step"] += 1
        self.counters["skipped_in_row"] = 0


def is_finite(tensors: Sequence[Tensor]) -> bool:
    """Tell whether every entry of every tensor is finite, with one synchronisation where it is."""
    # What is not finite spoils the sum; finite numbers may do so too, by overflow.
    if bool(torch.stack([each.sum() for each in tensors]).isfinite().all()):
        return True
    return all(bool(each.isfinite().all()) for each in tensors)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Return tensors as one vector [n]."""
    return torch.cat([value.detach().flatten() for value in tensors])


def like(vector: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return a vector [n] cut into the shapes of tensors; views."""
    parts = vector.split([value.numel() for value in tensors])
    return [part.view_as(value) for part, value in zip(parts, tensors, strict=True)]


def order_of(parameters: Sequence[Tensor], model: nn.Module | None) -> list[int]:
    """Return where each trainable parameter of a model stands among an optimizer's.

    Raises:
        ValueError: If the optimizer does not have them all.
    """
    if model is None:
        return list(range(len(parameters)))
    places = {id(value): place for place, value in enumerate(parameters)}
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    missing = [name for name, value in named if id(value) not in places]
    if missing:
        raise ValueError(f"model has a parameter that the optimizer does not: {missing[0]}.")
    return [places[id(value)] for _, value in named]
