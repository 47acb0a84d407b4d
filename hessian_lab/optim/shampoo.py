"""Shampoo: each matrix of parameters between the roots of two sums of gradients' outer products."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.names import known
from hessian_lab.optim.contract import Closure, is_finite, order_of
from hessian_lab.optim.first_order import FirstOrder
from hessian_lab.optim.kronecker import KroneckerOperator, KroneckerRoot, eigen, places_of
from hessian_lab.optim.preconditioner import Preconditioner
from hessian_lab.probe.precision import full_precision

NESTEROV = ("in-place",)
VECTORS = ("column", "plain")
GRAFTS = ("sgd",)
SIDES = ("left", "right")
# Added to the norm that a graft divides by.
LEAST_NORM = 1e-16


class Shampoo(FirstOrder):
    """Alg. 4: ``L ← L + g gᵀ``, ``R ← R + gᵀ g``, step ``-η L^{-1/4} g R^{-1/4}``, per matrix.

    ``L`` and ``R`` begin at ``εI``. A vector is a matrix of one column; a tensor of more than two
    dimensions is one of its first by all others. Roots are taken by eigenvalues in float64, of a
    copy: statistics never change by it. Everything but ``params`` and ``lr`` is beyond Alg. 4 by
    default off. Parameter groups may differ in every option.

    A step costs a gradient and, per matrix [m, n], four products of ``m n (m + n)`` operations;
    every ``update_every`` steps two eigendecompositions. It keeps ``2 (m² + n²)`` numbers, with
    blocks ``2 · block_size (m + n)`` times the other side's number of blocks.

    Args:
        params: Parameters or groups.
        lr: The length ``η``; with a graft, that of SGD.
        eps: ``ε``.
        momentum: ``μ`` of ``b = μ b + u``, of preconditioned gradients ``u``.
        nesterov: True steps by ``u + μ b``; ``in-place`` writes that into ``b``, as published
            code does: an impulse then decays by ``μ²``.
        beta2: 1 sums the statistics; less makes them a moving average.
        block_size: Longest side of a block with statistics of its own, or None.
        update_every: Steps between computations of the roots; statistics take every gradient.
        matrix_eps: Ridge of a root in units of the largest eigenvalue.
        exponent: Roots are ``L^{-1/exponent}``.
        graft: ``sgd`` gives every ``u`` the norm of its gradient; None does not.
        vectors: ``plain`` leaves the gradient of a vector, of a matrix with one row or column, and
            with blocks of a tensor of at most ``block_size`` entries, as it is.

    Raises:
        ValueError: For an option out of range.

    References:
        Gupta, Koren & Singer (2018), https://arxiv.org/abs/1802.09568, Alg. 1; Preconditioners for
        INRs (2025), supplement, Alg. 4. The options: Anil et al. (2020),
        https://arxiv.org/abs/2002.09018.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.05,
        *,
        eps: float = 1e-4,
        momentum: float = 0.0,
        nesterov: bool | str = False,
        beta2: float = 1.0,
        block_size: int | None = None,
        update_every: int = 1,
        matrix_eps: float = 0.0,
        exponent: float = 4.0,
        graft: str | None = None,
        vectors: str = "column",
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "momentum": momentum,
            "nesterov": nesterov,
            "beta2": beta2,
            "block_size": block_size,
            "update_every": update_every,
            "matrix_eps": matrix_eps,
            "exponent": exponent,
            "graft": graft,
            "vectors": vectors,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own.

        Raises:
            ValueError: For an option out of range.
            TypeError: For parameters that are complex, sparse, or not float32 or float64.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step; return the loss before it, or None without a closure.

        Raises:
            DivergenceError: If loss or gradient were not finite 10 times in a row.
        """
        loss = None if closure is None else self._backward(closure)
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        if not gradients:
            self._took()
        elif not is_finite(gradients if loss is None else [loss, *gradients]):
            self._skip("loss or gradient was not finite")
        else:
            self._move()
            self._took()
        return loss

    def preconditioner(self, model: nn.Module | None = None) -> Preconditioner:
        """Return ``P`` of the last preconditioned gradient ``u = P⁻¹ g``, by the factors' bases.

        Args:
            model: Whose order of parameters to use; by default that of the groups.

        Raises:
            ValueError: Before the first step.
        """
        parameters = self.parameters
        if not all(self.state.get(value) for value in parameters):
            raise ValueError("Shampoo has no preconditioner before its first step.")
        places = places_of(parameters, order_of(parameters, model))

        def make() -> list[KroneckerRoot]:
            found = zip(self._grouped(), places, strict=True)
            return [
                root for (group, value), place in found for root in self._roots(group, value, place)
            ]

        size = sum(value.numel() for value in parameters)
        widest = max(parameters, key=lambda value: value.element_size())
        return Preconditioner(KroneckerOperator(size, widest, make))

    def _grouped(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for group in self.param_groups:
            for value in group["params"]:
                yield group, value

    @full_precision()
    def _move(self) -> None:
        squares = []
        updated = False
        for group, value in self._grouped():
            if value.grad is None:
                continue
            updated |= self._learn(group, value)
            step = _with_momentum(group, self.state[value], self._precondition(group, value))
            value.add_(step, alpha=-group["lr"])
            squares.append(step.square().sum() * group["lr"] ** 2)
        self._length = float(torch.stack(squares).sum().sqrt())
        self.counters["curvature_updates"] += updated

    def _learn(self, group: dict[str, Any], value: Tensor) -> bool:
        """Take a gradient into the statistics; tell whether the roots were computed anew."""
        state = self.state[value]
        state["steps"] = state.get("steps", 0) + 1
        if _is_plain(group, value):
            return False
        assert value.grad is not None
        due: bool = (state["steps"] - 1) % group["update_every"] == 0
        added = 1.0 if group["beta2"] == 1 else 1 - group["beta2"]
        for block in _blocks(group, value):
            part = block.of(value.grad)
            for side, moment in zip(SIDES, (part @ part.T, part.T @ part), strict=True):
                name = f"{block.name}.{side}"
                if name not in state:
                    eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
                    state[name] = group["eps"] * eye
                state[name] = state[name].mul(group["beta2"]).add(moment, alpha=added)
                if due:
                    state[f"{name}_root"] = _root(state[name], group).to(moment)
        return due

    def _precondition(self, group: dict[str, Any], value: Tensor) -> Tensor:
        assert value.grad is not None
        if _is_plain(group, value):
            return value.grad.clone()
        state, out = self.state[value], torch.empty_like(_matrix(value))
        for block in _blocks(group, value):
            left, right = (state[f"{block.name}.{side}_root"] for side in SIDES)
            out[block.rows, block.columns] = left @ block.of(value.grad) @ right
        if group["graft"] == "sgd":
            norm = torch.linalg.vector_norm
            state["graft"] = norm(value.grad) / (norm(out) + LEAST_NORM)
            out *= state["graft"]
        return out.view(value.shape)

    def _roots(
        self, group: dict[str, Any], value: Tensor, places: Tensor
    ) -> Iterator[KroneckerRoot]:
        """Yield the blocks of ``P^{-1/2}`` of one parameter."""
        state, matrix = self.state[value], _matrix(places)
        if _is_plain(group, value):
            yield KroneckerRoot(matrix, torch.ones_like(_matrix(value)))
            return
        for block in _blocks(group, value):
            pairs = [eigen(state[f"{block.name}.{side}_root"]) for side in SIDES]
            (left, left_basis), (right, right_basis) = pairs
            scale = torch.outer(left, right) * float(state.get("graft", 1.0))
            yield KroneckerRoot(
                block.of(matrix),
                scale.clamp(min=0).sqrt().to(value),
                left_basis.to(value),
                right_basis.to(value),
            )


@dataclass(frozen=True)
class _Block:
    """A part of a matrix with statistics of its own."""

    name: str
    rows: slice
    columns: slice

    def of(self, tensor: Tensor) -> Tensor:
        """Return this part of a tensor in a parameter's shape, or of its matrix."""
        return _matrix(tensor)[self.rows, self.columns]


