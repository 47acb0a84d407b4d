"""What curvature of a model too large for this machine costs: products, bytes and traffic.

Run it with ``python -m tests.benchmarks.scale``: it measures a few ratios here, which carry over
(how near products come to their matrix products, sums over ranks and orthogonalizations to what
moves their bytes), and predicts a large model on other hardware from them and from its published
rates. ``docs/scale.md`` is its answer for 10⁸ parameters on 64 GPUs.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise

import torch

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.lanczos import orthogonalized
from hessian_lab.signal import Signal

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


def main():
    """Print the ratios and the plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=3780)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--points", type=int, default=1 << 20)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--probes", type=int, default=10)
    args = parser.parse_args()
    ratios = Ratios(product_ratio(), orthogonalization_ratio())
    model = Model(args.width, args.depth, args.points)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    print(f"measured: products at {ratios.product:.2f} of their matrix products' rate,")
    print(f"orthogonalization at {ratios.orthogonalization:.2f} of a copy's")
    for vectors in (1, args.probes):
        found = costs(model, args.ranks, Hardware(), ratios, vectors=vectors, steps=args.steps)
        print(f"\n{model.size:.3g} parameters, {model.num_points:,} points, {args.ranks} ranks,")
        print(f"{vectors} × {args.steps} Lanczos steps")
        print(f"a product        {model.operations:.2g} operations, {readable(found.product)}")
        print(f"its traffic      {found.traffic / 1e9:.2g} GB, {readable(found.traffic_seconds)}")
        print(f"stored per rank  {found.stored / 1e9:.3g} GB")
        print(f"all products     {readable(vectors * args.steps * found.product)}")
        print(f"basis            {found.basis / 1e9:.3g} GB on the first rank")
        print(f"orthogonalizing  {readable(found.orthogonalization)} on the first rank")


if __name__ == "__main__":
    main()
