"""What the optimizers with a line search have in common: a point, a direction, a search."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hessian_lab.errors import NonFiniteError
from hessian_lab.optim.contract import Closure, Contract, flat, like, order_of
from hessian_lab.optim.preconditioner import Preconditioner, dense_preconditioner
from hessian_lab.optim.wolfe import DECREASE, Evaluate, Trial, armijo, strong_wolfe
from hessian_lab.probe.precision import shortcuts

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]
# The loss and gradient of one batch, computed twice, agree to this many roundings.
SAME_ROUNDINGS = 1e3
# The cosine between a step and the change of the gradient that a pair needs, at least.
LEAST_CURVATURE = 1e-8
SEARCH_COUNTERS = ("trials", "skipped_pairs", "restarts")


@dataclass(frozen=True, eq=False)
class Point:
    """The loss at one place, and its gradient [n].

    Attributes:
        loss: The loss, detached.
        gradient: Its gradient as one vector, detached.
        graph: The gradient with its graph, a tensor per parameter, where products are needed.
    """

    loss: Tensor
    gradient: Tensor
    graph: Sequence[Tensor] = ()

    def is_finite(self) -> bool:
        """Tell whether the loss and every entry of the gradient is finite."""
        return math.isfinite(float(self.loss + (self.gradient * 0).sum()))


@dataclass(frozen=True, eq=False)
class Move:
    """A step that was found: ``length * direction``, from one point to another."""

    length: float
    direction: Tensor
    start: Point
    end: Point


class Searching(Contract):
    """A step along a direction, as far as a line search goes.

    A subclass is final: it names directions, and learns from the step that was taken. A step that
    finds no decrease tries the next direction, forgetting what led to the last; after the
    steepest one it ends as converged, and a step from the same place costs the one evaluation that
    tells whether the loss is still the same.
    """

    # Whether the loss and gradient that a search accepts may serve as the next step's start.
    keeps: ClassVar[bool] = True

    @property
    def converged(self) -> bool:
        """Whether the last step found no decrease, not even along the gradient."""
        return bool(self.param_groups[0]["converged"])

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take one step; return the loss before it.

        Args:
            closure: Returns the loss of one fixed batch with its graph; called several times.

        Raises:
            DivergenceError: If loss or curvature were not finite in ten steps in a row.
            RuntimeError: If the closure returns no loss with a graph.
        """
        place = flat(self.parameters)
        start = self._confirmed(closure, place)
        if start is None:
            self.param_groups[0]["converged"] = False
            start = self._begin(closure)
        if not start.is_finite():
            self._skip("loss or gradient was not finite")
        elif self.converged:
            self._rest(place, start)
        elif not self.param_groups[0]["lr"]:
            self._stay(place, start)
        else:
            self._go(closure, place, start)
        self._keep_gradients(self._parts(start.gradient.clone()))
        return start.loss

    def diagnostics(self) -> dict[str, float]:
        """Return what the steps so far took, and what the last of them was.

        Totals are ``evaluations``, of which ``trials`` in searches, ``products``,
        ``curvature_updates``, ``skipped`` (steps), ``skipped_pairs`` and ``restarts`` along the
        gradient; ``step_length`` is the 2-norm of the last step; ``converged`` is 0 or 1.
        """
        names = ("evaluations", "products", "curvature_updates", "skipped", *SEARCH_COUNTERS)
        numbers = {name: float(self.counters.get(name, 0)) for name in names}
        numbers["converged"] = float(self.converged)
        return numbers if self._length is None else {"step_length": self._length, **numbers}

    # What a subclass says.

    def _begin(self, closure: Closure) -> Point:
        """Return the point where a step starts."""
        return self._measure(closure)

    def _directions(self, start: Point) -> Iterator[tuple[Tensor, float]]:
        """Yield directions [n] with the length to try first, the best first."""
        raise NotImplementedError

    def _learn(self, move: Move) -> None:
        """Use what a step has shown."""

    def _search(self, evaluate: Any, start: Trial, first: float) -> Trial:
        """Return where along a direction to go."""
        name, c2 = (self.param_groups[0][key] for key in ("line_search_fn", "c2"))
        if name is not None and not start.slope < 0:
            return start
        return SEARCHES[name](evaluate, start, first, c2=c2)

    # What a subclass is made of.

    @property
    def _memory(self) -> dict[str, Any]:
        """The state, which is that of all parameters together."""
        memory: dict[str, Any] = self.state[self.parameters[0]]
        return memory

    def _count(self, name: str, more: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + more

    def _steepest(self, start: Point) -> tuple[Tensor, float]:
        """Return the direction of steepest descent, and the length that torch tries first."""
        size = float(start.gradient.abs().sum())
        return -start.gradient, min(1.0, 1 / size if size else 1.0) * self.param_groups[0]["lr"]

    def _measure(self, closure: Closure, *, create_graph: bool = False) -> Point:
        """Return loss and gradient where the parameters are."""
        loss = self._evaluate(closure)
        if all(value.grad is None for value in self.parameters):
            with torch.enable_grad():
                gradients = self._gradients(loss, create_graph=create_graph)
        else:
            gradients = [
                torch.zeros_like(value) if value.grad is None else value.grad
                for value in self.parameters
            ]
            self.zero_grad(set_to_none=True)
        return Point(loss.detach(), flat(gradients), gradients if create_graph else ())

    def _go(self, closure: Closure, place: Tensor, start: Point) -> None:
        """Search along one direction after the other until one leads somewhere."""
        try:
            for number, (direction, first) in enumerate(self._directions(start)):
                self._count("restarts", int(number > 0))
                move = self._try(closure, place, start, direction, first)
                if move is not None:
                    self._arrive(move)
                    return
        except NonFiniteError as error:
            self._skip(str(error))
        else:
            self._rest(place, start)

    def _confirmed(self, closure: Closure, place: Tensor) -> Point | None:
        """Return what is known of a place, if the closure still says so; else None.

        It is asked before a kept point is first used, and wherever there is nothing left to do: of
        another batch, or another loss, it says something else.
        """
        known, group = self._known(place), self.param_groups[0]
        if known is None or (group["confirmed"] and not self.converged):
            return known
        found = self._measure(closure)
        if _agree(known, found):
            group["confirmed"] = True
            return known
        self._memory.pop("place")
        if not self.converged:
            group["same_batch"] = False
            warnings.warn(
                f"{type(self).__name__} was given another batch at its second step: it searches "
                "along a line of each mini-batch's own loss, and steps may undo each other. Use "
                "the full batch, or large mini-batches with same_batch=False.",
                stacklevel=4,
            )
        return None

    def _stay(self, place: Tensor, start: Point) -> None:
        """Count a step of a learning rate of 0, which says nothing of convergence."""
        self._took()
        self._length = 0.0
        if self.keeps and self.param_groups[0]["same_batch"]:
            self._keep(place, start)

    def _arrive(self, move: Move) -> None:
        """Count a step that was taken, learn from it, and keep what was computed at its end."""
        self._took()
        self._learn(move)
        if self.keeps and self.param_groups[0]["same_batch"]:
            self._keep(flat(self.parameters), move.end)
        else:
            self._memory.pop("place", None)

    def _rest(self, place: Tensor, start: Point) -> None:
        """Count a step of length 0; on the same batch there is no other to come."""
        self._took()
        self._length = 0.0
        if self.param_groups[0]["same_batch"]:
            self.param_groups[0]["converged"] = True
            self._keep(place, start)

    def _keep(self, place: Tensor, point: Point) -> None:
        self._memory.update(place=place, loss=point.loss, gradient=point.gradient)

    def _known(self, place: Tensor) -> Point | None:
        """Return what is known of a place, None if the parameters were moved since."""
        memory = self._memory
        if "place" not in memory or not torch.equal(memory["place"], place):
            return None
        return Point(memory["loss"], memory["gradient"])

    def _try(
        self, closure: Closure, place: Tensor, start: Point, direction: Tensor, first: float
    ) -> Move | None:
        """Return the step along a direction, the parameters being there; None without one."""
        origin = Trial(0.0, *_along(start, direction), start)
        reached = place

        def evaluate(length: float) -> Trial:
            nonlocal reached
            self._count("trials")
            reached = torch.add(place, direction, alpha=length)
            self._place(reached)
            point = self._measure(closure)
            return Trial(length, *_along(point, direction), point)

        try:
            found = self._search(evaluate, origin, first)
        except BaseException:
            self._place(place)
            raise
        there = torch.add(place, direction, alpha=found.length)
        if not torch.equal(there, reached):
            self._place(there)
        if torch.equal(there, place):
            self._length = 0.0
            return None
        self._length = found.length * float(torch.linalg.vector_norm(direction))
        return Move(found.length, direction, start, found.point)

    def _place(self, vector: Tensor) -> None:
        """Set the parameters."""
        torch._foreach_copy_(self.parameters, like(vector, self.parameters))

    def _parts(self, vector: Tensor) -> list[Tensor]:
        """Return a vector [n] in the shapes and precisions of the parameters."""
        parts = like(vector, self.parameters)
        return [part.to(value.dtype) for part, value in zip(parts, self.parameters, strict=True)]

    def _indices(self, model: nn.Module | None) -> Tensor:
        """Return where each entry of a model's parameters stands in the vector of ours.

        Raises:
            ValueError: If they are not the same parameters.
        """
        order = order_of(self.parameters, model)
        if len(order) != len(self.parameters):
            raise ValueError(
                f"model must have all {len(self.parameters)} parameters of the optimizer, got "
                f"{len(order)} of them: the root of a dense matrix has no part of its own."
            )
        sizes = [value.numel() for value in self.parameters]
        parts = torch.arange(sum(sizes), device=self.parameters[0].device).split(sizes)
        return torch.cat([parts[place] for place in order])


def _along(point: Point, direction: Tensor) -> tuple[float, float]:
    """Return the loss at a point and its slope along a direction, in one look at the device."""
    loss, slope = torch.stack([point.loss.reshape(()), point.gradient @ direction]).tolist()
    return loss, slope


def _agree(one: Point, other: Point) -> bool:
    """Tell whether two points are one, up to rounding."""
    rounding = SAME_ROUNDINGS * torch.finfo(one.gradient.dtype).eps
    gap = torch.linalg.vector_norm(one.gradient - other.gradient)
    near = bool(gap <= rounding * torch.linalg.vector_norm(one.gradient))
    loss = float(one.loss)
    # At a minimum the gradient is rounding of the loss's terms.
    return abs(float(other.loss) - loss) <= rounding * abs(loss) and (near or not gap > rounding)


def curved(step: Tensor, change: Tensor) -> bool:
    """Tell whether a pair shows positive curvature beyond rounding: ``sᵀy > ε ‖s‖ ‖y‖``."""
    least = max(LEAST_CURVATURE, torch.finfo(step.dtype).eps)
    norms = torch.linalg.vector_norm(step) * torch.linalg.vector_norm(change)
    return bool(step.dot(change) > least * norms)


def dense_root(
    values: Tensor, vectors: Tensor, indices: Tensor, dtype: torch.dtype
) -> Preconditioner:
    """Return ``P`` by the eigenvalues [n] and -vectors [n, n] of ``P⁻¹``, entries reordered.

    Raises:
        ValueError: If it is not positive definite.
    """
    if not bool((values > 0).all()):
        raise ValueError(
            "the preconditioner must be positive definite to have a root, got the eigenvalue "
            f"{float(values.min()):.3g}."
        )
    vectors = vectors[indices]
    root = (vectors * values.sqrt()) @ vectors.T
    return dense_preconditioner(((root + root.T) / 2).to(dtype))


def full_step(evaluate: Evaluate, start: Trial, first: float, *, c2: float) -> Trial:  # noqa: ARG001
    """Return the first trial, whatever it is.

    Raises:
        NonFiniteError: If it is not finite.
    """
    trial = evaluate(first)
    if not (math.isfinite(trial.value) and math.isfinite(trial.slope)):
        raise NonFiniteError("loss or gradient after the step was not finite")
    return trial


def _armijo(evaluate: Evaluate, start: Trial, first: float, *, c2: float) -> Trial:  # noqa: ARG001
    return armijo(evaluate, start, first)


SEARCHES = {"strong_wolfe": strong_wolfe, "armijo": _armijo, None: full_step}


def search_options(
    lr: float, line_search_fn: str | None, c2: float, same_batch: bool
) -> dict[str, Any]:
    """Return the options that all searches share.

    Raises:
        ValueError: If one is out of range.
    """
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be positive and finite, got {lr}.")
    if line_search_fn not in SEARCHES:
        raise ValueError(
            f"line_search_fn must be strong_wolfe, armijo or None, got {line_search_fn!r}."
        )
    if not DECREASE < c2 < 1:
        raise ValueError(f"c2 must lie between {DECREASE} and 1, got {c2}.")
    return {
        "lr": lr,
        "line_search_fn": line_search_fn,
        "c2": c2,
        "same_batch": same_batch,
        "converged": False,
        "confirmed": False,
    }


def warn_of_searches(optimizer: Searching) -> None:
    """Warn where a line search cannot be trusted: on mini-batches, and in TF32."""
    name = type(optimizer).__name__
    if not optimizer.param_groups[0]["same_batch"]:
        warnings.warn(
            f"{name} searches along a line of each mini-batch's own loss: steps may undo each "
            "other. Use the full batch, or large mini-batches.",
            stacklevel=3,
        )
    # torch's own question for all backends at once raises where they were set one by one.
    rough = any(each.startswith("cuda.matmul") for each in shortcuts())
    if rough and any(
        value.is_cuda and value.dtype == torch.float32 for value in optimizer.parameters
    ):
        warnings.warn(
            f"{name} compares losses that TF32 rounds too coarsely: searches will fail. Call "
            'torch.set_float32_matmul_precision("highest").',
            stacklevel=3,
        )
