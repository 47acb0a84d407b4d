"""A run directory, read back."""

import copy
import hashlib
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from hessian_lab.errors import InputError
from hessian_lab.fields.mlp import CoordinateMLP, make_field
from hessian_lab.fields.radiance import RadianceField, make_radiance_field
from hessian_lab.losses import LOSSES, Loss
from hessian_lab.signal import Signal, Source
from hessian_lab.signals import load_signal
from hessian_lab.training.devices import usable_device
from hessian_lab.training.files import read_json, write_atomically
from hessian_lab.training.setup import Setup, setup_from_json
from hessian_lab.training.trajectory import read_trajectory

FORMAT_VERSION = 1
RECORD, RESUME, METRICS, SIGNAL = "run.json", "resume.pt", "metrics.csv", "signal.npz"
# What measurements leave beside a trajectory.
# What may be measured of a run: method, matrix and layers are told by the name.
KINDS = tuple(
    f"{method}{matrix}{layers}{preconditioned}"
    for method in ("", "-lanczos", "-slq")
    for matrix in ("", "-ggn")
    for layers in ("", "-layers")
    for preconditioned in ("", "-preconditioned")
)
RESULTS = (
    *(
        f"{name}{kind}{ending}"
        for kind in KINDS
        for name, ending in (
            ("eigenvalues", ".npy"),
            ("spectrum", ".csv"),
            ("eigs", ".json"),
            ("trace", ".json"),
            ("figures/eigenvalues", ".png"),
            ("figures/eigenvalues", ".pdf"),
            ("figures/density", ".png"),
            ("figures/density", ".pdf"),
        )
    ),
    *("sparsity.json", "sparsity-dense.json", "figures/sparsity.png", "figures/sparsity.pdf"),
    *(
        f"{name}{precision}{kind}{ending}"
        for precision in ("", "-extended")
        for kind in ("", "-ggn", "-layers", "-ggn-layers")
        for name, ending in (
            ("cond", ".json"),
            ("figures/conditioning", ".png"),
            ("figures/conditioning", ".pdf"),
        )
    ),
    *("derivatives.npz", "figures/derivatives.png", "figures/derivatives.pdf"),
    *("fitted.wav", "error.wav"),
    *("fitted.ply", "figures/shape.png", "figures/shape.pdf"),
    *("views.csv", "turntable.gif", "figures/views.png", "figures/views.pdf"),
    *("fitted.gif", "video.csv", "figures/video.png", "figures/video.pdf"),
    "report.html",
)
REQUIRED = (
    "id",
    "status",
    "setup",
    "identity",
    "module",
    "own_module",
    "loss",
    "own_loss",
    "shape",
    "num_parameters",
    "data",
    "provenance",
    "total_wall_s",
)
# What an optimizer tells of itself, NaN where it does not.
DIAGNOSTICS = (
    "products",
    "curvature_updates",
    "skipped",
    "scale_min",
    "scale_median",
    "scale_max",
)
COLUMNS = (
    "step",
    "wall_s",
    "evaluations",
    "step_length",
    "loss",
    "psnr",
    "snr",
    "grad_norm",
    *DIAGNOSTICS,
)
# Columns that came later: runs without them have NaN there.
LATER_COLUMNS = ("snr",)


