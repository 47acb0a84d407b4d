"""The checks of ``doctor`` on the machine: rounding, precision, memory, versions, files, clock."""

import re
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import pairwise

import numpy as np
import torch

from hessian_lab.measures.doctor_case import Case, Outcome, found
from hessian_lab.measures.planning import DENSE_LIMIT
from hessian_lab.probe.memory import available_bytes, readable
from hessian_lab.probe.precision import full_precision, shortcuts, switched_on
from hessian_lab.probe.spectrum import spectrum_bytes
from hessian_lab.signals import load_signal
from hessian_lab.signals.registry import entries, fault_of, place_of

PACKAGE = "hessian-lab"
# Enough numbers that every thread rounds some.
MANY = 1 << 18
# Seconds that are waited for, and by how much two clocks may differ then.
WAIT, DRIFT = 0.05, 0.02


def rounding(case: Case) -> Outcome:
    """Check that arithmetic is IEEE's: half an epsilon is lost, subnormals are kept.

    What a library compiled with fast-math leaves switched on for a whole process shows here.
    """
    faults = []
    for dtype in dict.fromkeys((torch.float64, case.dtype)):
        name = str(dtype).removeprefix("torch.")
        eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
        one = torch.ones(MANY, dtype=dtype, device=case.device)
        if bool((one + eps / 2 != 1).any()) or bool((one + eps == 1).any()):
            faults.append(f"{name} does not round at {eps / 2:.1e}")
        # Even an addition of zeros would flush what is read: the halves are made and judged here.
        if bool(((one * tiny) / 2 * 2 != tiny).any()):
            faults.append(f"{name} flushes subnormals to zero")
        if bool(((one / eps * 4 + one) - one / eps * 4 != 0).any()):
            faults.append(f"{name} keeps digits that it has not, or reorders sums")
    if float(np.finfo(np.float64).tiny) / 2 == 0 or not np.isfinite(np.float64(1e308) * 1.5):
        faults.append("Python's own numbers are flushed or overflow early")
    return found(faults, "half an epsilon is lost, subnormals are kept")


def exact_products(case: Case) -> Outcome:
    """Check that products of matrices of whole numbers are exact, also where shortcuts were on.

    TF32 and bfloat16 keep 11 and 8 bits of a number; inside curvature code no shortcut is left.
    """
    faults = []
    with switched_on(), full_precision():
        if left := shortcuts():
            faults.append(f"{', '.join(left)} stays on inside curvature code")
        faults += _inexact(torch.float32, 12, case.device)
        faults += _inexact(torch.float64, 24, case.device)
    return found(faults, "exact inside, shortcuts switched off")


def _inexact(dtype: torch.dtype, bits: int, device: torch.device) -> Iterator[str]:
    """Yield what is wrong with a product of whole numbers of so many bits, whose sums all fit."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-(1 << bits), 1 << bits, (64, 48), generator=generator) | 1
    right = torch.randint(-16, 16, (48, 64), generator=generator)
    product = left.to(device, dtype) @ right.to(device, dtype)
    if not torch.equal(product.double().cpu(), (left @ right).double()):
        name = str(dtype).removeprefix("torch.")
        yield f"a {name} product of whole numbers of {bits} bits is not exact"


def precision(_case: Case) -> Outcome:
    """Tell what the caller has switched on; nothing of it reaches curvature code."""
    # Of cudnn.conv tf32 and cudnn.rnn tf32, which are torch's default: cudnn tf32.
    on = dict.fromkeys(re.sub(r"\.\w+", "", each) for each in shortcuts())
    rule = "on" if torch.are_deterministic_algorithms_enabled() else "off"
    default = str(torch.get_default_dtype()).removeprefix("torch.")
    told = ", ".join(on) or "no TF32 or bfloat16"
    return Outcome(True, f"default {default}, deterministic {rule}, {told}")


def device(case: Case) -> Outcome:
    """Tell the device, after a computation on it."""
    number = torch.arange(1000, device=case.device, dtype=case.dtype).sum().item()
    built = torch.version.cuda or torch.version.hip
    told = f", CUDA {built}" if case.device.type == "cuda" else ""
    threads = f"{torch.get_num_threads()} threads"
    return found([] if number == 499500 else [f"0 + … + 999 is {number}"], f"{threads}{told}")


def memory(case: Case) -> Outcome:
    """Compare the free memory with what dense Hessians of the limit's size need."""
    free = available_bytes(case.device)
    per_entry = 8 + spectrum_bytes(1, case.device)
    needed = per_entry * DENSE_LIMIT**2
    if free is None:
        return Outcome(
            True, f"nothing tells; n = {DENSE_LIMIT:,} needs {readable(needed)}", limited=True
        )
    told = f"{readable(free)} free; n = {DENSE_LIMIT:,} needs {readable(needed)}"
    if free >= needed:
        return Outcome(True, told)
    largest = int((free / per_entry) ** 0.5)
    return Outcome(True, f"{told}: dense up to n = {largest:,}", limited=True)


def versions(_case: Case) -> Outcome:
    """Check that the packages are not older than this one needs."""
    try:
        lines = [line for line in requires(PACKAGE) or [] if "extra ==" not in line]
    except PackageNotFoundError:
        return Outcome(
            True, f"{PACKAGE} is not installed: nothing tells what it needs", limited=True
        )
    needs = [match.groups() for line in lines if (match := re.match(r"([\w-]+)>=([\d.]+)", line))]
    faults = []
    for name, least in needs:
        try:
            there = version(name)
        except PackageNotFoundError:
            faults.append(f"{name} is missing")
            continue
        if _numbers(there) < _numbers(least):
            faults.append(f"{name} {there} is older than {least}")
    return found(faults, f"torch {torch.__version__}, and {len(needs) - 1} others new enough")


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a version: (2, 11, 0) of ``2.11.0+cpu``."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def data(_case: Case) -> Outcome:
    """Check that the registry and what comes with the package are read, and files are intact."""
    here = {name: place for name, entry in entries().items() if (place := place_of(entry))}
    faults = [
        f"{place} is not the file that was registered: {fault}"
        for name, place in here.items()
        if (fault := fault_of(entries()[name], place))
    ]
    if not load_signal("camera", size=8).values.isfinite().all():
        faults.append("the image that comes with the package cannot be read")
    return found(faults, f"registry read, {len(here)} of its {len(entries())} files here")


def clock(_case: Case) -> Outcome:
    """Check that time passes evenly: the figures of ``cost`` and of run records are times."""
    start = time.perf_counter(), time.time()
    time.sleep(WAIT)
    spent, walled = time.perf_counter() - start[0], time.time() - start[1]
    ticks = sorted({time.perf_counter() for _ in range(1000)})
    step = min(later - one for one, later in pairwise(ticks))
    faults = []
    if spent < WAIT or abs(spent - walled) > DRIFT:
        faults.append(f"{spent:.3f} s of one clock are {walled:.3f} s of the other")
    if step > 1e-5:
        faults.append(f"the clock ticks every {step:.0e} s alone")
    return found(faults, f"two clocks agree to {abs(spent - walled):.0e} s")
