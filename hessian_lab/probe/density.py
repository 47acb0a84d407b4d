"""Stochastic Lanczos quadrature: the whole spectrum of a large operator, as a measure."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from hessian_lab.errors import NonFiniteError
from hessian_lab.probe.bands import Known
from hessian_lab.probe.eigenpairs import extreme_eigenpairs
from hessian_lab.probe.lanczos import Tridiagonalization, tridiagonalize
from hessian_lab.probe.measure import SpectralMeasure
from hessian_lab.probe.operators import Multiplies, SymmetricOperator, as_operator
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.ranks import ALONE, Ranks
from hessian_lab.probe.settled import Candidates, Settled, agreement, candidates, without
from hessian_lab.probe.vectors import Distribution, probes

__all__ = ["SpectralMeasure", "spectral_measure"]

# Probes that are multiplied at once, and whose Lanczos vectors are held together.
BLOCK_SIZE = 16
# A probe with a smaller share than this outside a space says nothing of what is there.
SMALLEST_REST = 1e-6
TINY = torch.finfo(torch.float64).tiny


@full_precision()
def spectral_measure(
    operator: Multiplies,
    *,
    num_probes: int = 10,
    num_steps: int = 80,
    seed: int = 0,
    distribution: Distribution = "rademacher",
    settle: bool = True,
    deflate: int = 0,
    block_size: int = BLOCK_SIZE,
    ranks: Ranks = ALONE,
    scratch: Path | None = None,
) -> SpectralMeasure:
    """Return the spectrum of ``operator`` as a measure, by stochastic Lanczos quadrature.

    Each random probe ``v`` gives a Gauss quadrature of its own spectral measure::

        vᵀ f(A) v / vᵀ v  ≈  Σⱼ (e₁ᵀ sⱼ)² f(θⱼ)      j = 1 … k

    with ``(θⱼ, sⱼ)`` the eigenpairs of the Lanczos matrix ``T``. It is exact for polynomials of
    degree at most ``2 k - 1``; its mean over probes estimates ``tr f(A) / n``.

    The eigenpairs at the ends of a spectrum converge in these very runs. Where at least three
    other probes agree on one, a probe replaces its random mass there by the exact 1/n, a multiple
    eigenvalue by its multiplicity; what remains is scaled to the mass that remains. It costs no
    product, and takes most of the noise out of spectra with outliers. It needs four probes.

    Quadrature does not see the null space: eigenvalues below ``resolution`` are a lump whose place
    is not known.

    Args:
        operator: A symmetric matrix ``A`` [n, n].
        num_probes: Probe vectors ``m``. The error of a share falls with ``1 / √(m n)``.
        num_steps: Lanczos steps ``k`` per probe, at most ``n``. Costs ``m k`` products and about
            ``2 m k² n`` operations.
        seed: The probes depend on it and on their number alone.
        distribution: ``rademacher``, or ``gaussian``, whose directions are uniform.
        settle: Whether to use what the runs agree on; without it nodes and weights are the
            Gauss quadratures themselves.
        deflate: How many eigenpairs of largest magnitude to compute first, by
            ``extreme_eigenpairs``; those that converged are taken out of the probes and of the
            runs, which then resolve the rest by the rest's own range. Their products are counted.
        block_size: Probes per block product; the result is the same up to rounding. Holds
            ``min(m, block_size) k n`` numbers, and the Ritz vectors that converged.
        ranks: The processes of a job, from ``join``: each runs its share of the probes with its
            own operator of *all* points, and tells the others once, at the end. Every rank calls it
            with the same arguments and gets the measure.
        scratch: A directory for a file with the Lanczos vectors where they do not fit in memory;
            see ``lanczos.Recurrence``.

    Raises:
        TypeError: For an operator of another precision, or none.
        ValueError: For an argument out of range.
        NonFiniteError: If a product is not finite.
        ResourceError: If the basis does not fit, before it is allocated.

    References:
        Ubaru, Chen & Saad (2017), https://doi.org/10.1137/16M1104974.

    Examples:
        >>> import torch
        >>> from hessian_lab.probe.density import spectral_measure
        >>> matrix = torch.diag(torch.linspace(-1, 4, 200, dtype=torch.float64))
        >>> measure = spectral_measure(matrix, num_steps=40)
        >>> print(measure.cumulative_band(torch.tensor([1.5])).estimate.shape)
        torch.Size([1])
    """
    operator = as_operator(operator)
    _check(operator.size, num_probes, num_steps, deflate, block_size)
    if deflate and not ranks.alone:
        raise ValueError(f"deflate must be 0 among ranks, got {deflate}.")
    # At least a block for each rank that can have a probe.
    block_size = min(block_size, max(1, num_probes // ranks.count))
    starts = [
        probes(
            operator.size,
            min(block_size, num_probes - first),
            seed=seed,
            like=operator,
            distribution=distribution,
            first=first,
        )
        for first in range(0, num_probes, block_size)
    ]
    core, deflated, num_products = operator, torch.zeros(0, dtype=torch.float64), 0
    if deflate:
        pairs = extreme_eigenpairs(
            operator, num=deflate, which="magnitude", seed=seed, scratch=scratch
        )
        deflated = pairs.values[pairs.converged]
        core = _Complement(operator, pairs.vectors[:, pairs.converged.to(operator.device)])
        starts = [_projected(core, block) for block in starts]
        num_products = pairs.num_products + pairs.num_check_products
    runs, found = _shared_runs(
        core, starts, ranks, num_steps=num_steps, settle=settle, scratch=scratch
    )
    measure = None
    if ranks.first:
        run = _joined(runs)
        measure = _measure(operator, starts, deflated, run, found, settle, num_products)
    measure = ranks.told(measure)
    assert measure is not None
    return measure


def _measure(
    operator: SymmetricOperator,
    starts: list[Tensor],
    deflated: Tensor,
    run: Tridiagonalization,
    found: list[Candidates],
    settle: bool,
    num_products: int,
) -> SpectralMeasure:
    """Return what all runs say together."""
    num_probes = len(run.lengths)
    settled = agreement(found, num_probes=num_probes) if settle else _nothing(operator)
    shares = _shares(settled.vectors, starts)
    if not _informative(shares, operator.size - len(deflated)):
        settled, shares = _nothing(operator), shares[:, :0]
    nodes, weights = _quadrature(run, operator.size, deflated, settled.values, shares)
    return SpectralMeasure(
        nodes,
        weights,
        known=Known(pad(shares, (len(deflated), 0)), operator.size),
        run=run,
        num_products=num_products + run.num_products,
        eps=torch.finfo(operator.dtype).eps,
    )


class _Complement(SymmetricOperator):
    """``P A P`` with ``P = I - U Uᵀ``, for vectors that ``P`` leaves alone."""

    def __init__(self, operator: SymmetricOperator, vectors: Tensor) -> None:
        super().__init__(operator.size, operator.dtype, operator.device)
        self.operator = operator
        self.vectors = vectors

    def matmat(self, block: Tensor) -> Tensor:
        """Return ``P A V`` [n, k]."""
        return self.projected(self.operator @ block)

    def projected(self, block: Tensor) -> Tensor:
        """Return ``P V`` [n, k]."""
        return block - self.vectors @ (self.vectors.T @ block)


def _projected(core: _Complement, block: Tensor) -> Tensor:
    """Return probes without the deflated pairs, after checking that something is left."""
    rest = core.projected(core.projected(block))
    ratio = torch.linalg.vector_norm(rest, dim=0) / torch.linalg.vector_norm(block, dim=0)
    if float(ratio.min()) ** 2 < SMALLEST_REST:
        raise ValueError(
            f"deflate must leave something of every probe, got {core.vectors.shape[1]} pairs of "
            f"{core.size}. Deflate fewer, or take distribution='gaussian'."
        )
    return rest


def _shared_runs(
    operator: SymmetricOperator,
    starts: list[Tensor],
    ranks: Ranks,
    *,
    num_steps: int,
    settle: bool,
    scratch: Path | None,
) -> tuple[list[Tridiagonalization], list[Candidates]]:
    """Return the runs of all ranks on the first one; each takes its share of the blocks.

    Raises:
        NonFiniteError: On every rank, if a product on any is not finite.
    """
    count, rank = ranks.count, ranks.rank
    own = range(rank * len(starts) // count, (rank + 1) * len(starts) // count)
    first = sum(block.shape[1] for block in starts[: own.start])
    failure: str | None = None
    done: tuple[list[Tridiagonalization], list[Candidates]] = [], []
    try:
        some = starts[own.start : own.stop]
        done = _runs(
            operator, some, first=first, num_steps=num_steps, settle=settle, scratch=scratch
        )
    except NonFiniteError as error:
        if ranks.alone:
            raise
        failure = str(error)
    parts = ranks.collected((failure, done if ranks.alone else _on_cpu(done)))
    failure = ranks.told(next((reason for reason, _ in parts if reason), None))
    if failure:
        raise NonFiniteError(failure)
    runs = [run for _, (some_runs, _) in parts for run in some_runs]
    found = [one for _, (_, some_found) in parts for one in some_found]
    return runs, [replace(one, vectors=one.vectors.to(operator.device)) for one in found]


def _on_cpu(
    done: tuple[list[Tridiagonalization], list[Candidates]],
) -> tuple[list[Tridiagonalization], list[Candidates]]:
    """Return runs as they can be sent to another process."""
    runs, found = done
    return runs, [replace(one, vectors=one.vectors.cpu()) for one in found]


def _runs(
    operator: SymmetricOperator,
    starts: list[Tensor],
    *,
    first: int,
    num_steps: int,
    settle: bool,
    scratch: Path | None,
) -> tuple[list[Tridiagonalization], list[Candidates]]:
    """Return the Lanczos steps from blocks of starts, and what may have converged in them.

    ``first`` is the number of the first start.
    """
    runs: list[Tridiagonalization] = []
    found: list[Candidates] = []
    for block in starts:
        try:
            run = tridiagonalize(
                operator, block, num_steps=num_steps, keep_basis=settle, scratch=scratch
            )
        except NonFiniteError as error:
            if not first:
                raise
            raise NonFiniteError(f"after {first} probes, {error}") from error
        if settle:
            found.append(candidates(run, first=first))
        runs.append(replace(run, basis=None))
        first += block.shape[1]
    return runs, found


def _joined(runs: list[Tridiagonalization]) -> Tridiagonalization:
    """Return the runs of all blocks as one."""
    width = max(run.num_steps for run in runs)
    alphas, betas = (
        torch.cat([pad(getattr(run, name), (0, width - run.num_steps)) for run in runs])
        for name in ("alphas", "betas")
    )
    lengths = torch.cat([run.lengths for run in runs])
    return Tridiagonalization(alphas, betas, lengths, sum(run.num_products for run in runs))


def _shares(vectors: Tensor, starts: list[Tensor]) -> Tensor:
    """Return the mass of each probe's measure at each of some eigenvectors [m, d]."""
    parts = [((vectors @ block) ** 2 / (block**2).sum(dim=0)).T for block in starts]
    return torch.cat(parts).double().cpu()


