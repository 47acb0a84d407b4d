"""L-BFGS, one iteration per step, each evaluation used once."""

from collections.abc import Iterator

from torch import Tensor, nn

from hessian_lab.optim.compact import CompactRoot, two_loop
from hessian_lab.optim.preconditioner import Preconditioner
from hessian_lab.optim.searching import (
    Move,
    Parameters,
    Point,
    Searching,
    curved,
    search_options,
    warn_of_searches,
)

# Steps, changes of the gradient over them, and their inner products, the oldest first.
PAIRS = ("steps", "changes", "curvatures")


class LBFGS(Searching):
    """Limited-memory BFGS with a strong Wolfe line search; one iteration per ``step``.

    The loss and gradient that a search accepts start the next step, which so takes one evaluation
    where the first trial is accepted. Where a search finds no decrease, the pairs are dropped and
    the gradient is followed; where that finds none either, the optimizer has converged: steps do
    nothing from then on, until the parameters are moved by others.

    Per step it takes about one evaluation and ``4 m n`` multiplications; it keeps ``2 m n``
    numbers for ``m = history_size`` pairs of ``n`` parameters. A step along a mini-batch learns
    from the two gradients of that batch.

    Args:
        params: The parameters, in one group.
        lr: The first trial length of a search; the first step's is ``lr · min(1, 1 / ‖g‖₁)``.
        history_size: Pairs kept.
        line_search_fn: ``strong_wolfe``; ``armijo``; or None, to take steps of length ``lr``.
        tolerance_grad: Where no entry of the gradient is larger, the optimizer has converged.
        c2: What a search leaves of the slope at most.
        same_batch: Whether all steps are taken on one batch, so that what the last one computed
            at its end may start the next. Set it to False for mini-batches.

    Raises:
        ValueError: For an option out of range, or more than one group.
        TypeError: For complex or sparse parameters.

    Note:
        ``P`` of ``preconditioner()`` is the inverse of the present inverse-Hessian approximation.

    References:
        Nocedal & Wright (2006), Alg. 7.5.
    """

    needs_graph = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        *,
        history_size: int = 100,
        line_search_fn: str | None = "strong_wolfe",
        tolerance_grad: float = 0.0,
        c2: float = 0.9,
        same_batch: bool = True,
    ) -> None:
        if history_size < 1:
            raise ValueError(f"history_size must be at least 1, got {history_size}.")
        if not tolerance_grad >= 0:
            raise ValueError(f"tolerance_grad must not be negative, got {tolerance_grad}.")
        options = search_options(lr, line_search_fn, c2, same_batch)
        more = {"history_size": history_size, "tolerance_grad": tolerance_grad}
        super().__init__(params, options | more)
        warn_of_searches(self)

    def preconditioner(self, model: nn.Module | None = None) -> Preconditioner:
        """Return ``P = M⁻¹`` of the step ``-η M g``; ``4 m² n`` multiplications.

        Args:
            model: Whose order of parameters to use; by default that of the group.

        Raises:
            ValueError: Before the first pair, or if the model's parameters are others.
        """
        if not self._memory.get("steps"):
            raise ValueError("LBFGS has no preconditioner before its first pair.")
        indices = self._indices(model)
        return Preconditioner(CompactRoot(self._memory["steps"], self._memory["changes"], indices))

    def _directions(self, start: Point) -> Iterator[tuple[Tensor, float]]:
        group, memory = self.param_groups[0], self._memory
        if float(start.gradient.abs().max()) <= group["tolerance_grad"]:
            return
        if memory.get("steps"):
            steps, changes, curvatures = (memory[name] for name in PAIRS)
            yield two_loop(steps, changes, curvatures, start.gradient).neg_(), group["lr"]
            memory.update((name, []) for name in PAIRS)
        yield self._steepest(start)

    def _learn(self, move: Move) -> None:
        step, change = move.direction * move.length, move.end.gradient - move.start.gradient
        if not curved(step, change):
            self._count("skipped_pairs")
            return
        self.counters["curvature_updates"] += 1
        most, memory = self.param_groups[0]["history_size"], self._memory
        for name, entry in zip(PAIRS, (step, change, step.dot(change)), strict=True):
            memory[name] = [*memory.get(name, []), entry][-most:]
