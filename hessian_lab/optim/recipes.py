"""The papers' settings and their code's published behaviour, as data.

Class defaults are mathematically correct; what a paper ran is a recipe, and a plot says which.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """The settings of one published experiment.

    Attributes:
        optimizer: Its name in ``OPTIMIZERS``.
        lr: The learning rate.
        lr_final: That of the last step, where it decays exponentially.
        options: What differs from the defaults of the class.
        source: Where the settings stand, and what they do.
    """

    optimizer: str
    lr: float
    source: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    lr_final: float | None = None


PN = "Preconditioners for the Stochastic Training of Neural Fields (2025)"
EVERY_100 = {"update_every": 100, "warmup_steps": 50}

RECIPES = {
    "adam-pn": Recipe("adam", 1e-4, f"{PN}, image fits"),
    "adam-pn-sine": Recipe("adam", 5e-5, f"{PN}, image fits with sine; its code has 1e-4"),
    "adam-pn-relu-pe": Recipe("adam", 1e-3, f"{PN}, image fits with encoding"),
    "sgd-pn": Recipe("sgd", 1.0, f"{PN}, image fits"),
    "lbfgs-cact": Recipe("lbfgs", 1.0, "Curvature-Aware Training for Coordinate Networks (2023)"),
    "esgd-cvpr2025": Recipe(
        "esgd",
        0.15,
        f"{PN}, image fits: as its code runs it, where the bias correction counts steps while the "
        "average is updated every 100 of them; the scale falls to 0.28 of the row norms and "
        "recovers slowly, a hidden schedule of the learning rate",
        EVERY_100 | {"bias_correction": "steps"},
    ),
    "esgd-max-pn": Recipe("esgd_max", 0.15, f"{PN}, as its code runs it", EVERY_100),
    "esgd-sparsity-pn": Recipe(
        "esgd",
        0.1,
        f"{PN}, sparsity of Hessian-vector products with ReLU, with and without encoding",
        EVERY_100 | {"bias_correction": "steps"},
    ),
    "adam-nerf-pn": Recipe(
        "adam",
        1e-4,
        f"{PN}, radiance fields of the Blender scenes; the last rate is printed as 1×5^-6",
        lr_final=5e-6,
    ),
    "esgd-nerf-pn": Recipe(
        "esgd",
        1.0,
        f"{PN}, radiance fields",
        EVERY_100 | {"bias_correction": "steps"},
        lr_final=0.01,
    ),
    "adam-nerf-pn-relu-pe": Recipe(
        "adam", 1e-3, f"{PN}, radiance fields with ReLU, with and without encoding", lr_final=1e-4
    ),
    "sgd-nerf-pn-relu-pe": Recipe(
        "sgd", 2.0, f"{PN}, radiance fields with ReLU, with and without encoding", lr_final=1e-4
    ),
    "esgd-nerf-pn-relu-pe": Recipe(
        "esgd",
        0.1,
        f"{PN}, radiance fields with ReLU, with and without encoding",
        EVERY_100 | {"bias_correction": "steps"},
        lr_final=5e-3,
    ),
    "psgd-condition-pn": Recipe(
        "psgd",
        2.0,
        f"{PN}, condition numbers on a 1-D signal: exact row norms, x - η D^(-1/2) g as printed; a "
        "change of variables gives D^(-1)",
        {"mode": "exact", "exponent": 0.5, "update_every": 10, "warmup_steps": 20},
    ),
    "kfac-pn": Recipe(
        "kfac",
        0.1,
        f"{PN}, image fits, as its text has it; its code passed its arguments in the wrong places "
        "and ran Adam at 1e-4 on the preconditioned gradient",
        {"fisher": "empirical", "damping": 0.1, "update_every": 1, "inverse_every": 100},
    ),
    "kfac-occupancy-pn": Recipe(
        "kfac",
        0.1,
        f"{PN}, occupancy of shapes, as its text has it: Tikhonov's damping 0.01",
        {"fisher": "empirical", "damping": 0.01, "update_every": 1, "inverse_every": 100},
    ),
    "shampoo-pn": Recipe(
        "shampoo",
        0.1,
        f"{PN}, as its code runs it: grafted to the norm of SGD, Nesterov's momentum written into "
        "the buffer, blocks of 128, thin matrices left alone; not the Alg. 4 of its text",
        {
            "eps": 1e-12,
            "momentum": 0.9,
            "nesterov": "in-place",
            "block_size": 128,
            "matrix_eps": 1e-12,
            "graft": "sgd",
            "vectors": "plain",
        },
    ),
    "adahessian-e-pn": Recipe(
        "adahessian",
        0.15,
        f"{PN}, 'AdaHessian (E)': row norms, every step",
        {"estimator": "equilibrated", "bias_correction": "steps"},
    ),
    "adahessian-j-pn": Recipe(
        "adahessian",
        0.15,
        f"{PN}, 'AdaHessian (J)' as its code runs it: the root of the mean of |H v|, the "
        "equilibrated scale to the power 1/2, and no Jacobi",
        {"estimator": "pn-jacobi", "bias_correction": "steps"},
    ),
}
