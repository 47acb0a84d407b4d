"""What is on disk of a run, for a page; nothing is measured."""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hessian_lab.cli.gathered_results import results
from hessian_lab.cli.output import headline
from hessian_lab.losses import bce
from hessian_lab.plots.report_data import Fit, RunPart
from hessian_lab.probe.memory import readable
from hessian_lab.signal import Signal
from hessian_lab.signals import SIGNALS
from hessian_lab.training.grid import shown
from hessian_lab.training.run import Run, load_run
from hessian_lab.training.setup import Setup

# Points that a field is evaluated at at once.
CHUNK = 16_384
# Channels that can be told apart as curves.
MOST_CHANNELS = 3


def gathered(path: str) -> RunPart:
    """Return what a page tells of a run.

    Raises:
        InputError: If the directory is missing, no run, of a newer format, or damaged.
    """
    run = load_run(path, device="cpu")
    measurements, notes, missing = results(run, path)
    status, told = _status(run)
    return RunPart(
        title=_title(run),
        headline=headline(run),
        path=path,
        status=status,
        told=told,
        num_parameters=run.num_parameters,
        num_points=int(run.record["data"]["num_points"]),
        metrics=run.metrics,
        fit=_fit(run),
        measurements=measurements,
        settings=_settings(run),
        provenance=_provenance(run),
        data=_data(run),
        notes=notes,
        missing=missing,
    )


def _title(run: Run) -> str:
    setup = run.setup
    field = run.record["module"] if run.record["own_module"] else None
    return f"{field or f'{setup.act} {setup.depth}×{setup.width}'} on {run.record['data']['name']}"


def _status(run: Run) -> tuple[str, str]:
    """Return how the run stands, and what is to be said of it."""
    reached = f"step {run.steps[-1]} of {run.setup.steps}"
    diverged = run.diverged
    if diverged is not None:
        reason = str(diverged).rstrip(".")
        return "diverged", f"Training diverged: {reason}. The last checkpoint is at {reached}."
    if run.complete:
        return "done", ""
    state = str(run.record["status"])
    how = {"running": "is running, or was killed", "interrupted": "was interrupted"}
    again = _command(run)
    cure = f" Typed again, this continues it: {again}" if again else ""
    return state, f"Training {how.get(state, 'is not finished')}: it reached {reached}.{cure}"


def _command(run: Run) -> str:
    """Return the command that made a run; empty where it was made in Python."""
    words = [str(word) for word in run.record["provenance"].get("command") or []]
    if not words or Path(words[0]).name != "hessian-lab":
        return ""
    return shlex.join(["hessian-lab", *words[1:]])


def _fit(run: Run) -> Fit | str:
    """Return signal and field at the last checkpoint, or a sentence why there is no picture."""
    if run.record["own_module"]:
        return (
            f"The field is a module of your own, {run.record['module']}, which a run directory "
            "does not hold: there is no picture of it."
        )
    try:
        signal = run.signal()
    except ValueError as error:
        return f"There is no picture: {error}"
    step = run.steps[-1]
    fitted = _fitted(run, signal, step)
    if not np.isfinite(fitted).all():
        return f"The field at step {step} is not finite."
    target = signal.values.double().numpy()
    channels = target.shape[1]
    if signal.shape is not None and len(signal.shape) == 2 and channels in (1, 3):
        return Fit(step, target, fitted, shape=(signal.shape[0], signal.shape[1]))
    if signal.coords.shape[1] == 1 and channels <= MOST_CHANNELS:
        return Fit(step, target, fitted, coords=signal.coords[:, 0].double().numpy())
    gaps = np.abs(fitted - target)
    rms = float(np.sqrt(np.mean(gaps**2)))
    return (
        f"The signal is neither an image nor a line: {signal.num_points} points with "
        f"{signal.coords.shape[1]} coordinates and {channels} values each. The field at step "
        f"{step} differs from it by {rms:.3g} in root mean square, and by {float(gaps.max()):.3g} "
        "at most."
    )


def _fitted(run: Run, signal: Signal, step: int) -> Any:
    model = run.model(step)
    with torch.no_grad():
        parts = [model(part) for part in signal.coords.split(CHUNK)]
    values = torch.cat(parts)
    # Predictions of the cross-entropy are logits.
    logits = run.record["loss"] == bce.__name__
    return (values.sigmoid() if logits else values).double().numpy()


def _settings(run: Run) -> list[tuple[str, str]]:
    entries = {entry.name: getattr(run.setup, entry.name) for entry in fields(Setup)}
    options = entries.pop("options")
    if run.record["own_module"]:
        for name in ("act", "width", "depth", "init", "omega", "sigma", "octaves"):
            del entries[name]
        entries = {"module": run.record["module"]} | entries
    told = [
        (name.replace("_", " "), str(shown(value)))
        for name, value in entries.items()
        if value is not None
    ]
    told += [(f"option {name}", str(value)) for name, value in options.items()]
    return [*told, ("loss", str(run.record["loss"]))]


def _provenance(run: Run) -> list[tuple[str, str]]:
    kept = run.record["provenance"]
    entries = [
        (name.replace("_", " ").replace("hessian lab", "hessian-lab"), str(value))
        for name, value in kept.items()
        if name != "command" and value is not None
    ]
    entries.append(("wall time", f"{float(run.record['total_wall_s']):.1f} s"))
    if run.record.get("peak_memory_bytes"):
        entries.append(("peak memory", readable(run.record["peak_memory_bytes"])))
    if command := _command(run):
        entries.append(("command", command))
    return [*entries, ("run id", str(run.record["id"])), ("directory", str(run.path))]


def _data(run: Run) -> list[tuple[str, str]]:
    data = run.record["data"]
    ours = run.setup.signal in SIGNALS and data["name"] == run.setup.signal
    licence = [] if ours else [("licence", "not known: it is a signal of your own")]
    return [
        ("name", str(data["name"])),
        ("attribution and licence" if ours else "attribution", str(data["attribution"]) or "none"),
        *licence,
        ("points", str(data["num_points"])),
        ("SHA-256", str(data["sha256"]) or "none"),
        ("SHA-256 of points", str(data["sha256_points"])),
    ]