def _blocks(group: dict[str, Any], value: Tensor) -> list[_Block]:
    rows, columns = _matrix(value).shape
    pairs = [(i, j) for i in _cuts(rows, group) for j in _cuts(columns, group)]
    return [_Block(f"block{number}", *pair) for number, pair in enumerate(pairs)]


def _cuts(length: int, group: dict[str, Any]) -> list[slice]:
    size = group["block_size"] or length
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _matrix(tensor: Tensor) -> Tensor:
    """Return a view [rows, columns]; a vector is a column."""
    return tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)


def _is_plain(group: dict[str, Any], value: Tensor) -> bool:
    """Tell whether a parameter is left without a preconditioner."""
    if group["vectors"] == "column":
        return False
    return 1 in _matrix(value).shape or value.numel() <= (group["block_size"] or 0)


def _root(statistics: Tensor, group: dict[str, Any]) -> Tensor:
    """Return ``(A + ridge I)^{-1/exponent}``, in float64."""
    values, basis = eigen(statistics)
    values = values + group["matrix_eps"] * values.max()
    # Rounding may take an eigenvalue to zero, or below it.
    least = torch.finfo(statistics.dtype).eps * values.max()
    least = least.clamp(min=torch.finfo(torch.float64).tiny)
    powers = torch.maximum(values, least) ** (-1 / group["exponent"])
    root: Tensor = (basis * powers) @ basis.T
    return root


def _with_momentum(group: dict[str, Any], state: dict[str, Any], update: Tensor) -> Tensor:
    """Return the step of a preconditioned gradient."""
    momentum = group["momentum"]
    if not momentum:
        return update
    kept = state.get("momentum", torch.zeros_like(update)).mul(momentum).add(update)
    if group["nesterov"] == "in-place":
        kept = kept.mul(momentum).add(update)
    state["momentum"] = kept
    return update.add(kept, alpha=momentum) if group["nesterov"] is True else kept


def _check(options: dict[str, Any]) -> None:
    positive = ("lr", "eps", "exponent")
    for name in positive:
        if not 0 < options[name] < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {options[name]}.")
    if not 0 <= options["matrix_eps"] < math.inf:
        raise ValueError(f"matrix_eps must be at least 0 and finite, got {options['matrix_eps']}.")
    if not 0 <= options["momentum"] < 1:
        raise ValueError(f"momentum must be in [0, 1), got {options['momentum']}.")
    if not 0 < options["beta2"] <= 1:
        raise ValueError(f"beta2 must be in (0, 1], got {options['beta2']}.")
    if options["update_every"] < 1:
        raise ValueError(f"update_every must be at least 1, got {options['update_every']}.")
    if options["block_size"] is not None and options["block_size"] < 1:
        raise ValueError(f"block_size must be at least 1 or None, got {options['block_size']}.")
    _check_names(options)


def _check_names(options: dict[str, Any]) -> None:
    known("vectors", options["vectors"], VECTORS)
    if options["graft"] is not None:
        known("graft", options["graft"], GRAFTS)
    if not isinstance(options["nesterov"], bool):
        known("nesterov", options["nesterov"], NESTEROV)
    if options["nesterov"] and not options["momentum"]:
        raise ValueError("nesterov must come with a positive momentum, got momentum=0.")
