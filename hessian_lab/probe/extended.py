"""The Hessian of a field in interval arithmetic, and what its condition number really is.

The blocks of ``closed_form`` once more, with balls for numbers: parameters, coordinates and values
are taken as the exact doubles that they are, every function is the mathematical one, and each entry
comes with a bound of its error. Needs python-flint, the extra ``exact``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import torch

from hessian_lab.errors import UsageError
from hessian_lab.fields import per_layer
from hessian_lab.fields.mlp import CoordinateMLP
from hessian_lab.losses import Loss, bce, mse
from hessian_lab.names import known
from hessian_lab.probe.closed_form import Slot, slots_of
from hessian_lab.probe.conditioning import ConditionEnclosure
from hessian_lab.probe.enclosures import (
    PRECISIONS,
    ScalingName,
    UndecidedError,
    arb,
    arb_mat,
    condition_enclosures,
)
from hessian_lab.probe.hessian import has_closed_form
from hessian_lab.probe.linearized import MATRICES, Matrix
from hessian_lab.signal import Signal

# Outputs in double precision and in balls agree to this part of the largest, or the activation is
# not the one that was named; float64 alone loses far less.
OUTPUT_RTOL = 1e-6

Jet = tuple[arb, arb, arb]
Panels = dict[tuple[int, int], tuple[list[list[arb]], list[list[arb]]]]


@dataclass(frozen=True)
class Formula:
    """An activation by name and parameters, since a network holds only its code.

    Attributes:
        act: One of ``JETS``.
        omega: ω of sine and wavelet; one, or one for each hidden layer.
        sigma: σ of gaussian and wavelet.
    """

    act: str
    omega: float | tuple[float, ...] | None = None
    sigma: float | None = None

    def __post_init__(self) -> None:
        known("act", self.act, JETS)
        for name in NEEDS.get(self.act, ()):
            if getattr(self, name) is None:
                raise ValueError(f"{name} must be given for {self.act}, got None.")

    def jet(self, z: arb, layer: int = 0) -> Jet:
        """Return φ(z), φ′(z), φ″(z) of a hidden layer, counted from 0."""
        omega = self.omega[layer] if isinstance(self.omega, tuple) else self.omega
        return JETS[self.act](z, arb(omega or 0), arb(self.sigma or 0))


def exact_condition_numbers(
    model: CoordinateMLP,
    loss: Loss,
    signal: Signal,
    formula: Formula,
    *,
    matrix: Matrix = "hessian",
    rtol: float = 1e-6,
    precisions: Iterable[int] = PRECISIONS,
) -> dict[ScalingName, ConditionEnclosure]:
    """Return proven intervals of κ of the Hessian, equilibrated and Jacobi-scaled too.

    Seconds at 300 parameters and 300 points, growing as ``n³`` and ``p n²``. See
    ``condition_enclosures`` for what is proven, of the Hessian at exactly these parameters.

    Args:
        model: A field in float64.
        loss: ``mse`` or ``bce``.
        signal: The points, in float64.
        formula: The activation of ``model``.
        matrix: ``hessian``, or ``ggn`` for the Gauss–Newton matrix.
        rtol: How wide an interval of κ may be, relative to κ.
        precisions: Working precisions in bits, tried in turn.

    Raises:
        UsageError: For another module, loss or precision.
        ValueError: If ``formula`` is not the activation of ``model``.
    """
    known("matrix", matrix, MATRICES)
    require_exact(model, loss)
    if any(each.dtype != torch.float64 for each in (signal.coords, *model.parameters())):
        raise UsageError("precision extended needs model and signal in float64.")
    return condition_enclosures(
        lambda: interval_hessian(model, loss, signal, formula, matrix=matrix),
        rtol=rtol,
        precisions=precisions,
    )


def require_exact(model: torch.nn.Module, loss: Loss) -> None:
    """Check that a Hessian can be had in interval arithmetic.

    Raises:
        UsageError: If it cannot.
    """
    if not has_closed_form(model):
        raise UsageError(
            "precision extended needs a CoordinateMLP as it was built; use precision double."
        )
    if loss not in (mse, bce):
        raise UsageError("precision extended needs the loss mse or bce; use precision double.")


def interval_hessian(
    model: CoordinateMLP,
    loss: Loss,
    signal: Signal,
    formula: Formula,
    *,
    matrix: Matrix = "hessian",
) -> arb_mat:
    """Return balls that hold the entries of the Hessian [n, n], at the working precision.

    About ``p n²`` operations; see ``closed_form`` for the blocks.

    Raises:
        ValueError: If ``formula`` is not the activation of ``model``.
        UndecidedError: If the sign of a ReLU's argument is not decided.
    """
    field = _Field(model, formula)
    points = [field.inputs_of(point) for point in signal.coords.tolist()]
    runs = [field.run(point) for point in points]
    _require_same(model, signal, [run.outputs for run in runs])
    sums = _Sums(field.slots)
    for run, values in zip(runs, signal.values.tolist(), strict=True):
        slope, curvature = _loss_jet(loss, run.outputs, values, len(runs))
        sums.add(field, run, slope, curvature, bent=matrix == "hessian")
    return sums.matrix()


@dataclass(frozen=True)
class _Forward:
    """One point, run forward; the index of each list is the map."""

    inputs: list[list[arb]]  # ã, a 1 appended
    slopes: list[list[arb]]  # φ′, hidden maps only
    seconds: list[list[arb]]  # φ″, likewise
    outputs: list[arb]


class _Field:
    """The weights of a field as exact numbers."""

    def __init__(self, model: CoordinateMLP, formula: Formula) -> None:
        # What has another length is no formula of this field.
        per_layer("omega", formula.omega, len(model.maps) - 1)
        self.formula = formula
        self.octaves = model.octaves
        self.slots = slots_of(model)
        self.weights = [arb_mat(layer.weight.tolist()) for layer in model.maps]
        self.biases = [[arb(bias) for bias in layer.bias.tolist()] for layer in model.maps]

    def inputs_of(self, point: list[float]) -> list[arb]:
        """Return the encoded coordinates of a point, in the order of ``encode``."""
        coords = [arb(coord) for coord in point]
        waves = list(coords)
        for octave in range(self.octaves):
            pairs = [(coord * 2**octave).sin_cos_pi() for coord in coords]
            waves += [sine for sine, _ in pairs] + [cosine for _, cosine in pairs]
        return waves

    def run(self, state: list[arb]) -> _Forward:
        """Run one encoded point forward."""
        inputs, slopes, seconds = [], [], []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            inputs.append([*state, arb(1)])
            sums = (weight * _column(state)).entries()
            state = [total + offset for total, offset in zip(sums, bias, strict=True)]
            if len(inputs) < len(self.weights):
                jets = [self.formula.jet(z, len(inputs) - 1) for z in state]
                state = [jet[0] for jet in jets]
                slopes.append([jet[1] for jet in jets])
                seconds.append([jet[2] for jet in jets])
        return _Forward(inputs, slopes, seconds, state)


class _Sums:
    """Panels of pairs of factors, a row per point; each block is a product of two panels."""

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots
        self.curved: Panels = {}
        self.crossed: Panels = {}

    def add(
        self, field: _Field, run: _Forward, slope: list[arb], bend: arb_mat, *, bent: bool
    ) -> None:
        """Add one point, from ∂L/∂f and ∂²L/∂f²; without φ″ and cross-layer terms for the GGN."""
        delta = slope
        for i in range(len(self.slots) - 1, -1, -1):
            self._keep(self.curved, (i, i), bend, run.inputs[i], run.inputs[i])
            if not i:
                return
            weight, diagonal = field.weights[i], _diagonal(run.slopes[i - 1])
            # R = ∂a/∂z of the maps i-1 and j, and S W R, for every j < i.
            walked = diagonal
            for j in range(i - 1, -1, -1):
                self._keep(
                    self.curved, (i, j), bend * weight * walked, run.inputs[i], run.inputs[j]
                )
                if bent:
                    self._keep(self.crossed, (i, j), walked, delta, run.inputs[j])
                if j:
                    walked = walked * field.weights[j] * _diagonal(run.slopes[j - 1])
            arriving = (weight.transpose() * _column(delta)).entries()
            delta = [part * first for part, first in zip(arriving, run.slopes[i - 1], strict=True)]
            bend = diagonal * (weight.transpose() * bend * weight) * diagonal
            if bent:
                terms = [a * b for a, b in zip(arriving, run.seconds[i - 1], strict=True)]
                bend = bend + _diagonal(terms)

    def _keep(
        self,
        panels: Panels,
        place: tuple[int, int],
        left: arb_mat,
        first: list[arb],
        second: list[arb],
    ) -> None:
        rows = panels.setdefault(place, ([], []))
        rows[0].append(left.entries())
        rows[1].append([a * b for a, b in product(first, second)])

    def matrix(self) -> arb_mat:
        """Return the whole matrix, every block with its mirror image."""
        size = self.slots[-1].bias.stop
        entries = [[arb(0)] * size for _ in range(size)]
        for i, j in list(self.curved):
            self._write(entries, i, j)
        return arb_mat(entries)

    def _write(self, entries: list[list[arb]], i: int, j: int) -> None:
        high, low = self.slots[i], self.slots[j]
        curved = _product(self.curved.pop((i, j)))
        crossed = _product(self.crossed.pop((i, j))) if (i, j) in self.crossed else None
        width = low.fan_in + 1
        for r, s in product(range(high.fan_out), range(high.fan_in + 1)):
            row = _place(high, r, s)
            for other, t in product(range(low.fan_out), range(width)):
                value = curved[r * low.fan_out + other, s * width + t]
                if crossed is not None and s < high.fan_in:
                    value += crossed[s * low.fan_out + other, r * width + t]
                column = _place(low, other, t)
                entries[row][column] = entries[column][row] = value


def _place(slot: Slot, unit: int, entry: int) -> int:
    """Return where an entry of ``W̃`` stands among the flat parameters."""
    if entry == slot.fan_in:
        return int(slot.bias.start + unit)
    return slot.start + unit * slot.fan_in + entry


def _product(panels: tuple[list[list[arb]], list[list[arb]]]) -> arb_mat:
    left, right = (arb_mat(panel) for panel in panels)
    return left.transpose() * right


def _column(entries: list[arb]) -> arb_mat:
    return arb_mat(len(entries), 1, entries)


def _diagonal(entries: list[arb]) -> arb_mat:
    matrix = arb_mat(len(entries), len(entries))
    for place, entry in enumerate(entries):
        matrix[place, place] = entry
    return matrix


def _loss_jet(
    loss: Loss, outputs: list[arb], values: list[float], num_points: int
) -> tuple[list[arb], arb_mat]:
    """Return ∂L/∂f and ∂²L/∂f² of one point, the mean over points included."""
    if loss is mse:
        slope = [
            (output - value) / num_points for output, value in zip(outputs, values, strict=True)
        ]
        return slope, _diagonal([arb(1) / num_points] * len(outputs))
    odds = [1 / (1 + (-output).exp()) for output in outputs]
    slope = [(odd - value) / num_points for odd, value in zip(odds, values, strict=True)]
    return slope, _diagonal([odd * (1 - odd) / num_points for odd in odds])


def _require_same(model: CoordinateMLP, signal: Signal, outputs: list[list[arb]]) -> None:
    """Check that the field computes what the formula does."""
    with torch.no_grad():
        found = model(signal.coords).cpu()
    exact = torch.tensor([[float(output) for output in row] for row in outputs], dtype=found.dtype)
    if not (found - exact).abs().max() <= OUTPUT_RTOL * exact.abs().max().clamp(min=1):
        raise ValueError("formula must be the activation of the model: their outputs differ.")


def _sine(z: arb, omega: arb, _sigma: arb) -> Jet:
    wave, cosine = (z * omega).sin_cos()
    return wave, omega * cosine, -omega * omega * wave


def _gaussian(z: arb, _omega: arb, sigma: arb) -> Jet:
    precision = 1 / (sigma * sigma)
    bell = (-precision / 2 * z * z).exp()
    slope = -precision * z * bell
    return bell, slope, -precision * (bell + z * slope)


def _wavelet(z: arb, omega: arb, sigma: arb) -> Jet:
    bell, first, second = _gaussian(z, omega, sigma)
    wave, cosine = (z * omega).sin_cos()
    even, odd = cosine * bell, omega * wave
    bend = cosine * second - 2 * odd * first - omega * omega * even
    return even, cosine * first - odd * bell, bend


def _tanh(z: arb, _omega: arb, _sigma: arb) -> Jet:
    value = z.tanh()
    slope = 1 - value * value
    return value, slope, -2 * value * slope


def _relu(z: arb, _omega: arb, _sigma: arb) -> Jet:
    if z > 0:
        return z, arb(1), arb(0)
    if z < 0 or z.is_zero():
        return arb(0), arb(0), arb(0)
    raise UndecidedError("the sign of a ReLU's argument is not decided")


JETS: dict[str, Callable[[arb, arb, arb], Jet]] = {
    "sine": _sine,
    "gaussian": _gaussian,
    "wavelet": _wavelet,
    "tanh": _tanh,
    "relu": _relu,
    "relu_pe": _relu,
}
NEEDS = {"sine": ("omega",), "gaussian": ("sigma",), "wavelet": ("omega", "sigma")}
