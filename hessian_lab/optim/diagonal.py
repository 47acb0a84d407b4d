"""Steps over a diagonal estimate of curvature, made of products with random vectors."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.names import known
from hessian_lab.optim.contract import Closure, Contract, is_finite, order_of
from hessian_lab.optim.preconditioner import Preconditioner, diagonal_preconditioner
from hessian_lab.probe.vectors import DISTRIBUTIONS, probes

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]
Vectors = list[Tensor] | tuple[Tensor, ...]

# name -> what one probe v and its product Hv say of each entry.
SAMPLES: dict[str, Callable[[Vectors, Vectors], Vectors]] = {
    "equilibrated": lambda _, products: torch._foreach_mul(products, products),
    "jacobi": lambda vectors, products: torch._foreach_mul(vectors, products),
    "pn-jacobi": lambda _, products: torch._foreach_abs(products),
}
# name -> how a sample joins those before it, given the decay.
ACCUMULATE: dict[str, Callable[[Vectors, Vectors, float], None]] = {
    "ema": lambda kept, sample, decay: torch._foreach_lerp_(kept, sample, 1 - decay),
    "sum": lambda kept, sample, _: torch._foreach_add_(kept, sample),
    "mean": lambda kept, sample, _: torch._foreach_add_(kept, sample),
    "max": lambda kept, sample, decay: _keep_maximum(kept, sample, decay),
}
BIAS_CORRECTIONS = ("updates", "steps")
MOMENTA = ("ema", "nesterov")
# What holds for all groups: one product serves them together.
SHARED = (
    "estimator",
    "accumulate",
    "bias_correction",
    "momentum",
    "lr_warmup",
    "num_probes",
    "update_every",
    "warmup_steps",
    "distribution",
    "seed",
    "preconditioner",
    "mode",
    "exponent",
    "max_parameters",
)
# Probes of optimizers are not those that analyses draw from the same seed.
OWN_PROBES = 2**63


class GraphStep(Contract):
    """One step on gradients and, when a measurement is due, on their graph.

    A subclass measures curvature, keeps it, and moves the parameters.
    """

    is_diagonal = True
    takes_groups = True
    # GradScaler then hands itself over before a step without a closure, to be refused.
    _step_supports_amp_scaling = True

    @property
    def grad_scale(self) -> None:
        """Refused: what torch's GradScaler multiplies gradients by."""
        raise AttributeError("grad_scale")

    @grad_scale.setter
    def grad_scale(self, _: object) -> None:
        raise RuntimeError(
            f"{type(self).__name__} must not be stepped by a GradScaler, which scales gradients "
            "and not the curvature of their graph. Train in float32 without it."
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with settings of their own.

        Raises:
            ValueError: For a setting out of range, or one that all groups must share.
            TypeError: For complex or sparse parameters, or others than float32 and float64.
        """
        settings = {**self.defaults, **param_group}
        check_group(settings)
        for name in SHARED:
            if settings.get(name) != self.defaults.get(name):
                raise ValueError(
                    f"{name} must be the same in all groups, {self.defaults.get(name)!r}, "
                    f"got {settings[name]!r}."
                )
        super().add_param_group(param_group)
        # Steps taken, measurements, and the step of the last of them: whole numbers of the group.
        for name in ("taken", "updates", "updated_at"):
            self.param_groups[-1].setdefault(name, 0)

    def should_create_graph(self) -> bool:
        """Tell whether the next step measures curvature, and so needs the graph of the gradient.

        For ``loss.backward(create_graph=optimizer.should_create_graph())``.
        """
        return any(
            not group["updates"]
            or group["taken"] < group["warmup_steps"]
            or group["taken"] - group["updated_at"] >= group["update_every"]
            for group in self.param_groups
        )

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Returns the loss with its graph. Without one, the gradients are those that
                ``loss.backward(create_graph=optimizer.should_create_graph())`` has left.

        Returns:
            The loss before the step, or None without a closure.

        Raises:
            RuntimeError: If the closure called backward, or gradients lack their graph.
            DivergenceError: If loss or curvature was not finite in 10 steps in a row.
        """
        due = self.should_create_graph()
        loss, gradients = self._inputs(closure, graph=due)
        try:
            measured = self._measure(gradients) if due else []
        finally:
            gradients = [gradient.detach() for gradient in gradients]
            self._keep_gradients(gradients)
        losses = [] if loss is None else [loss]
        if is_finite([*losses, *gradients, *measured]):
            self._apply(gradients, measured)
        else:
            self._skip(_reason(loss, gradients))
        return loss

    def _inputs(
        self, closure: Closure | None, *, graph: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the loss and the gradients, with their graph where it is needed."""
        if closure is None:
            return None, self._left(graph=graph)
        loss = self._evaluate(closure)
        return loss.detach(), self._gradients(loss, create_graph=graph)

    def _left(self, *, graph: bool) -> list[Tensor]:
        """Return the gradients that a caller's backward has left, zero where it left none."""
        left = [value.grad for value in self.parameters]
        call = "call loss.backward(create_graph=optimizer.should_create_graph())"
        if all(each is None for each in left):
            raise RuntimeError(f"step must have a closure or gradients: {call} before it.")
        if graph and not any(each is not None and each.requires_grad for each in left):
            raise RuntimeError(
                f"gradients must have their graph for this step of {type(self).__name__}, which "
                f"measures curvature: {call}, or pass step a closure that returns the loss."
            )
        self.counters["evaluations"] += 1
        pairs = zip(left, self.parameters, strict=True)
        return [torch.zeros_like(value) if each is None else each for each, value in pairs]

    def _apply(self, gradients: Vectors, measured: Vectors) -> None:
        if measured:
            self._keep(measured)
            self.counters["curvature_updates"] += 1
            for group in self.param_groups:
                group["updates"] += 1
                group["updated_at"] = group["taken"]
        for group in self.param_groups:
            group["taken"] += 1
        self._move(gradients)
        self._length = None
        self._took()

    def _by_group(self, tensors: Vectors) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
        """Yield each group that has parameters, with its share of a tensor per parameter."""
        rest = iter(tensors)
        for group in self.param_groups:
            if group["params"]:
                yield group, [next(rest) for _ in group["params"]]

    def _kept(self, group: dict[str, Any], name: str) -> list[Tensor]:
        """Return a group's state of a name, zero where there is none."""
        states = [(self.state[value], value) for value in group["params"]]
        for state, value in states:
            if name not in state:
                state[name] = torch.zeros_like(value)
        return [state[name] for state, _ in states]

    def _vectors(self, number: int) -> list[Tensor]:
        """Return the probe of a number, a tensor per parameter: one of its own for each."""
        shared = self.param_groups[0]
        return [
            probes(
                value.numel(),
                1,
                seed=OWN_PROBES + (shared["seed"] << 32) + place,
                like=value,
                distribution=shared["distribution"],
                first=number,
            ).view(value.shape)
            for place, value in enumerate(self.parameters)
        ]

    def _sample(self, gradients: Vectors, estimator: str) -> list[Tensor]:
        """Return the mean over this step's probes of what each says."""
        num = self.param_groups[0]["num_probes"]
        first = self.counters["curvature_updates"] * num
        total: list[Tensor] = []
        for number in range(num):
            vectors = self._vectors(first + number)
            products = self._products(gradients, vectors, more=number + 1 < num)
            sample = list(SAMPLES[estimator](vectors, products))
            if total:
                torch._foreach_add_(total, sample)
            else:
                total = sample
        if num > 1:
            torch._foreach_div_(total, num)
        return total

    def _measure(self, gradients: Vectors) -> list[Tensor]:
        """Return what there is to keep of the curvature, from gradients with their graph."""
        raise NotImplementedError

    def _keep(self, measured: Vectors) -> None:
        """Keep what was measured."""
        raise NotImplementedError

    def _move(self, gradients: Vectors) -> None:
        """Move the parameters."""
        raise NotImplementedError


class Diagonal(GraphStep):
    """ESGD, ESGD-max and AdaHessian are settings of it.

    ``x ← (1 − ηλ) x − η m̂ / (r^p + ε)`` with the corrected average ``m̂`` of gradients and the
    scale ``r`` that probes estimate.
    """

    def __init__(self, params: Parameters, **settings: Any) -> None:
        check_shared(settings)
        known("accumulate", settings["accumulate"], ACCUMULATE)
        known("bias_correction", settings["bias_correction"], BIAS_CORRECTIONS)
        known("estimator", settings["estimator"], SAMPLES)
        known("momentum", settings["momentum"], MOMENTA)
        if not 0 <= settings["lr_warmup"] < 1:
            raise ValueError(f"lr_warmup must be in [0, 1), got {settings['lr_warmup']}.")
        super().__init__(params, settings)

    def preconditioner(self, model: nn.Module | None = None) -> Preconditioner:
        """Return ``P = diag(r^p + ε)``.

        Args:
            model: Whose order of parameters to use; by default that of the groups.

        Raises:
            ValueError: Before curvature was measured for every parameter.
        """
        require_measured(self)
        scales = [each for group in self.param_groups for each in self._scales(group)]
        ordered = [scales[place].flatten() for place in order_of(self.parameters, model)]
        return diagonal_preconditioner(torch.cat(ordered))

    def _measure(self, gradients: Vectors) -> list[Tensor]:
        return self._sample(gradients, self.param_groups[0]["estimator"])

    def _keep(self, measured: Vectors) -> None:
        for group, sample in self._by_group(measured):
            kept = self._kept(group, "curvature")
            ACCUMULATE[group["accumulate"]](kept, sample, group["betas"][1])

    @torch.no_grad()
    def _scales(self, group: dict[str, Any]) -> list[Tensor]:
        """Return ``r^p + ε``, a tensor per parameter of a group."""
        if not group["params"]:
            return []
        scales = list(torch._foreach_div(self._kept(group, "curvature"), _correction(group)))
        if group["estimator"] == "jacobi":
            torch._foreach_abs_(scales)
        else:
            torch._foreach_sqrt_(scales)
        if group["hessian_power"] != 1:
            torch._foreach_pow_(scales, group["hessian_power"])
        torch._foreach_add_(scales, group["eps"])
        return scales

    def _move(self, gradients: Vectors) -> None:
        for group, share in self._by_group(gradients):
            decay, taken = group["betas"][0], group["taken"]
            momentum: Vectors = self._kept(group, "momentum")
            torch._foreach_lerp_(momentum, share, 1 - decay)
            if group["momentum"] == "nesterov":
                momentum = torch._foreach_lerp(momentum, share, 1 - decay)
                taken += 1
            rate = float(group["lr"]) * (1 - group["lr_warmup"] ** group["updates"])
            shrink(group["params"], rate * group["weight_decay"])
            length = rate / (1 - decay**taken)
            torch._foreach_addcdiv_(group["params"], momentum, self._scales(group), -length)


def shrink(parameters: Vectors, share: float) -> None:
    """Take a share off parameters: decoupled weight decay."""
    if share:
        torch._foreach_mul_(parameters, 1 - share)


def require_measured(optimizer: GraphStep) -> None:
    """Check that every group has had its curvature measured.

    Raises:
        ValueError: If not.
    """
    if not all(group["updates"] for group in optimizer.param_groups):
        raise ValueError(
            f"{type(optimizer).__name__} has no preconditioner before it has measured the "
            "curvature of all parameters: take a step first."
        )


def check_group(settings: dict[str, Any]) -> None:
    """Check the settings that groups may have of their own.

    Raises:
        ValueError: For one out of range.
    """
    for name in ("lr", "weight_decay"):
        if not 0 <= settings[name] < float("inf"):
            raise ValueError(f"{name} must be at least 0 and finite, got {settings[name]}.")
    for name in ("eps", "hessian_power", "exponent"):
        if name in settings and not 0 < settings[name] < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {settings[name]}.")
    betas = settings.get("betas", (0.0, 0.0))
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas}.")


def check_shared(settings: dict[str, Any]) -> None:
    """Check the settings of probes and of when to measure.

    Raises:
        ValueError: For one out of range.
    """
    for name, least in (("num_probes", 1), ("update_every", 1), ("warmup_steps", 0)):
        value = settings[name]
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    known("distribution", settings["distribution"], DISTRIBUTIONS)
    seed = settings["seed"]
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(f"seed must be a whole number in [0, 2**31), got {seed!r}.")


def _correction(group: dict[str, Any]) -> float:
    """Return what divides the kept curvature."""
    if group["accumulate"] == "mean":
        return float(group["updates"])
    if group["accumulate"] != "ema":
        return 1.0
    count = group["updates" if group["bias_correction"] == "updates" else "taken"]
    return float(1 - group["betas"][1] ** count)


def _keep_maximum(kept: Vectors, sample: Vectors, decay: float) -> None:
    torch._foreach_mul_(kept, decay)
    torch._foreach_maximum_(kept, sample)


def _reason(loss: Tensor | None, gradients: Vectors) -> str:
    if loss is not None and not is_finite([loss]):
        return f"loss became {float(loss)}"
    return f"{'curvature' if is_finite(gradients) else 'gradient'} was not finite"
