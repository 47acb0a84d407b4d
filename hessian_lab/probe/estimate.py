"""An estimate with its error: mean, standard error, degrees of freedom, confidence interval."""

import math
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from scipy import special
from torch import Tensor

Value = TypeVar("Value", float, Tensor)
Law = Literal["t", "root-t", "root-chi2"]
# Above this many degrees of freedom the Wilson-Hilferty approximation of χ² is exact to 1e-10.
MANY_DOF = 1e6
# Below this skewness of a mean its correction is the first term of its series.
SMALL_SKEWNESS = 1e-5


@dataclass(frozen=True, eq=False)
class Estimate(Generic[Value]):
    """A random estimate of a number (floats) or of a vector (tensors [n], entry by entry).

    Attributes:
        mean: The estimate, in float64.
        standard_error: The standard deviation of ``mean``, itself estimated; 0 where it is exact.
        samples: The values [m] that a number, or with "root-t" its square, was averaged from; None
            for vectors, whose samples would take n × m memory, and where nothing is random.
        dof: Degrees of freedom of ``standard_error``; infinite where nothing is random.
        num_products: How many products with the operator it took.
        rounding: What rounding of the products may have added; every interval is wider by it.
        skewness: Skewness of the samples; it makes the interval of their mean lean.
        law: What is Student-t distributed: ``mean`` itself ("t") or its square ("root-t"); or the
            square is χ² with ``dof`` degrees of freedom ("root-chi2").
    """

    mean: Value
    standard_error: Value
    samples: Tensor | None = None  # [m]
    dof: float | Tensor = math.inf
    num_products: int = 0
    rounding: float = 0.0
    skewness: float | Tensor = 0.0
    law: Law = "t"

    @property
    def relative_error(self) -> float:
        """The standard error relative to the mean, for vectors in the 2-norm."""
        error, size = (
            float(torch.linalg.vector_norm(torch.as_tensor(part, dtype=torch.float64)))
            for part in (self.standard_error, self.mean)
        )
        if error == 0:
            return 0.0
        return error / size if size else math.inf

    def interval(self, level: float = 0.95) -> tuple[Value, Value]:
        """Return the ends of a confidence interval that covers the truth at rate ``level``.

        For a vector each entry has an interval of its own, and ``level`` is the rate of each.
        Student's t is corrected for the skewness of the samples by Hall's transformation: without
        it, one dominant eigenvalue lets 30 samples cover 91 % in place of 95 %.

        Raises:
            ValueError: If ``level`` is not between 0 and 1.

        References:
            Hall (1992), https://doi.org/10.1111/j.2517-6161.1992.tb01872.x.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level}.")
        mean = torch.as_tensor(self.mean, dtype=torch.float64)
        tail = (1 - level) / 2
        if self.law == "root-chi2":
            low, high = (mean / factor for factor in self._chi_factors(mean, tail))
        elif self.law == "root-t":
            below, above = self._t_offsets(mean, tail)
            square, slope = mean.square(), 2 * mean
            low = (square + slope * below).clamp(min=0).sqrt()
            high = (square + slope * above).clamp(min=0).sqrt()
        else:
            below, above = self._t_offsets(mean, tail)
            low, high = mean + below, mean + above
        low, high = low - self.rounding, high + self.rounding
        if self.law != "t":
            low = low.clamp(min=0)
        if isinstance(self.mean, Tensor):
            return low, high
        return float(low), float(high)

    def _t_offsets(self, mean: Tensor, tail: float) -> tuple[Tensor, Tensor]:
        """Return what the truth may lie below and above the estimate."""
        dof = torch.as_tensor(self.dof, dtype=torch.float64)
        finite = torch.where(dof.isinf(), 1, dof).cpu().numpy()
        student = torch.as_tensor(-special.stdtrit(finite, tail))
        quantile = torch.where(dof.isinf(), -float(special.ndtri(tail)), student.to(dof)).to(mean)
        skewness = (torch.as_tensor(self.skewness, dtype=torch.float64) / (dof + 1).sqrt()).to(mean)
        error = torch.as_tensor(self.standard_error, dtype=torch.float64).to(mean)
        return -error * _hall(quantile, skewness), -error * _hall(-quantile, skewness)

    def _chi_factors(self, mean: Tensor, tail: float) -> tuple[Tensor, Tensor]:
        """Return the square roots of the upper and the lower quantile of χ² / dof."""
        dof = torch.as_tensor(self.dof, dtype=torch.float64).cpu().numpy()
        few = np.minimum(dof, MANY_DOF)
        spread = 2 / (9 * np.maximum(dof, MANY_DOF))
        upper, lower = (
            np.where(
                dof < MANY_DOF,
                np.sqrt(special.chdtri(few, share) / few),
                (1 - spread - special.ndtri(share) * np.sqrt(spread)) ** 1.5,
            )
            for share in (tail, 1 - tail)
        )
        return torch.as_tensor(upper).to(mean), torch.as_tensor(lower).to(mean)

    def __str__(self) -> str:
        products = f"{self.num_products} products"
        if isinstance(self.mean, Tensor):
            entries = f"{len(self.mean)} entries in [{self.mean.min():.3g}, {self.mean.max():.3g}]"
            return f"{entries} ± {self.relative_error:.1%} in norm ({products})"
        low, high = self.interval()
        error = f"{self.mean:.6g} ± {self.standard_error:.1e}"
        return f"{error}, 95 % in [{low:.6g}, {high:.6g}] ({products})"


def skewness(samples: Tensor) -> Tensor:
    """Return the skewness of the samples along the last axis; 0 where they do not vary."""
    apart = samples - samples.mean(dim=-1, keepdim=True)
    largest = apart.abs().amax(dim=-1, keepdim=True)
    apart = apart / torch.where(largest > 0, largest, 1)
    variance = apart.square().sum(dim=-1) / max(samples.shape[-1] - 1, 1)
    return apart.pow(3).mean(dim=-1) / torch.where(variance > 0, variance, 1) ** 1.5


def _hall(quantile: Tensor, skewness: Tensor) -> Tensor:
    """Return the studentized deviation whose skewness-corrected value is ``quantile``."""
    small = skewness.abs() < SMALL_SKEWNESS
    divisor = torch.where(small, 1, skewness)
    argument = 1 + divisor * (quantile - divisor / 6)
    root = argument.sign() * argument.abs().pow(1 / 3)
    return torch.where(small, quantile - skewness / 6, 3 / divisor * (root - 1))
