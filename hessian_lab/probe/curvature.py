"""Curvature matrices of a network's mean loss, known by their products with vectors."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from hessian_lab.errors import UsageError
from hessian_lab.losses import Loss
from hessian_lab.probe.checks import (
    check_model,
    check_symmetry,
    check_twice,
    count_points,
    why_no_mean,
)
from hessian_lab.probe.closed_diagonal import diagonal_at
from hessian_lab.probe.closed_rows import row_norms_at
from hessian_lab.probe.data import Data, Points
from hessian_lab.probe.kept_graph import trainable
from hessian_lab.probe.linearize import ClosedForm, Linearization, Linearizer
from hessian_lab.probe.linearized import Matrix
from hessian_lab.probe.operators import SymmetricOperator
from hessian_lab.probe.parameters import Layout, selected_names
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.ranks import ALONE, DIAGONAL, PRODUCT, RELEASE, Ranks
from hessian_lab.probe.sizes import columns_at_once
from hessian_lab.probe.storage import chosen_chunk

# Columns of a block product that the CPU works on at once.
BLOCK_COLUMNS = 16


class _CurvatureOperator(SymmetricOperator):
    """What ``HessianOperator`` and ``GGNOperator`` have in common: everything but the matrix.

    Attributes:
        layout: Where each parameter stands in a vector, by name.
        num_points: The points of the mean, those of all ranks.
        chunk_size: The most points linearized at a time; None if all of them are kept.
        ranks: The processes that share the points.
    """

    matrix: Matrix

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Data,
        *,
        parameters: str | Sequence[str] | None = None,
        chunk_size: int | Literal["auto"] | None = None,
        check: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        check_model(model, loss)
        first = trainable(model)[0]
        names = selected_names(model, parameters)
        self.layout = Layout(model, names)
        super().__init__(self.layout.size, first.dtype, first.device)
        chunk = None if chunk_size == "auto" else chunk_size
        self.ranks = ranks
        self.num_points = count_points(Points(data, chunk_size=chunk))
        if self.num_points < ranks.count:
            raise UsageError(
                f"data must hold a point for every rank, got {self.num_points} for {ranks.count} "
                "ranks. Start fewer."
            )
        points = Points(data, chunk_size=chunk, share=(ranks.rank, ranks.count))
        with full_precision(), torch.inference_mode(False):
            linearizer = Linearizer(model, loss, names, matrix=self.matrix)
            self._own_points = self.num_points if ranks.alone else _own_points(points)
            self.chunk_size = chosen_chunk(linearizer, points, self._own_points, chunk_size)
            self._linearizer = linearizer
            self._points = points.in_chunks(self.chunk_size)
            problem = None
            if check:
                check_twice(linearizer, self._points, self._own_points)
                problem = why_no_mean(linearizer, self._points, self._own_points)
            keep = self.chunk_size is None
            self._kept = list(linearizer.each(self._points, self.num_points)) if keep else None
            self._columns = columns_at_once(
                BLOCK_COLUMNS, device=self.device, size=self.size, itemsize=self.dtype.itemsize
            )
        if problem:
            warnings.warn(
                f"loss is no mean over points: {problem}. Batches are weighed as if it were, so "
                "its curvature depends on how the data are cut. Use reduction='mean'.",
                stacklevel=2,
            )
        if check and linearizer.field is None:
            check_symmetry(self)

    @property
    def stored_bytes(self) -> int:
        """What linearizing keeps, or takes at a time where nothing is kept."""
        at_once = self.chunk_size or self._own_points
        return round(self._linearizer.per_point * at_once)

    def known_diagonal(self) -> Tensor | None:
        """Return the exact diagonal [n] of a ``CoordinateMLP``; see ``exact_diagonal``.

        The data are read again.
        """
        if not self.ranks.alone:
            self._require_asked(DIAGONAL, 0)
        return self._diagonal()

    def known_row_norms(self) -> Tensor | None:
        """Return the exact row norms [n] of a ``CoordinateMLP``; see ``exact_row_norms``.

        Not known where only some parameters are differentiated by, nor to ranks that share the
        points. The data are read again.
        """
        partial = len(self._linearizer.places()) < len(self._linearizer.parameters)
        if partial or not self.ranks.alone:
            return None
        return self._closed(row_norms_at)

    def matmat(self, block: Tensor) -> Tensor:
        """Return ``A V`` [n, k]; among ranks for the block of the first, whatever theirs are."""
        rows = block.T.contiguous()
        if self.ranks.alone:
            return self._products(rows).T
        self._require_asked(PRODUCT, len(rows))
        # What the others were given is theirs: it may share its memory with ``rows``.
        return self._summed(rows if self.ranks.first else torch.empty_like(rows))

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Use the operator on the first rank alone, while the others ``serve``; then let them go.

        So an algorithm whose decisions depend on rounding runs once, and its vectors are kept once.
        An exception does not let them go: it may have come within a product. It must end the job.
        """
        yield
        if not self.ranks.alone:
            self.ranks.header(RELEASE, 0)

    def serve(self) -> None:
        """Take part in the products of the first rank until it lets go; on all ranks but it."""
        while True:
            kind, width = self.ranks.header(RELEASE, 0)
            if kind == RELEASE:
                return
            if kind == DIAGONAL:
                self._diagonal()
                continue
            self._summed(torch.empty(width, self.size, dtype=self.dtype, device=self.device))

    def _require_asked(self, kind: int, width: int) -> None:
        """Check that this rank is asked for what the first one is.

        Raises:
            ValueError: If it is not.
        """
        if self.ranks.header(kind, width) != (kind, width):
            raise ValueError(
                f"every rank must ask for the same product, rank {self.ranks.rank} asks for one "
                f"of {width} columns and rank 0 for another. Use leading() and serve()."
            )

    def _summed(self, rows: Tensor) -> Tensor:
        """Return the product [n, k] with the first rank's rows [k, n], of the points of all."""
        return self.ranks.total(self._products(self.ranks.spread(rows)).contiguous()).T

    def _diagonal(self) -> Tensor | None:
        """Return the diagonal [n] over the points of all ranks, or None without a closed form."""
        found = self._closed(diagonal_at)
        known = self.ranks.total(torch.tensor([int(found is not None)]))
        if found is None or int(known) < self.ranks.count:
            return None
        self.ranks.total(found)
        return torch.cat([found[place] for place in self._linearizer.places()])

    @full_precision()
    @torch.inference_mode(False)  # type: ignore[untyped-decorator]
    def _closed(self, find: ClosedForm) -> Tensor | None:
        return self._linearizer.closed(self._points, self.num_points, find)

    @full_precision()
    @torch.inference_mode(False)  # type: ignore[untyped-decorator]
    def _products(self, rows: Tensor) -> Tensor:
        """Return ``V A`` [k, n] for rows [k, n], with the points of this rank."""
        parts = self._kept or self._linearizer.each(self._points, self.num_points)
        total: Tensor | None = None
        for part in parts:
            products = _in_blocks(part, rows, self._columns)
            if self._kept is not None and len(self._kept) == 1:
                return products
            # Many batches of a float32 model add up in double precision.
            total = products.double() if total is None else total.add_(products)
        assert total is not None
        return total.to(self.dtype)


