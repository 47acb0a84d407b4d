"""The Lanczos recurrence, guarded, in lock-step over many start vectors."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from hessian_lab.errors import NonFiniteError
from hessian_lab.probe.operators import (
    Multiplies,
    SymmetricOperator,
    as_operator,
    require_finite,
)
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.scratch import require_room, roomy_empty
from hessian_lab.probe.unseen import Unseen

# A residual this many roundings below ‖T‖ is noise: the Krylov space is exhausted.
BREAKDOWN_ROUNDINGS = 10
# Vectors beside the basis that a step works in.
STEP_VECTORS = 5
# What remains of a residual is orthogonal to rounding unless less than this of it remains.
CANCELLATION = 0.5
# Steps between two looks at what they have come to. Where a look waits for a device there are few.
LOOK_EVERY = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True, eq=False)
class Ritz:
    """The eigenpairs of ``m`` tridiagonal matrices, in float64 on the CPU.

    A row whose Krylov space was exhausted is padded with its largest value, at weight and
    residual zero.

    Attributes:
        values: Ritz values [m, k], ascending.
        weights: Squared first components of the eigenvectors of ``T`` [m, k]; rows sum to 1.
        residuals: Estimates ``β_k |s_k|`` of the residual norms of the Ritz pairs [m, k].
    """

    values: Tensor
    weights: Tensor
    residuals: Tensor


@dataclass(frozen=True, eq=False)
class Tridiagonalization:
    """``k`` Lanczos steps from ``m`` starts: ``A Q = Q T + r eₖᵀ``, ``Qᵀ Q = I``, ``Qᵀ r = 0``.

    Attributes:
        alphas: The diagonals of ``T`` [m, k], float64, on the CPU; 0 beyond ``lengths``.
        betas: Next to the diagonal [m, k]: ``betas[:, j]`` couples step ``j`` with ``j + 1``; that
            of a row's last step is ``‖r‖``, and 0 where its Krylov space is exhausted.
        lengths: How many steps each start took [m].
        num_products: What it cost.
        basis: The vectors as rows [m, k, n], zero beyond ``lengths``; None if not kept.
    """

    alphas: Tensor
    betas: Tensor
    lengths: Tensor
    num_products: int
    basis: Tensor | None = None

    @property
    def num_steps(self) -> int:
        """The number of steps ``k`` of the longest run."""
        return self.alphas.shape[1]

    def ritz(self) -> Ritz:
        """Return Ritz values, quadrature weights and residual estimates, each [m, k]."""
        shape = self.alphas.shape
        values, weights, residuals = np.empty(shape), np.zeros(shape), np.zeros(shape)
        rows = zip(self.alphas.numpy(), self.betas.numpy(), self.lengths.tolist(), strict=True)
        for row, (alphas, betas, length) in enumerate(rows):
            nodes, vectors = eigh_tridiagonal(alphas[:length], betas[: length - 1])
            values[row, :length], values[row, length:] = nodes, nodes[-1]
            weights[row, :length] = vectors[0] ** 2
            residuals[row, :length] = betas[length - 1] * np.abs(vectors[-1])
        return Ritz(*map(torch.from_numpy, (values, weights, residuals)))


@full_precision()
def tridiagonalize(
    operator: Multiplies,
    starts: Tensor,
    *,
    num_steps: int,
    keep_basis: bool = False,
    scratch: Path | None = None,
) -> Tridiagonalization:
    """Return at most ``num_steps`` Lanczos steps from each start, fully reorthogonalized.

    All starts advance together: a step is one product with a block [n, m]. A start whose residual
    is rounding noise next to its ``T`` so far ends there: its quadrature is exact. The others go
    on, and the block keeps its width until all have ended.

    Args:
        operator: A symmetric matrix ``A`` [n, n].
        starts: Non-zero vectors [n] or [n, m]; they need not be normalized.
        num_steps: The largest Krylov dimension ``k``, at most ``n``. Costs ``m k`` products and
            ``2 m k² n`` operations, and holds ``m k n`` numbers meanwhile.
        keep_basis: Whether to return the Lanczos vectors.
        scratch: A directory for a file with the basis where it does not fit in memory; see
            ``Recurrence``.

    Raises:
        TypeError: If ``starts`` has another dtype or device than the operator.
        ValueError: If ``starts`` has a wrong shape, or one is zero or not finite, or
            ``num_steps`` is not in [1, n].
        NonFiniteError: If a product is not finite.
        ResourceError: If the basis does not fit, before it is allocated.

    References:
        Lanczos (1950). Golub & Meurant (2010), *Matrices, Moments and Quadrature*.
    """
    operator = as_operator(operator)
    if not 1 <= num_steps <= operator.size:
        raise ValueError(f"num_steps must be in [1, {operator.size}], got {num_steps}.")
    rows = _rows(operator, starts)
    run = Recurrence(operator, num_rows=num_steps, num_starts=len(rows), scratch=scratch)
    run.start(rows)
    while run.position < num_steps and run.step():
        pass
    return run.result(keep_basis=keep_basis)


def require_basis(
    num_starts: int,
    num_vectors: int,
    size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    cure: str,
    scratch: Path | None = None,
) -> bool:
    """Return whether a Lanczos basis [m, k, n] must go to a file in ``scratch``.

    Raises:
        ResourceError: If it fits nowhere, or the vectors of a step do not fit in memory.
        UsageError: If ``scratch`` does not take files, or the device is another than the CPU.
    """
    vector = num_starts * size * dtype.itemsize
    return require_room(
        num_vectors * vector,
        device=device,
        extra=STEP_VECTORS * vector,
        what=_basis_name(num_starts, num_vectors, size),
        cure=cure,
        scratch=scratch,
    )


def _basis_name(*shape: int) -> str:
    return f"The Lanczos basis {list(shape)}"


class Recurrence:
    """``m`` Lanczos recurrences over one preallocated basis, a block product per step.

    It takes one step at a time, from whatever rows ``basis`` holds before ``position``: all that
    follow are kept orthogonal to them. Each step costs one product with a block [n, m].

    On the CPU every step is looked at: it orthogonalizes twice only where a residual cancels, and
    stops at once. On a GPU the host would wait for the device each time. There every step
    orthogonalizes twice, ended recurrences are masked, and looks are 1, 2, 4 and then 8 steps
    apart: it may take up to seven products too many, of which nothing is kept.

    With ``scratch``, a basis that does not fit in memory lies in a file without a name in that
    directory, and goes with this object or the process. Then every step reads all vectors so far
    from the disk: ``k`` steps of ``m`` starts write ``m k n`` numbers and read ``m k² n / 2``,
    twice over where not even one start's vectors stay in the memory that is free.

    Attributes:
        basis: Rows [m, num_rows + 1, n]; the last only receives what is left in the end.
        alphas: Diagonals [m, num_rows], float64, on the operator's device.
        betas: Residual norms [m, num_rows], likewise; 0 where a recurrence has ended.
        position: The row that the next step multiplies.
        scale: The largest |α| + β so far [m]; β is noise a few roundings below it.
        alive: Which recurrences have not ended [m].
        lengths: The steps that each has taken [m].
        num_products: Products so far.
        every: The most steps between two looks.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        *,
        num_rows: int,
        num_starts: int = 1,
        cure: str = "Take fewer steps, or fewer vectors at a time.",
        scratch: Path | None = None,
    ) -> None:
        shape = num_starts, num_rows + 1, operator.size
        self.operator = operator
        self.basis = roomy_empty(
            shape,
            dtype=operator.dtype,
            device=operator.device,
            extra=STEP_VECTORS * num_starts * operator.size * operator.dtype.itemsize,
            what=_basis_name(*shape),
            cure=cure,
            scratch=scratch,
        )
        self.num_rows = num_rows
        self.alphas = torch.zeros(num_starts, num_rows, dtype=torch.float64, device=operator.device)
        self.betas = torch.zeros_like(self.alphas)
        self.scale = self.alphas.new_zeros(num_starts)
        self.alive = torch.ones(num_starts, dtype=torch.bool, device=operator.device)
        self.lengths = torch.zeros(num_starts, dtype=torch.int64, device=operator.device)
        self.position = 0
        self.num_products = 0
        self.every = LOOK_EVERY.get(operator.device.type, LOOK_EVERY["cuda"])
        self._going = True
        self._unseen = Unseen(self.basis[:, 0]) if self.every > 1 else None

    def start(self, vectors: Tensor) -> None:
        """Put vectors [m, n], normalized in the complement of the rows before, at ``position``."""
        known, row = self.basis[:, : self.position], self.basis[:, self.position]
        row[:] = vectors / _norms(vectors).unsqueeze(1)
        for _ in range(2 if self.position else 0):
            row[:] = orthogonalized(row, known)
            row /= _norms(row).unsqueeze(1)
        self.alive.fill_(True)
        self._going = True
        if self._unseen is not None:
            self._unseen.due = 1

    def step(self, couplings: Tensor | None = None) -> bool:
        """Multiply the row at ``position``, and put what is new in its product into the next row.

        Args:
            couplings: What the product is known to contain of the rows just before [m, c]; by
                default of the one before, by how much it was coupled.

        Returns:
            Whether any recurrence goes on, as far as is known.

        Raises:
            NonFiniteError: If a product is not finite, at the look that follows.
        """
        place = self.position
        if couplings is None:
            couplings = self.betas[:, max(place - 1, 0) : place]
        product = (self.operator @ self.basis[:, place].T).T
        self.num_products += len(product)
        alpha, before = self._reduced(product, couplings)
        residual = self.basis[:, place + 1]
        if self._unseen is not None:
            return self._go_on(self._unseen, product, alpha)
        beta = _norms(residual)
        going, ended, cancelled, finite = self._outlook(alpha, before, beta)
        if not finite:
            self._refuse(product, first=self.num_products - len(product) + 1)
        if cancelled:
            residual[:] = orthogonalized(residual, self.basis[:, : place + 1])
            beta = _norms(residual)
        self._record(alpha, beta, ended=ended or cancelled)
        self._going = bool(self.alive.any()) if cancelled else going
        return self._going

    def look(self) -> bool:
        """Return whether any recurrence goes on; ``position`` is behind the last step of all.

        Raises:
            NonFiniteError: If a product since the last look was not finite.
        """
        unseen = self._unseen
        if unseen is not None and unseen.steps:
            self._going, finite = unseen.wait(self.alive, most=self.every)
            if not finite:
                self._refuse(unseen.suspect, first=unseen.first)
            if not self._going:
                self.position = unseen.end
        return self._going

    def result(self, *, keep_basis: bool) -> Tridiagonalization:
        """Return the tridiagonal matrices of a recurrence that began at row 0."""
        lengths = self.lengths.cpu()
        num_steps = int(lengths.max())
        basis = None
        if keep_basis:
            basis = self.basis[:, :num_steps]
            beyond = torch.arange(num_steps) >= lengths.unsqueeze(1)
            basis[beyond.to(basis.device)] = 0
        return Tridiagonalization(
            self.alphas[:, :num_steps].cpu(),
            self.betas[:, :num_steps].cpu(),
            lengths,
            self.num_products,
            basis,
        )

    def _go_on(self, unseen: Unseen, product: Tensor, alpha: Tensor) -> bool:
        """Finish a step without waiting for what it has come to."""
        residual = self.basis[:, self.position + 1]
        residual[:] = orthogonalized(residual, self.basis[:, : self.position + 1])
        beta = _norms(residual)
        alive = self.alive.any()
        self._record(alpha, beta, ended=True)
        finite = (alpha + beta).isfinite().all()
        unseen.note(product, finite, alive, position=self.position, count=self.num_products)
        due = unseen.steps >= unseen.due or self.position == self.num_rows
        return self.look() if due else True

    def _slices(self) -> list[slice]:
        """Return which rows to work on at a time: one on the CPU, all elsewhere.

        A row stays in the cache and wakes no threads. On the whole block, elementwise work took
        three times as long, and far longer when other processes held the cores.
        """
        num_starts = len(self.basis)
        if self.basis.device.type != "cpu":
            return [slice(0, num_starts)]
        return [slice(row, row + 1) for row in range(num_starts)]

    def _reduced(self, product: Tensor, couplings: Tensor) -> tuple[Tensor, Tensor]:
        """Leave in the next row what is new, and return α and its norm before the last pass."""
        place = self.position
        parts = []
        for rows in self._slices():
            image, known = product[rows], self.basis[rows, : place + 1]
            current = known[:, -1]
            alpha = (current.double() * image.double()).sum(dim=1)
            rest = torch.addcmul(image, current, alpha.to(image.dtype).unsqueeze(1), value=-1)
            near = known[:, place - couplings.shape[1] : place]
            rest = _subtracted(rest, near, couplings[rows].to(image.dtype))
            self.basis[rows, place + 1] = orthogonalized(rest, known)
            parts.append(torch.stack([alpha, _norms(rest)]))
        alpha, before = torch.cat(parts, dim=1)
        return alpha, before

    def _outlook(self, alpha: Tensor, before: Tensor, beta: Tensor) -> list[bool]:
        """Return whether any goes on, any ends, any residual cancelled, and all is finite.

        The one synchronization of a step.
        """
        going = self.alive & (beta > self._noise(alpha, beta))
        cancelled = self.alive & (beta < CANCELLATION * before)
        finite = (alpha + beta).isfinite()
        flags = [going.any(), ~going.all(), cancelled.any(), finite.all()]
        return [bool(flag) for flag in torch.stack(flags).tolist()]

    def _noise(self, alpha: Tensor, beta: Tensor) -> Tensor:
        self.scale = torch.maximum(self.scale, alpha.abs() + beta)
        return BREAKDOWN_ROUNDINGS * torch.finfo(self.basis.dtype).eps * self.scale

    def _record(self, alpha: Tensor, beta: Tensor, *, ended: bool) -> None:
        self.lengths += self.alive
        self.alphas[:, self.position] = torch.where(self.alive, alpha, 0)
        self.alive = self.alive & (beta > self._noise(alpha, beta))
        self.betas[:, self.position] = torch.where(self.alive, beta, 0)
        self.position += 1
        following = self.basis[:, self.position]
        for rows in self._slices():
            following[rows] /= beta[rows].to(following.dtype).unsqueeze(1)
        if ended:
            # One that has ended multiplies its start again; nothing of it is recorded.
            following[:] = torch.where(self.alive.unsqueeze(1), following, self.basis[:, 0])

    @staticmethod
    def _refuse(product: Tensor, *, first: int) -> None:
        require_finite(product.T, first=first)
        raise NonFiniteError(
            f"product {first} of the operator must be finite: its norm overflows {product.dtype}."
        )


