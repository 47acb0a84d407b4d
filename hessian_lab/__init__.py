"""A microscope for the loss landscape of neural fields."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Exported lazily (PEP 562), so that ``hessian-lab --help`` needs no torch.
_HOMES = {
    "CoordinateMLP": "hessian_lab.fields.mlp",
    "make_field": "hessian_lab.fields.mlp",
    "RadianceField": "hessian_lab.fields.radiance",
    "make_radiance_field": "hessian_lab.fields.radiance",
    "load_scene": "hessian_lab.signals.radiance",
    "KiloRadiance": "hessian_lab.fields.kilo_radiance",
    "train_cells": "hessian_lab.training.cells",
    "stacked_hessians": "hessian_lab.probe.stacked_hessian",
    "FieldStack": "hessian_lab.fields.stack",
    "make_stack": "hessian_lab.fields.stack",
    "stack_fields": "hessian_lab.fields.stack",
    "StackedLBFGS": "hessian_lab.optim.stacked_lbfgs",
    "StackedObjective": "hessian_lab.training.stacked_objective",
    "train_tiles": "hessian_lab.training.tiles",
    "Signal": "hessian_lab.signal",
    "load_signal": "hessian_lab.signals",
    "mse": "hessian_lab.losses",
    "bce": "hessian_lab.losses",
    "dense_hessian": "hessian_lab.probe.hessian",
    "hessian_terms": "hessian_lab.probe.hessian",
    "HessianTerms": "hessian_lab.probe.hessian",
    "dense_ggn": "hessian_lab.probe.hessian",
    "exact_diagonal": "hessian_lab.probe.closed_diagonal",
    "exact_row_norms": "hessian_lab.probe.closed_rows",
    "SymmetricOperator": "hessian_lab.probe.operators",
    "MatrixOperator": "hessian_lab.probe.operators",
    "ScaledOperator": "hessian_lab.probe.operators",
    "HessianOperator": "hessian_lab.probe.curvature",
    "GGNOperator": "hessian_lab.probe.curvature",
    "layer_blocks": "hessian_lab.probe.layers",
    "join": "hessian_lab.probe.ranks",
    "Ranks": "hessian_lab.probe.ranks",
    "shared_hessian": "hessian_lab.probe.sharding",
    "extreme_eigenpairs": "hessian_lab.probe.eigenpairs",
    "Eigenpairs": "hessian_lab.probe.eigenpairs",
    "spectral_measure": "hessian_lab.probe.density",
    "SpectralMeasure": "hessian_lab.probe.measure",
    "trace": "hessian_lab.probe.trace",
    "diagonal": "hessian_lab.probe.diagonal",
    "row_norms": "hessian_lab.probe.norms",
    "frobenius_norm": "hessian_lab.probe.norms",
    "equilibration": "hessian_lab.probe.scaling",
    "jacobi": "hessian_lab.probe.scaling",
    "condition_number": "hessian_lab.probe.conditioning",
    "ConditionNumber": "hessian_lab.probe.conditioning",
    "Estimate": "hessian_lab.probe.estimate",
    "plot_density": "hessian_lab.plots.density",
    "spectrum": "hessian_lab.probe.spectrum",
    "Spectrum": "hessian_lab.probe.spectrum",
    "Setup": "hessian_lab.training.setup",
    "train": "hessian_lab.training.loop",
    "load_run": "hessian_lab.training.run",
    "Run": "hessian_lab.training.run",
    "plot_spectrum": "hessian_lab.plots.eigenvalues",
}

__all__ = [
    "ConditionNumber",
    "CoordinateMLP",
    "Eigenpairs",
    "Estimate",
    "FieldStack",
    "GGNOperator",
    "HessianOperator",
    "HessianTerms",
    "KiloRadiance",
    "MatrixOperator",
    "RadianceField",
    "Ranks",
    "Run",
    "ScaledOperator",
    "Setup",
    "Signal",
    "SpectralMeasure",
    "Spectrum",
    "StackedLBFGS",
    "StackedObjective",
    "SymmetricOperator",
    "bce",
    "condition_number",
    "dense_ggn",
    "dense_hessian",
    "diagonal",
    "equilibration",
    "exact_diagonal",
    "exact_row_norms",
    "extreme_eigenpairs",
    "frobenius_norm",
    "hessian_terms",
    "jacobi",
    "join",
    "layer_blocks",
    "load_run",
    "load_scene",
    "load_signal",
    "make_field",
    "make_radiance_field",
    "make_stack",
    "mse",
    "plot_density",
    "plot_spectrum",
    "row_norms",
    "shared_hessian",
    "spectral_measure",
    "spectrum",
    "stack_fields",
    "stacked_hessians",
    "trace",
    "train",
    "train_cells",
    "train_tiles",
]

if TYPE_CHECKING:
    from hessian_lab.fields.kilo_radiance import KiloRadiance
    from hessian_lab.fields.mlp import CoordinateMLP, make_field
    from hessian_lab.fields.radiance import RadianceField, make_radiance_field
    from hessian_lab.fields.stack import FieldStack, make_stack, stack_fields
    from hessian_lab.losses import bce, mse
    from hessian_lab.optim.stacked_lbfgs import StackedLBFGS
    from hessian_lab.plots.density import plot_density
    from hessian_lab.plots.eigenvalues import plot_spectrum
    from hessian_lab.probe.closed_diagonal import exact_diagonal
    from hessian_lab.probe.closed_rows import exact_row_norms
    from hessian_lab.probe.conditioning import ConditionNumber, condition_number
    from hessian_lab.probe.curvature import GGNOperator, HessianOperator
    from hessian_lab.probe.density import spectral_measure
    from hessian_lab.probe.diagonal import diagonal
    from hessian_lab.probe.eigenpairs import Eigenpairs, extreme_eigenpairs
    from hessian_lab.probe.estimate import Estimate
    from hessian_lab.probe.hessian import HessianTerms, dense_ggn, dense_hessian, hessian_terms
    from hessian_lab.probe.layers import layer_blocks
    from hessian_lab.probe.measure import SpectralMeasure
    from hessian_lab.probe.norms import frobenius_norm, row_norms
    from hessian_lab.probe.operators import MatrixOperator, ScaledOperator, SymmetricOperator
    from hessian_lab.probe.ranks import Ranks, join
    from hessian_lab.probe.scaling import equilibration, jacobi
    from hessian_lab.probe.sharding import shared_hessian
    from hessian_lab.probe.spectrum import Spectrum, spectrum
    from hessian_lab.probe.stacked_hessian import stacked_hessians
    from hessian_lab.probe.trace import trace
    from hessian_lab.signal import Signal
    from hessian_lab.signals import load_signal
    from hessian_lab.signals.radiance import load_scene
    from hessian_lab.training.cells import train_cells
    from hessian_lab.training.loop import train
    from hessian_lab.training.run import Run, load_run
    from hessian_lab.training.setup import Setup
    from hessian_lab.training.stacked_objective import StackedObjective
    from hessian_lab.training.tiles import train_tiles


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