def _nothing(operator: SymmetricOperator) -> Settled:
    """Return what is settled where nothing was compared."""
    none = torch.zeros(0, operator.size, dtype=operator.dtype, device=operator.device)
    return Settled(torch.zeros(0, dtype=torch.float64), none)


def _informative(shares: Tensor, size: int) -> bool:
    """Return whether every probe says something of what is not settled, if anything is not."""
    rest = 1 - shares.sum(dim=1)
    num_open = size - shares.shape[1]
    return not num_open or bool((rest > SMALLEST_REST * num_open / size).all())


def _quadrature(
    run: Tridiagonalization, size: int, deflated: Tensor, settled: Tensor, shares: Tensor
) -> tuple[Tensor, Tensor]:
    """Return nodes and weights [m, d + k]: eigenvalues at 1/n each, and Ritz values."""
    ritz = run.ritz()
    rest = without(ritz.values, ritz.weights, settled, shares)
    known = torch.cat([deflated, settled]).expand(len(rest), -1)
    rest *= (1 - known.shape[1] / size) / rest.sum(dim=1, keepdim=True).clamp(min=TINY)
    weights = torch.cat([torch.full_like(known, 1 / size), rest], dim=1)
    return torch.cat([known, ritz.values], dim=1), weights / weights.sum(dim=1, keepdim=True)


def _check(size: int, num_probes: int, num_steps: int, deflate: int, block_size: int) -> None:
    if num_probes < 1:
        raise ValueError(f"num_probes must be at least 1, got {num_probes}.")
    if not 1 <= num_steps <= size:
        raise ValueError(f"num_steps must be in [1, {size}], got {num_steps}.")
    if not 0 <= deflate < size:
        raise ValueError(f"deflate must be in [0, {size - 1}], got {deflate}.")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}.")
