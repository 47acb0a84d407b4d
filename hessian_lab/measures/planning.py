"""What a measurement would take, before it is begun: the method, memory and time."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hessian_lab.errors import ResourceError
from hessian_lab.fields.volume import Volume
from hessian_lab.measures.traffic import Basis, Traffic, basis_traffic, dense_traffic
from hessian_lab.probe.conditioning import DEFAULT_STEPS
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.density import BLOCK_SIZE
from hessian_lab.probe.eigenpairs import default_basis
from hessian_lab.probe.hessian import closed_network, closed_numbers
from hessian_lab.probe.kept_graph import trainable
from hessian_lab.probe.lanczos import require_basis
from hessian_lab.probe.linearized import Matrix
from hessian_lab.probe.memory import available_bytes, fits, readable, require_bytes
from hessian_lab.probe.parameters import Layout, selected_names
from hessian_lab.probe.scratch import CURE, check_scratch, disk_rates, require_disk
from hessian_lab.probe.spectrum import spectrum_bytes
from hessian_lab.signal import Signal

Method = Literal["auto", "dense", "lanczos", "slq"]
METHODS = ("auto", "dense", "lanczos", "slq")
# Above this, a dense spectrum takes more than some ten minutes on a few cores, or on a GPU.
DENSE_LIMIT, GPU_DENSE_LIMIT = 20_000, 60_000
# Size of the matrix that the machine is timed on: a GPU is idle on smaller ones.
TIMED_SIZE, GPU_TIMED_SIZE = 768, 4096
# Steps of a search for extreme pairs and for further copies, as they usually come out.
TYPICAL_SEARCH = 300
# Gradients that a step of L-BFGS with a line search takes, as it usually comes out.
EVALUATIONS_PER_STEP = 1.5


@dataclass(frozen=True)
class Plan:
    """What measuring a run by some method would take; the times are rough.

    Attributes:
        method: ``dense``, ``lanczos`` or ``slq``.
        reason: Why this one.
        num_parameters: ``n``.
        num_points: ``p``.
        num_checkpoints: How many are measured.
        needed_bytes: The most memory that a checkpoint takes.
        available_bytes: What is free now; None where nothing tells.
        seconds: What measuring takes, predicted from this machine's speed at small sizes.
        disk_bytes: The most that lies in scratch files at a time; 0 where memory holds everything.
        disk_seconds: Which part of ``seconds`` the traffic of that disk takes.
        scratch: The directory of these files; None without one.
    """

    method: str
    reason: str
    num_parameters: int
    num_points: int
    num_checkpoints: int
    needed_bytes: int
    available_bytes: int | None
    seconds: float
    disk_bytes: int = 0
    disk_seconds: float = 0.0
    scratch: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return every field."""
        return asdict(self)

    def __str__(self) -> str:
        free = "" if self.available_bytes is None else f" of {readable(self.available_bytes)} free"
        disk = ""
        if self.disk_bytes:
            disk = (
                f"disk        {readable(self.disk_bytes)} in {self.scratch}, "
                f"{duration(self.disk_seconds)} of the time\n"
            )
        return (
            f"method      {self.method} ({self.reason})\n"
            f"parameters  {self.num_parameters:,}\n"
            f"points      {self.num_points:,}\n"
            f"memory      {readable(self.needed_bytes)}{free}\n"
            f"{disk}"
            f"time        about {duration(self.seconds)} for {self.num_checkpoints} checkpoints, "
            "training not counted"
        )


def duration(seconds: float) -> str:
    """Return a time for people, to two digits: ``4.1 s``, ``12 min``, ``3.2 h``."""
    for unit, length in (("s", 1.0), ("min", 60.0), ("h", 3600.0), ("days", 86400.0)):
        value = seconds / length
        if value < 100 or unit == "days":
            break
    return f"{float(f'{value:.2g}'):g} {unit}"