@dataclass(frozen=True, eq=False)
class Run:
    """One training run on disk. It may be moved: nothing in it names its place.

    Attributes:
        path: The run directory.
        setup: What was asked for, defaults filled in.
        record: ``run.json``: setup, provenance, data, status.
        steps: The optimizer steps of the checkpoints that are there, ascending; the first is 0.
        device: Where models and signal are put; by default where it was trained.
        metrics: One row per checkpoint: step, wall_s (s), evaluations, step_length (‖Δθ‖ of the
            last step), and loss, psnr (dB), snr (dB), grad_norm of the whole signal.
    """

    path: Path
    setup: Setup
    record: dict[str, Any]
    steps: list[int]
    metrics: pd.DataFrame
    device: str = "cpu"
    module: nn.Module | None = field(default=None, repr=False)
    own_loss: Loss | None = field(default=None, repr=False)

    @property
    def num_parameters(self) -> int:
        """The number of parameters ``n``."""
        return int(self.record["num_parameters"])

    @property
    def diverged(self) -> str | None:
        """How training diverged, or None if it did not."""
        return read_resume(self.path).get("diverged")

    @property
    def complete(self) -> bool:
        """Whether training went to its last step."""
        return self.steps[-1] == self.setup.steps

    @property
    def trajectory(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The parameters [checkpoints, n], memory-mapped, in the training's precision."""
        return read_trajectory(self.path, len(self.steps))

    def signal(self) -> Signal:
        """Return the signal that was fitted, in the training's precision, on ``device``.

        Raises:
            InputError: If the data are no longer those that were fitted.
        """
        target = {"dtype": getattr(torch, self.setup.dtype), "device": self.device}
        if (self.path / SIGNAL).exists():
            signal = _read_signal(self.path / SIGNAL)
        else:
            signal = load_signal(self.setup.signal, **self.setup.excerpt)
        found = data_digest(signal)
        if found != self.record["data"]["sha256_points"]:
            raise InputError(
                f"signal must be the one that was fitted, {self.record['data']['name']} is not: "
                f"its points have SHA-256 {found[:12]}…."
            )
        loss = self.own_loss or LOSSES.get(self.record["loss"], signal.loss)
        return replace(signal.to(**target), loss=loss)

    @property
    def loss(self) -> Loss:
        """The loss that was minimized.

        Raises:
            InputError: If it was a user's own, which a run directory does not hold.
        """
        if self.own_loss is not None:
            return self.own_loss
        if self.record["own_loss"]:
            raise InputError(
                f"run {self.path} was trained with a loss of yours, {self.record['loss']}. "
                "Pass it: load_run(path, loss=…)."
            )
        return LOSSES[self.record["loss"]]

    def model(self, step: int) -> nn.Module:
        """Return a fresh model with the parameters of the checkpoint at an optimizer step.

        Raises:
            ValueError: If there is no checkpoint at this step.
            InputError: If the module was a user's own, which a run directory does not hold.
        """
        if step not in self.steps:
            raise ValueError(f"step must be a checkpoint ({self._listed()}), got {step}.")
        row = np.array(self.trajectory[self.steps.index(step)])
        model = self._blank()
        fill(model, torch.from_numpy(row))
        return model

    def _listed(self) -> str:
        shown = [str(step) for step in self.steps]
        return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "…", shown[-1]])

    def _blank(self) -> nn.Module:
        if self.module is not None:
            target = {"dtype": getattr(torch, self.setup.dtype), "device": self.device}
            return copy.deepcopy(self.module).to(**target)
        if self.record["own_module"]:
            raise InputError(
                f"run {self.path} was trained on a module of yours, {self.record['module']}. "
                "Pass it: load_run(path, model=…)."
            )
        return field_of(replace(self.setup, device=self.device), *self.record["shape"])


def field_of(setup: Setup, num_inputs: int, num_outputs: int) -> CoordinateMLP | RadianceField:
    """Return the freshly initialised field that a resolved setup describes."""
    if setup.samples is None:
        return network_of(setup, num_inputs, num_outputs)
    return make_radiance_field(
        setup.act,
        samples=setup.samples,
        directions=bool(setup.directions),
        **_options(setup),
    )


def network_of(setup: Setup, num_inputs: int, num_outputs: int) -> CoordinateMLP:
    """Return the freshly initialised coordinate network of a resolved setup."""
    return make_field(setup.act, num_inputs, num_outputs, **_options(setup))


def _options(setup: Setup) -> dict[str, Any]:
    names = ("width", "depth", "omega", "sigma", "octaves", "init", "seed", "device")
    options = {name: getattr(setup, name) for name in names}
    return options | {"dtype": getattr(torch, setup.dtype)}


def fill(model: nn.Module, parameters: Tensor) -> None:
    """Copy a flat vector [n] into a model, in the order of ``named_parameters()``."""
    with torch.no_grad():
        start = 0
        for value in model.parameters():
            part = parameters[start : start + value.numel()]
            value.copy_(part.view_as(value))
            start += value.numel()


def flat(model: nn.Module) -> Tensor:
    """Return the parameters as one vector [n], in the order of ``named_parameters()``."""
    return torch.cat([value.detach().reshape(-1) for value in model.parameters()])


def checkpoint_steps(setup: Setup) -> list[int]:
    """Return the steps at which a run keeps its parameters; the last step is always one."""
    every = setup.checkpoint_every or 1
    steps = list(range(0, setup.steps + 1, every))
    return steps if steps[-1] == setup.steps else [*steps, setup.steps]


def load_run(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    device: str | None = None,
) -> Run:
    """Return a run from its directory, also while it is being trained or after it was killed.

    Args:
        path: A run directory.
        model: The module, where it was a user's own; its parameters do not matter.
        loss: The loss, where it was a user's own.
        device: Where to put models and signal, as ``usable_device`` has it; by default where it
            was trained.

    Raises:
        InputError: If the directory is missing, no run, of a newer format, or damaged.
        UsageError: If the device is not there.
    """
    directory = Path(path).expanduser()
    if not directory.is_dir():
        state = "is a file" if directory.exists() else "does not exist"
        raise InputError(f"run must be a run directory, {directory} {state}.")
    record = read_record(directory)
    setup = setup_from_json(record["setup"])
    count = read_resume(directory)["count"]
    steps = checkpoint_steps(setup)[:count]
    rows = read_trajectory(directory, count)
    if rows.shape[1] != record["num_parameters"]:
        raise InputError(
            f"run must have {record['num_parameters']} parameters, its trajectory has "
            f"{rows.shape[1]}."
        )
    place = usable_device(device or setup.device)
    return Run(
        path=directory,
        setup=setup,
        record=record,
        steps=steps,
        metrics=_read_metrics(directory, count),
        device=str(place),
        module=model,
        own_loss=loss,
    )


