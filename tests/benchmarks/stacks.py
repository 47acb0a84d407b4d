"""Fields of a stack trained together, against a loop over torch's L-BFGS: 20 iterations each.

Run it with ``python -m tests.benchmarks.stacks``. The loop runs over every K-th field of the stack,
before and after the stack in each round, and its time is that of as many as the stack has; both
have the same threads. A faster wrong answer does not count: the median PSNR must agree to 0.1 dB.
"""

import math
import os
import statistics
import sys
import time

os.environ.setdefault("OMP_PROC_BIND", "true")

import torch

from hessian_lab.fields.stack import make_stack
from hessian_lab.losses import mse
from hessian_lab.optim.stacked_lbfgs import StackedLBFGS
from hessian_lab.signals.tiles import load_tiles
from hessian_lab.training.stacked_objective import StackedObjective

ROUNDS, STEPS = 3, 20
# Fields, units, layers, pixels per side of a tile, fields of the loop -> the least ratio.
TARGETS = {
    (1024, 32, 2, 16, 64): 8.0,
    (256, 64, 4, 32, 12): 2.0,
}
AGREES = 0.1


def psnr(losses, channels):
    """Return the PSNR of every loss."""
    return [-10 * math.log10(2 * float(loss) / channels) for loss in losses]


def together(stack, coords, values):
    """Return the seconds of the stack, and its PSNRs."""
    start = time.perf_counter()
    optimizer = StackedLBFGS(StackedObjective(stack, coords, values), stack.parameters)
    for _ in range(STEPS):
        optimizer.step()
    return time.perf_counter() - start, psnr(optimizer.losses, values.shape[2])


def one_by_one(stack, coords, values, chosen):
    """Return the seconds of torch's L-BFGS on some of the fields, and their PSNRs."""
    models, losses = [stack.field(index) for index in chosen], []
    start = time.perf_counter()
    for model, index in zip(models, chosen, strict=True):
        optimizer = torch.optim.LBFGS(
            model.parameters(),
            max_iter=STEPS,
            max_eval=10**6,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure(optimizer=optimizer, model=model, index=index):
            optimizer.zero_grad()
            loss = mse(model(coords), values[index])
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            losses.append(mse(model(coords), values[index]))
    return time.perf_counter() - start, psnr(losses, values.shape[2])


def main():
    """Print the ratios, and fail where a target is missed."""
    missed = False
    for (count, width, depth, tile, num_alone), target in TARGETS.items():
        side = math.isqrt(count)
        image = load_tiles("retina", tile, side * tile)
        coords, values = image.coords().float(), image.values(0, count).float()
        stack = make_stack("sine", count, 2, 3, width=width, depth=depth, dtype=torch.float32)
        chosen = range(0, count, count // num_alone)
        ratios, gaps = [], []
        for _ in range(ROUNDS):
            before, alone = one_by_one(stack, coords, values, chosen)
            seconds, found = together(stack, coords, values)
            after, _ = one_by_one(stack, coords, values, chosen)
            ratios.append((before + after) / 2 * count / len(chosen) / seconds)
            same = [found[index] for index in chosen]
            gaps.append(abs(statistics.median(same) - statistics.median(alone)))
        ratio = statistics.median(ratios)
        passed = ratio >= target and max(gaps) <= AGREES
        missed |= not passed
        print(
            f"{count} fields of {depth}×{width} at {tile**2} points: {ratio:.1f} × "
            f"[{min(ratios):.1f}, {max(ratios):.1f}] as fast (target {target:g}), {seconds:.1f} s; "
            f"median PSNR {max(gaps):.3f} dB apart: {'ok' if passed else 'MISSED'}",
            flush=True,
        )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
