"""How long the closed-form Hessian takes, in units of one matrix product and of kept row products.

Run it with ``python -m tests.benchmarks.dense_hessian`` (``--widths 16 32 64`` takes about ten
minutes). Rounds are interleaved, and medians are compared, because machines drift.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.probe.kept_graph import trainable
from hessian_lab.signals import load_signal

ROUNDS = {16: 31, 32: 11, 64: 3}
# Rows of the kept double backward that are timed; the whole Hessian takes n / ROWS times as long.
ROWS = 40


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def kept_rows(model, signal, count):
    """Return a function that computes some rows of the Hessian by kept double backward."""
    parameters = trainable(model)
    loss = mse(model(signal.coords), signal.values)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    gradient = torch.cat([part.reshape(-1) for part in gradients])
    unit = torch.zeros_like(gradient)

    def rows():
        for row in range(count):
            unit.zero_()[row] = 1
            torch.autograd.grad(gradient, parameters, unit, retain_graph=True)

    return rows


def compare(width):
    """Print one line: the closed form beside one product [n, N]·[N, n] and beside row products."""
    signal = load_signal("camera", 50)
    model = make_field("sine", 2, 1, width=width, depth=4)
    size = sum(value.numel() for value in model.parameters())
    left = torch.rand(size, signal.num_points, dtype=torch.float64)
    right = torch.rand(signal.num_points, size, dtype=torch.float64)
    rows = kept_rows(model, signal, ROWS)
    work = {
        "product": lambda: left @ right,
        "closed form": lambda: dense_hessian(model, mse, signal),
        "rows": rows,
    }
    times = {name: [] for name in work}
    for turn in range(ROUNDS[width] + 1):
        for name, function in work.items():
            spent = seconds(function)
            if turn:
                times[name].append(spent)
    median = {name: statistics.median(spent) for name, spent in times.items()}
    by_rows = median["rows"] * size / ROWS
    print(
        f"4×{width:<3d} {size:6d} {median['product']:10.3f} {median['closed form']:12.3f} "
        f"{median['closed form'] / median['product']:8.2f} {by_rows:10.1f} "
        f"{by_rows / median['closed form']:8.1f}",
        flush=True,
    )


def high_water():
    """Return the largest resident size of this process, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def peak(width):
    """Print the memory that the closed form takes at its peak, in units of the matrix."""
    signal = load_signal("camera", 50)
    model = make_field("sine", 2, 1, width=width, depth=4)
    dense_hessian(make_field("sine", 2, 1, width=4, depth=4), mse, signal)
    before = high_water()
    matrix = dense_hessian(model, mse, signal)
    after = high_water()
    size = matrix.numel() * matrix.element_size()
    share = (after - before) / size
    print(f"4×{width}: peak {share:.2f} × the matrix ({size / 2**30:.2f} GiB)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--peak", type=int, metavar="WIDTH")
    args = parser.parse_args()
    if args.peak:
        peak(args.peak)
        raise SystemExit
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, 2,500 points, float64")
    print("field      n  product s closed form s    ratio     rows s  speedup")
    for width in args.widths:
        compare(width)
    command = [sys.executable, "-m", __spec__.name, "--peak", str(max(args.widths))]
    subprocess.run(command, check=True)