def orthogonalized(vectors: Tensor, known: Tensor) -> Tensor:
    """Return ``v - Q (Qᵀ v)`` [m, n] for ``vectors`` [m, n] and orthonormal rows [m, k, n]."""
    if not known.shape[1]:
        return vectors
    if vectors.device.type == "cpu":
        # Two matrix–vector products at a time: a batched product is five to twenty times slower.
        result = torch.empty_like(vectors)
        for one, rows, out in zip(vectors, known, result, strict=True):
            torch.addmv(one, rows.T, rows @ one, alpha=-1, out=out)
        return result
    return _subtracted(vectors, known, (known @ vectors.unsqueeze(2)).squeeze(2))


def _subtracted(vectors: Tensor, rows: Tensor, coefficients: Tensor) -> Tensor:
    """Return ``v - Σ cⱼ qⱼ`` [m, n] for rows [m, c, n] and coefficients [m, c]."""
    block = torch.baddbmm(vectors.unsqueeze(1), coefficients.unsqueeze(1), rows, alpha=-1)
    return block.squeeze(1)


def _norms(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
    return norms


def _rows(operator: SymmetricOperator, starts: Tensor) -> Tensor:
    """Return starts as rows [m, n], after checking them."""
    if starts.ndim not in (1, 2) or len(starts) != operator.size or not starts.numel():
        raise ValueError(
            f"starts must have shape [{operator.size}] or [{operator.size}, m], m > 0, "
            f"got {list(starts.shape)}."
        )
    if starts.dtype != operator.dtype or starts.device != operator.device:
        raise TypeError(
            f"starts must be {operator.dtype} on {operator.device}, "
            f"got {starts.dtype} on {starts.device}."
        )
    rows = starts.detach().reshape(operator.size, -1).T
    norms = _norms(rows)
    if not ((norms > 0) & norms.isfinite()).all():
        raise ValueError(f"starts must be non-zero and finite, got norms {norms.tolist()}.")
    return rows
