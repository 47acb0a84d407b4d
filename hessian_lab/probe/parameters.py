"""Which parameters a curvature matrix is of, and where each stands in its vectors."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from hessian_lab.names import suggestion


def selected_names(model: nn.Module, patterns: str | Sequence[str] | None) -> list[str]:
    """Return the names of the trainable parameters that match, in the model's order.

    Raises:
        TypeError: If a pattern is no string.
        ValueError: If a pattern matches none.
    """
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    if patterns is None:
        return names
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    strange = [pattern for pattern in wanted if not isinstance(pattern, str)]
    if strange:
        raise TypeError(
            f"parameters must be names or patterns, got {type(strange[0]).__name__}. "
            "They are those of model.named_parameters()."
        )
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"parameters must match names of trainable parameters, got {pattern!r}."
                f"{suggestion(pattern, names)} There are {_listed(names)}."
            )
    if not wanted:
        raise ValueError("parameters must name at least one parameter, got none.")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)]


class Layout:
    """Where named parameters stand in a flat vector.

    Attributes:
        slices: The place of each, in order.
        size: The length of the vector.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        parameters = dict(model.named_parameters())
        self.slices: dict[str, slice] = {}
        self.size = 0
        for name in names:
            stop = self.size + parameters[name].numel()
            self.slices[name] = slice(self.size, stop)
            self.size = stop

    def layers(self) -> dict[str, list[slice]]:
        """Return the places of each layer's parameters: those of one module are one layer.

        Those of the model itself are the layer ``model``.
        """
        groups: dict[str, list[slice]] = {}
        for name, place in self.slices.items():
            groups.setdefault(name.rpartition(".")[0] or "model", []).append(place)
        return groups


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
