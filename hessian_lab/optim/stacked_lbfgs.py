"""L-BFGS of many independent problems at once, each with its own history and line search."""

from collections.abc import Callable

import torch
from torch import Tensor

from hessian_lab.optim.searching import LEAST_CURVATURE
from hessian_lab.optim.stacked_wolfe import stacked_strong_wolfe

# Maps parameters [k, n] and the problems they belong to [k] to losses [k] and gradients [k, n].
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# Problems that have finished are left out of the arithmetic once they are so large a share.
LEAST_FINISHED = 0.25


class StackedLBFGS:
    """``K`` runs of ``LBFGS``, of ``n`` parameters each, taken a step at a time together.

    Each takes the steps that ``LBFGS`` takes alone, up to rounding: its own pairs, direction and
    strong Wolfe search, in which only the problems whose search is still open are evaluated. What
    has converged, or is not finite, drops out.

    A step takes about one evaluation of all and ``4 K m n`` multiplications; ``2 K m n`` numbers
    are kept. It is no ``torch.optim.Optimizer``: its objective is asked for some of the problems.

    Args:
        objective: Losses and gradients of some problems at some parameters, such as a
            ``StackedObjective``.
        parameters: Where to start [K, n]; not changed.
        lr: The first trial length of a search; the first step's is ``lr · min(1, 1 / ‖g‖₁)``.
        history_size: Pairs kept.
        tolerance_grad: Where no entry of a gradient is larger, a problem has converged.
        c2: What a search leaves of the slope at most.

    Attributes:
        parameters: The present ones [K, n].
        losses: There [K].
        gradients: There [K, n].
        evaluations: Of each problem [K].
        finished: Which problems have converged, or are not finite [K].

    Raises:
        ValueError: For an option out of range.

    References:
        Nocedal & Wright (2006), Alg. 7.4, 7.5.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Tensor,
        *,
        lr: float = 1.0,
        history_size: int = 100,
        tolerance_grad: float = 0.0,
        c2: float = 0.9,
    ) -> None:
        if parameters.ndim != 2 or 0 in parameters.shape:
            raise ValueError(f"parameters must have shape [K, n], got {list(parameters.shape)}.")
        if not (lr > 0 and history_size >= 1 and tolerance_grad >= 0 and 0 < c2 < 1):
            raise ValueError(
                "lr, history_size, tolerance_grad and c2 must be positive, at least 1, not "
                f"negative and in (0, 1), got {lr}, {history_size}, {tolerance_grad} and {c2}."
            )
        self.objective = objective
        self.lr, self.history_size = lr, history_size
        self.tolerance_grad, self.c2 = tolerance_grad, c2
        self.parameters = parameters.detach().clone()
        count = len(parameters)
        everything = torch.arange(count, device=parameters.device)
        self.losses, self.gradients = objective(self.parameters, everything)
        self.evaluations = torch.ones(count, dtype=torch.long, device=parameters.device)
        self.finished = ~self._is_finite(self.losses, self.gradients)
        self.pairs = _Pairs(everything, history_size)

    @property
    def converged(self) -> bool:
        """Whether there is nothing left to do."""
        return bool(self.finished.all())

    @torch.no_grad()
    def step(self) -> Tensor:
        """Take one step of every problem that has not finished; return the losses before it [K]."""
        before = self.losses.clone()
        self.finished |= self.gradients.abs().amax(dim=1) <= self.tolerance_grad
        places = (~self.finished).nonzero().squeeze(1)
        if not len(places):
            return before
        self.pairs.keep(places, LEAST_FINISHED)
        gradients = self.gradients[places]
        followed = self.pairs.has_pairs(places)
        directions = self.pairs.directions(places, gradients)
        first = torch.where(followed, self.lr, self._first(gradients))
        stuck = self._search(places, directions, first)
        again = places[stuck & followed]
        self.finished[places[stuck & ~followed]] = True
        if len(again):
            self.pairs.drop(again)
            gradients = self.gradients[again]
            stuck = self._search(again, -gradients, self._first(gradients))
            self.finished[again[stuck]] = True
        return before

    def _first(self, gradients: Tensor) -> Tensor:
        """Return the first trial lengths along the gradients [k], as torch has them."""
        return self.lr * (1 / gradients.abs().sum(dim=1).double()).clamp(max=1.0)

    def _search(self, places: Tensor, directions: Tensor, first: Tensor) -> Tensor:
        """Go along directions as far as searches lead; return which led nowhere [k]."""
        origins, gradients = self.parameters[places], self.gradients[places]

        def evaluate(open_: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            ahead = directions[open_]
            moved = torch.addcmul(origins[open_], ahead, lengths.to(ahead.dtype).unsqueeze(1))
            losses, found = self.objective(moved, places[open_])
            return losses, (found * ahead).sum(dim=1).double(), found

        slopes = (gradients * directions).sum(dim=1).double()
        start = self.losses[places], slopes, gradients
        found = stacked_strong_wolfe(evaluate, start, first, c2=self.c2)
        self.evaluations[places] += found.trials
        moved = found.lengths > 0
        steps = directions * found.lengths.to(directions.dtype).unsqueeze(1)
        changes = found.gradients - gradients
        arrived = places[moved]
        self.parameters[arrived] = (origins + steps)[moved]
        self.losses[arrived] = found.values[moved].to(self.losses.dtype)
        self.gradients[arrived] = found.gradients[moved]
        self.pairs.add(arrived, steps[moved], changes[moved])
        return ~moved

    def _is_finite(self, losses: Tensor, gradients: Tensor) -> Tensor:
        return losses.isfinite() & gradients.isfinite().all(dim=1)


Slot = tuple[Tensor, Tensor, Tensor]


class _Pairs:
    """The last steps of each problem, changes of the gradient over them, and their products.

    The newest slot holds every problem's last pair, and so on back. A problem that has fewer pairs
    than there are slots has products of 0 in the oldest.
    """

    def __init__(self, places: Tensor, most: int) -> None:
        self.places, self.most = places, most
        self.slots: list[Slot] = []

    def keep(self, places: Tensor, least: float) -> None:
        """Leave out the problems not named, where they have become many."""
        if len(self.places) - len(places) >= least * len(self.places):
            self.slots = self._of(places)
            self.places = places

    def has_pairs(self, places: Tensor) -> Tensor:
        """Tell which problems have a pair [k]."""
        if not self.slots:
            return torch.zeros_like(places, dtype=torch.bool)
        return self.slots[-1][2][self._rows(places)] > 0

    def add(self, places: Tensor, steps: Tensor, changes: Tensor) -> None:
        """Keep the pairs of some problems, of which curvature can be learnt."""
        inner = (steps * changes).sum(dim=1)
        least = max(LEAST_CURVATURE, torch.finfo(inner.dtype).eps)
        useful = inner > least * steps.norm(dim=1) * changes.norm(dim=1)
        if len(places) == len(self.places) and bool(useful.all()):
            self.slots = [*self.slots, (steps, changes, inner)][-self.most :]
            return
        rows, count = self._rows(places[useful]), len(self.places)
        shape = (count, steps.shape[1])
        found: Slot = (steps.new_zeros(shape), steps.new_zeros(shape), steps.new_zeros(count))
        for part, value in zip(found, (steps, changes, inner), strict=True):
            part[rows] = value[useful]
        others = torch.ones(count, dtype=torch.bool, device=places.device)
        others[rows] = False
        self._append(found, others)

    def _append(self, found: Slot, others: Tensor) -> None:
        """Add a slot; problems that have nothing to add move up by one."""
        slots = [*self.slots, found]
        for newer, older in zip(reversed(slots[1:]), reversed(slots[:-1]), strict=True):
            for part, value in zip(newer, older, strict=True):
                part[others] = value[others]
        slots[0][2][others] = 0
        self.slots = slots[-self.most :]

    def drop(self, places: Tensor) -> None:
        """Forget the pairs of some problems."""
        rows = self._rows(places)
        for _, _, inner in self.slots:
            inner[rows] = 0

    def directions(self, places: Tensor, gradients: Tensor) -> Tensor:
        """Return minus the inverse Hessian's approximations times gradients [k, n]."""
        slots, shares = self._of(places), []
        vectors = gradients.clone()
        for steps, changes, inner in reversed(slots):
            share = _over((steps * vectors).sum(dim=1), inner)
            vectors.addcmul_(changes, share.unsqueeze(1), value=-1)
            shares.append(share)
        if slots:
            _, changes, inner = slots[-1]
            # Problems without a pair follow their gradient.
            scales = torch.where(inner > 0, _over(inner, changes.square().sum(dim=1)), 1)
            vectors *= scales.unsqueeze(1)
        for (steps, changes, inner), share in zip(slots, reversed(shares), strict=True):
            back = _over((changes * vectors).sum(dim=1), inner)
            vectors.addcmul_(steps, (share - back).unsqueeze(1))
        return vectors.neg_()

    def _rows(self, places: Tensor) -> Tensor:
        return torch.searchsorted(self.places, places)

    def _of(self, places: Tensor) -> list[Slot]:
        """Return the slots of some problems."""
        if len(places) == len(self.places):
            return self.slots
        rows = self._rows(places)
        return [(steps[rows], changes[rows], inner[rows]) for steps, changes, inner in self.slots]


def _over(numbers: Tensor, divisors: Tensor) -> Tensor:
    """Return quotients, and 0 where there is no pair and the divisor is 0."""
    used = divisors > 0
    return torch.where(used, numbers / torch.where(used, divisors, 1), 0)
