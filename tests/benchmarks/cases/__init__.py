"""The cases, by the quantity that is asked for. What a case compares with is computed on building.

Every module has ``BUILDERS``: the name of a case -> what builds it, in full size or in a quick one.
"""

from collections.abc import Callable
from importlib import import_module

from tests.benchmarks.case import Case

# In the order of the table.
GROUPS = ("dense", "products", "diagonals", "densities", "estimates", "optimizers")


def builders() -> dict[str, Callable[[bool], Case]]:
    """Return the name of every case -> what builds it."""
    modules = [import_module(f"tests.benchmarks.cases.{group}") for group in GROUPS]
    return {name: build for module in modules for name, build in module.BUILDERS.items()}
