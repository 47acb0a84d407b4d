"""Nonlinear conjugate gradients: what the papers call Newton-CG."""

from collections.abc import Iterator

from torch import Tensor

from hessian_lab.optim.searching import (
    Move,
    Parameters,
    Point,
    Searching,
    search_options,
    warn_of_searches,
)

BETAS = ("PR+", "PR", "FR")
# A direction must descend at this fraction of the rate of the steepest, or it is restarted.
LEAST_DESCENT = 0.01
# A search's first length is at most this many times what the last one ended with.
MOST_GROWTH = 10.0


class NonlinearCG(Searching):
    """Nonlinear conjugate gradients: ``d = -g + β d`` and a strong Wolfe search along ``d``.

    This is the algorithm that the papers print as Newton-CG, in which no Hessian occurs, with its
    gaps closed: the first step is steepest descent, ``β`` compares two gradients of one batch, and
    the direction restarts from the gradient after ``restart`` steps, or where it hardly descends,
    ``gᵀd ≥ -0.01 ‖g‖²``. It has no preconditioner.

    Per step it takes about two evaluations; it keeps ``3 n`` numbers.

    Args:
        params: The parameters, in one group.
        lr: The first trial length of the first search is ``lr · min(1, 1 / ‖g‖₁)``; later ones
            start where the last one's decrease to first order would be repeated.
        beta: ``PR+`` (Polak–Ribière, no less than 0); ``PR``; ``FR`` (Fletcher–Reeves).
        restart: Steps between restarts; by default the number of parameters.
        c2: What a search leaves of the slope at most; below ½, so that directions descend.
        same_batch: Whether all steps are taken on one batch, so that what the last one computed
            at its end may start the next. Set it to False for mini-batches.

    Raises:
        ValueError: For an option out of range, or more than one group.
        TypeError: For complex or sparse parameters.

    References:
        Nocedal & Wright (2006), Alg. 5.4, eq. 5.44, 5.45 and 3.60.
    """

    needs_graph = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        *,
        beta: str = "PR+",
        restart: int | None = None,
        c2: float = 0.1,
        same_batch: bool = True,
    ) -> None:
        if beta not in BETAS:
            raise ValueError(f"beta must be one of {', '.join(BETAS)}, got {beta!r}.")
        if restart is not None and restart < 1:
            raise ValueError(f"restart must be at least 1, or None, got {restart}.")
        options = search_options(lr, "strong_wolfe", c2, same_batch)
        super().__init__(params, options | {"beta": beta, "restart": restart, "since": 0})
        warn_of_searches(self)

    def _directions(self, start: Point) -> Iterator[tuple[Tensor, float]]:
        group, memory = self.param_groups[0], self._memory
        gradient = start.gradient
        if "direction" in memory:
            square = float(gradient.dot(gradient))
            if group["since"] < (group["restart"] or len(gradient)):
                direction = memory["direction"] * memory["weight"] - gradient
                slope = float(gradient.dot(direction))
                if slope < -LEAST_DESCENT * square:
                    yield direction, self._first(slope)
            yield from self._restarted(gradient, square)
        group["since"] = 0
        yield self._steepest(start)

    def _restarted(self, gradient: Tensor, square: float) -> Iterator[tuple[Tensor, float]]:
        """Yield the steepest direction with the length that the last step suggests."""
        self.param_groups[0]["since"] = 0
        self._count("restarts")
        if square:
            yield -gradient, self._first(-square)

    def _first(self, slope: float) -> float:
        """Return the length at which the last decrease, to first order, is repeated."""
        length, former = (float(self._memory[name]) for name in ("length", "slope"))
        return min(length * former / slope, MOST_GROWTH * length)

    def _learn(self, move: Move) -> None:
        group = self.param_groups[0]
        before, after = move.start.gradient, move.end.gradient
        change = after if group["beta"] == "FR" else after - before
        weight = after.dot(change) / before.dot(before)
        group["since"] += 1
        self._memory.update(
            direction=move.direction,
            weight=weight.clamp_min(0) if group["beta"] == "PR+" else weight,
            length=before.new_tensor(move.length),
            slope=before.dot(move.direction),
        )