def read_record(directory: Path) -> dict[str, Any]:
    """Return ``run.json``.

    Raises:
        InputError: If it is missing, unreadable, damaged, or of a newer format.
    """
    if not (directory / RECORD).exists():
        hint = ""
        if (directory / "tiles.json").exists():
            hint = " It holds many small fields: kilo and distil measure them with --spectra."
        raise InputError(f"run must be a run directory, {directory} has no {RECORD}.{hint}")
    record = read_json(directory / RECORD, "run")
    version = record.get("format_version")
    if not isinstance(version, int):
        raise InputError(f"run must state its format_version, {directory / RECORD} does not.")
    if version > FORMAT_VERSION:
        raise InputError(
            f"run must be of format {FORMAT_VERSION} or older, {directory} is of format {version}. "
            "Update hessian-lab."
        )
    missing = [name for name in REQUIRED if name not in record]
    if missing:
        raise InputError(f"run must be whole, {directory / RECORD} lacks {', '.join(missing)}.")
    try:
        setup = setup_from_json(record["setup"]).resolved()
        sizes = [] if record["own_module"] else [setup.num_parameters(*record["shape"])]
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"run must have a valid setup, {directory / RECORD}: {error}") from error
    if sizes not in ([], [record["num_parameters"]]):
        raise InputError(
            f"run must have the parameters of its setup, {sizes[0]}, {directory / RECORD} has "
            f"{record['num_parameters']}."
        )
    return record


def read_resume(directory: Path) -> dict[str, Any]:
    """Return the state to continue from, loaded with ``weights_only=True``.

    Raises:
        InputError: If there is none yet, or it is damaged.
    """
    path = directory / RESUME
    if not path.exists():
        raise InputError(
            f"run must have a checkpoint, {directory} has none yet. "
            f"Train it: hessian-lab train --out {directory} …"
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not state["count"] >= 1:
            raise ValueError
    except Exception as error:
        raise InputError(
            f"run must have a readable {RESUME}, {path} is damaged. Train anew with --overwrite."
        ) from error
    return state


def _read_metrics(directory: Path, count: int) -> pd.DataFrame:
    path = directory / METRICS
    try:
        text = path.read_text()
        # As text first: not every pandas reads back the very floats that it wrote.
        metrics = pd.read_csv(io.StringIO(text), dtype=str).astype(float)
    except FileNotFoundError:
        raise InputError(f"run must have metrics, {path} is missing.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"run must have readable metrics, {path}: {error}.") from error
    whole = len(metrics) if text.endswith("\n") else len(metrics) - 1
    older = [name for name in COLUMNS if name not in LATER_COLUMNS]
    if list(metrics.columns) not in (list(COLUMNS), older) or whole < count:
        raise InputError(f"run must have {count} rows of metrics, {path} has {whole}.")
    metrics = metrics.reindex(columns=list(COLUMNS))
    return metrics.iloc[:count].astype({"step": int, "evaluations": int})


def data_digest(signal: Signal) -> str:
    """Return the SHA-256 of a signal's points, in float64."""
    digest = hashlib.sha256()
    for tensor in (signal.coords, signal.values):
        digest.update(str(list(tensor.shape)).encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().double().numpy()).tobytes())
    return digest.hexdigest()


def write_signal(directory: Path, signal: Signal) -> None:
    """Keep a signal that cannot be loaded by name inside the run."""
    source = signal.source or Source("signal", "", "")
    arrays: dict[str, Any] = {
        "coords": signal.coords.detach().cpu().double().numpy(),
        "values": signal.values.detach().cpu().double().numpy(),
        "shape": np.array(signal.shape or (), dtype=np.int64),
        "source": np.array([source.name, source.attribution, source.sha256]),
    }
    write_atomically(directory / SIGNAL, lambda stream: np.savez(stream, **arrays))


def _read_signal(path: Path) -> Signal:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Signal(
                torch.from_numpy(arrays["coords"]),
                torch.from_numpy(arrays["values"]),
                shape=tuple(int(side) for side in arrays["shape"]) or None,
                source=Source(*(str(text) for text in arrays["source"])),
            )
    except Exception as error:
        raise InputError(f"run must have a readable signal, {path}: {error}.") from error