def chosen_method(
    method: Method, model: nn.Module, num_points: int, scratch: Path | None = None
) -> tuple[str, str]:
    """Return how the spectrum of a model is measured, and why.

    ``auto`` is dense iff n ≤ 20,000 (60,000 on a GPU) and the matrix and its copies fit, else
    ``slq``. With ``scratch`` the matrix itself may lie in a file there.
    """
    if method != "auto":
        return method, "as asked"
    size = num_parameters(model)
    limit = DENSE_LIMIT if trainable(model)[0].device.type == "cpu" else GPU_DENSE_LIMIT
    if size > limit:
        return "slq", f"{size:,} parameters, more than {limit:,}: too many for dense"
    try:
        require_dense(model, num_points, scratch)
    except ResourceError:
        return "slq", f"a dense matrix of {size:,} parameters does not fit"
    return "dense", f"{size:,} parameters, at most {limit:,}, and it fits"


def require_dense(model: nn.Module, num_points: int, scratch: Path | None = None) -> bool:
    """Return whether the matrix must lie in a file, after checking that it can be measured.

    Raises:
        ResourceError: If matrix and eigenvalue problem do not fit in memory nor, with ``scratch``,
            the problem alone there and the matrix on the disk.
        UsageError: If ``scratch`` does not take files, or the device is another than the CPU.
    """
    size, device = num_parameters(model), trainable(model)[0].device
    needed = dense_bytes(model, num_points)
    cure = "Measure a smaller network (--width, --depth, --octaves), or use --method slq."
    if scratch is not None:
        check_scratch(scratch, device)
    if scratch is None or fits(needed, device):
        cure = f"{cure} {CURE}" if scratch is None and device.type == "cpu" else cure
        what = f"The dense Hessian of {size} parameters and its copies for the eigenvalues"
        require_bytes(needed, what, device=device, cure=cure)
        return False
    what = f"The eigenvalue problem of {size} parameters"
    require_bytes(spectrum_bytes(size, device), what, device=device, cure=cure)
    what = f"The dense Hessian of {size} parameters"
    require_disk(scratch, 8 * size**2, what, cure="Free some space, or use another --scratch.")
    return True


def require_search(model: nn.Module, num: int, scratch: Path | None = None) -> None:
    """Check that the search for ``num`` eigenpairs at each end fits, before a model is trained.

    Raises:
        ResourceError: If it does not fit in memory nor, with ``scratch``, on the disk.
        UsageError: If ``scratch`` does not take files, or the device is another than the CPU.
    """
    size = num_parameters(model)
    one = trainable(model)[0]
    require_basis(
        1,
        default_basis(size, min(2 * num, size)) + 1,
        size,
        dtype=one.dtype,
        device=one.device,
        cure="Measure a smaller network (--width, --depth, --octaves).",
        scratch=scratch,
    )


def require_density(
    model: nn.Module, num_probes: int, num_steps: int, scratch: Path | None = None
) -> None:
    """Check that the Lanczos vectors of a density fit, those of a block of probes at a time.

    Raises:
        ResourceError: If they do not fit in memory nor, with ``scratch``, on the disk.
        UsageError: If ``scratch`` does not take files, or the device is another than the CPU.
    """
    size, one = num_parameters(model), trainable(model)[0]
    require_basis(
        min(num_probes, BLOCK_SIZE),
        min(num_steps, size) + 1,
        size,
        dtype=one.dtype,
        device=one.device,
        cure="Take fewer probes or steps (--probes, --lanczos-steps).",
        scratch=scratch,
    )


def num_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(value.numel() for value in trainable(model))


