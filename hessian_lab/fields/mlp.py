"""The coordinate network."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.fields import ACTIVATIONS, FIELD_DEFAULTS, INITIALISATIONS
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
        activation: The nonlinearity after every hidden map.
        width: Units per hidden layer.
        depth: Hidden layers.
        octaves: Octaves of the positional encoding; 0 feeds the coordinates as they are.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        activation: Activation,
        *,
        width: int,
        depth: int,
        octaves: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.octaves = octaves
        sizes = [num_inputs * (1 + 2 * octaves), *[width] * depth, num_outputs]
        self.layers = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=dtype, device=device or "cpu")
            for fan_in, fan_out in pairwise(sizes)
        )

    @property
    def maps(self) -> list[nn.Linear]:
        """The linear maps, first to last."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, coords: Tensor) -> Tensor:
        """Return the values [p, c] at coordinates [p, d]."""
        *hidden, last = self.layers
        state = encode(coords, self.octaves)
        for layer in hidden:
            state = self.activation.value(layer(state))
        return last(state)  # type: ignore[no-any-return]


def make_field(
    name: str,
    num_inputs: int,
    num_outputs: int,
    *,
    width: int = 16,
    depth: int = 4,
    omega: float | None = None,
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
        omega: Angular frequency of sine, wavelet and sinc, per unit of pre-activation.
        sigma: Width of the Gaussian and of the wavelet, in units of pre-activation.
        octaves: Octaves of the encoding of relu_pe.
        init: One of ``INITIALISATIONS``.
        seed: Of the initialisation.
        dtype: Of the parameters; the initial numbers are the same in all, up to rounding.
        device: Of the parameters.

    Raises:
        ValueError: For an unknown name or a size, ω or σ out of range.
    """
    known("act", name, ACTIVATIONS)
    given = {"omega": omega, "sigma": sigma, "octaves": octaves, "init": init}
    chosen: dict[str, Any] = {
        key: default if given[key] is None else given[key]
        for key, default in FIELD_DEFAULTS[name].items()
    }
    known("init", chosen["init"], INITIALISATIONS)
    _check_sizes(num_inputs, num_outputs, width, depth)
    scales = {key: float(chosen[key]) for key in ("omega", "sigma") if key in chosen}
    for key, value in scales.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{key} must be positive and finite, got {value}.")
    num_octaves = chosen.get("octaves", 0)
    if num_octaves < 0:
        raise ValueError(f"octaves must be at least 0, got {num_octaves}.")
    field = CoordinateMLP(
        num_inputs,
        num_outputs,
        resolve(ACTIVATIONS[name])(**scales),
        width=width,
        depth=depth,
        octaves=num_octaves,
        dtype=dtype,
        device=device,
    )
    generator = torch.Generator().manual_seed(seed)
    initialise(field.maps, chosen["init"], omega=scales.get("omega"), generator=generator)
    return field


def _check_sizes(num_inputs: int, num_outputs: int, width: int, depth: int) -> None:
    lowest = {"num_inputs": 1, "num_outputs": 1, "width": 1, "depth": 0}
    sizes = {"num_inputs": num_inputs, "num_outputs": num_outputs, "width": width, "depth": depth}
    for name, size in sizes.items():
        if size < lowest[name]:
            raise ValueError(f"{name} must be at least {lowest[name]}, got {size}.")
