"""Losses: means over points, for fields and for the Hessian."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

# Maps predictions [p, c] and values [p, c] to a scalar.
Loss = Callable[[Tensor, Tensor], Tensor]


def mse(predictions: Tensor, values: Tensor) -> Tensor:
    """Return 1/p Σᵢ ½ |fᵢ - yᵢ|²: summed over channels, averaged over points, with the ½.

    ``torch.nn.MSELoss`` averages over channels too and has no ½: for c channels it is 2/c of this,
    and so is every eigenvalue.
    """
    return (predictions - values).square().sum(dim=-1).mean() / 2


def bce(predictions: Tensor, values: Tensor) -> Tensor:
    """Return the binary cross-entropy with logits, summed over channels, averaged over points."""
    entropy = binary_cross_entropy_with_logits(predictions, values, reduction="none")
    return entropy.sum(dim=-1).mean()


# The losses that a run record knows by name.
LOSSES: dict[str, Loss] = {"mse": mse, "bce": bce}
