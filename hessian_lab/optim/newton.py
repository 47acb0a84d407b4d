"""Newton's method with a dense Hessian, kept downhill."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hessian_lab.errors import NonFiniteError, ResourceError
from hessian_lab.optim.closed import ClosedCurvature, calls_of, closed_curvature
from hessian_lab.optim.contract import Closure, flat, is_finite
from hessian_lab.optim.preconditioner import Preconditioner
from hessian_lab.optim.searching import (
    Parameters,
    Point,
    Searching,
    dense_root,
    search_options,
    warn_of_searches,
)
from hessian_lab.probe.memory import readable, require_bytes

MOST_PARAMETERS = 5_000
SOLVES = ("abs", "damped", "exact")
# The Hessian, and in float64 itself, its eigenvectors and the solver's two work spaces.
MATRICES = 5


@dataclass(frozen=True, eq=False)
class _Curved(Point):
    """Where a step starts; the curvature there in closed form, else by the gradient's graph."""

    closed: ClosedCurvature | None = None


class Newton(Searching):
    """Newton's method: ``x - t C⁻¹ g`` with ``C`` made from the Hessian ``H = V Λ Vᵀ``.

    A Hessian that is not positive definite sends the plain step towards saddles, so ``C`` is

    - ``abs``: ``|H| + λ I``, which leaves saddles along directions of negative curvature;
    - ``damped``: ``H + (λ + max(0, -Λ_min)) I``, the least shift that is positive definite;
    - ``exact``: ``H`` itself, as the papers print it. It takes full steps and may ascend.

    Per step it takes the Hessian and an eigendecomposition in float64, about ``9 n³``
    multiplications; it keeps ``n²`` numbers in float64. The Hessian of a ``CoordinateMLP`` that is
    passed as ``model`` costs about ``p n²`` operations on ``p`` points, if the closure calls it
    once and the loss is a mean over points; any other costs ``n`` products, some 20 times as long.

    Args:
        params: The parameters, in one group; at most 5,000 numbers.
        lr: The first trial length of a search, and the length of a step without one.
        solve: ``abs``, ``damped`` or ``exact``.
        damping: ``λ``; not used by ``exact``. Near a minimum whose curvatures are much larger it
            hardly slows quadratic convergence; with 0 it does not.
        line_search_fn: ``strong_wolfe``; ``armijo``; or None, to take steps of length ``lr``. By
            default ``strong_wolfe``, for ``exact`` None.
        same_batch: Whether all steps are taken on one batch, so that one without decrease has
            converged. Set it to False for mini-batches.
        model: The network whose parameters these are, for its closed form.

    Raises:
        ResourceError: If its matrices do not fit, before they are allocated.
        ValueError: For an option out of range, or more than one group.
        TypeError: For complex or sparse parameters.

    References:
        Nocedal & Wright (2006), Sec. 3.4; Dauphin et al. (2014), arXiv:1406.2572, for ``abs``.
    """

    keeps = False
    carried = ("model",)

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        *,
        solve: str = "abs",
        damping: float = 1e-3,
        line_search_fn: str | None = "auto",
        same_batch: bool = True,
        model: nn.Module | None = None,
    ) -> None:
        if solve not in SOLVES:
            raise ValueError(f"solve must be one of {', '.join(SOLVES)}, got {solve!r}.")
        if not (damping > 0 or (damping == 0 and solve != "damped")):
            raise ValueError(f"damping must be positive, or 0 unless damped, got {damping}.")
        if line_search_fn == "auto":
            line_search_fn = None if solve == "exact" else "strong_wolfe"
        if solve == "exact" and line_search_fn is not None:
            raise ValueError(
                "line_search_fn must be None with solve=exact, whose direction may ascend, got "
                f"{line_search_fn!r}."
            )
        options = search_options(lr, line_search_fn, 0.9, same_batch)
        super().__init__(params, options | {"solve": solve, "damping": damping})
        self.model = model
        _require_room(self.parameters)
        warn_of_searches(self)

    def preconditioner(self, model: nn.Module | None = None) -> Preconditioner:
        """Return ``P = C`` of the last step.

        Args:
            model: Whose order of parameters to use; by default that of the group.

        Raises:
            ValueError: Before the first step, if ``C`` is not positive definite, or if the
                model's parameters are others.
        """
        if "curvatures" not in self._memory:
            raise ValueError("Newton has no preconditioner before its first step.")
        values, vectors = self._memory["curvatures"], self._memory["eigenvectors"]
        return dense_root(1 / values, vectors, self._indices(model), self.parameters[0].dtype)

    def _begin(self, closure: Closure) -> Point:
        with calls_of(self.model) as calls:
            loss = self._evaluate(closure)
        closed = closed_curvature(self.model, calls, loss, self.parameters)
        with torch.enable_grad():
            gradients = self._gradients(loss, create_graph=closed is None)
        graph = gradients if closed is None else ()
        return _Curved(loss.detach(), flat(gradients), graph, closed)

    def _directions(self, start: Point) -> Iterator[tuple[Tensor, float]]:
        lr = self.param_groups[0]["lr"]
        values, vectors = torch.linalg.eigh(self._hessian(start).double())
        self.counters["curvature_updates"] += 1
        curvatures = self._curvatures(values)
        self._memory.update(curvatures=curvatures, eigenvectors=vectors)
        inside = (vectors.T @ start.gradient.double()) / curvatures
        direction = -(vectors @ inside).to(start.gradient.dtype)
        if not is_finite([direction]):
            raise NonFiniteError("the Newton step was not finite")
        yield direction, lr
        if self.param_groups[0]["line_search_fn"] is not None:
            yield self._steepest(start)

    def _curvatures(self, values: Tensor) -> Tensor:
        """Return the eigenvalues of ``C`` from those of ``H``, ascending."""
        solve, damping = self.param_groups[0]["solve"], float(self.param_groups[0]["damping"])
        if solve == "exact":
            return values
        if solve == "abs":
            return values.abs() + damping
        return values + (damping - values[0].clamp_max(0))

    def _hessian(self, start: Point) -> Tensor:
        """Return the Hessian [n, n], symmetric.

        Raises:
            NonFiniteError: If an entry is not finite.
        """
        closed = start.closed if isinstance(start, _Curved) else None
        matrix = self._rows(start) if closed is None else closed.matrix()
        if not is_finite([matrix]):
            raise NonFiniteError("the Hessian was not finite")
        return (matrix + matrix.T) / 2

    def _rows(self, start: Point) -> Tensor:
        """Return the Hessian [n, n] by its products with unit vectors."""
        size = len(start.gradient)
        matrix = start.gradient.new_empty(size, size)
        unit = start.gradient.new_zeros(size)
        for place in range(size):
            unit[place] = 1
            parts = self._parts(unit)
            matrix[place] = flat(self._products(start.graph, parts, more=place + 1 < size))
            unit[place] = 0
        return matrix


def _require_room(parameters: list[Tensor]) -> None:
    size = sum(value.numel() for value in parameters)
    needed = MATRICES * size**2 * 8
    if size > MOST_PARAMETERS:
        raise ResourceError(
            f"Newton takes at most {MOST_PARAMETERS} parameters, got {size}: its matrices take "
            f"{readable(needed)} ({needed} bytes). Use NewtonCG (newton_cg)."
        )
    require_bytes(
        needed,
        f"Newton's matrices of size {size}",
        device=parameters[0].device,
        cure="Use NewtonCG (newton_cg).",
    )
