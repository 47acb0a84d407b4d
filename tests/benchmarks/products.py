"""What a Hessian–vector product costs, in units of its matrix products and of gradients.

Run it with ``python -m tests.benchmarks.products``. The unit is the floor: six products of
[p, h] by [h, h] per hidden map, timed in the same rounds. Rounds are interleaved and medians
compared, because machines drift; within a round a call is repeated, as every algorithm does.
Threads are bound to cores: those that wander make some processes a third slower, the floor less.
"""

import argparse
import os
import statistics
import sys
import time

os.environ.setdefault("OMP_PROC_BIND", "true")

import torch
from torch import nn

from hessian_lab.fields.encoding import encode
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.signal import Signal

ROUNDS = 21
# Seconds of calls in a row.
RUN = 0.02
BLOCK = 16
# (activation, width, points, vectors) -> what a vector may cost, in floors.
TARGETS = {
    ("sine", 64, 2500, 1): 1.45,
    ("gaussian", 256, 16384, 1): 1.15,
    ("sine", 64, 2500, BLOCK): 1.45,
}
# What a product of a generic module may cost, in gradients.
GENERIC_TARGET = 2.5


class Wave(nn.Module):
    """The field's activation as a module, for the same network as a plain ``nn.Sequential``."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, z):
        return self.value(z)


def seconds(function):
    """Return the time of a call, one of a run of them."""
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < RUN:
        function()
        calls += 1
    return (time.perf_counter() - start) / calls


def floor(width, num_points, num_maps):
    """Return a function that does six products per hidden map, and nothing else."""
    states = [torch.randn(num_points, width) for _ in range(2)]
    weights = [torch.randn(width, width) for _ in range(2)]
    outs = [torch.empty(num_points, width) for _ in range(2)]
    square = torch.empty(width, width)

    def work():
        for _ in range(num_maps):
            for state, weight, out in zip(states, weights, outs, strict=True):
                torch.mm(state, weight.T, out=out)
                torch.mm(state, weight, out=out)
            torch.mm(states[0].T, states[1], out=square)
            torch.mm(states[1].T, states[0], out=square)

    return work


def sequential(field):
    """Return the same network as ``nn.Sequential``, sharing its parameters."""
    *hidden, last = field.maps
    bend = field.activation.value
    return nn.Sequential(*[part for layer in hidden for part in (layer, Wave(bend))], last)


def compare(act, width, num_points, vectors):
    """Print one line, and return the costs of a vector in floors and of a generic one."""
    torch.manual_seed(0)
    field = make_field(act, 2, 1, width=width, depth=4, dtype=torch.float32)
    signal = Signal(torch.rand(num_points, 2) * 2 - 1, torch.rand(num_points, 1))
    plain = sequential(field)
    parameters = list(plain.parameters())
    inputs = encode(signal.coords, field.octaves)
    operators = {
        "hessian": HessianOperator(field, mse, signal),
        "ggn": GGNOperator(field, mse, signal),
        "generic": HessianOperator(plain, mse, (inputs, signal.values)),
    }
    size = operators["hessian"].size
    block = torch.randn(vectors, size).T
    work = {
        "floor": floor(width, num_points, 3),
        "gradient": lambda: torch.autograd.grad(mse(plain(inputs), signal.values), parameters),
    } | {name: (lambda each=each: each @ block) for name, each in operators.items()}
    times = {name: [] for name in work}
    for turn in range(ROUNDS + 1):
        for name, function in work.items():
            spent = seconds(function)
            if turn:
                times[name].append(spent)
    median = {name: statistics.median(spent) for name, spent in times.items()}
    each = {name: median[name] / vectors for name in operators}
    target = TARGETS[act, width, num_points, vectors]
    floors = each["hessian"] / median["floor"]
    gradients = {name: each[name] / median["gradient"] for name in each}
    print(
        f"{act:9s} 4×{width:<4d}{num_points:7d}{vectors:8d} {median['floor'] * 1e3:9.2f} "
        f"{median['gradient'] * 1e3:9.2f} {each['hessian'] * 1e3:9.2f} {floors:7.2f} "
        f"({target:.2f}) {gradients['hessian']:7.2f} {gradients['ggn']:6.2f} "
        f"{gradients['generic']:8.2f}",
        flush=True,
    )
    return floors <= target, gradients["generic"] <= GENERIC_TARGET


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, help="torch's default")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    print(
        "field         points vectors  floor ms   grad ms  H v ms   floors (target) "
        "/grad   GGN   generic"
    )
    met = [all(compare(*case)) for case in TARGETS]
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
