"""K-FAC and EKFAC: the Gauss–Newton or Fisher matrix by one Kronecker product per layer."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.names import known
from hessian_lab.optim.contract import Closure, Contract, is_finite, order_of
from hessian_lab.optim.kronecker import KroneckerOperator, KroneckerRoot, eigen, places_of
from hessian_lab.optim.linear_layers import Flow, LinearLayer, Recorded, linear_layers, recording
from hessian_lab.optim.outputs import OutputCurvature, pairs
from hessian_lab.optim.preconditioner import Preconditioner
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.vectors import rademacher

FISHERS = ("ggn", "mc", "empirical")
# A factor's mean eigenvalue below which the damping is split evenly.
LEAST_MEAN = 1e-30


class _Factored(Contract):
    """Records the factors of every linear layer in its own step, and steps by ``P⁻¹``."""

    takes_outputs = True
    carried = ("_layers",)

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,
        *,
        fisher: str = "ggn",
        damping: float = 0.1,
        ema: float = 0.95,
        update_every: int = 10,
        inverse_every: int = 100,
        kl_clip: float | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        known("fisher", fisher, FISHERS)
        defaults = {
            "lr": lr,
            "fisher": fisher,
            "damping": damping,
            "ema": ema,
            "update_every": update_every,
            "inverse_every": inverse_every,
            "kl_clip": kl_clip,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "seed": seed,
        }
        _check(defaults)
        self._layers = linear_layers(model)
        super().__init__([value for value in model.parameters() if value.requires_grad], defaults)

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take one step; the closure gives ``(loss, outputs)``. Return the loss before it.

        Raises:
            ValueError: If the closure does not call every layer once, or the loss lets points
                interact.
            DivergenceError: If loss, gradient or curvature were not finite 10 times in a row.
        """
        with recording(self._layers, wanted=self._is_due("update_every")) as recorded:
            loss, outputs = self._evaluate(pairs(closure))
        if not is_finite([loss]):
            recorded = None
        gradients, flows = self._differentiate(loss, outputs, recorded)
        if not is_finite([loss, *gradients]):
            self._skip("loss or gradient was not finite")
        elif not self._learn(flows):
            self._skip("curvature was not finite")
        else:
            self._move(gradients)
            self._took()
        self._keep_gradients(gradients)
        before: Tensor = loss.detach()
        return before

    def preconditioner(self, model: nn.Module | None = None) -> Preconditioner:
        """Return ``P`` of the last step ``-η P⁻¹ m``, by the eigenbases of its factors.

        Args:
            model: Whose order of parameters to use; by default that of the module stepped.

        Raises:
            ValueError: Before the first step.
        """
        if not self._has_curvature():
            raise ValueError(f"{type(self).__name__} has no preconditioner before its first step.")
        parameters = self.parameters
        places = places_of(parameters, order_of(parameters, model))

        def make() -> list[KroneckerRoot]:
            return [self._root(layer, layer.matrix(places)) for layer in self._layers]

        size = sum(value.numel() for value in parameters)
        widest = max(parameters, key=lambda value: value.element_size())
        return Preconditioner(KroneckerOperator(size, widest, make))

    @abstractmethod
    def _invert(self, layer: LinearLayer, state: dict[str, Any], flow: Flow) -> None:
        """Make of the factors what ``_apply`` needs."""

    @abstractmethod
    def _follow(self, state: dict[str, Any], flow: Flow) -> None:
        """Learn from a batch between two inversions."""

    @abstractmethod
    def _apply(self, state: dict[str, Any], matrix: Tensor) -> Tensor:
        """Return ``P⁻¹`` times a matrix [outputs, inputs + 1] of one layer."""

    @abstractmethod
    def _root(self, layer: LinearLayer, places: Tensor) -> KroneckerRoot:
        """Return ``P^{-1/2}`` of one layer."""

    def _state(self, layer: LinearLayer) -> dict[str, Any]:
        state: dict[str, Any] = self.state[layer.module.weight]
        return state

    def _has_curvature(self) -> bool:
        return self.counters["curvature_updates"] > 0

    def _is_due(self, every: str) -> bool:
        period: int = self.param_groups[0][every]
        return not self._has_curvature() or self.counters["step"] % period == 0

    def _differentiate(
        self, loss: Tensor, outputs: Tensor, recorded: Recorded | None
    ) -> tuple[list[Tensor], list[Flow]]:
        """Return the gradients and what each layer's block is made of."""
        if recorded is None:
            return self._gradients(loss), []
        fisher = self.param_groups[0]["fisher"]
        places = len(self.parameters)
        values: list[Any] = [*self.parameters, *recorded.outputs]
        if fisher == "empirical":
            both = _pull(loss, values)
            passes = [[math.sqrt(recorded.num_points) * slope for slope in both[places:]]]
            return both[:places], self._flows(recorded, passes)
        with full_precision():
            cotangents = self._cotangents(OutputCurvature(loss, outputs))
            passes = [_pull(outputs, recorded.outputs, each) for each in cotangents]
        return self._gradients(loss), self._flows(recorded, passes)

    def _cotangents(self, curvature: OutputCurvature) -> list[Tensor]:
        """Return vectors at the outputs whose outer products sum to ``∂²ℓ/∂f²``, or do so in mean.

        ``mc`` takes random signs times the root of the curvature: one pass, whose covariance is
        that of labels drawn from the model.
        """
        group, updates = self.param_groups[0], self.counters["curvature_updates"]
        blocks = curvature.blocks()
        if not updates:
            curvature.require_separable(blocks)
        roots = curvature.roots(blocks)
        if group["fisher"] == "ggn":
            return curvature.cotangents(roots)
        size = curvature.outputs.numel()
        signs = rademacher(size, 1, seed=group["seed"], first=updates, like=roots)[:, 0]
        drawn = (roots @ signs.view(len(roots), -1, 1))[:, :, 0]
        return [drawn.reshape(curvature.outputs.shape)]

    def _flows(self, recorded: Recorded, passes: Sequence[Sequence[Tensor]]) -> list[Flow]:
        flows = []
        for place, layer in enumerate(self._layers):
            slopes = [each[place].reshape(-1, each[place].shape[-1]) for each in passes]
            flows.append(Flow(layer.homogeneous(recorded.inputs[place]), slopes))
        return flows

    @full_precision()
    def _learn(self, flows: Sequence[Flow]) -> bool:
        """Take a batch into the factors; tell whether it was finite. Nothing changes if not."""
        if not flows:
            return True
        fresh = [flow.factors() for flow in flows]
        if not is_finite([factor for pair in fresh for factor in pair]):
            return False
        due = self._is_due("inverse_every")
        ema = self.param_groups[0]["ema"]
        for layer, flow, factors in zip(self._layers, flows, fresh, strict=True):
            state = self._state(layer)
            for name, factor in zip(("left", "right"), factors, strict=True):
                state[name] = state[name].lerp(factor, 1 - ema) if name in state else factor
            if due:
                self._invert(layer, state, flow)
            else:
                self._follow(state, flow)
        self.counters["curvature_updates"] += 1
        return True

    @full_precision()
    def _move(self, gradients: Sequence[Tensor]) -> None:
        group = self.param_groups[0]
        means = self._momentum(gradients)
        moves: list[Tensor] = list(means)
        for layer in self._layers:
            moved = self._apply(self._state(layer), layer.matrix(means))
            for place, part in layer.parts(moved):
                moves[place] = part
        size = group["lr"]
        if group["kl_clip"] is not None:
            size *= self._clip(means, moves)
        squares = [move.square().sum() for move in moves]
        self._length = size * float(torch.stack(squares).sum().sqrt())
        for value, move in zip(self.parameters, moves, strict=True):
            value.add_(move, alpha=-size)

    def _momentum(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return ``m = μ m + g + w θ``."""
        group = self.param_groups[0]
        means = list(gradients)
        if group["weight_decay"]:
            means = [
                mean.add(value, alpha=group["weight_decay"])
                for mean, value in zip(means, self.parameters, strict=True)
            ]
        if group["momentum"]:
            for place, value in enumerate(self.parameters):
                state = self.state[value]
                kept = state.get("momentum", torch.zeros_like(value))
                means[place] = state["momentum"] = kept.mul(group["momentum"]).add(means[place])
        return means

    def _clip(self, means: Sequence[Tensor], moves: Sequence[Tensor]) -> float:
        """Return the factor that keeps ``η² mᵀ P⁻¹ m``, twice the divergence, at ``kl_clip``."""
        group = self.param_groups[0]
        inner = [(mean * move).sum() for mean, move in zip(means, moves, strict=True)]
        change = group["lr"] ** 2 * float(torch.stack(inner).sum())
        return min(1.0, math.sqrt(group["kl_clip"] / change)) if change > 0 else 1.0


class KFAC(_Factored):
    """K-FAC: ``P = (B + √λ/π I) ⊗ (A + π√λ I)`` per linear layer.

    The closure gives ``(loss, outputs)``. ``A`` is the mean of ``ã ãᵀ`` over points, of the layer's
    inputs with a 1 for the bias; ``B`` is the sum of ``δ δᵀ``, of the slopes at its output. The
    scale is that of the loss's own curvature, whatever its reduction: for one point, and for one
    linear layer with a squared error, ``B ⊗ A`` is the layer's block of the Gauss–Newton matrix.

    Records inside its own step alone, by hooks that it removes: an analysis between two steps
    changes nothing. A step costs a gradient and two products of [o, o] by [o, i] and [o, i] by
    [i, i] per layer; every ``update_every`` steps a backward pass per channel and two products over
    points; every ``inverse_every`` steps factorizations in float64. It keeps ``2 (o² + i²)``
    numbers per layer.

    Args:
        model: The module, all of whose trained parameters are those of ``nn.Linear`` layers; the
            closure calls each of them once.
        lr: The length ``η``.
        fisher: ``ggn`` is exact (type-2), a pass per channel; ``mc`` one pass with random signs;
            ``empirical`` the outer products of the points' gradients, in the gradient's own pass,
            and right only for a loss that is a mean over points.
        damping: ``λ``, in units of the curvature; split by ``π² = mean eigenvalue of A / of B``.
            Factors of the first steps are used for ``inverse_every`` of them, and layers are taken
            for independent: much less than 0.1 diverges on fields at ``lr`` 0.1.
        ema: Of the factors, per update.
        update_every: Steps between updates of the factors.
        inverse_every: Steps between inversions, a multiple of ``update_every``.
        kl_clip: Largest ``η² mᵀ P⁻¹ m`` of a step, or None.
        momentum: ``μ`` of ``m = μ m + g``; ``m`` is preconditioned.
        weight_decay: Times the parameters, added to the gradient.
        seed: Of the signs of ``mc``.

    Raises:
        ValueError: For an option out of range, or a model that trains anything else.

    References:
        Martens & Grosse (2015), https://arxiv.org/abs/1503.05671, §6.3.
    """

    def _invert(self, layer: LinearLayer, state: dict[str, Any], flow: Flow) -> None:  # noqa: ARG002
        left, right = state["left"].double(), state["right"].double()
        means = torch.stack([factor.diagonal().mean() for factor in (left, right)]).tolist()
        ratio = math.sqrt(means[1] / means[0]) if min(means) > LEAST_MEAN else 1.0
        root = math.sqrt(self.param_groups[0]["damping"])
        state["left_inverse"] = _inverse(left, root / ratio).to(state["left"])
        state["right_inverse"] = _inverse(right, root * ratio).to(state["right"])

    def _follow(self, state: dict[str, Any], flow: Flow) -> None:
        pass

    def _apply(self, state: dict[str, Any], matrix: Tensor) -> Tensor:
        moved: Tensor = state["left_inverse"] @ matrix @ state["right_inverse"]
        return moved

    def _root(self, layer: LinearLayer, places: Tensor) -> KroneckerRoot:
        state = self._state(layer)
        left, left_basis = eigen(state["left_inverse"])
        right, right_basis = eigen(state["right_inverse"])
        scale = torch.outer(left, right).clamp(min=0).sqrt()
        return _root(places, left_basis, right_basis, scale, like=state["left"])


class EKFAC(_Factored):
    """EKFAC: K-FAC's eigenbases with the block's own diagonal in them, ``P = Q (diag(s) + λ) Qᵀ``.

    ``s`` is the diagonal of the layer's block of the Gauss–Newton (or Fisher) matrix in the basis
    of the factors' eigenvectors: no diagonal in that basis is nearer to the block. It is averaged
    like the factors, and begun anew whenever the bases change. Two products more than K-FAC per
    layer and step. For the arguments see ``KFAC``; ``damping`` is added to ``s``.

    References:
        George et al. (2018), https://arxiv.org/abs/1806.03884.
    """

    def _invert(self, layer: LinearLayer, state: dict[str, Any], flow: Flow) -> None:  # noqa: ARG002
        for name in ("left", "right"):
            state[f"{name}_basis"] = eigen(state[name])[1].to(state[name])
        state["moments"] = flow.moments(state["left_basis"], state["right_basis"])

    def _follow(self, state: dict[str, Any], flow: Flow) -> None:
        fresh = flow.moments(state["left_basis"], state["right_basis"])
        state["moments"] = state["moments"].lerp(fresh, 1 - self.param_groups[0]["ema"])

    def _apply(self, state: dict[str, Any], matrix: Tensor) -> Tensor:
        left, right = state["left_basis"], state["right_basis"]
        inner = (left.T @ matrix @ right) / (state["moments"] + self.param_groups[0]["damping"])
        moved: Tensor = left @ inner @ right.T
        return moved

    def _root(self, layer: LinearLayer, places: Tensor) -> KroneckerRoot:
        state = self._state(layer)
        scale = (state["moments"] + self.param_groups[0]["damping"]).rsqrt()
        return _root(places, state["left_basis"], state["right_basis"], scale, like=state["left"])


def _root(
    places: Tensor, left: Tensor, right: Tensor, scale: Tensor, *, like: Tensor
) -> KroneckerRoot:
    return KroneckerRoot(places, scale.to(like), left.to(like), right.to(like))


def _inverse(factor: Tensor, damping: float) -> Tensor:
    """Return ``(factor + damping I)⁻¹``, by Cholesky or, where rounding forbids, by eigenvalues."""
    shifted = factor.clone()
    shifted.diagonal().add_(damping)
    triangle, info = torch.linalg.cholesky_ex(shifted)
    if not int(info):
        return torch.cholesky_inverse(triangle)
    values, basis = eigen(factor)
    return (basis / (values.clamp(min=0) + damping)) @ basis.T


def _pull(value: Tensor, inputs: Sequence[Any], cotangent: Tensor | None = None) -> list[Tensor]:
    """Return the derivatives by tensors and by places in the graph."""
    return list(
        torch.autograd.grad(
            value, inputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    )


def _check(options: dict[str, Any]) -> None:
    for name in ("lr", "damping"):
        if not 0 < options[name] < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {options[name]}.")
    for name in ("ema", "momentum"):
        if not 0 <= options[name] < 1:
            raise ValueError(f"{name} must be in [0, 1), got {options[name]}.")
    if not 0 <= options["weight_decay"] < math.inf:
        raise ValueError(
            f"weight_decay must be at least 0 and finite, got {options['weight_decay']}."
        )
    if options["kl_clip"] is not None and not 0 < options["kl_clip"] < math.inf:
        raise ValueError(f"kl_clip must be positive or None, got {options['kl_clip']}.")
    every, inverse = options["update_every"], options["inverse_every"]
    if every < 1:
        raise ValueError(f"update_every must be at least 1, got {every}.")
    if inverse < 1 or inverse % every:
        raise ValueError(
            f"inverse_every must be a multiple of update_every, {every}, got {inverse}."
        )
