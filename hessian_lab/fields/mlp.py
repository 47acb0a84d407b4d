"""The coordinate network."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.fields import ACTIVATIONS, FIELD_DEFAULTS, INITIALISATIONS, per_layer
from hessian_lab.fields.activations import Activation
from hessian_lab.fields.encoding import encode
from hessian_lab.fields.initialisation import initialise
from hessian_lab.names import known, resolve


class CoordinateMLP(nn.Module):
    """A coordinate network: ``depth`` hidden layers of ``width``, and a linear read-out.

    With ``depth = 0`` it is one linear map. Its parameters are ``layers.0.weight``,
    ``layers.0.bias``, ``layers.1.weight``, …; they are left unset, for ``make_field`` or the caller
    to fill, so that building a network never touches the global generator.

    Args:
        num_inputs: Coordinates per point ``d``.
        num_outputs: Channels ``c``.
        activation: The nonlinearity after every hidden map, or one for each, first to last.
        width: Units per hidden layer.
        depth: Hidden layers.
        octaves: Octaves of the positional encoding; 0 feeds the coordinates as they are.

    Attributes:
        activations: The nonlinearity of each hidden layer, first to last.

    Raises:
        ValueError: If there are several activations, but not one for each hidden layer.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        activation: Activation | Sequence[Activation],
        *,
        width: int,
        depth: int,
        octaves: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.activations = per_layer("activation", activation, depth)
        self.octaves = octaves
        sizes = [num_inputs * (1 + 2 * octaves), *[width] * depth, num_outputs]
        self.layers = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=dtype, device=device or "cpu")
            for fan_in, fan_out in pairwise(sizes)
        )

    @property
    def activation(self) -> Activation:
        """The nonlinearity, where all hidden layers have the same.

        Raises:
            ValueError: If they have not; ``activations`` has that of each.
        """
        kinds = set(self.activations)
        if len(kinds) != 1:
            raise ValueError(
                f"activation must be the same in all hidden layers, there are {len(kinds)}. "
                "Use activations, which has that of each."
            )
        return self.activations[0]

    @activation.setter
    def activation(self, activation: Activation) -> None:
        self.activations = (activation,) * len(self.activations)

    @property
    def maps(self) -> list[nn.Linear]:
        """The linear maps, first to last."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, coords: Tensor) -> Tensor:
        """Return the values [p, c] at coordinates [p, d]."""
        *hidden, last = self.layers
        state = encode(coords, self.octaves)
        for layer, activation in zip(hidden, self.activations, strict=True):
            state = activation.value(layer(state))
        return last(state)  # type: ignore[no-any-return]


def make_field(
    name: str,
    num_inputs: int,
    num_outputs: int,
    *,
    width: int = 16,
    depth: int = 4,
    omega: float | Sequence[float] | None = None,
    sigma: float | None = None,
    octaves: int | None = None,
    init: str | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> CoordinateMLP:
    """Return a coordinate network by the name of its activation, initialised from ``seed``.

    ``None`` takes the default of the field (``FIELD_DEFAULTS``); what a field does not have (the ω
    of a ReLU) is ignored. The global generator is neither read nor moved.

    Args:
        name: A key of ``ACTIVATIONS``: relu, relu_pe, sine, gaussian, wavelet, sinc, tanh.
        num_inputs: Coordinates per point.
        num_outputs: Channels.
        width: Units per hidden layer.
        depth: Hidden layers; 0 is one linear map.
        omega: Angular frequency of sine, wavelet and sinc, per unit of pre-activation; one number,
            or one for each hidden layer.
        sigma: Width of the Gaussian and of the wavelet, in units of pre-activation.
        octaves: Octaves of the encoding of relu_pe.
        init: One of ``INITIALISATIONS``.
        seed: Of the initialisation.
        dtype: Of the parameters; the initial numbers are the same in all, up to rounding.
        device: Of the parameters.

    Raises:
        ValueError: For an unknown name, a size, ω or σ out of range, or several ω that are not one
            for each hidden layer.
    """
    known("act", name, ACTIVATIONS)
    given = {"omega": omega, "sigma": sigma, "octaves": octaves, "init": init}
    chosen: dict[str, Any] = {
        key: default if given[key] is None else given[key]
        for key, default in FIELD_DEFAULTS[name].items()
    }
    known("init", chosen["init"], INITIALISATIONS)
    _check_sizes(num_inputs, num_outputs, width, depth)
    _check_scales(chosen)
    num_octaves = chosen.get("octaves", 0)
    if num_octaves < 0:
        raise ValueError(f"octaves must be at least 0, got {num_octaves}.")
    field = CoordinateMLP(
        num_inputs,
        num_outputs,
        _activations(name, chosen, depth),
        width=width,
        depth=depth,
        octaves=num_octaves,
        dtype=dtype,
        device=device,
    )
    generator = torch.Generator().manual_seed(seed)
    initialise(field.maps, chosen["init"], omega=chosen.get("omega"), generator=generator)
    return field


def _activations(name: str, chosen: dict[str, Any], depth: int) -> tuple[Activation, ...]:
    """Return the activation of each hidden layer; layers of one ω share theirs."""
    build = resolve(ACTIVATIONS[name])
    sigma = {"sigma": float(chosen["sigma"])} if "sigma" in chosen else {}
    if "omega" not in chosen:
        return (build(**sigma),) * depth
    omegas = [float(omega) for omega in per_layer("omega", chosen["omega"], depth)]
    made = {omega: build(omega=omega, **sigma) for omega in dict.fromkeys(omegas)}
    return tuple(made[omega] for omega in omegas)


def _check_scales(chosen: dict[str, Any]) -> None:
    for key in ("omega", "sigma"):
        given = chosen.get(key, ())
        for value in given if isinstance(given, tuple | list) else (given,):
            if not 0 < float(value) < float("inf"):
                raise ValueError(f"{key} must be positive and finite, got {float(value)}.")


def _check_sizes(num_inputs: int, num_outputs: int, width: int, depth: int) -> None:
    lowest = {"num_inputs": 1, "num_outputs": 1, "width": 1, "depth": 0}
    sizes = {"num_inputs": num_inputs, "num_outputs": num_outputs, "width": width, "depth": depth}
    for name, size in sizes.items():
        if size < lowest[name]:
            raise ValueError(f"{name} must be at least {lowest[name]}, got {size}.")
