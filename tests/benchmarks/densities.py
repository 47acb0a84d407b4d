"""How near densities of 10 probes × 80 steps come to the spectra of trained fields.

Run it with ``python -m tests.benchmarks.densities`` (a few minutes), beside hessian-eigenthings and
curvlinops where they are installed. How long they take is told by ``python -m tests.benchmarks``.
"""

import argparse
import statistics
import warnings

import torch
from torch import Tensor

from hessian_lab import Setup, train
from hessian_lab.probe.density import spectral_measure
from hessian_lab.probe.hessian import dense_hessian
from tests.benchmarks.cases.densities import distance
from tests.benchmarks.peers import curvlinops, eigenthings, installed

NUM_PROBES, NUM_STEPS = 10, 80
FIELDS = ("sine", "gaussian", "relu_pe")
PEERS = {"hessian-eigenthings": eigenthings.quadrature, "curvlinops": curvlinops.quadrature}


def ours(matrix: Tensor, seed: int, num_probes: int, num_steps: int) -> tuple[Tensor, Tensor]:
    measure = spectral_measure(matrix, num_probes=num_probes, num_steps=num_steps, seed=seed)
    return measure.nodes, measure.weights


def main() -> None:
    """Print a line per field."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="at least 2")
    parser.add_argument("--steps", type=int, default=50, help="of training before")
    args = parser.parse_args()
    # Curvlinops sets it off inside torch.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    methods = {"ours": ours} | {name: run for name, run in PEERS.items() if installed(name)}
    print(f"4×16 on camera after {args.steps} L-BFGS steps, float32, {args.seeds} seeds")
    print("1-Wasserstein distance to the spectrum / mean |λ|, ± standard error")
    print(f"{'field':9s} {'n':>5s} " + " ".join(f"{name:>21s}" for name in methods))
    for act in FIELDS:
        run = train(Setup(act=act, steps=args.steps))
        matrix = dense_hessian(run.model(args.steps), run.loss, run.signal())
        exact = torch.linalg.eigvalsh(matrix)
        print(f"{act:9s} {len(matrix):5d}", end="")
        for method in methods.values():
            found = [
                distance(*method(matrix.float(), seed, NUM_PROBES, NUM_STEPS), exact)
                for seed in range(args.seeds)
            ]
            error = statistics.stdev(found) / args.seeds**0.5
            print(f" {statistics.mean(found):12.4f} ± {error:.4f}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
