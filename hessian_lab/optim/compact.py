"""The inverse Hessian of L-BFGS, and its square root, from the pairs that it keeps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hessian_lab.probe.operators import SymmetricOperator


def two_loop(
    steps: Sequence[Tensor], changes: Sequence[Tensor], inner: Sequence[Tensor], vector: Tensor
) -> Tensor:
    """Return ``M v`` [n], where ``M`` is the BFGS inverse Hessian of pairs, the oldest first.

    It starts from ``γ I`` with ``γ = sᵀy / yᵀy`` of the last pair. ``4 m n`` multiplications.

    Args:
        steps: The steps ``s`` [n], at least one.
        changes: How the gradient changed over each, ``y`` [n].
        inner: ``sᵀy`` of each, positive.
        vector: What to multiply [n].

    References:
        Nocedal & Wright (2006), Alg. 7.4.
    """
    result = vector.clone()
    weights = []
    for place in reversed(range(len(steps))):
        weight = steps[place].dot(result) / inner[place]
        weights.append(weight)
        result.addcmul_(changes[place], weight, value=-1)
    result.mul_(inner[-1] / changes[-1].dot(changes[-1]))
    for step, change, curvature, weight in zip(
        steps, changes, inner, reversed(weights), strict=True
    ):
        result.addcmul_(step, weight - change.dot(result) / curvature)
    return result


class CompactRoot(SymmetricOperator):
    """``√γ I + V diag(w) Vᵀ``: the square root of an L-BFGS inverse Hessian.

    With ``m`` pairs it takes ``2 m n`` numbers and ``4 m n`` multiplications per vector. Within
    the span of the pairs the root is found by a product form ``M = J Jᵀ``, each pair adding a
    rank-one factor, so that it is positive definite for any condition number of ``M`` whose root
    the precision can hold.

    Args:
        steps: The steps ``s`` [n], the oldest first, at least one.
        changes: How the gradient changed over each, ``y`` [n].
        indices: The order [n] in which to take the entries.

    References:
        Brodlie, Gourlay & Greenstadt (1973), Rank-one and rank-two corrections to positive
        definite matrices expressed in product form.
    """

    def __init__(self, steps: Sequence[Tensor], changes: Sequence[Tensor], indices: Tensor) -> None:
        pairs = torch.stack([*steps, *changes], dim=1).double()
        basis = torch.linalg.qr(pairs / torch.linalg.vector_norm(pairs, dim=0)).Q
        inside = basis.T @ pairs
        gamma = (pairs[:, len(steps) - 1] @ pairs[:, -1]) / pairs[:, -1].square().sum()
        root = gamma.sqrt()
        factor = _product_form(inside[:, : len(steps)], inside[:, len(steps) :], root)
        vectors, values, _ = torch.linalg.svd(factor)
        dtype = steps[0].dtype
        self.root = root.to(dtype)
        self.vectors = (basis @ vectors)[indices].to(dtype)
        self.weights = (values - root).to(dtype)
        super().__init__(len(indices), dtype, indices.device)

    def matmat(self, block: Tensor) -> Tensor:
        """Return ``√γ U + V diag(w) Vᵀ U`` [n, k]."""
        inside = self.weights.unsqueeze(1) * (self.vectors.T @ block)
        return torch.addmm(self.root * block, self.vectors, inside)

    def known_diagonal(self) -> Tensor:
        """Return the diagonal [n]."""
        diagonal: Tensor = self.root + self.vectors.square() @ self.weights
        return diagonal


def _product_form(steps: Tensor, changes: Tensor, root: Tensor) -> Tensor:
    """Return ``J`` [r, r] with ``J Jᵀ`` the BFGS inverse Hessian of pairs [r, m]."""
    factor = root * torch.eye(len(steps), dtype=steps.dtype, device=steps.device)
    for step, change in zip(steps.T, changes.T, strict=True):
        image, preimage = factor.T @ change, torch.linalg.solve(factor, step)
        curvature = step @ change
        weight = (curvature * preimage.square().sum()).rsqrt()
        factor = factor - torch.outer(step, image / curvature + weight * preimage)
    return factor
