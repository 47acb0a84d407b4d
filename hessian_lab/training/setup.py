"""What defines a training run. Importable without torch: the command line's flags come from it."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

from hessian_lab.errors import UsageError
from hessian_lab.fields import ACTIVATIONS, FIELD_DEFAULTS, INITIALISATIONS, per_layer
from hessian_lab.names import known
from hessian_lab.optim import DEFAULT_RATES, OPTIMIZERS, RECIPES
from hessian_lab.signals import SIGNALS, kind_of
from hessian_lab.signals.kinds import KINDS, OPTIONS, check_options, with_kind

DTYPES = ("float64", "float32")
DEFAULT_OPTIMIZER = "lbfgs"
MAX_TRAJECTORY_BYTES = 1 << 30
# What two runs may differ in and still be the same trajectory, up to rounding.
FREE = ("threads", "recipe")
# Options that came later: left out of JSON where they are None, so that older runs keep identity
# and name.
LATER = ("start", "seconds", "rate", "points", "views", "samples", "directions")
# Beyond 52 octaves a phase in double precision has no correct digit.
HIGHEST = {"octaves": 52, "seed": (1 << 63) - 1, "threads": 1024}
# Scales of pre-activations whose squares stay far from the ends of floating point.
SCALES = (1e-30, 1e30)


def flag(default: Any, help_text: str, **metadata: Any) -> Any:
    """Return a dataclass field with what the command line says of it."""
    factory = {"default_factory": default} if callable(default) else {"default": default}
    return field(**factory, metadata={"help": help_text, **metadata})


@dataclass(frozen=True)
class Setup:
    """One training run; every field is also a flag of the command line.

    ``None`` takes the default of the field, signal or optimizer that is named. Nothing is checked
    until ``resolved``.
    """

    signal: str = flag(
        "camera",
        "a named signal, or the path of an image, sound, mesh, video, folder of frames or of posed "
        "pictures",
        names=SIGNALS,
    )
    size: int | None = flag(
        None,
        "pixels per side (50), points of a 1-D signal (256), rows of a video (90) or scene (100)",
    )
    start: float | None = flag(None, "second at which the clip of a sound or video begins (0)")
    seconds: float | None = flag(None, "length of the clip, to its end at most (1)")
    rate: int | None = flag(
        None, "samples per second to which a sound is resampled (8000), frames of a video (16)"
    )
    points: int | None = flag(
        None, "points in the box of a shape, most near its surface (30000); rays of a scene (2048)"
    )
    views: int | None = flag(None, "pictures of a scene that rays are drawn from (all)")
    samples: int | None = flag(None, "points along each ray of a scene (32)")
    directions: int | None = flag(
        None, "1: colours of a scene depend on the direction of view, by a head of their own (0)"
    )
    act: str = flag("relu_pe", "activation of the field", names=ACTIVATIONS)
    width: int = flag(16, "units per hidden layer")
    depth: int = flag(4, "hidden layers")
    omega: float | tuple[float, ...] | None = flag(
        None,
        "angular frequency of sine (30), wavelet and sinc (10); one, or one for each hidden layer: "
        "3000,3000,30,30",
        grid="angular frequency of sine (30), wavelet and sinc (10); those of the layers of one "
        "field joined with /: 30,3000/3000/30/30",
    )
    sigma: float | None = flag(None, "width of gaussian (0.1) and wavelet (0.0707)")
    octaves: int | None = flag(None, "octaves of the encoding of relu_pe (8)")
    init: str | None = flag(
        None, "initialisation (siren for sine, else kaiming)", names=INITIALISATIONS
    )
    optimizer: str | None = flag(None, "optimizer (default lbfgs)", names=OPTIMIZERS)
    recipe: str | None = flag(
        None,
        "a paper's optimizer with its rate and options: hessian-lab list recipes",
        names=RECIPES,
    )
    lr: float | None = flag(None, "learning rate (that of hessian-lab list optimizers)")
    lr_final: float | None = flag(None, "learning rate of the last step, reached exponentially")
    options: Mapping[str, Any] = flag(
        dict, "an option of the optimizer, such as history_size=20; repeatable", flag="--set"
    )
    steps: int = flag(50, "optimizer steps")
    checkpoint_every: int | None = flag(
        None, "steps between checkpoints (as few as keep the trajectory under 1 GiB)"
    )
    batch_size: int | None = flag(None, "points per step (all)")
    seed: int = flag(0, "seed of the initialisation and of the batches")
    dtype: str = flag("float64", "precision of the training", names=DTYPES)
    device: str = flag(
        "cpu",
        "cpu, cuda, cuda:1, … or auto: cuda if there is one; small fields are faster on cpu",
    )
    threads: int | None = flag(None, "CPU threads (torch's default)")

    def resolved(self) -> "Setup":
        """Return the run with every default filled in and every value checked.

        What field or signal do not have (the ω of a ReLU, the rate of an image) becomes None, and
        an ω that all layers share one number, so that two ways of asking for one run are equal.

        Raises:
            UsageError: For an unknown name or a value out of range.
        """
        try:
            return self._resolved()
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(str(error)) from None

    def _resolved(self) -> "Setup":
        asked = KINDS[kind_of(self.signal)].options
        known("act", self.act, ACTIVATIONS)
        known("dtype", self.dtype, DTYPES)
        name, rate, options = self._chosen_optimizer()
        defaults = FIELD_DEFAULTS[self.act]
        filled: dict[str, Any] = {
            name: _or(getattr(self, name), defaults[name]) if name in defaults else None
            for name in ("omega", "sigma", "octaves", "init")
        }
        known("init", filled["init"], INITIALISATIONS)
        self._check_ranges()
        filled["omega"] = self._shared(filled["omega"])
        filled |= {
            name: _or(getattr(self, name), asked[name]) if name in asked else None
            for name in OPTIONS
        }
        return replace(
            self,
            **filled,
            signal=with_kind(self.signal),
            optimizer=name,
            lr=_or(self.lr, rate),
            lr_final=_or(self.lr_final, self._final_rate()),
            options=options,
        )

    def _shared(self, omega: Any) -> float | tuple[float, ...] | None:
        """Return one ω where all layers have the same, else that of each."""
        if not isinstance(omega, tuple | list):
            return omega  # type: ignore[no-any-return]
        values: tuple[float, ...] = per_layer("omega", tuple(map(float, omega)), self.depth)
        return values[0] if len(set(values)) == 1 else values

    def _chosen_optimizer(self) -> tuple[str, float, Mapping[str, Any]]:
        """Return the optimizer's name, its default rate and its options, the recipe's included."""
        if self.recipe is None:
            name = known("optimizer", _or(self.optimizer, DEFAULT_OPTIMIZER), OPTIMIZERS)
            return name, DEFAULT_RATES[name], self.options
        recipe = RECIPES[known("recipe", self.recipe, RECIPES)]
        if self.optimizer not in (None, recipe.optimizer):
            raise UsageError(
                f"recipe {self.recipe} is one of {recipe.optimizer}, not of {self.optimizer}: "
                "leave one of the two out."
            )
        return recipe.optimizer, recipe.lr, {**recipe.options, **self.options}

    def _final_rate(self) -> float | None:
        """Return the recipe's last rate, in proportion to a first one of one's own."""
        recipe = None if self.recipe is None else RECIPES[self.recipe]
        if recipe is None or recipe.lr_final is None:
            return None
        return float(recipe.lr_final * _or(self.lr, recipe.lr) / recipe.lr)

    def _check_ranges(self) -> None:
        lowest = {
            "width": 1,
            "depth": 0,
            "octaves": 0,
            "steps": 0,
            "checkpoint_every": 1,
            "batch_size": 1,
            "seed": 0,
            "threads": 1,
        }
        for name, bound in lowest.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UsageError(f"{name} must be at least {bound}, got {value}.")
        for name, bound in HIGHEST.items():
            value = getattr(self, name)
            if value is not None and value > bound:
                raise UsageError(f"{name} must be at most {bound}, got {value}.")
        for name in ("omega", "sigma", "lr", "lr_final"):
            for value in _each(getattr(self, name)):
                if not 0 < value < math.inf:
                    raise UsageError(f"{name} must be positive and finite, got {value:g}.")
                if name in ("omega", "sigma") and not SCALES[0] <= value <= SCALES[1]:
                    raise UsageError(
                        f"{name} must be in [{SCALES[0]:g}, {SCALES[1]:g}], got {value:g}."
                    )
        check_options({name: getattr(self, name) for name in OPTIONS})

    def ignored(self) -> dict[str, str]:
        """Return what was given but does not exist, each with the field or signal that lacks it.

        Raises:
            ValueError: For an unknown signal.
        """
        field, signal = FIELD_DEFAULTS.get(self.act, {}), KINDS[kind_of(self.signal)].options
        owners = {name: self.act for name in ("omega", "sigma", "octaves") if name not in field}
        owners |= {name: self.signal for name in OPTIONS if name not in signal}
        return {name: owner for name, owner in owners.items() if getattr(self, name) is not None}

    @property
    def excerpt(self) -> dict[str, Any]:
        """What the signal is asked for: the options of its kind."""
        return {name: getattr(self, name) for name in KINDS[kind_of(self.signal)].of_signal}

    def with_checkpoints(self, size: int) -> "Setup":
        """Return the run with ``checkpoint_every`` filled in for ``size`` parameters."""
        if self.checkpoint_every is not None:
            return self
        row = size * (8 if self.dtype == "float64" else 4)
        rows = max(1, MAX_TRAJECTORY_BYTES // row - 1)
        return replace(self, checkpoint_every=max(1, math.ceil(self.steps / rows)))

    @property
    def num_checkpoints(self) -> int:
        """How many iterates a run keeps: the first, every K-th, and the last."""
        return 1 + math.ceil(self.steps / (self.checkpoint_every or 1))

    def num_parameters(self, num_inputs: int, num_outputs: int) -> int:
        """Return the parameters of the field of a resolved setup."""
        width, depth, bands = self.width, self.depth, 1 + 2 * (self.octaves or 0)
        if self.samples is None:
            return _num_parameters(num_inputs * bands, num_outputs, width, depth)
        if not self.directions:
            return _num_parameters(3 * bands, 4, width, depth)
        head = _num_parameters(width + 3, 3, max(1, width // 2), 1)
        return _num_parameters(3 * bands, 1 + width, width, depth) + head

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON holds them, without those of ``LATER`` that are None."""
        entries = asdict(self) | {"options": dict(self.options)}
        return {
            name: value for name, value in entries.items() if name not in LATER or value is not None
        }


def setup_from_json(entries: Mapping[str, Any]) -> Setup:
    """Return the setup that ``to_json`` wrote."""
    names = {entry.name for entry in fields(Setup)}
    known = {name: value for name, value in entries.items() if name in names}
    # JSON knows lists alone; the options of optimizers and the ω of layers are tuples.
    options = known.get("options", {})
    known["options"] = {name: _frozen(value) for name, value in options.items()}
    return Setup(**{name: _frozen(value) for name, value in known.items()})


def identity(setup: Setup, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return what defines a trajectory: the setup but for ``FREE``, and what else feeds it."""
    entries = {name: value for name, value in setup.to_json().items() if name not in FREE}
    return entries | dict(extra)


def digest(entries: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits that stand for an identity."""
    text = json.dumps(entries, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _num_parameters(num_inputs: int, num_outputs: int, width: int, depth: int) -> int:
    """Return the parameters of a network, biases included."""
    sizes = [num_inputs, *[width] * depth, num_outputs]
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(sizes))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _each(value: Any) -> tuple[float, ...]:
    """Return the numbers of an option that is one, several or none."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
