"""Spectral densities: how long 10 probes × 80 steps take, and how near they come to the spectrum.

Run it with ``python -m tests.benchmarks.densities`` (a few minutes). Hessian-eigenthings and
curvlinops run beside ours where they are installed: ``pip install -c constraints.txt -e
'.[compare]'``. Rounds are interleaved and ratios are taken round by round, because machines drift.
"""

import argparse
import statistics
import time
import warnings
from importlib.metadata import PackageNotFoundError, version

import torch
from scipy.stats import wasserstein_distance
from torch import nn

from hessian_lab import Setup, train
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.density import spectral_measure
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.probe.vectors import rademacher
from hessian_lab.signals import load_signal

PEERS = {"hessian-eigenthings": 0.5, "curvlinops-for-pytorch": 0.25}
PRODUCTS = 1.2
NUM_PROBES, NUM_STEPS, GRID = 10, 80, 1024
FIELDS = ("sine", "gaussian", "relu_pe")


class PointMean(nn.Module):
    """``mse`` for curvlinops, which wants a module that says its reduction."""

    reduction = "mean"

    def forward(self, predictions, values):
        return mse(predictions, values)


def installed(name):
    """Return a peer's version, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def our_density(model, signal, seed, num_probes=NUM_PROBES, num_steps=NUM_STEPS):
    operator = HessianOperator(model, mse, signal)
    measure = spectral_measure(operator, num_probes=num_probes, num_steps=num_steps, seed=seed)
    low, high = float(measure.nodes.min()), float(measure.nodes.max())
    grid = torch.linspace(low, high, GRID, dtype=torch.float64)
    return measure.density(grid, bandwidth=(high - low) / num_steps)


def density_of_eigenthings(model, signal, seed, num_probes=NUM_PROBES, num_steps=NUM_STEPS):
    import hessian_eigenthings as peer

    data = [(signal.coords, signal.values)]
    operator = peer.HessianOperator(model, data, peer.supervised_loss(mse))
    return peer.spectral_density(
        operator, num_runs=num_probes, lanczos_steps=num_steps, num_grid_points=GRID, seed=seed
    )


def density_of_curvlinops(
    model, signal, seed, num_probes=NUM_PROBES, num_steps=NUM_STEPS, bounds=None
):
    import curvlinops as peer

    torch.manual_seed(seed)
    operator = peer.HessianLinearOperator(
        model,
        PointMean(),
        list(model.parameters()),
        [(signal.coords, signal.values)],
        check_deterministic=bounds is None,
    )
    cached = peer.LanczosApproximateSpectrumCached(operator, num_steps, boundaries=bounds)
    return cached.approximate_spectrum(num_repeats=num_probes, num_points=GRID)


def products(operator, block):
    for _ in range(NUM_STEPS):
        operator @ block


def speed(rounds, width):
    """Print the time from a network to its density, ours beside the peers' and our products."""
    signal = load_signal("camera", 50).to(dtype=torch.float32)
    model = make_field("sine", 2, 1, width=width, depth=4, dtype=torch.float32)
    operator = HessianOperator(model, mse, signal)
    block = rademacher(operator.size, NUM_PROBES, seed=0, like=operator)
    work = {
        "ours": (our_density, {}, None),
        f"our {NUM_PROBES * NUM_STEPS} products alone": (None, {}, PRODUCTS),
    }
    if installed("hessian-eigenthings"):
        target = PEERS["hessian-eigenthings"]
        work["hessian-eigenthings"] = density_of_eigenthings, {}, target
    if installed("curvlinops-for-pytorch"):
        target = PEERS["curvlinops-for-pytorch"]
        work["curvlinops"] = density_of_curvlinops, {}, target
        lean = {"bounds": (-1.0, 1.0)}
        work["curvlinops, unchecked, bounds given"] = density_of_curvlinops, lean, target
    times = {name: [] for name in work}
    for turn in range(rounds + 1):
        small = {} if turn else {"num_probes": 2, "num_steps": 4}
        for name, (function, options, _) in work.items():
            start = time.perf_counter()
            if function is None:
                products(operator, block)
            else:
                function(model, signal, turn, **options, **small)
            if turn:
                times[name].append(time.perf_counter() - start)
    print(f"sine 4×{width}, n = {operator.size}, {signal.num_points} points, float32, ", end="")
    print(f"{NUM_PROBES} probes × {NUM_STEPS} steps, {rounds} rounds")
    print(f"{'from network to density':38s} {'median s':>9s} {'ours / it':>10s}  target")
    for name, (_, _, target) in work.items():
        ratios = [ours / its for ours, its in zip(times["ours"], times[name], strict=True)]
        end = "" if target is None else f" {statistics.median(ratios):10.2f}  ≤ {target}"
        print(f"{name:38s} {statistics.median(times[name]):9.2f}{end}", flush=True)


