"""The house rule: an import points down, never up and never sideways between columns."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hessian_lab"

# room -> the rooms that it may import; a module of a room may import its own room.
BASE = {"names", "errors"}
FIELDS = {"fields", "losses", "signal"}
# From a network to an operator; all other modules of the probe know v -> A v alone.
CURVATURE = {
    f"probe.{name}"
    for name in (
        "checks",
        "closed_bands",
        "closed_diagonal",
        "closed_form",
        "closed_kernel",
        "closed_rows",
        "closed_slabs",
        "curvature",
        "data",
        "extended",
        "hessian",
        "kept_graph",
        "layers",
        "linearize",
        "linearized",
        "parameters",
        "rendered",
        "sharding",
        "stacked_hessian",
        "storage",
    )
}
NUMERICS = {
    f"probe.{path.stem}" for path in (PACKAGE / "probe").glob("*.py") if path.stem != "__init__"
} - CURVATURE
FLOOR_0 = BASE | NUMERICS | FIELDS
TRAINING = FLOOR_0 | CURVATURE | {"signals", "optim"}
ALLOWED = {
    "names": set(),
    "errors": set(),
    "losses": set(),
    "signal": {"losses"},
    "fields": BASE,
    "probe": set(),
    **{module: BASE | NUMERICS for module in NUMERICS},
    **{module: FLOOR_0 | CURVATURE for module in CURVATURE},
    "signals": BASE | FIELDS | {"probe.memory", "signals.raster"},
    "signals.raster": set(),
    "optim": BASE | NUMERICS | CURVATURE,
    "training": TRAINING,
    "measures": TRAINING | {"training"},
    "plots": NUMERICS | {"training", "signals.raster"},
    "cli": TRAINING | {"training", "measures", "plots"},
}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.parent != PACKAGE or path.stem not in ("__init__", "__main__")
)


def room_of(module):
    return module if module in ALLOWED else module.split(".")[0]


def imports(path):
    """Yield the dotted names below ``hessian_lab`` that a file imports, and all other roots."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from names


def path_of(module):
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported_rooms(module):
    for name in imports(path_of(module)):
        root, _, rest = name.partition(".")
        if root != "hessian_lab":
            continue
        parts = rest.split(".")
        pair = ".".join(parts[:2])
        if rest:
            yield pair if pair in ALLOWED else parts[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    room = room_of(module)
    for imported in imported_rooms(module):
        if imported == "__version__" or imported == room:
            continue
        assert imported in ALLOWED[room], f"{module} must not import {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_room(module):
    assert room_of(module) in ALLOWED


def test_numerics_know_no_network():
    for module in NUMERICS:
        assert set(imported_rooms(module)) <= BASE | NUMERICS


@pytest.mark.parametrize("module", MODULES)
def test_package_never_imports_analyses_or_figures(module):
    for name in imports(path_of(module)):
        assert name.split(".")[0] not in ("analyses", "figures")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "figures").glob("*.py")), ids=lambda path: path.stem
)
def test_figures_read_records_and_never_run_analyses(path):
    assert not [name for name in imports(path) if name.startswith("analyses")]