def plan(
    model: nn.Module,
    signal: Signal,
    *,
    method: Method,
    num_checkpoints: int,
    matrix: Matrix = "hessian",
    num: int,
    num_probes: int,
    num_steps: int,
    layers: bool = False,
    scratch: Path | None = None,
    in_memory: bool = False,
) -> Plan:
    """Return what a measurement would take; times a few small matrices, or one product.

    With ``scratch``, of what does not fit in memory the disk's share is told, and its speed timed
    on a file of 64 MiB there. A dense matrix may have to lie ``in_memory`` nevertheless.
    """
    matrix_scratch = None if in_memory else scratch
    name, reason = chosen_method(method, model, signal.num_points, matrix_scratch)
    scratch = matrix_scratch if name == "dense" else scratch
    size = num_parameters(model)
    blocks = layer_sizes(model) if layers else []
    there = available_bytes(signal.coords.device)
    if scratch is not None:
        check_scratch(scratch, signal.coords.device)
    # Without a scratch nothing is short: what does not fit is told as it is.
    room = there if scratch is not None else None
    if name == "dense":
        needed = dense_bytes(model, signal.num_points)
        each = _dense_seconds(model, signal.num_points, blocks)
        traffic = dense_traffic(size, room) if room is not None and needed > room else Traffic()
        if traffic.held:
            needed = spectrum_bytes(size, signal.coords.device)
    else:
        steps = min(num_steps, size) if name == "slq" else 0
        width = trainable(model)[0].element_size()
        # A product with a layer's block is one with the whole.
        products = sum(
            num_probes * min(steps, part) + min(TYPICAL_SEARCH, part) for part in (size, *blocks)
        )
        each_product, stored = _product_cost(model, signal, matrix)
        at_once = min(num_probes, BLOCK_SIZE)
        searched = default_basis(size, min(2 * num, size))
        runs = [
            Basis(1, searched, size * width),
            Basis(1, min(DEFAULT_STEPS, size), size * width),
            Basis(at_once, steps, size * width, blocks=num_probes / at_once),
        ]
        needed, traffic = basis_traffic(runs, None if room is None else room - stored)
        needed += stored
        each = products * each_product
    disk_seconds = traffic.seconds(disk_rates(scratch)) if traffic.held and scratch else 0.0
    return Plan(
        method=name,
        reason=reason,
        num_parameters=size,
        num_points=signal.num_points,
        num_checkpoints=num_checkpoints,
        needed_bytes=needed,
        available_bytes=there,
        seconds=(each + disk_seconds) * num_checkpoints,
        disk_bytes=traffic.held,
        disk_seconds=disk_seconds * num_checkpoints,
        scratch=None if scratch is None else str(scratch),
    )


def training_seconds(model: nn.Module, signal: Signal, steps: list[int]) -> float:
    """Return what training on all points would take, from the time of one gradient."""
    parameters = trainable(model)

    def gradient() -> object:
        return torch.autograd.grad(
            signal.loss(model(signal.coords), signal.values), parameters, allow_unused=True
        )

    evaluations = EVALUATIONS_PER_STEP * steps[-1] + len(steps)
    return evaluations * _timed(gradient, signal.coords.device)


def dense_bytes(model: nn.Module, num_points: int) -> int:
    """Return the most memory that matrix and eigenvalue problem take, in double precision."""
    size, device = num_parameters(model), trainable(model)[0].device
    beside = max(spectrum_bytes(size, device), 8 * closed_numbers(model, num_points))
    return 8 * size**2 + beside


def layer_sizes(model: nn.Module) -> list[int]:
    """Return the number of trainable parameters of every layer."""
    places = Layout(model, selected_names(model, None)).layers().values()
    return [sum(place.stop - place.start for place in layer) for layer in places]


def _dense_seconds(model: nn.Module, num_points: int, blocks: list[int]) -> float:
    device = trainable(model)[0].device
    size = num_parameters(model)
    timed = TIMED_SIZE if device.type == "cpu" else GPU_TIMED_SIZE
    square = torch.rand(timed, timed, dtype=torch.float64, device=device)
    rate = 2 * timed**3 / _timed(lambda: square @ square, device)
    # About one product [n, p]·[p, n]; by kept products of rows it takes some 30 times as long.
    field, samples = closed_network(model)
    samples = model.samples if isinstance(model, Volume) else samples
    factor = samples * (30 if field is None else 1 if field is model else 2)
    assembly = 2 * num_points * size**2 / rate * factor
    symmetric = square + square.T
    eigen = _timed(lambda: torch.linalg.eigvalsh(symmetric), device)
    return assembly + eigen * sum((part / timed) ** 3 for part in (size, *blocks))


def _product_cost(model: nn.Module, signal: Signal, matrix: Matrix) -> tuple[float, int]:
    """Return the seconds of a product in a block, and the bytes that linearizing keeps."""
    kind = GGNOperator if matrix == "ggn" else HessianOperator
    operator = kind(model, signal.loss, signal, chunk_size="auto", check=False)
    block = torch.ones(operator.size, 4, dtype=operator.dtype, device=operator.device)
    seconds = _timed(lambda: operator @ block, operator.device) / block.shape[1]
    return seconds, operator.stored_bytes


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the shortest of a few runs, in seconds."""
    shortest = math.inf
    for _ in range(3):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        shortest = min(shortest, time.perf_counter() - start)
    return shortest
