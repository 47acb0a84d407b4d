"""A tiny run, trained once."""

import shutil

import pytest

# Tests replace a function of its; what else imports that function shall have the real one.
import hessian_lab.measures.planning  # noqa: F401
from tests.cli.terminal import TINY, typed


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    assert typed(place, "train", *TINY, "--out", "run").status == 0
    return place / "run"


@pytest.fixture
def run(trained_once, tmp_path):
    """A run directory of the test's own, complete and not measured."""
    return shutil.copytree(trained_once, tmp_path / "run")


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the picture away, which takes most of the time of a tiny measurement."""
    monkeypatch.setattr("hessian_lab.cli.eigs._draw_dense", lambda _result: [])