def _own_points(points: Points) -> int:
    """Return how many points a rank has.

    Raises:
        UsageError: If it has none.
    """
    total = sum(len(targets) for _, targets in points)
    if not total:
        raise UsageError(
            "every rank must have a point of some batch, this one has none. Hand in larger batches."
        )
    return total


def _in_blocks(part: Linearization, rows: Tensor, columns: int) -> Tensor:
    if len(rows) <= columns:
        return part.products(rows)
    return torch.cat([part.products(some) for some in rows.split(columns)])


class HessianOperator(_CurvatureOperator):
    """The Hessian of a mean loss over points, at the model's present parameters.

    With ``P`` points and parameters ``θ`` [n]::

        H = ∇²_θ  1/P Σₚ ℓ(f_θ(xₚ), yₚ)

    The gradient is linearized once, then a product with a vector costs about one gradient for a
    ``CoordinateMLP`` (forward over reverse on stored activations, no transcendental function
    again) and two for other modules (reverse over reverse on a kept graph); in blocks it is
    cheaper. Parameters and buffers are copied: training the model afterwards does not move the
    operator. Vectors are flat, in the order of ``model.named_parameters()``, without those that do
    not require gradients. The precision is that of the parameters. Matrix products inside run
    without TF32. Not for use by several threads at a time.

    Args:
        model: A module without randomness or batch statistics in its forward pass (``eval()``).
        loss: Maps predictions and targets of a batch to their *mean* loss: ``mse``, ``bce``,
            ``nn.MSELoss()``, ``F.mse_loss``, ``nn.HuberLoss()``, any twice differentiable callable.
        data: A ``Signal`` (its own loss is not used), a pair (inputs, targets), or a re-iterable of
            such pairs (a ``DataLoader``); batches are weighed by their points.
        parameters: Names or patterns (``"layers.0.*"``) of the parameters to differentiate by; all
            others are held fixed. By default all that require gradients.
        chunk_size: By default all points are linearized once, and the result is kept. With a
            number, that many points are linearized at a time, anew in every product: less memory,
            three to four times the time. ``"auto"`` keeps all if it fits, else takes chunks that
            do.
        check: Evaluate the loss twice, and refuse one that changes; warn of a loss that is a sum;
            for modules other than a ``CoordinateMLP`` also test the symmetry, by two products.
        ranks: The processes of a job, from ``join``: each holds the whole network and linearizes
            its share of every batch's points, and products are added up over all. Every rank makes
            the operator and calls ``@``, or the first one works in ``with operator.leading():``
            while the others ``serve()``. Per product one broadcast and one sum of [n, k] numbers.

    Raises:
        TypeError: For data, dtypes or precisions that do not fit; float16 and bfloat16 are refused.
        ValueError: If the model is in training mode where that matters, the loss is no scalar or
            changes between two evaluations, or a pattern matches no parameter.
        NonFiniteError: If the loss is not finite.
        ResourceError: If what is kept does not fit, with the chunk size that would.

    References:
        Pearlmutter (1994), https://doi.org/10.1162/neco.1994.6.1.147.

    Examples:
        >>> import torch
        >>> from hessian_lab import HessianOperator, Signal, make_field, mse
        >>> coords = torch.linspace(-1, 1, 100, dtype=torch.float64).unsqueeze(1)
        >>> field = make_field("sine", 1, 1, width=8, depth=2)
        >>> hessian = HessianOperator(field, mse, Signal(coords, torch.sin(4 * coords)))
        >>> hessian.shape, (hessian @ torch.ones(97, dtype=torch.float64)).shape
        ((97, 97), torch.Size([97]))
    """

    matrix = "hessian"


class GGNOperator(_CurvatureOperator):
    """The generalized Gauss–Newton matrix ``Jᵀ (∇²_f ℓ) J`` of a mean loss over points.

    Positive semi-definite for a loss that is convex in the predictions. Arguments, errors and
    promises are those of ``HessianOperator``; a product costs two thirds of the Hessian's for a
    ``CoordinateMLP``, and about three gradients for other modules. Predictions must be a tensor.

    References:
        Schraudolph (2002), https://doi.org/10.1162/08997660260028683.
    """

    matrix = "ggn"
