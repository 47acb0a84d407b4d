"""What the closed-form Hessian takes at its peak, in units of the matrix (Linux).

Run it with ``python -m tests.benchmarks.peak``.
"""

import argparse
from pathlib import Path

from hessian_lab.losses import mse
from hessian_lab.probe.hessian import dense_hessian
from tests.benchmarks.problem import problem


def high_water() -> int:
    """Return the largest resident size of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64)
    args = parser.parse_args()
    small, found = problem("sine", 4), problem("sine", args.width)
    dense_hessian(small.model, mse, small.signal)
    before = high_water()
    matrix = dense_hessian(found.model, mse, found.signal)
    share = (high_water() - before) / matrix.nbytes
    print(f"{found.text}: peak {share:.2f} × the matrix ({matrix.nbytes / 2**30:.2f} GiB)")


if __name__ == "__main__":
    main()