def our_quadrature(matrix, seed):
    measure = spectral_measure(matrix, num_probes=NUM_PROBES, num_steps=NUM_STEPS, seed=seed)
    return measure.nodes, measure.weights


def quadrature_of_eigenthings(matrix, seed):
    import hessian_eigenthings as peer

    operator = peer.LambdaOperator(matrix.__matmul__, len(matrix), dtype=matrix.dtype)
    # Probe j of seed s is probe 0 of seed s + j.
    result = peer.spectral_density(
        operator, num_runs=NUM_PROBES, lanczos_steps=NUM_STEPS, seed=NUM_PROBES * seed
    )
    return result.raw_eigenvalues, result.raw_weights


def quadrature_of_curvlinops(matrix, seed):
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    torch.manual_seed(seed)
    runs = [fast_lanczos(matrix, NUM_STEPS) for _ in range(NUM_PROBES)]
    return (
        torch.stack([values for values, _ in runs]),
        torch.stack([vectors[0] ** 2 for _, vectors in runs]),
    )


def distances(method, matrix, exact, seeds):
    """Return 1-Wasserstein distances to the exact spectrum, in units of its mean magnitude."""
    found = []
    for seed in range(seeds):
        nodes, weights = method(matrix, seed)
        known = weights > 0
        distance = wasserstein_distance(nodes[known], exact, weights[known].double())
        found.append(distance / float(exact.abs().mean()))
    return found


def accuracy(seeds, steps):
    """Print how far each library's nodes and weights are from the spectrum, at equal products."""
    methods = {"ours": our_quadrature}
    if installed("hessian-eigenthings"):
        methods["hessian-eigenthings"] = quadrature_of_eigenthings
    if installed("curvlinops-for-pytorch"):
        methods["curvlinops"] = quadrature_of_curvlinops
    print(f"\n4×16 on camera after {steps} L-BFGS steps, float32 products, {seeds} seeds")
    print("1-Wasserstein distance to the spectrum / mean |λ|, ± standard error")
    print(f"{'field':9s} {'n':>5s} " + " ".join(f"{name:>21s}" for name in methods))
    for act in FIELDS:
        run = train(Setup(act=act, steps=steps))
        matrix = dense_hessian(run.model(steps), run.loss, run.signal())
        exact = torch.linalg.eigvalsh(matrix)
        print(f"{act:9s} {len(matrix):5d}", end="")
        for method in methods.values():
            found = distances(method, matrix.float(), exact, seeds)
            error = statistics.stdev(found) / seeds**0.5
            print(f" {statistics.mean(found):12.4f} ± {error:.4f}", end="", flush=True)
        print()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; 0 times nothing")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=20, help="at least 2; 0 skips the distances")
    parser.add_argument("--steps", type=int, default=50, help="of training before the distances")
    args = parser.parse_args()
    # Curvlinops sets it off inside torch.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", end="")
    for name in PEERS:
        print(f", {name} {installed(name) or 'not installed'}", end="")
    print()
    if args.rounds:
        speed(args.rounds, args.width)
    if args.seeds:
        accuracy(args.seeds, args.steps)


if __name__ == "__main__":
    main()
