"""How many products an estimator spends: as many as asked for, or until its error is small."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic

from hessian_lab.probe.estimate import Estimate, Value
from hessian_lab.probe.memory import require_bytes
from hessian_lab.probe.operators import Multiplies
from hessian_lab.probe.sketch import Probing
from hessian_lab.probe.vectors import Distribution

# Tables of one row per entry and one column per product that a sketch holds at its peak.
SKETCH_TABLES = 4
# The method that estimates nothing.
EXACT = "exact"


@dataclass(frozen=True)
class Budget:
    """What all estimators are asked for; see ``trace``."""

    method: str
    num_products: int
    distribution: Distribution
    rtol: float | None
    max_products: int
    seed: int


class Estimator(ABC, Generic[Value]):
    """An estimate that grows with its products.

    Attributes:
        least_products: The fewest products that tell an error.
        keeps_vectors: Whether it keeps the vectors, rather than a few at a time.
    """

    least_products: ClassVar[int]
    keeps_vectors: ClassVar[bool]

    def __init__(self, probing: Probing) -> None:
        self.probing = probing

    @abstractmethod
    def estimate(self, num_products: int) -> Estimate[Value]:
        """Return the estimate from ``num_products`` products in all."""


def estimate(
    operator: Multiplies,
    budget: Budget,
    kinds: Mapping[str, type[Estimator[Value]]],
    exact: Callable[[Probing], Estimate[Value]],
    known: Callable[[Probing], Estimate[Value] | None],
) -> Estimate[Value]:
    """Return the estimate of the chosen kind within the budget, or the exact value if in reach.

    Args:
        operator: The matrix.
        budget: What is asked for; with the method "exact" nothing of it but that.
        kinds: The estimators by their method.
        exact: Multiplies the columns of the matrix out.
        known: Returns what the operator knows without products, or None.

    Raises:
        ValueError: For options out of range.
        ResourceError: If the vectors of a sketch do not fit in memory.
    """
    methods = (*kinds, EXACT)
    if budget.method not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}, got {budget.method!r}.")
    probing = Probing(operator, seed=budget.seed, distribution=budget.distribution)
    if budget.method == EXACT:
        return known(probing) or exact(probing)
    kind = kinds[budget.method]
    _check(budget, kind.least_products, probing.size)
    if budget.num_products >= probing.size:
        return exact(probing)
    if kind.keeps_vectors:
        require_bytes(
            8 * SKETCH_TABLES * probing.size * budget.num_products,
            f"The vectors of {budget.method} at size {probing.size}",
            device=probing.operator.device,
            cure="Ask for fewer products, or for method='hutchinson', which keeps none.",
        )
    estimator, num_products = kind(probing), budget.num_products
    result = estimator.estimate(num_products)
    while _goes_on(result, budget) and num_products < budget.max_products:
        num_products = min(2 * num_products, budget.max_products)
        if probing.size <= min(num_products, budget.max_products - probing.num_products):
            return exact(probing)
        result = estimator.estimate(num_products)
    return result


def _goes_on(result: Estimate[Value], budget: Budget) -> bool:
    return budget.rtol is not None and result.relative_error > budget.rtol


def _check(budget: Budget, least: int, size: int) -> None:
    if budget.num_products < min(least, size):
        raise ValueError(
            f"num_products must be at least {least} for {budget.method} to know its error, "
            f"got {budget.num_products}."
        )
    if budget.rtol is None:
        return
    if not budget.rtol > 0:
        raise ValueError(f"rtol must be positive, got {budget.rtol}.")
    if budget.max_products < budget.num_products:
        raise ValueError(
            f"max_products must be at least num_products = {budget.num_products}, "
            f"got {budget.max_products}."
        )
