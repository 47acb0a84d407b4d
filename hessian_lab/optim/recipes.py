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
        options: What differs from the defaults of the class.
        source: Where the settings stand, and what they do.
    """

    optimizer: str
    lr: float
    source: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


PN = "Preconditioners for the Stochastic Training of Neural Fields (2025)"
EVERY_100 = {"update_every": 100, "warmup_steps": 50}

RECIPES = {
    "adam-pn": Recipe("adam", 1e-4, f"{PN}, image fits"),
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
