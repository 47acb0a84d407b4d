"""What curvature of a model too large for this machine costs: products, bytes and traffic.

Run it with ``python -m tests.benchmarks.scale``: it measures a few ratios here, which carry over
(how near products come to their matrix products, sums over ranks and orthogonalizations to what
moves their bytes), and predicts a large model on other hardware from them and from its published
rates. ``docs/scale.md`` is its answer for 10⁸ parameters on 64 GPUs.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.lanczos import orthogonalized
from hessian_lab.signal import Signal
from hessian_lab.training.files import write_json

# Operations per weight of a hidden map and point: six products, two operations each.
OPERATIONS = 12
ITEM = 4
ROUNDS = 7


@dataclass(frozen=True)
class Hardware:
    """Published rates of one GPU, and of the link of each to the others.

    Attributes:
        operations: Per second in float32, without TF32.
        memory: Bytes per second.
        link: Bytes per second.
        room: Bytes.
    """

    operations: float = 67e12
    memory: float = 4.8e12
    link: float = 50e9
    room: float = 141e9


@dataclass(frozen=True)
class Ratios:
    """How near this code comes to what its sums and bytes need, as measured."""

    product: float
    orthogonalization: float


@dataclass(frozen=True)
class Model:
    """A coordinate network of some width and depth on some points."""

    width: int
    depth: int
    num_points: int
    inputs: int = 2
    channels: int = 1

    @property
    def size(self) -> int:
        """The number of parameters."""
        sizes = [self.inputs, *[self.width] * self.depth, self.channels]
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(sizes))

    @property
    def operations(self) -> float:
        """Those of one product with a vector: of the hidden maps, which are nearly all."""
        return OPERATIONS * (self.depth - 1) * self.width**2 * self.num_points

    @property
    def stored(self) -> float:
        """Bytes that linearizing keeps: four numbers per unit and point."""
        return 4 * self.depth * self.width * self.num_points * ITEM


# The plan of docs/scale.md.
PLAN, RANKS, STEPS = Model(width=3780, depth=8, num_points=1 << 20), 64, 80
PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
RECORD = PAGE.parents[1] / "data" / "results" / "scale.json"
BEGIN, END = "<!-- plan: begin -->", "<!-- plan: end -->"


@dataclass(frozen=True)
class Costs:
    """What one rank needs, seconds and bytes."""

    product: float
    traffic: float
    traffic_seconds: float
    stored: float
    basis: float
    orthogonalization: float


def costs(
    model: Model, ranks: int, hardware: Hardware, ratios: Ratios, *, vectors: int, steps: int
) -> Costs:
    """Return the costs of a product, and of ``steps`` Lanczos steps from ``vectors`` starts.

    Every product is broadcast and summed: each rank sends and receives about two vectors. The
    basis lies on the first rank, which goes through half of it twice per step, on the average.
    """
    traffic = 2 * 2 * (ranks - 1) / ranks * model.size * ITEM
    through = vectors * steps**2 * model.size * ITEM
    return Costs(
        product=model.operations / ranks / (hardware.operations * ratios.product),
        traffic=traffic,
        traffic_seconds=traffic / hardware.link,
        stored=model.stored / ranks,
        basis=vectors * (steps + 1) * model.size * ITEM,
        orthogonalization=through / (hardware.memory * ratios.orthogonalization),
    )


def median_seconds(work):
    work()
    spent = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def product_ratio(width=1024, depth=4, num_points=4096):
    """Return the time of the matrix products of H v over the time of H v."""
    field = make_field("sine", 2, 1, width=width, depth=depth, dtype=torch.float32)
    signal = Signal(torch.rand(num_points, 2) * 2 - 1, torch.rand(num_points, 1))
    operator = HessianOperator(field, mse, signal, check=False)
    vector = torch.randn(operator.size)
    left, square = torch.randn(num_points, width), torch.randn(width, width)
    out = torch.empty(num_points, width)
    one = median_seconds(lambda: torch.mm(left, square, out=out))
    return 6 * (depth - 1) * one / median_seconds(lambda: operator @ vector)


def orthogonalization_ratio(rows=64, size=1 << 20):
    """Return the time of copying a basis over that of ``v - Q Qᵀ v``, which reads it twice."""
    basis, vector = torch.randn(1, rows, size), torch.randn(1, size)
    copy = torch.empty_like(basis)
    moved = median_seconds(lambda: copy.copy_(basis))
    return moved / median_seconds(lambda: orthogonalized(vector, basis))


def readable(seconds):
    """Return a time for people."""
    for unit, length in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 100 * length or unit == "h":
            return f"{seconds / length:.2g} {unit}"
    raise AssertionError


def sum_rate(num_bytes=1 << 26):
    """Return the bytes per second of a vector that two ranks of this machine add up."""
    program = (
        "import time, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        f"one = torch.ones({num_bytes} // 4)\n"
        "dist.all_reduce(one)\n"
        "start = time.perf_counter()\n"
        f"for _ in range({ROUNDS}): dist.all_reduce(one)\n"
        f"if not dist.get_rank(): print({ROUNDS} * {num_bytes} / (time.perf_counter() - start))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sum.py"
        path.write_text(program)
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(path)]
        done = subprocess.run(launch, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measured():
    """Return what is measured here, for the record."""
    return {
        "product": round(product_ratio(), 3),
        "orthogonalization": round(orthogonalization_ratio(), 3),
        "sum_bytes_per_second": float(f"{sum_rate():.3g}"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def table(found):
    """Return the Markdown table of ``docs/scale.md`` for measured ratios."""
    ratios = Ratios(found["product"], found["orthogonalization"])
    one, ten = (
        costs(PLAN, RANKS, Hardware(), ratios, vectors=vectors, steps=STEPS) for vectors in (1, 10)
    )
    lines = [
        f"| {PLAN.size:.2g} parameters, {PLAN.num_points:,} points, {RANKS} ranks | |",
        "| --- | --- |",
        f"| operations of a product `H v` | {PLAN.operations:.2g} |",
        f"| its time | {readable(one.product)} |",
        f"| its traffic, each rank | {one.traffic / 1e9:.3g} GB, "
        f"{readable(one.traffic_seconds)} at {Hardware().link / 1e9:.0f} GB/s |",
        f"| stored activations, each rank | {one.stored / 1e9:.3g} GB |",
    ]
    for name, vectors, each in (("λmax, λmin", 1, one), ("density, 10 probes", 10, ten)):
        products = vectors * STEPS * (each.product + each.traffic_seconds)
        lines += [
            f"| {name}: {vectors * STEPS} products | {readable(products)} |",
            f"| its basis, on the first rank | {each.basis / 1e9:.3g} GB |",
            f"| keeping it orthogonal | {readable(each.orthogonalization)} |",
        ]
    dense = PLAN.size**2 * 8
    lines.append(f"| the dense matrix, float64 | {dense / 1e15:.2g} PB |")
    return "\n".join(lines)


def main():
    """Print what is measured and what follows from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, metavar="PATH", help="also write what is measured")
    parser.add_argument("--write", action="store_true", help="write the table into docs/scale.md")
    args = parser.parse_args()
    found = measured()
    if args.record:
        write_json(args.record, found)
    print(
        f"torch {found['torch']}, {found['threads']} threads, float32\n"
        f"products at {found['product']:.2f} of their matrix products' rate\n"
        f"orthogonalization at {found['orthogonalization']:.2f} of a copy's\n"
        f"sums over two ranks here at {found['sum_bytes_per_second'] / 1e9:.3g} GB/s\n"
    )
    print(table(found))
    if args.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
