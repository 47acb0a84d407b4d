"""What the checks of ``doctor`` share: a small field, its curvature, and how they answer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hessian_lab.fields.mlp import CoordinateMLP, make_field
from hessian_lab.losses import mse
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.signal import Signal

# Two ways to one number of a small field agree to this many roundings.
ROUNDINGS = 1e3
# The field: 2 inputs, 1 output; points per side of its image.
WIDTH, DEPTH, SIDE = 12, 2, 20


@dataclass(frozen=True)
class Outcome:
    """What a check has found.

    Attributes:
        passed: Whether what it checks holds.
        told: What was measured, in a few words.
        value: The measured number, where one is compared.
        tolerance: What it may be at most.
        limited: Whether something is scarce here that is not wrong.
    """

    passed: bool
    told: str
    value: float | None = None
    tolerance: float | None = None
    limited: bool = False


def within(value: float, tolerance: float, what: str = "") -> Outcome:
    """Return the outcome of a number that must be at most a tolerance; NaN is not."""
    passed = bool(value <= tolerance)
    told = f"{what} " * bool(what) + f"{value:.1e} {'≤' if passed else '>'} {tolerance:.1e}"
    return Outcome(passed, told, float(value), float(tolerance))


def found(faults: list[str], told: str) -> Outcome:
    """Return the outcome of a list of what is wrong; what is told where it is empty."""
    return Outcome(not faults, "; ".join(faults) or told)


@dataclass(frozen=True)
class Case:
    """A small sine field on a smooth image, at its initialisation.

    Attributes:
        device: Where it is.
        dtype: The precision of its products.
        seed: Of the field.
    """

    device: torch.device
    dtype: torch.dtype
    seed: int = 0

    @property
    def eps(self) -> float:
        """The machine epsilon of the products."""
        return float(torch.finfo(self.dtype).eps)

    @cached_property
    def model(self) -> CoordinateMLP:
        """The field."""
        model = make_field("sine", 2, 1, width=WIDTH, depth=DEPTH, seed=self.seed, dtype=self.dtype)
        return model.to(self.device)

    @cached_property
    def signal(self) -> Signal:
        """The image [p, 1]."""
        side = torch.linspace(-1, 1, SIDE, dtype=torch.float64)
        coords = torch.cartesian_prod(side, side)
        values = torch.sin(3 * coords[:, :1]) * torch.cos(2 * coords[:, 1:] - coords[:, :1]) / 2
        return Signal(coords, values).to(dtype=self.dtype, device=self.device)

    @cached_property
    def double(self) -> "Case":
        """The very same parameters and points in double precision."""
        other = Case(self.device, torch.float64, self.seed)
        other.__dict__["model"] = other.model
        with torch.no_grad():
            for value, ours in zip(other.model.parameters(), self.model.parameters(), strict=True):
                value.copy_(ours)
        other.__dict__["signal"] = self.signal.to(dtype=torch.float64)
        return other

    def operator(self) -> HessianOperator:
        """Return the Hessian by its products, made anew."""
        return HessianOperator(self.model, mse, self.signal)

    @cached_property
    def hessian(self) -> Tensor:
        """The Hessian [n, n] in closed form."""
        return dense_hessian(self.model, mse, self.signal)


# Returns what it has found; what it raises is a failure too.
Check = Callable[[Case], Outcome]
