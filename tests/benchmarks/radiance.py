"""How long curvature of a radiance field takes in closed form, beside kept double backward.

Run it with ``python -m tests.benchmarks.radiance``: a Gaussian 4×16 (948 parameters) on 512 rays of
32 samples, float64. Rounds are interleaved, and medians are compared, because machines drift.
"""

import statistics

import torch

from hessian_lab.fields.radiance import make_radiance_field
from hessian_lab.losses import mse
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.hessian import dense_ggn, dense_hessian
from hessian_lab.probe.kept_graph import KeptGradient, KeptOutputs, trainable
from hessian_lab.signals import load_signal
from tests.benchmarks.timing import seconds

ROUNDS = 5
# Products by double backward that are timed; a whole matrix takes n of them.
ROWS = 8


def gradient(model, signal):
    """Take one gradient."""
    torch.autograd.grad(mse(model(signal.coords), signal.values), trainable(model))


def main():
    """Print one line per matrix."""
    signal = load_signal("torus-nerf", 40, points=512)
    model = make_radiance_field("gaussian", samples=32)
    parameters = trainable(model)
    size = sum(value.numel() for value in parameters)
    block = torch.randn(ROWS, size, dtype=torch.float64)
    predictions = model(signal.coords)
    kept = {
        "Hessian": KeptGradient(mse(predictions, signal.values), parameters),
        "GGN": KeptOutputs(predictions, lambda found: mse(found, signal.values), parameters),
    }
    dense = {"Hessian": dense_hessian, "GGN": dense_ggn}
    operators = {
        name: kind(model, mse, signal)
        for name, kind in (("Hessian", HessianOperator), ("GGN", GGNOperator))
    }
    print(f"{size} parameters, {signal.num_points} rays × {model.samples} samples, float64")
    print("matrix    gradient s  product s  of a gradient   ×kept   dense s   ×kept rows")
    for name in kept:
        work = {
            "gradient": lambda: gradient(model, signal),
            "product": lambda name=name: operators[name] @ block.T,
            "kept": lambda name=name: kept[name].products(block),
            "dense": lambda name=name: dense[name](model, mse, signal),
        }
        times = {key: [] for key in work}
        for turn in range(ROUNDS + 1):
            for key, function in work.items():
                spent = seconds(function)
                if turn:
                    times[key].append(spent)
        median = {key: statistics.median(spent) for key, spent in times.items()}
        one, row = median["product"] / ROWS, median["kept"] / ROWS
        print(
            f"{name:9s} {median['gradient']:10.4f} {one:10.4f} {one / median['gradient']:14.2f} "
            f"{row / one:7.1f} {median['dense']:9.2f} {row * size / median['dense']:12.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
