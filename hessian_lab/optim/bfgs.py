"""BFGS with its dense inverse Hessian."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hessian_lab.errors import ResourceError
from hessian_lab.optim.preconditioner import Preconditioner
from hessian_lab.optim.searching import (
    Move,
    Parameters,
    Point,
    Searching,
    curved,
    dense_root,
    search_options,
    warn_of_searches,
)
from hessian_lab.probe.memory import readable, require_bytes

MOST_PARAMETERS = 20_000


class BFGS(Searching):
    """BFGS: ``x - t M g`` with ``M`` [n, n] the inverse Hessian that all pairs so far suggest.

    ``M`` starts as the identity, scaled by ``sᵀy / yᵀy`` of the first pair. A pair whose curvature
    is not positive beyond rounding is skipped and counted. Where a search finds no decrease, ``M``
    is dropped and the gradient followed; where that finds none either, the optimizer has
    converged.

    Per step it takes about one evaluation and ``4 n²`` multiplications; it keeps ``n²`` numbers.
    float64 is recommended.

    Args:
        params: The parameters, in one group; at most 20,000 numbers.
        lr: The first trial length of a search; the first step's is ``lr · min(1, 1 / ‖g‖₁)``.
        line_search_fn: ``strong_wolfe``; ``armijo``; or None, to take steps of length ``lr``.
        c2: What a search leaves of the slope at most.
        same_batch: Whether all steps are taken on one batch, so that what the last one computed
            at its end may start the next. Set it to False for mini-batches.

    Raises:
        ResourceError: If ``M`` does not fit, before it is allocated.
        ValueError: For an option out of range, or more than one group.
        TypeError: For complex or sparse parameters.

    References:
        Nocedal & Wright (2006), Alg. 6.1, eq. 6.17 and 6.20.
    """

    needs_graph = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        *,
        line_search_fn: str | None = "strong_wolfe",
        c2: float = 0.9,
        same_batch: bool = True,
    ) -> None:
        super().__init__(params, search_options(lr, line_search_fn, c2, same_batch))
        _require_room(self.parameters)
        warn_of_searches(self)

    def preconditioner(self, model: nn.Module | None = None) -> Preconditioner:
        """Return ``P = M⁻¹`` of the step ``-η M g``; about ``10 n³`` multiplications.

        Args:
            model: Whose order of parameters to use; by default that of the group.

        Raises:
            ValueError: Before the first pair, if rounding has left ``M`` indefinite, or if the
                model's parameters are others.
        """
        if "inverse" not in self._memory:
            raise ValueError("BFGS has no preconditioner before its first pair.")
        inverse = self._memory["inverse"]
        values, vectors = torch.linalg.eigh((inverse + inverse.T).double() / 2)
        return dense_root(values, vectors, self._indices(model), inverse.dtype)

    def _directions(self, start: Point) -> Iterator[tuple[Tensor, float]]:
        if "inverse" in self._memory:
            yield -(self._memory["inverse"] @ start.gradient), self.param_groups[0]["lr"]
            del self._memory["inverse"]
        yield self._steepest(start)

    def _learn(self, move: Move) -> None:
        step, change = move.direction * move.length, move.end.gradient - move.start.gradient
        if not curved(step, change):
            self._count("skipped_pairs")
            return
        self.counters["curvature_updates"] += 1
        if "inverse" not in self._memory:
            scale = step.dot(change) / change.dot(change)
            self._memory["inverse"] = torch.diag(scale.expand(len(step)))
        update_inverse(self._memory["inverse"], step, change)


def update_inverse(inverse: Tensor, step: Tensor, change: Tensor) -> None:
    """Make ``M`` [n, n] fulfil ``M y = s`` in place, by two rank-one terms: ``M + s wᵀ + w sᵀ``."""
    curvature = step.dot(change)
    image = inverse @ change
    weight = step * ((1 + change.dot(image) / curvature) / (2 * curvature)) - image / curvature
    inverse.addr_(step, weight).addr_(weight, step)


def _require_room(parameters: list[Tensor]) -> None:
    size = sum(value.numel() for value in parameters)
    first = parameters[0]
    needed = size**2 * max(value.element_size() for value in parameters)
    if size > MOST_PARAMETERS:
        raise ResourceError(
            f"BFGS takes at most {MOST_PARAMETERS} parameters, got {size}: its matrix takes "
            f"{readable(needed)} ({needed} bytes). Use LBFGS (lbfgs)."
        )
    require_bytes(
        needed, f"BFGS's matrix of size {size}", device=first.device, cure="Use LBFGS (lbfgs)."
    )
