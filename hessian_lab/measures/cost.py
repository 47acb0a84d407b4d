"""What a step of each optimizer costs, in units of one Adam step timed beside it."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.errors import ResourceError
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.measures.live_bytes import peak_bytes
from hessian_lab.optim.contract import Contract
from hessian_lab.optim.make import make_optimizer
from hessian_lab.probe.memory import require_bytes
from hessian_lab.training.devices import usable_device
from hessian_lab.training.setup import Setup

UNIT = "adam"
# Optimizers at the periods that the papers run them at; what a step costs is a mean over a period.
# Alg. 1 with exact rows is for small fields.
PERIODIC: dict[str, dict[str, Any]] = {
    "esgd": {"update_every": 100, "warmup_steps": 0},
    "esgd_max": {"update_every": 100, "warmup_steps": 0},
    "kfac": {"update_every": 10, "inverse_every": 100},
    "ekfac": {"update_every": 10, "inverse_every": 100},
    "shampoo": {"update_every": 10},
    "psgd": {"mode": "hutchinson"},
}
# The first period, which is not timed, fills the history of L-BFGS.
PERIODS = {
    "newton_cg": 2,
    "gauss_newton": 3,
    "lbfgs": 100,
    "esgd": 100,
    "esgd_max": 100,
    "kfac": 100,
    "ekfac": 100,
    "shampoo": 10,
}


@dataclass(frozen=True)
class Problem:
    """A field and one batch; Gaussian 4×256 on 512 points is that of the papers' tables."""

    act: str = "gaussian"
    width: int = 256
    depth: int = 4
    batch_size: int = 512
    num_inputs: int = 2
    num_outputs: int = 3
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class Cost:
    """What a step of one optimizer costs.

    Attributes:
        optimizer: Its name.
        options: What differs from its defaults.
        seconds: Of a step, a mean over its period and a median over rounds.
        ratio: Seconds over those of Adam, a median of the ratios round by round: on a machine that
            drifts it is not the ratio of the medians.
        state_bytes: What it keeps between steps.
        peak_bytes: The most that is alive during a period: parameters, batch, state, the graph, and
            what a step makes; see ``live_bytes.peak_bytes``.
        peak_ratio: That over Adam's.
        evaluations: Of the loss, per step.
        note: Why it was not measured, if it was not.
    """

    optimizer: str
    options: dict[str, Any]
    seconds: float
    ratio: float
    state_bytes: int
    peak_bytes: int
    peak_ratio: float
    evaluations: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return every field."""
        return asdict(self)


def measure_cost(
    optimizers: Sequence[str],
    problem: Problem | None = None,
    *,
    rounds: int = 5,
    watch: Callable[[str], None] | None = None,
) -> list[Cost]:
    """Time steps of some optimizers on copies of one problem, and count the bytes they need.

    Each round times one period of an optimizer, and one of Adam's right before: machines drift.
    A dense method that does not fit is told so, and left out.

    Args:
        optimizers: Names.
        problem: What they train.
        rounds: How often each is timed.
        watch: Called with the name of each optimizer before it is timed.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    problem = problem or Problem()
    problem = replace(problem, device=str(usable_device(problem.device)))
    _require_room(problem)
    unit = _Runner(UNIT, problem)
    unit.period()
    unit_bytes = unit.peak_bytes()
    found = []
    for name in optimizers:
        if watch is not None:
            watch(name)
        try:
            runner = _Runner(name, problem)
            runner.period()
        except ResourceError as error:
            nan, options = float("nan"), PERIODIC.get(name, {})
            found.append(Cost(name, options, nan, nan, 0, 0, nan, nan, note=str(error)))
            continue
        own = name == UNIT
        pairs = [(unit.period(), runner.period()) for _ in range(rounds)]
        most = runner.peak_bytes()
        found.append(
            Cost(
                optimizer=name,
                options=runner.options,
                seconds=statistics.median(each for _, each in pairs),
                ratio=1.0 if own else statistics.median(each / base for base, each in pairs),
                state_bytes=sum(each.nbytes for each in runner.state()),
                peak_bytes=most,
                peak_ratio=most / unit_bytes,
                evaluations=runner.evaluations(),
            )
        )
    return found


def _require_room(problem: Problem) -> None:
    """Check that parameters, gradients, Adam's state and one batch fit, before any is made."""
    setup = Setup(act=problem.act, width=problem.width, depth=problem.depth).resolved()
    size = setup.num_parameters(problem.num_inputs, problem.num_outputs)
    layers = problem.batch_size * problem.width * (problem.depth + 1)
    require_bytes(
        (8 * size + 4 * layers) * getattr(torch, problem.dtype).itemsize,
        f"A step on a field of {size} parameters",
        device=torch.device(problem.device),
        cure="Measure a smaller one (--width, --depth, --batch-size).",
    )


class _Runner:
    """An optimizer on a problem of its own."""

    def __init__(self, name: str, problem: Problem) -> None:
        self.options = PERIODIC.get(name, {})
        self.num_steps = PERIODS.get(name, 10)
        dtype = getattr(torch, problem.dtype)
        device = torch.device(problem.device)
        self.model: nn.Module = make_field(
            problem.act,
            problem.num_inputs,
            problem.num_outputs,
            width=problem.width,
            depth=problem.depth,
            seed=problem.seed,
            dtype=dtype,
        ).to(device)
        generator = torch.Generator().manual_seed(problem.seed)
        self.coords, self.values = (
            torch.rand(problem.batch_size, size, generator=generator).to(device, dtype)
            for size in (problem.num_inputs, problem.num_outputs)
        )
        self.optimizer: Contract = make_optimizer(name, self.model, **self.options)

    def closure(self) -> Tensor | tuple[Tensor, Tensor]:
        outputs = self.model(self.coords)
        loss = mse(outputs, self.values)
        return (loss, outputs) if self.optimizer.takes_outputs else loss

    def period(self) -> float:
        """Return the seconds of a step, a mean over one period."""
        self._wait()
        start = time.perf_counter()
        for _ in range(self.num_steps):
            self.optimizer.step(self.closure)  # type: ignore[arg-type]
        self._wait()
        return (time.perf_counter() - start) / self.num_steps

    def _wait(self) -> None:
        if self.coords.is_cuda:
            torch.cuda.synchronize(self.coords.device)

    def evaluations(self) -> float:
        counters = self.optimizer.counters
        return counters["evaluations"] / max(1, counters["step"])

    def state(self) -> Iterator[Tensor]:
        return (each for state in self.optimizer.state.values() for each in _tensors(state))

    def peak_bytes(self) -> int:
        def steps() -> None:
            for _ in range(self.num_steps):
                self.optimizer.step(self.closure)  # type: ignore[arg-type]
            self.optimizer.zero_grad()

        self.optimizer.zero_grad()
        held = chain(self.model.parameters(), (self.coords, self.values), self.state())
        return peak_bytes(steps, held=held)


def _tensors(entry: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested containers."""
    if isinstance(entry, Tensor):
        yield entry
    elif isinstance(entry, dict | list | tuple):
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from _tensors(part)
