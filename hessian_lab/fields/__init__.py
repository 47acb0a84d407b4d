"""Coordinate networks: activations, encodings, initialisations and the network itself."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# name -> the function that builds the activation from (omega, sigma); resolved on use, so that the
# command line can name them without importing torch.
ACTIVATIONS = {
    "relu": "hessian_lab.fields.activations:relu",
    "relu_pe": "hessian_lab.fields.activations:relu",
    "sine": "hessian_lab.fields.activations:sine",
    "gaussian": "hessian_lab.fields.activations:gaussian",
    "wavelet": "hessian_lab.fields.activations:wavelet",
    "sinc": "hessian_lab.fields.activations:sinc",
    "tanh": "hessian_lab.fields.activations:tanh",
}

# The hyperparameters that a field of each name has, with the values they take when none is given.
FIELD_DEFAULTS: dict[str, dict[str, float | int | str]] = {
    "relu": {"init": "kaiming"},
    "relu_pe": {"init": "kaiming", "octaves": 8},
    "sine": {"init": "siren", "omega": 30.0},
    "gaussian": {"init": "kaiming", "sigma": 0.1},
    "wavelet": {"init": "kaiming", "omega": 10.0, "sigma": 0.0707},
    "sinc": {"init": "kaiming", "omega": 10.0},
    "tanh": {"init": "kaiming"},
}

INITIALISATIONS = ("siren", "kaiming", "xavier_normal")


def per_layer(name: str, value: T | Sequence[T], depth: int) -> tuple[T, ...]:
    """Return one value for each hidden layer, of one for all or a sequence of one for each.

    Raises:
        ValueError: If a sequence has another length than ``depth``.
    """
    if not isinstance(value, tuple | list):
        return (value,) * depth  # type: ignore[return-value]
    if len(value) != depth:
        raise ValueError(
            f"{name} must be one for all hidden layers, or one for each of {depth}, "
            f"got {len(value)}."
        )
    return tuple(value)
