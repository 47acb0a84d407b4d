"""Whether results of this machine can be trusted: independent ways to the same numbers."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from hessian_lab.measures import doctor_curvature as curvature
from hessian_lab.measures import doctor_machine as machine
from hessian_lab.measures.doctor_case import Case, Check, Outcome
from hessian_lab.measures.doctor_ranks import shared_curvature
from hessian_lab.probe.ranks import ALONE, Ranks
from hessian_lab.training.devices import usable_device

Status = Literal["ok", "FAILED", "note"]

logger = logging.getLogger(__name__)


def _checks() -> dict[str, Check]:
    """Return the checks by their names, as they are now, in their order."""
    return {
        "device": machine.device,
        "versions": machine.versions,
        "memory": machine.memory,
        "precision": machine.precision,
        "rounding": machine.rounding,
        "exact products": machine.exact_products,
        "eigensolver": curvature.eigensolver,
        "symmetry": curvature.symmetry,
        "finite differences": curvature.finite_differences,
        "double backward": curvature.double_backward,
        "closed form": curvature.closed_form,
        "torch.func.hessian": curvature.functional_hessian,
        "Lanczos": curvature.lanczos,
        "trace": curvature.trace_interval,
        "SLQ band": curvature.spectral_band,
        "repeated product": curvature.repeated_product,
        "repeated training": curvature.repeated_training,
        "data": machine.data,
        "clock": machine.clock,
    }


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Attributes:
        name: Of the check.
        status: ``ok``, ``FAILED``, or ``note`` where something is scarce and nothing wrong.
        told: What was measured, or what was raised.
        value: The number that was compared, where there is one.
        tolerance: What it may be at most.
        seconds: What it took.
    """

    name: str
    status: Status
    told: str
    value: float | None
    tolerance: float | None
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether the check failed."""
        return self.status == "FAILED"

    def to_json(self) -> dict[str, Any]:
        """Return every field."""
        return asdict(self)


def examine(
    device: str = "auto", dtype: str = "float64", ranks: Ranks = ALONE
) -> Iterator[Finding]:
    """Yield what each check finds, one by one; a check that raises has failed, the others run.

    On a field of 205 parameters and 400 points, in a few seconds. Nothing is written but in the
    system's temporary directory, nothing global is left changed.

    Args:
        device: What is examined, as ``usable_device`` has it.
        dtype: The precision of products; tolerances follow its epsilon. References are in double
            precision.
        ranks: The processes that call this together, each of which examines its own device; one
            more check is of what they compute together.

    Raises:
        UsageError: If there is no such device.
    """
    case = Case(usable_device(device), getattr(torch, dtype))
    return _findings(case, ranks)


def _findings(case: Case, ranks: Ranks) -> Iterator[Finding]:
    for name, check in _checks().items():
        yield _finding(name, partial(_outcome, name, check), case)
    if not ranks.alone:
        # What it raises on one rank must end all: the others wait for this one.
        yield _finding("ranks", partial(shared_curvature, ranks=ranks), case)


def of_all(findings: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Return one finding for each check of all ranks: the first that failed, or the first of all.

    Args:
        findings: Those of each rank, in the same order.
    """
    merged = []
    for same in zip(*findings, strict=True):
        failed = [rank for rank, one in enumerate(same) if one.failed]
        one = same[failed[0] if failed else 0]
        told = f"rank {', '.join(map(str, failed))}: {one.told}" if failed else one.told
        seconds = max(each.seconds for each in same)
        merged.append(replace(one, told=told, seconds=seconds))
    return merged


def _outcome(name: str, check: Check, case: Case) -> Outcome:
    """Return what a check has found; what it raises is a failure."""
    try:
        return check(case)
    except Exception as error:
        logger.debug("%s raised", name, exc_info=True)
        text = (str(error).splitlines() or [""])[0]
        return Outcome(False, f"raised {type(error).__name__}: {text}")


def _finding(name: str, check: Check, case: Case) -> Finding:
    start = time.perf_counter()
    outcome = check(case)
    status: Status = "FAILED" if not outcome.passed else "note" if outcome.limited else "ok"
    spent = time.perf_counter() - start
    return Finding(name, status, outcome.told, outcome.value, outcome.tolerance, spent)
