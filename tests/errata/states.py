"""The networks that the tests of the papers' errors look at."""

from functools import cache

import torch

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.optim.lbfgs import LBFGS
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.signals import load_signal


@cache
def camera(size=32):
    """Return a grey image: more pixels than a field of 4×16 has parameters."""
    return load_signal("camera", size)


@cache
def trained(act, steps=0, *, size=32, width=16, depth=4, seed=1, **options):
    """Return a field after some steps of L-BFGS on the image; do not change it."""
    signal = camera(size)
    model = make_field(act, 2, 1, width=width, depth=depth, seed=seed, **options)
    optimizer = LBFGS(model.parameters())
    for _ in range(steps):
        optimizer.step(lambda: mse(model(signal.coords), signal.values))
    return model


@cache
def hessian_of(act, steps=0, **options):
    """Return the dense Hessian [n, n] of ``trained``."""
    return dense_hessian(trained(act, steps, **options), mse, camera(options.get("size", 32)))


def relative(actual, expected):
    """Return ‖actual − expected‖ / ‖expected‖."""
    norm = torch.linalg.vector_norm
    return float(norm(actual - expected) / norm(expected))


def badly_scaled(size=30, decades=6.0, seed=0):
    """Return a positive definite matrix whose rows span so many decades twice over."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-decades / 2, decades / 2, size, dtype=torch.float64)
    inner = noise @ noise.T / size + 0.1 * torch.eye(size, dtype=torch.float64)
    return scale.unsqueeze(1) * inner * scale


def symmetric(size, seed):
    """Return a random symmetric matrix [n, n], indefinite."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return (noise + noise.T) / 2


def quadratic_of(matrix, seed=0):
    """Return a parameter and the closure ½ xᵀ A x of a matrix [n, n]."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(len(matrix), generator=generator, dtype=torch.float64)
    point = torch.nn.Parameter(start)
    return point, lambda: 0.5 * point @ matrix @ point
