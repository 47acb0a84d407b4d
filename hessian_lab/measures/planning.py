"""What a measurement would take, before it is begun: the method, memory and time."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from hessian_lab.errors import ResourceError
from hessian_lab.fields.volume import Volume
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.eigenpairs import default_basis
from hessian_lab.probe.hessian import closed_network, closed_numbers
from hessian_lab.probe.kept_graph import trainable
from hessian_lab.probe.lanczos import require_basis
from hessian_lab.probe.linearized import Matrix
from hessian_lab.probe.memory import available_bytes, readable, require_bytes
from hessian_lab.probe.parameters import Layout, selected_names
from hessian_lab.probe.spectrum import eigenvalue_numbers
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
    """

    method: str
    reason: str
    num_parameters: int
    num_points: int
    num_checkpoints: int
    needed_bytes: int
    available_bytes: int | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return every field."""
        return asdict(self)

    def __str__(self) -> str:
        free = "" if self.available_bytes is None else f" of {readable(self.available_bytes)} free"
        return (
            f"method      {self.method} ({self.reason})\n"
            f"parameters  {self.num_parameters:,}\n"
            f"points      {self.num_points:,}\n"
            f"memory      {readable(self.needed_bytes)}{free}\n"
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


def chosen_method(method: Method, model: nn.Module, num_points: int) -> tuple[str, str]:
    """Return how the spectrum of a model is measured, and why.

    ``auto`` is dense iff n ≤ 20,000 (60,000 on a GPU) and the matrix and its copies fit, else
    ``slq``.
    """
    if method != "auto":
        return method, "as asked"
    size = num_parameters(model)
    limit = DENSE_LIMIT if trainable(model)[0].device.type == "cpu" else GPU_DENSE_LIMIT
    if size > limit:
        return "slq", f"{size:,} parameters, more than {limit:,}: too many for dense"
    try:
        require_dense(model, num_points)
    except ResourceError:
        return "slq", f"a dense matrix of {size:,} parameters does not fit"
    return "dense", f"{size:,} parameters, at most {limit:,}, and it fits"


def require_dense(model: nn.Module, num_points: int) -> None:
    """Check that matrix and eigenvalue problem of a model fit, before it is trained.

    Raises:
        ResourceError: If they do not.
    """
    size = num_parameters(model)
    require_bytes(
        dense_bytes(model, num_points),
        f"The dense Hessian of {size} parameters and its copies for the eigenvalues",
        device=trainable(model)[0].device,
        cure="Measure a smaller network (--width, --depth, --octaves), or use --method slq.",
    )


def require_search(model: nn.Module, num: int) -> None:
    """Check that the search for ``num`` eigenpairs at each end fits, before a model is trained.

    Raises:
        ResourceError: If it does not.
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
) -> Plan:
    """Return what a measurement would take; times a few small matrices, or one product."""
    name, reason = chosen_method(method, model, signal.num_points)
    size = num_parameters(model)
    blocks = layer_sizes(model) if layers else []
    if name == "dense":
        needed = dense_bytes(model, signal.num_points)
        each = _dense_seconds(model, signal.num_points, blocks)
    else:
        steps = min(num_steps, size) if name == "slq" else 0
        width = trainable(model)[0].element_size()
        held = max(num_probes * steps, default_basis(size, min(2 * num, size)))
        # A product with a layer's block is one with the whole.
        products = sum(
            num_probes * min(steps, part) + min(TYPICAL_SEARCH, part) for part in (size, *blocks)
        )
        each_product, stored = _product_cost(model, signal, matrix)
        needed = held * size * width + stored
        each = products * each_product
    return Plan(
        method=name,
        reason=reason,
        num_parameters=size,
        num_points=signal.num_points,
        num_checkpoints=num_checkpoints,
        needed_bytes=needed,
        available_bytes=available_bytes(signal.coords.device),
        seconds=each * num_checkpoints,
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
    # Dead units' rows are left out of a copy.
    matrices = size**2 + eigenvalue_numbers(size, device=device, copied=True)
    return 8 * max(matrices, size**2 + closed_numbers(model, num_points))


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
