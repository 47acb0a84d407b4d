"""A spectrum as a measure that random probes see: its views, with their confidence bands."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hessian_lab.probe.bands import Band, Integrals, Known
from hessian_lab.probe.canonical import canonical_rules, cumulative_bounds
from hessian_lab.probe.lanczos import Tridiagonalization
from hessian_lab.probe.log_density import LogDensity, gaussian_kernel, log_kernel

# Standard deviations of a kernel that a grid reaches beyond the nodes, and its points.
MARGIN, GRID_SIZE = 4, 401
# The smallest scale there is, for the zero matrix, which has none.
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class NullityBound:
    """How many eigenvalues cannot be told from zero: at most so many.

    Attributes:
        share: An upper bound on the share of |λ| at or below the floor.
        floor: The rounding floor n · eps · max|λ|.
        level: How often the bound holds.
        reason: Why it is only a bound.
    """

    share: float
    floor: float
    level: float
    reason: str

    def __str__(self) -> str:
        return f"zero: ≤ {self.share:.1%} ({self.level:.0%}); {self.reason}"


@dataclass(frozen=True, eq=False)
class SpectralMeasure:
    """A quadrature estimate of ``φ(λ) = 1/n Σᵢ δ(λ - λᵢ)``, the spectrum of ``A`` [n, n].

    Each of ``m`` probes has a quadrature of its own: ``d`` settled eigenvalues, the same for all,
    and ``k`` Ritz values. Every view is derived from them without a new product. All tensors are
    float64, on the CPU.

    Bands hold the truth point by point. They allow for what the moments that ``k`` steps know leave
    open, and for the randomness of the probes, whose variance follows from the estimate itself
    (``bands.share_interval``). One probe is enough for both.

    Attributes:
        nodes: Deflated and settled eigenvalues, then Ritz values, ascending [m, d + k].
        weights: Their masses [m, d + k]; every row sums to 1.
        known: The mass that the former, here at 1/n, have in the probes' own measures.
        run: The Lanczos steps, without their basis.
        num_products: What it cost.
        eps: The machine epsilon of the operator's precision.
    """

    nodes: Tensor
    weights: Tensor
    known: Known
    run: Tridiagonalization
    num_products: int
    eps: float

    @property
    def size(self) -> int:
        """The number of rows ``n``."""
        return self.known.size

    @property
    def num_probes(self) -> int:
        """The number of probes ``m``."""
        return len(self.nodes)

    @property
    def num_steps(self) -> int:
        """The number of Lanczos steps ``k`` of the longest run."""
        return self.run.num_steps

    @property
    def settled(self) -> Tensor:
        """The eigenvalues that are known one by one [d], each as often as it is there."""
        return self.nodes[0, : self.known.num]

    @property
    def radius(self) -> float:
        """The largest magnitude of a node."""
        return float(self.nodes.abs().max())

    @property
    def floor(self) -> float:
        """The rounding floor n · eps · max|λ|."""
        return self.size * self.eps * self.radius

    @property
    def resolution(self) -> float:
        """What ``k`` steps resolve around zero: 4 (π / 2k)² max|λ|, over what was not deflated.

        The mass below is known, its place there is not. It is the rounding floor where no probe had
        anything left for another step.
        """
        seen = float(self.nodes[:, self.known.num :].abs().max())
        share = 0.0 if self.exhausted else 4 * (math.pi / (2 * self.num_steps)) ** 2
        return max(share * seen, self.floor, TINY)

    @property
    def exhausted(self) -> bool:
        """Whether every Krylov space came to its end: the quadratures are exact."""
        return not self.run.betas.gather(1, self.run.lengths.unsqueeze(1) - 1).any()

    @property
    def bandwidth(self) -> float:
        """The default standard deviation of a kernel: the range of the nodes over ``k``.

        Where all nodes are one, its magnitude over ``k``.
        """
        spread = float(self.nodes.max() - self.nodes.min())
        return (spread if spread > self.floor else self.radius or 1.0) / self.num_steps

    def grid(self, num: int = GRID_SIZE, *, bandwidth: float | None = None) -> Tensor:
        """Return even points [num] that hold the whole density, kernels included."""
        if num < 2:
            raise ValueError(f"num must be at least 2, got {num}.")
        margin = MARGIN * self._width(bandwidth)
        low, high = float(self.nodes.min()) - margin, float(self.nodes.max()) + margin
        return torch.linspace(low, high, num, dtype=torch.float64)

    def moment(self, order: int) -> Tensor:
        """Return each probe's estimate of ``tr Aʲ / n`` [m].

        Where nothing is settled it is ``vᵀ Aʲ v / vᵀ v``, exact up to order ``2 k - 1``.
        """
        if order < 0:
            raise ValueError(f"order must be at least 0, got {order}.")
        return (self.weights * self.nodes**order).sum(dim=1)

    def cumulative(self, points: Tensor | float) -> Tensor:
        """Return the share of eigenvalues at or below each point [g]."""
        where = _checked("points", points)
        return self._integral(lambda nodes: nodes.unsqueeze(1) <= where)

    def density(self, grid: Tensor | None = None, *, bandwidth: float | None = None) -> Tensor:
        """Return ``φ`` convolved with a Gaussian of the given standard deviation, on a grid [g]."""
        return self._integral(self._kernel(grid, bandwidth))

    def density_band(
        self, grid: Tensor | None = None, *, bandwidth: float | None = None, level: float = 0.95
    ) -> Band:
        """Return the density on a grid [g] with intervals for the exact one at that bandwidth."""
        return self._smooth_band(self._kernel(grid, bandwidth), level)

    def cumulative_band(self, points: Tensor | float, *, level: float = 0.95) -> Band:
        """Return the share of eigenvalues at or below each point [g] with its interval.

        Near zero the intervals are wide: so much do ``k`` steps leave open. It costs ``m g``
        tridiagonal eigenvalue problems: a second for 10 probes, 80 steps and 200 points.
        """
        where = _checked("points", points)
        below = (self.settled.unsqueeze(1) <= where).double()
        bounds = cumulative_bounds(self.run, where, eps=self.eps)
        return self.known.band(Integrals(self.cumulative(where), below, *bounds), level=level)

    def mass_within(self, radius: float | None = None, *, level: float = 0.95) -> Band:
        """Return the share of |λ| ≤ radius, by default ``resolution``, with its interval.

        Raises:
            ValueError: If the radius is below ``resolution``: no number is known there.
        """
        chosen = self.resolution if radius is None else radius
        if not self.resolution <= chosen < math.inf:
            raise ValueError(
                f"radius must be at least {self.resolution:.6g}, which is what {self.num_steps} "
                f"steps resolve, got {chosen:.6g}. Take more steps, or ask for nullity_bound()."
            )
        return self._within(chosen, level)

    def nullity_bound(self, *, level: float = 0.95) -> NullityBound:
        """Return an upper bound on the share of eigenvalues at or below the rounding floor.

        Products cannot give more: mass at zero could as well lie next to it.
        """
        band = self._within(max(self.floor, TINY), level)
        reason = "only a bound: the probes are a sample, and rounding hides what is below the floor"
        if not self.exhausted:
            reason = (
                f"only a bound: {self.num_steps} steps do not tell zero from |λ| < "
                f"{self.resolution:.2g}"
            )
        return NullityBound(float(band.upper), self.floor, level, reason)

    def log_density(
        self, grid: Tensor | None = None, *, bandwidth: float = 0.25, level: float = 0.95
    ) -> LogDensity:
        """Return the density over log10|λ| above ``resolution``, and the mass below as a lump.

        One large outlier hides much of the rest below the resolution; deflate it.

        Args:
            grid: Values of log10|λ| [g]; by default 401 from the resolution up.
            bandwidth: Standard deviation of the Gaussian kernel in decades. It is folded at the
                resolution, so that density and lump have mass 1 together.
            level: How often an interval holds the truth.
        """
        width, end = self._width(bandwidth), math.log10(self.resolution)
        if grid is None:
            top = max(end, math.log10(max(self.radius, TINY))) + MARGIN * width
            grid = torch.linspace(end, top, GRID_SIZE, dtype=torch.float64)
        points = _checked("grid", grid)
        kernel = partial(log_kernel, grid=points, bandwidth=width, floor=self.resolution)
        density = self._smooth_band(kernel, level)
        return LogDensity(points, density, self.resolution, self.mass_within(level=level), width)

    def __str__(self) -> str:
        return (
            f"{self.num_probes} probes × {self.num_steps} steps, {self.num_products} products; "
            f"{len(self.settled)} of {self.size} eigenvalues known one by one\n"
            f"nodes in [{float(self.nodes.min()):.3g}, {float(self.nodes.max()):.3g}]\n"
            f"share of |λ| ≤ {self.resolution:.2g}: {self.mass_within()}\n"
            f"{self.nullity_bound()}"
        )

    def _width(self, bandwidth: float | None) -> float:
        if bandwidth is None:
            return self.bandwidth
        if not 0 < bandwidth < math.inf:
            raise ValueError(f"bandwidth must be positive and finite, got {bandwidth}.")
        return float(bandwidth)

    def _kernel(self, grid: Tensor | None, bandwidth: float | None) -> Callable[[Tensor], Tensor]:
        points = self.grid(bandwidth=bandwidth) if grid is None else _checked("grid", grid)
        return partial(gaussian_kernel, grid=points, bandwidth=self._width(bandwidth))

    def _integral(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the mean integral over the quadratures of a function [c] → [c, g]."""
        rows = zip(self.weights, self.nodes, strict=True)
        return torch.stack([row @ function(nodes).double() for row, nodes in rows]).mean(dim=0)

    def _within(self, radius: float, level: float) -> Band:
        """Return the share of |λ| ≤ radius, without asking whether it says anything."""
        ends = torch.tensor([-radius, radius], dtype=torch.float64)
        (low, left), (high, right) = (
            side.T for side in cumulative_bounds(self.run, ends, eps=self.eps)
        )
        shares = Integrals(
            self._integral(lambda nodes: (nodes.abs() <= radius).unsqueeze(1)),
            (self.settled.abs() <= radius).double().unsqueeze(1),
            (left - high).unsqueeze(1),
            (right - low).unsqueeze(1),
        )
        band = self.known.band(shares, level=level)
        return Band(band.estimate[0], band.lower[0], band.upper[0], level)

    def _smooth_band(self, kernel: Callable[[Tensor], Tensor], level: float) -> Band:
        """Return the band of the integral of a function ≥ 0 from nodes [...] to [..., g]."""
        lowest, highest, squares, peaks = [], [], [], []
        for row, (nodes, weights) in enumerate(canonical_rules(self.run)):
            integrals = torch.einsum("qj,qjg->qg", weights, kernel(nodes))
            lowest.append(integrals.amin(dim=0))
            highest.append(integrals.amax(dim=0))
            values = kernel(self.nodes[row, self.known.num :])
            squares.append(self.weights[row, self.known.num :] @ values**2)
            peaks.append(values.amax(dim=0))
        found = Integrals(
            self._integral(kernel),
            kernel(self.settled),
            torch.stack(lowest),
            torch.stack(highest),
            torch.stack(squares).mean(dim=0),
            torch.stack(peaks).amax(dim=0),
        )
        return self.known.band(found, level=level)


def _checked(name: str, points: Tensor | float) -> Tensor:
    """Return points [g] in float64, on the CPU."""
    result = torch.as_tensor(points, dtype=torch.float64).detach().cpu()
    if result.ndim > 1 or not result.isfinite().all():
        raise ValueError(f"{name} must be finite and a number or [g], got {list(result.shape)}.")
    return result.reshape(-1)
