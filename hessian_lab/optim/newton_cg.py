"""Newton's method with products alone: truncated conjugate gradients."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hessian_lab.errors import NonFiniteError
from hessian_lab.optim.contract import Closure, flat
from hessian_lab.optim.searching import (
    Parameters,
    Point,
    Searching,
    search_options,
    warn_of_searches,
)


class NewtonCG(Searching):
    """Line-search Newton-CG: ``H d = -g`` solved by conjugate gradients, cut short.

    The inner iteration ends at a residual below ``min(½, √‖g‖) ‖g‖``, after ``max_products``, or
    at a direction of negative curvature: the step is what was found until then, and where that is
    nothing, the gradient, scaled by the curvature along it. It has no preconditioner.

    Per step it takes up to ``max_products`` Hessian–vector products of about two gradients each,
    and about two evaluations; it keeps a few vectors, and the graph of the gradient within a step.

    Args:
        params: The parameters, in one group.
        lr: The first trial length of a search.
        max_products: The most products per step.
        c2: What a search leaves of the slope at most.
        same_batch: Whether all steps are taken on one batch, so that one without decrease has
            converged. Set it to False for mini-batches.

    Raises:
        ValueError: For an option out of range, or more than one group.
        TypeError: For complex or sparse parameters.

    References:
        Nocedal & Wright (2006), Alg. 7.1. Not the papers' Newton-CG, which is NonlinearCG.
    """

    keeps = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        *,
        max_products: int = 200,
        c2: float = 0.9,
        same_batch: bool = True,
    ) -> None:
        if max_products < 1:
            raise ValueError(f"max_products must be at least 1, got {max_products}.")
        options = search_options(lr, "strong_wolfe", c2, same_batch)
        super().__init__(params, options | {"max_products": max_products})
        warn_of_searches(self)

    def diagnostics(self) -> dict[str, float]:
        """Return what all line searches tell, and how many steps met ``negative_curvature``."""
        met = self.counters.get("negative_curvature", 0)
        return super().diagnostics() | {"negative_curvature": float(met)}

    def _begin(self, closure: Closure) -> Point:
        return self._measure(closure, create_graph=True)

    def _directions(self, start: Point) -> Iterator[tuple[Tensor, float]]:
        if start.gradient.any():
            yield self._solve(start), self.param_groups[0]["lr"]
            yield self._steepest(start)

    def _solve(self, start: Point) -> Tensor:
        """Return the direction [n].

        Raises:
            NonFiniteError: If a product is not finite.
        """
        residual = start.gradient.clone()
        square = residual.dot(residual)
        norm = math.sqrt(float(square))
        goal = (min(0.5, math.sqrt(norm)) * norm) ** 2
        found, direction = torch.zeros_like(residual), -residual
        self.counters["curvature_updates"] += 1
        for number in range(self.param_groups[0]["max_products"]):
            parts = self._parts(direction)
            image = flat(self._products(start.graph, parts, more=True))
            curvature = direction.dot(image)
            length = square / curvature
            residual.addcmul_(image, length)
            former, square = square, residual.dot(residual)
            # The one look of a product that the host waits for.
            bent, left = torch.stack([curvature, square]).tolist()
            if not math.isfinite(bent):
                raise NonFiniteError("curvature was not finite")
            if bent <= 0:
                self._count("negative_curvature")
                return found if number else _descent(direction, former, curvature)
            found.addcmul_(direction, length)
            if left < goal:
                break
            direction = direction * (square / former) - residual
        return found


def _descent(direction: Tensor, square: Tensor, curvature: Tensor) -> Tensor:
    """Return the steepest direction, as long as the curvature along it says, were it positive."""
    scale = square / curvature.abs()
    return direction * scale if math.isfinite(float(scale)) else direction
