"""From a setup to what trains, and to a directory that is ours to write."""

import copy
import hashlib
import json
import logging
import time
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hessian_lab.errors import ResourceError, UsageError
from hessian_lab.losses import LOSSES, Loss
from hessian_lab.probe.memory import require_bytes
from hessian_lab.signal import Signal, Source
from hessian_lab.signals import is_path, load_signal
from hessian_lab.training.devices import named_device, usable_device
from hessian_lab.training.files import write_json
from hessian_lab.training.provenance import peak_memory_bytes, provenance
from hessian_lab.training.run import (
    FORMAT_VERSION,
    METRICS,
    RECORD,
    RESULTS,
    RESUME,
    SIGNAL,
    data_digest,
    field_of,
    flat,
    read_record,
    write_signal,
)
from hessian_lab.training.setup import Setup, digest, identity
from hessian_lab.training.trajectory import NAME as TRAJECTORY

RUNS = Path("runs")

logger = logging.getLogger(__name__)


@dataclass
class Prepared:
    """One run, ready to start: its defaults filled in, its data loaded, its directory named."""

    setup: Setup
    signal: Signal
    data: Signal
    loss: Loss
    model: nn.Module
    directory: Path
    identity: dict[str, Any]
    keeps_signal: bool
    own_module: bool
    record: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def size(self) -> int:
        """The number of parameters ``n``."""
        return sum(value.numel() for value in self.model.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the training."""
        return next(self.model.parameters()).dtype

    @property
    def threads(self) -> int:
        """The CPU threads of this run; those it began with, so that it stays bit-identical."""
        return int(self.record["provenance"]["threads"])


def prepare(
    setup: Setup,
    *,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    signal: Signal | None = None,
    out: str | Path | None = None,
) -> Prepared:
    """Check a setup, load its signal and build its model; nothing is written."""
    setup = setup.resolved()
    setup = replace(setup, device=named_device(setup.device))
    device = usable_device(setup.device)
    data = signal if signal is not None else load_signal(setup.signal, **setup.excerpt)
    fitted = data.to(dtype=getattr(torch, setup.dtype), device=device)
    if model is None:
        _require_field(setup, data)
        placed = replace(setup, device=str(device))
        network: nn.Module = field_of(placed, data.coords.shape[1], data.values.shape[1])
    else:
        network = copy.deepcopy(model).to(device=device, dtype=getattr(torch, setup.dtype))
    setup = setup.with_checkpoints(sum(value.numel() for value in network.parameters()))
    loss = loss or data.loss
    extra = {"data": data_digest(data), "loss": _name(loss)}
    if model is not None:
        parameters = flat(network).cpu().double().numpy().tobytes()
        extra |= {
            "module": type(model).__qualname__,
            "architecture": hashlib.sha256(repr(model).encode()).hexdigest(),
            "initial": hashlib.sha256(parameters).hexdigest(),
        }
    known = json.loads(json.dumps(identity(setup, extra), default=str))
    name = setup.act if model is None else type(model).__name__
    if out == "":
        raise UsageError("out must name a directory, got ''.")
    directory = Path(out).expanduser() if out else RUNS / f"{name}-{digest(known)}"
    keeps_signal = signal is not None or is_path(setup.signal)
    return Prepared(
        setup, fitted, data, loss, network, directory, known, keeps_signal, model is not None
    )


def _require_field(setup: Setup, data: Signal) -> None:
    """Check that parameters, gradients and one more copy of a field fit, before it is built."""
    size = setup.num_parameters(data.coords.shape[1], data.values.shape[1])
    require_bytes(
        3 * 8 * size,
        f"A field of {size} parameters",
        device=torch.device("cpu"),
        cure="Train a smaller network (--width, --depth, --octaves).",
    )


def claim(prepared: Prepared, *, overwrite: bool) -> None:
    """Make the directory hold this run and no other: new, or begun with the same identity.

    Raises:
        UsageError: If it holds something else.
    """
    directory = prepared.directory
    used = (directory / RECORD).exists()
    if used and not overwrite:
        prepared.record = read_record(directory)
        _compare(prepared)
        return
    if used:
        _clear(directory)
    else:
        _refuse_foreign(directory)
    if prepared.keeps_signal:
        write_signal(directory, prepared.data)
    prepared.record = _record(prepared)
    write_json(directory / RECORD, prepared.record)


def _refuse_foreign(directory: Path) -> None:
    others = [path.name for path in directory.iterdir() if not path.name.startswith(".")]
    if others and others != [SIGNAL]:
        raise UsageError(
            f"out must be a run or an empty directory, {directory} holds {sorted(others)[0]}."
        )


def settle(prepared: Prepared, status: str) -> None:
    """Note in the record how the run ended and what it took."""
    if not prepared.record or prepared.record["status"] == status == "done":
        return
    spent = prepared.record["total_wall_s"] + time.perf_counter() - prepared.started
    prepared.record |= {
        "status": status,
        "total_wall_s": round(spent, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    try:
        write_json(prepared.directory / RECORD, prepared.record)
    except ResourceError:
        if status == "done":
            raise
        logger.warning("the disk is full: %s does not say how the run ended", RECORD)


def _record(prepared: Prepared) -> dict[str, Any]:
    setup, signal = prepared.setup, prepared.signal
    source = signal.source or Source("signal of yours", "", "")
    threads = setup.threads or torch.get_num_threads()
    return {
        "format_version": FORMAT_VERSION,
        "id": uuid.uuid4().hex,
        "status": "running",
        "setup": setup.to_json(),
        "identity": prepared.identity,
        "module": type(prepared.model).__qualname__,
        "own_module": prepared.own_module,
        "loss": _name(prepared.loss),
        "own_loss": prepared.loss not in LOSSES.values(),
        "shape": [signal.coords.shape[1], signal.values.shape[1]],
        "num_parameters": prepared.size,
        "data": {
            "name": source.name,
            "attribution": source.attribution,
            "sha256": source.sha256,
            "sha256_points": prepared.identity["data"],
            "num_points": signal.num_points,
        },
        "provenance": provenance(signal.coords.device) | {"threads": threads},
        "total_wall_s": 0.0,
        "peak_memory_bytes": None,
    }


def _compare(prepared: Prepared) -> None:
    """Check that a directory's run is the one asked for."""
    found, asked = prepared.record["identity"], prepared.identity
    differences = [
        f"{name}: {_shown(found.get(name))} there, {_shown(asked.get(name))} asked"
        for name in sorted(found.keys() | asked.keys())
        if found.get(name) != asked.get(name)
    ]
    if differences:
        raise UsageError(
            f"out must hold the same setup, {prepared.directory} differs in "
            f"{'; '.join(differences)}. Choose another --out, or start anew with --overwrite."
        )
    threads = prepared.setup.threads
    prepared.setup = replace(prepared.setup, threads=prepared.threads)
    if threads not in (None, prepared.threads):
        logger.warning(
            "continuing with %d threads, those of the run, so that it stays bit-identical",
            prepared.threads,
        )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def _clear(directory: Path) -> None:
    """Remove the files of a run, and nothing else; the record stays, to be replaced whole."""
    for name in (RESUME, *RESULTS, METRICS, SIGNAL, TRAJECTORY):
        (directory / name).unlink(missing_ok=True)
    for left in directory.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def _name(loss: Loss) -> str:
    """Return what a loss is called; a module tells its options too."""
    if isinstance(loss, nn.Module):
        kept = {name: value for name, value in vars(loss).items() if not name.startswith("_")}
        options = kept | {name: value.tolist() for name, value in loss.state_dict().items()}
        text = ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
        return f"{type(loss).__qualname__}({text})"
    return getattr(loss, "__qualname__", type(loss).__qualname__)
