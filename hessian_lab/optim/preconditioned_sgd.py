"""Gradient descent over the Hessian at hand: Alg. 1 of the papers on preconditioned fields."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hessian_lab.errors import ResourceError
from hessian_lab.names import known
from hessian_lab.optim.closed import ClosedCurvature, calls_of, closed_curvature
from hessian_lab.optim.contract import Closure, flat, like, order_of
from hessian_lab.optim.diagonal import (
    GraphStep,
    Parameters,
    Vectors,
    check_shared,
    require_measured,
    shrink,
)
from hessian_lab.optim.preconditioner import (
    Preconditioner,
    dense_preconditioner,
    diagonal_preconditioner,
)
from hessian_lab.probe.memory import readable
from hessian_lab.probe.vectors import Distribution

PRECONDITIONERS = ("equilibrated", "jacobi", "abs-hessian", "identity")
MODES = ("exact", "hutchinson")
# The Hessian, its eigenvectors and what finds them, all in float64.
DENSE_BYTES = 3 * 8


class PreconditionedSGD(GraphStep):
    """Gradient descent ``x ← (1 − ηλ) x − η P⁻¹ g`` over the Hessian at ``x``.

    ``P = (diag(r) + ε)^p``, or ``(|H| + ε)^p`` of the dense Hessian, where ``r`` is::

        equilibrated   ‖H_i‖₂, the norms of rows
        jacobi         |H_ii|
        identity       P = 1: gradient descent

    A change of variables ``x = D^{-1/2} x̃`` gives ``P = D``, so ``p = 1``; the papers' text has
    ``D^{-1/2}`` there, which is ``exponent=0.5``. Nothing is averaged over steps.

    A measured step costs a gradient with its graph and ``num_probes`` Hessian–vector products
    (hutchinson), or ``n`` of them (exact); ``abs-hessian`` adds an eigendecomposition, ``O(n³)``.
    For a ``CoordinateMLP`` that is passed as ``model`` exact mode takes no products but closed
    forms, of about ``p n²`` operations on ``p`` points (``jacobi``: a small part of that), if
    ``step`` is given a closure that calls it once, and the loss is a mean over points.

    Args:
        params: Parameters, or groups with ``lr`` and ``weight_decay``.
        lr: ``η``.
        preconditioner: As above.
        mode: ``exact`` measures every row; without a closed form some seconds per step at a
            thousand parameters. ``hutchinson`` estimates ``r`` by ``√mean (Hv)²`` or
            ``|mean v ⊙ Hv|`` over probes ``v``, where it may come out near 0 by chance.
        exponent: ``p``, positive.
        eps: ``ε``, positive.
        weight_decay: ``λ``, decoupled.
        num_probes: Probes per measurement in hutchinson mode.
        update_every: Measure when so many steps have passed since the last measurement.
        warmup_steps: Before which every step measures.
        distribution: Of probes.
        seed: Of probes, each a function of it, of the measurement and of the parameter alone.
        max_parameters: The most that exact mode takes.
        model: The network whose parameters these are, for its closed forms.

    Raises:
        ValueError: For a setting out of range.
        TypeError: For complex or sparse parameters.
        ResourceError: For more parameters than exact mode takes.

    References:
        Chng, Saratchandran & Lucey (2024), Preconditioners for the stochastic training of neural
        fields, Alg. 1.
    """

    carried = ("model", "_closed")

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.1,
        *,
        preconditioner: Literal["equilibrated", "jacobi", "abs-hessian", "identity"] = (
            "equilibrated"
        ),
        mode: Literal["exact", "hutchinson"] = "exact",
        exponent: float = 1.0,
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        num_probes: int = 10,
        update_every: int = 1,
        warmup_steps: int = 0,
        distribution: Distribution = "rademacher",
        seed: int = 0,
        max_parameters: int = 5000,
        model: nn.Module | None = None,
    ) -> None:
        settings = {
            "lr": lr,
            "eps": eps,
            "weight_decay": weight_decay,
            "preconditioner": known("preconditioner", preconditioner, PRECONDITIONERS),
            "mode": known("mode", mode, MODES),
            "exponent": exponent,
            "num_probes": num_probes,
            "update_every": update_every,
            "warmup_steps": warmup_steps,
            "distribution": distribution,
            "seed": seed,
            "max_parameters": max_parameters,
        }
        check_shared(settings)
        if mode == "hutchinson" and preconditioner == "abs-hessian":
            raise ValueError(
                "mode must be exact for preconditioner abs-hessian, got 'hutchinson': probes "
                "do not give |H|."
            )
        super().__init__(params, settings)
        self.model = model
        self._closed: ClosedCurvature | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with ``lr`` and ``weight_decay`` of their own.

        Raises:
            ValueError: For a setting out of range, or one that all groups must share.
            TypeError: For complex or sparse parameters, or others than float32 and float64.
            ResourceError: For more parameters than exact mode takes.
        """
        eps = param_group.get("eps", self.defaults["eps"])
        if eps != self.defaults["eps"]:
            raise ValueError(
                f"eps must be the same in all groups, {self.defaults['eps']}, got {eps}."
            )
        super().add_param_group(param_group)
        self._require_few()
        # What was measured for the parameters so far says nothing of their rows with the new ones.
        for group in self.param_groups:
            group["updates"] = 0

    def should_create_graph(self) -> bool:
        """Tell whether the next step measures curvature, and so needs the graph of the gradient."""
        return self._setting("preconditioner") != "identity" and super().should_create_graph()

    @torch.no_grad()
    def preconditioner(self, model: nn.Module | None = None) -> Preconditioner:
        """Return ``P``, as it was last measured.

        Args:
            model: Whose order of parameters to use; by default that of the groups.

        Raises:
            ValueError: Before curvature was measured.
        """
        order = order_of(self.parameters, model)
        if self._setting("preconditioner") == "abs-hessian":
            require_measured(self)
            return dense_preconditioner(self._dense_root(order))
        if self._setting("preconditioner") != "identity":
            require_measured(self)
        scales = [each for group in self.param_groups for each in self._scales(group)]
        return diagonal_preconditioner(torch.cat([scales[place].flatten() for place in order]))

    def _setting(self, name: str) -> Any:
        return self.param_groups[0][name]

    def _require_few(self) -> None:
        kind, most = self._setting("preconditioner"), self._setting("max_parameters")
        size = sum(value.numel() for value in self.parameters)
        if self._setting("mode") != "exact" or kind == "identity" or size <= most:
            return
        needed = DENSE_BYTES * size**2 if kind == "abs-hessian" else 8 * size
        cure = (
            "Pass preconditioner=equilibrated with mode=hutchinson"
            if kind == "abs-hessian"
            else "Pass mode=hutchinson"
        )
        raise ResourceError(
            f"parameters of PreconditionedSGD must be at most {most} in exact mode, got {size}: "
            f"each measurement of {kind} takes {size} Hessian–vector products and "
            f"{readable(needed)} ({needed} bytes). {cure}, or a larger max_parameters."
        )

    def _inputs(
        self, closure: Closure | None, *, graph: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        self._closed = None
        if closure is None or not graph or self._setting("mode") != "exact":
            return super()._inputs(closure, graph=graph)
        with calls_of(self.model) as calls:
            loss = self._evaluate(closure)
        self._closed = closed_curvature(self.model, calls, loss, self.parameters)
        return loss.detach(), self._gradients(loss, create_graph=self._closed is None)

    def _measure(self, gradients: Vectors) -> list[Tensor]:
        kind, closed = self._setting("preconditioner"), self._closed
        self._closed = None
        if self._setting("mode") == "hutchinson":
            sample = self._sample(gradients, kind)
            root = torch.abs if kind == "jacobi" else torch.sqrt
            return [root(each) for each in sample]
        if kind == "abs-hessian":
            if closed is not None:
                return _decomposed(closed.matrix().double())
            return _decomposed(torch.stack([row.double() for _, row in self._rows(gradients)]))
        if closed is not None:
            norms = closed.diagonal().abs() if kind == "jacobi" else closed.row_norms()
        else:
            norms = torch.stack(
                [
                    row[place].abs() if kind == "jacobi" else torch.linalg.vector_norm(row)
                    for place, row in self._rows(gradients)
                ]
            )
        pairs = zip(like(norms, self.parameters), self.parameters, strict=True)
        return [part.to(value.dtype) for part, value in pairs]

    def _rows(self, gradients: Vectors) -> Iterator[tuple[int, Tensor]]:
        """Yield each row [n] of the Hessian, with its place."""
        dense = torch.contiguous_format
        vectors = [torch.zeros_like(value, memory_format=dense) for value in self.parameters]
        entries = [entry for each in vectors for entry in each.view(-1)]
        for place, entry in enumerate(entries):
            entry.fill_(1)
            products = self._products(gradients, vectors, more=place + 1 < len(entries))
            yield place, flat(products)
            entry.fill_(0)

    def _keep(self, measured: Vectors) -> None:
        if self._setting("preconditioner") != "abs-hessian":
            for value, scale in zip(self.parameters, measured, strict=True):
                self.state[value]["curvature"] = scale
            return
        # A matrix of all parameters has its place with the first of them.
        magnitudes, vectors = measured
        self.state[self.parameters[0]] |= {"magnitudes": magnitudes, "eigenvectors": vectors}

    def _scales(self, group: dict[str, Any]) -> list[Tensor]:
        """Return ``P``, a tensor per parameter of a group."""
        if group["preconditioner"] == "identity":
            return [torch.ones_like(value) for value in group["params"]]
        kept = self._kept(group, "curvature")
        return [(scale + group["eps"]) ** group["exponent"] for scale in kept]

    def _move(self, gradients: Vectors) -> None:
        kind = self._setting("preconditioner")
        steps = self._through_matrix(gradients) if kind == "abs-hessian" else gradients
        for group, share in self._by_group(steps):
            rate = float(group["lr"])
            shrink(group["params"], rate * group["weight_decay"])
            if kind in ("equilibrated", "jacobi"):
                torch._foreach_addcdiv_(group["params"], share, self._scales(group), -rate)
            else:
                torch._foreach_add_(group["params"], share, alpha=-rate)

    def _matrix(self, power: float) -> tuple[Tensor, Tensor]:
        """Return eigenvectors [n, n] and eigenvalues [n] of ``P^power``."""
        state = self.state[self.parameters[0]]
        scales = (state["magnitudes"] + self._setting("eps")) ** self._setting("exponent")
        return state["eigenvectors"], scales**power

    def _through_matrix(self, gradients: Vectors) -> list[Tensor]:
        vectors, inverses = self._matrix(-1)
        step = vectors @ (inverses * (vectors.T @ flat(gradients).double()))
        pairs = zip(like(step, self.parameters), self.parameters, strict=True)
        return [part.to(value.dtype) for part, value in pairs]

    def _dense_root(self, order: list[int]) -> Tensor:
        """Return ``P^{-1/2}`` [n, n] in an order and the precision of the parameters."""
        vectors, roots = self._matrix(-0.5)
        places = torch.arange(len(vectors), device=vectors.device)
        parts = places.split([value.numel() for value in self.parameters])
        rows = vectors[torch.cat([parts[place] for place in order])]
        root = (rows * roots) @ rows.T
        return ((root + root.T) / 2).to(self.parameters[0].dtype)


def _decomposed(matrix: Tensor) -> list[Tensor]:
    """Return the magnitudes of the eigenvalues [n] and the eigenvectors [n, n]; NaN if it fails."""
    try:
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    except RuntimeError:
        return [torch.full_like(matrix[0], math.nan), matrix]
    return [values.abs(), vectors]
