"""The table of the papers' errors names these tests, and these tests alone."""

import ast
import csv
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def named():
    """Return the test of each error that has one, by its id."""
    with (ROOT / "analyses" / "errors.csv").open(newline="") as stream:
        return {row["id"]: row["test"] for row in csv.DictReader(stream) if row["test"]}


def found():
    """Return the node of every test whose name begins with an error's id, by that id."""
    nodes = {}
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_e"):
                error = node.name.split("_")[1].upper()
                assert error not in nodes, f"{error} has two tests"
                nodes[error] = f"{path.relative_to(ROOT)}::{node.name}"
    return nodes


def test_the_table_names_every_test():
    assert named() == found()


def test_the_table_lists_every_error_once():
    with (ROOT / "analyses" / "errors.csv").open(newline="") as stream:
        ids = [row["id"] for row in csv.DictReader(stream)]
    assert ids == [f"E{number:02d}" for number in range(1, 73)]
