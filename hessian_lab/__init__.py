"""A microscope for the loss landscape of neural fields."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Exported lazily (PEP 562), so that ``hessian-lab --help`` needs no torch.
_HOMES = {
    "CoordinateMLP": "hessian_lab.fields.mlp",
    "make_field": "hessian_lab.fields.mlp",
    "Signal": "hessian_lab.signal",
    "load_signal": "hessian_lab.signals",
    "mse": "hessian_lab.losses",
    "bce": "hessian_lab.losses",
    "dense_hessian": "hessian_lab.probe.hessian",
    "hessian_terms": "hessian_lab.probe.hessian",
    "HessianTerms": "hessian_lab.probe.hessian",
    "spectrum": "hessian_lab.probe.spectrum",
    "Spectrum": "hessian_lab.probe.spectrum",
    "Setup": "hessian_lab.training.setup",
    "train": "hessian_lab.training.loop",
    "load_run": "hessian_lab.training.run",
    "Run": "hessian_lab.training.run",
    "plot_spectrum": "hessian_lab.plots.eigenvalues",
}

__all__ = [
    "CoordinateMLP",
    "HessianTerms",
    "Run",
    "Setup",
    "Signal",
    "Spectrum",
    "bce",
    "dense_hessian",
    "hessian_terms",
    "load_run",
    "load_signal",
    "make_field",
    "mse",
    "plot_spectrum",
    "spectrum",
    "train",
]

if TYPE_CHECKING:
    from hessian_lab.fields.mlp import CoordinateMLP, make_field
    from hessian_lab.losses import bce, mse
    from hessian_lab.plots.eigenvalues import plot_spectrum
    from hessian_lab.probe.hessian import HessianTerms, dense_hessian, hessian_terms
    from hessian_lab.probe.spectrum import Spectrum, spectrum
    from hessian_lab.signal import Signal
    from hessian_lab.signals import load_signal
    from hessian_lab.training.loop import train
    from hessian_lab.training.run import Run, load_run
    from hessian_lab.training.setup import Setup


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
