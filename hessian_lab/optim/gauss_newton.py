"""Damped Gauss–Newton, that is Levenberg–Marquardt for any loss of the outputs."""

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.errors import ResourceError
from hessian_lab.names import known
from hessian_lab.optim.closed import Call, calls_of, closed_curvature
from hessian_lab.optim.contract import Closure, Contract, flat, is_finite, like, order_of
from hessian_lab.optim.linearized import LinearizedOutputs
from hessian_lab.optim.outputs import OutputCurvature, pairs
from hessian_lab.optim.preconditioner import Preconditioner
from hessian_lab.optim.wrappers import explained
from hessian_lab.probe.memory import readable, require_bytes
from hessian_lab.probe.operators import SymmetricOperator
from hessian_lab.probe.precision import full_precision

SOLVERS = ("cg", "dense", "dual")
# A matrix of so many rows is factorized in about a minute.
DENSE_LIMIT = 5000
# Rejected steps, each with more damping, after which a step is given up.
MOST_TRIES = 12
# A predicted decrease below so many roundings of the loss says nothing about the damping.
NOISE_ROUNDINGS = 8

# Solves (G + λI) δ = -g for a damping λ; gives δ and Gδ.
Solver = Callable[[float], tuple[Tensor, Tensor]]


class GaussNewton(Contract):
    """The step ``-η (G + λI)⁻¹ g`` with ``G = Jᵀ (∂²ℓ/∂f²) J``; the closure gives (loss, outputs).

    ``J`` is the Jacobian of the outputs, and the loss is taken as a function of them: a term of the
    loss that does not pass through the outputs, such as a weight penalty, is in ``g`` but not in
    ``G``. For a squared error with ``adapt_damping`` this is Levenberg–Marquardt: a step that
    raises the loss is undone and tried again with more damping, and the damping follows the ratio
    of the decrease to the predicted one. Parameters are one group.

    Args:
        params: Parameters.
        lr: The length ``η`` in units of the solution; 1 is the method.
        solver: ``cg`` takes one product with ``G`` (about three gradients) per iteration and no
            memory; ``dense`` makes ``G``, at most 5000 parameters, by ``n`` products, or for the
            ``CoordinateMLP`` passed as ``model`` by about ``p n²`` operations on ``p`` points;
            ``dual`` makes the kernel ``J Jᵀ`` by a gradient for each of points × channels, at most
            5000, for problems with fewer of those than parameters.
        damping: The first ``λ``, in units of ``G``; the present one is in the parameter group. From
            1e-3 the first steps of a sine field end on a plateau; from 1 it adapts within a few.
        adapt_damping: Undo steps that raise the loss, and adapt ``λ`` to the gain ratio; costs an
            evaluation per trial.
        max_cg: Iterations of ``cg`` per solve.
        cg_rtol: Its residual in units of the gradient.
        model: The network whose parameters these are, for its closed form.

    Raises:
        ValueError: For an option out of range.
        ResourceError: For ``dense`` with too many parameters, before anything is allocated.

    References:
        Madsen, Nielsen & Tingleff (2004), Methods for non-linear least squares problems, Alg. 3.16;
        Schraudolph (2002), https://doi.org/10.1162/08997660260028683.
    """

    takes_outputs = True
    carried = ("model", "_matrix")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        *,
        solver: str = "cg",
        damping: float = 1.0,
        adapt_damping: bool = True,
        max_cg: int = 50,
        cg_rtol: float = 1e-3,
        model: nn.Module | None = None,
    ) -> None:
        known("solver", solver, SOLVERS)
        _check(lr=lr, damping=damping, max_cg=max_cg, cg_rtol=cg_rtol)
        if adapt_damping and not damping:
            raise ValueError(
                "damping must be positive to be adapted, got 0. Pass adapt_damping=False for the "
                "undamped method."
            )
        defaults = {
            "lr": lr,
            "solver": solver,
            "damping": damping,
            "damping_growth": 2.0,
            "adapt_damping": adapt_damping,
            "max_cg": max_cg,
            "cg_rtol": cg_rtol,
        }
        super().__init__(params, defaults)
        self.model = model
        self._matrix: Tensor | None = None
        if solver == "dense":
            self._require_dense()

    @torch.no_grad()
    @full_precision()
    @explained("GaussNewton")
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take one step; return the loss before it.

        Raises:
            ResourceError: For ``dual`` with too many outputs.
            DivergenceError: If loss, gradient or curvature were not finite 10 times in a row.
        """
        given = pairs(closure)
        with calls_of(self.model) as calls:
            loss, outputs = self._evaluate(given)
        curvature = OutputCurvature(loss, outputs)
        gradients = self._gradients(loss, retain_graph=True)
        if is_finite([loss, *gradients]):
            solve = self._solver(loss, curvature, calls, flat(gradients))
            self._descend(given, solve, float(loss), flat(gradients))
        else:
            self._skip("loss or gradient was not finite")
        self._keep_gradients(gradients)
        before: Tensor = loss.detach()
        return before

    def preconditioner(
        self, model: nn.Module | None = None, *, closure: Closure | None = None
    ) -> Preconditioner:
        """Return ``P = G + λI`` with its dense inverse root, which its first product computes.

        Args:
            model: Whose order of parameters to use; by default that of the groups.
            closure: Gives the ``G`` of the present parameters; by default it is that of the last
                step of the dense solver.

        Raises:
            ValueError: Without a closure, before a step or with another solver.
            ResourceError: For more than 5000 parameters.
        """
        matrix = self._matrix
        if closure is not None:
            self._require_dense()
            matrix = self._linearized(closure).ggn()
        if matrix is None:
            raise ValueError(
                "GaussNewton has no preconditioner before a step of its dense solver. Pass "
                "closure=…, for that of the present parameters."
            )
        sizes = [value.numel() for value in self.parameters]
        parts = torch.arange(len(matrix), device=matrix.device).split(sizes)
        order = torch.cat([parts[place] for place in order_of(self.parameters, model)])
        damping = self.param_groups[0]["damping"]
        return Preconditioner(_InverseRoot(matrix[order][:, order], damping))

    def _linearized(self, closure: Closure) -> LinearizedOutputs:
        with torch.enable_grad():
            loss, outputs = pairs(closure)()
        return LinearizedOutputs(OutputCurvature(loss, outputs), self.parameters)

    def _descend(self, closure: Closure, solve: Solver, before: float, gradient: Tensor) -> None:
        """Move along the solution, with more damping as long as the loss rises."""
        group = self.param_groups[0]
        self.counters["curvature_updates"] += 1
        for _ in range(MOST_TRIES if group["adapt_damping"] else 1):
            direction, curved = solve(group["damping"])
            if not is_finite([direction, curved]):
                self._skip("curvature was not finite")
                return
            move = group["lr"] * direction
            predicted = -float(move @ gradient + group["lr"] * (move @ curved) / 2)
            if not group["adapt_damping"]:
                self._move(move)
                break
            if self._try(closure, move, before, predicted):
                break
        else:
            self._length = 0.0
        self._took()

    def _try(self, closure: Closure, move: Tensor, before: float, predicted: float) -> bool:
        """Move, and undo it if the loss rose; adapt the damping. Tell whether it was kept."""
        group = self.param_groups[0]
        start = [value.clone() for value in self.parameters]
        self._move(move)
        try:
            after = float(self._evaluate(closure)[0].detach())
        except BaseException:
            self._place(start)
            raise
        noise = NOISE_ROUNDINGS * torch.finfo(move.dtype).eps * abs(before)
        if math.isfinite(after) and abs(predicted) <= noise and after - before <= noise:
            return True
        gain = (before - after) / predicted if predicted > 0 and math.isfinite(after) else -1.0
        if gain > 0:
            group["damping"] *= max(1 / 3, 1 - (2 * min(gain, 1.0) - 1) ** 3)
            group["damping_growth"] = 2.0
            return True
        self._place(start)
        group["damping"] *= group["damping_growth"]
        group["damping_growth"] *= 2
        return False

    def _move(self, move: Tensor) -> None:
        # Through ``data``: the graph of a step that may be undone is used again.
        for value, part in zip(self.parameters, like(move, self.parameters), strict=True):
            value.data.add_(part)
        self._length = float(torch.linalg.vector_norm(move))

    def _place(self, values: list[Tensor]) -> None:
        for value, other in zip(self.parameters, values, strict=True):
            value.data.copy_(other)

    def _solver(
        self, loss: Tensor, curvature: OutputCurvature, calls: list[Call], gradient: Tensor
    ) -> Solver:
        group = self.param_groups[0]
        if group["solver"] == "dense":
            return self._dense(self._ggn(loss, curvature, calls), gradient)
        linear = LinearizedOutputs(curvature, self.parameters)
        if group["solver"] == "dual":
            return self._dual(linear, gradient)
        return lambda damping: self._cg(linear, gradient, damping)

    def _ggn(self, loss: Tensor, curvature: OutputCurvature, calls: list[Call]) -> Tensor:
        """Return ``G`` [n, n], in closed form where the outputs are those of a field."""
        self._require_dense()
        if len(calls) == 1 and calls[0].outputs is curvature.outputs:
            closed = closed_curvature(self.model, calls, loss, self.parameters)
            if closed is not None:
                return closed.matrix(kind="ggn")
        matrix = LinearizedOutputs(curvature, self.parameters).ggn()
        self.counters["products"] += len(matrix)
        return matrix

    def _dense(self, matrix: Tensor, gradient: Tensor) -> Solver:
        self._matrix = matrix

        def solve(damping: float) -> tuple[Tensor, Tensor]:
            direction = -_solved(matrix.double(), gradient.double(), damping)
            return direction.to(gradient), (matrix.double() @ direction).to(gradient)

        return solve

    def _dual(self, linear: LinearizedOutputs, gradient: Tensor) -> Solver:
        """Solve with the kernel: (JᵀSJ + λ)⁻¹ Jᵀ = Jᵀ (S J Jᵀ + λ)⁻¹."""
        _require_dual(linear)
        jacobian = linear.jacobian()
        self.counters["products"] += linear.num_outputs
        slope = linear.curvature.slope.detach().reshape(-1)
        # What of the gradient does not come through the outputs.
        rest = gradient - jacobian.T @ slope
        eps = torch.finfo(rest.dtype).eps
        pure = float(rest.norm()) <= 1e3 * eps * float(jacobian.norm() * slope.norm())
        kernel = linear.curve(jacobian @ jacobian.T).T.double()

        def inverse(right: Tensor, damping: float) -> Tensor:
            shifted = kernel.clone()
            shifted.diagonal().add_(damping)
            solution, info = torch.linalg.solve_ex(shifted, right.double())
            return solution.to(right) if not int(info) else torch.full_like(right, math.nan)

        def solve(damping: float) -> tuple[Tensor, Tensor]:
            direction = -(jacobian.T @ inverse(slope, damping))
            if not pure:
                curved = linear.curve((jacobian @ rest)[None])[0]
                direction -= (rest - jacobian.T @ inverse(curved, damping)) / damping
            return direction, jacobian.T @ linear.curve((jacobian @ direction)[None])[0]

        return solve

    def _cg(
        self, linear: LinearizedOutputs, gradient: Tensor, damping: float
    ) -> tuple[Tensor, Tensor]:
        """Solve by conjugate gradients from zero."""
        group = self.param_groups[0]
        direction, curved = torch.zeros_like(gradient), torch.zeros_like(gradient)
        residual = -gradient
        search, square = residual.clone(), residual @ residual
        left = float(square)
        target = (group["cg_rtol"] ** 2) * left
        for _ in range(group["max_cg"]):
            if left <= target:
                break
            image = linear.products(search[None])[0]
            self.counters["products"] += 1
            bend = search @ image + damping * (search @ search)
            length = square / bend
            residual = residual - length * (image + damping * search)
            square, last = residual @ residual, square
            # The one look of a product that the host waits for.
            bent, left = torch.stack([bend, square]).tolist()
            if not bent > 0:
                # Rounding, or a loss that is not convex; a NaN is for the caller to see.
                if not bent <= 0:
                    return image, image
                if direction.any():
                    return direction, curved
                size = last / bend.abs() if bent else 1.0
                return size * search, size * image
            direction += length * search
            curved += length * image
            search = residual + (square / last) * search
        return direction, curved

    def _require_dense(self) -> None:
        size = sum(value.numel() for value in self.parameters)
        _require_square(
            size,
            3 * size**2,
            f"The dense Gauss–Newton matrix of n = {size} parameters",
            self.parameters[0].device,
        )


def _require_dual(linear: LinearizedOutputs) -> None:
    size = linear.num_outputs
    _require_square(
        size,
        3 * size**2 + size * len(linear.transposed),
        f"The kernel of {size} points × channels",
        linear.outputs.device,
    )


def _require_square(size: int, numbers: int, what: str, device: torch.device) -> None:
    """Check a matrix of ``size`` rows, worked on in float64, against limit and memory.

    Raises:
        ResourceError: If it is too large.
    """
    cure = "Use solver='cg'."
    if size > DENSE_LIMIT:
        raise ResourceError(
            f"{what} must have at most {DENSE_LIMIT} rows: it needs {readable(8 * numbers)} "
            f"({8 * numbers} bytes) and hours. {cure}"
        )
    require_bytes(8 * numbers, what, device=device, cure=cure)


def _solved(matrix: Tensor, right: Tensor, damping: float) -> Tensor:
    """Return ``(A + λI)⁻¹ b``, of the positive part of A where the sum is not positive definite.

    Without damping by the pseudo-inverse.
    """
    if damping:
        shifted = matrix.clone()
        shifted.diagonal().add_(damping)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if not int(info):
            solution: Tensor = torch.cholesky_solve(right[:, None], factor)[:, 0]
            return solution
    if not bool(matrix.isfinite().all()):
        return torch.full_like(right, math.nan)
    values, basis = torch.linalg.eigh(matrix)
    values = values.clamp(min=0) + damping
    least = len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
    inverse = torch.where(values > least, 1 / values, 0)
    pseudo: Tensor = basis @ (inverse * (basis.T @ right))
    return pseudo


class _InverseRoot(SymmetricOperator):
    """``(A + λI)^{-1/2}``, computed on first use."""

    def __init__(self, matrix: Tensor, damping: float) -> None:
        self.matrix = matrix
        self.damping = damping
        super().__init__(len(matrix), matrix.dtype, matrix.device)

    @cached_property
    def root(self) -> Tensor:
        values, basis = torch.linalg.eigh(self.matrix.double())
        least = len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
        scale = (values.clamp(min=0) + self.damping).clamp(min=least).rsqrt()
        root: Tensor = ((basis * scale) @ basis.T).to(self.matrix)
        return root

    def matmat(self, block: Tensor) -> Tensor:
        """Return ``(A + λI)^{-1/2} V`` [n, k]."""
        return self.root @ block


def _check(*, lr: float, damping: float, max_cg: int, cg_rtol: float) -> None:
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}.")
    if not 0 <= damping < math.inf:
        raise ValueError(f"damping must be at least 0 and finite, got {damping}.")
    if max_cg < 1:
        raise ValueError(f"max_cg must be at least 1, got {max_cg}.")
    if not 0 <= cg_rtol < 1:
        raise ValueError(f"cg_rtol must be in [0, 1), got {cg_rtol}.")
