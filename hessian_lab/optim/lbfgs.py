"""torch's L-BFGS, one iteration per step, that does not stall in silence."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# torch keeps a line search of at most 25 trials; ``max_eval`` counts the evaluation before it too.
LINE_SEARCH_EVALUATIONS = 26


def filling_gradients(
    optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    """Return a closure that also fills ``.grad``, as torch's own optimizers expect."""

    def filled() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = closure()
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return filled


class LBFGS(torch.optim.LBFGS):
    """``torch.optim.LBFGS`` with strong Wolfe line search, one iteration per ``step``.

    With ``max_iter=1`` torch's default ``max_eval`` of 1 leaves the line search no trial: every
    step has length 0. Here it has 25. Where a search still finds no decrease along the
    quasi-Newton direction, the memory is dropped and the step retried along the gradient.

    Args:
        params: An iterable of parameters, or a single group.
        lr: The first trial length of every search but the first.
        history_size: Pairs kept.
        line_search_fn: ``strong_wolfe`` or None.
        tolerance_grad: Below this largest entry of the gradient a step does nothing.

    References:
        Nocedal & Wright (2006), Alg. 7.5; pytorch/pytorch#135026.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        *,
        history_size: int = 100,
        line_search_fn: str | None = "strong_wolfe",
        tolerance_grad: float = 0.0,
    ) -> None:
        if history_size < 1:
            raise ValueError(f"history_size must be at least 1, got {history_size}.")
        if line_search_fn not in (None, "strong_wolfe"):
            raise ValueError(
                f"line_search_fn must be strong_wolfe or None, got {line_search_fn!r}."
            )
        super().__init__(
            params,
            lr=lr,
            max_iter=1,
            max_eval=LINE_SEARCH_EVALUATIONS,
            history_size=history_size,
            line_search_fn=line_search_fn,
            tolerance_grad=tolerance_grad,
            tolerance_change=0.0,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take one iteration; return the loss before it."""
        filled = filling_gradients(self, closure)
        parameters = self.param_groups[0]["params"]
        before = [value.clone() for value in parameters]
        loss = super().step(filled)  # type: ignore[no-untyped-call]
        if self._memory() and all(map(torch.equal, before, parameters)):
            self.state.clear()
            super().step(filled)  # type: ignore[no-untyped-call]
        return torch.as_tensor(loss)

    def _memory(self) -> bool:
        """Tell whether any pair of steps and gradients is kept."""
        return bool(self.state[self.param_groups[0]["params"][0]].get("old_dirs"))
