import re
import sys

import pytest

from hessian_lab.fields import ACTIVATIONS
from hessian_lab.losses import mse
from hessian_lab.names import known, resolve, suggestion
from hessian_lab.signals import SIGNALS
from hessian_lab.signals.kinds import KINDS

NAMES = ["camera", "astronaut", "coffee"]


def test_a_known_name_is_returned():
    assert known("signal", "coffee", NAMES) == "coffee"


@pytest.mark.parametrize("names", [NAMES, tuple(NAMES), dict.fromkeys(NAMES), iter(NAMES)])
def test_names_may_come_in_any_collection(names):
    assert known("signal", "camera", names) == "camera"


def test_names_are_told_apart_by_case():
    with pytest.raises(ValueError, match="got 'Camera'"):
        known("signal", "Camera", NAMES)


@pytest.mark.parametrize("name", ["cam", "camra", "camera "])
def test_the_nearest_name_is_suggested(name):
    assert suggestion(name, NAMES) == " Did you mean camera?"


def test_of_two_near_names_the_nearer_is_suggested():
    assert suggestion("sined", ["sinc", "sine", "tanh"]) == " Did you mean sine?"


@pytest.mark.parametrize("name", ["xyzzy", ""])
def test_nothing_is_suggested_when_no_name_is_near(name):
    assert suggestion(name, NAMES) == ""


def test_nothing_is_suggested_among_no_names():
    assert suggestion("camera", []) == ""


@pytest.mark.parametrize(
    ("name", "ending"), [("camra", ". Did you mean camera?"), ("xyzzy", "."), ("", ".")]
)
def test_an_unknown_name_is_refused_with_all_known_ones(name, ending):
    message = f"signal must be one of camera, astronaut, coffee, got {name!r}{ending}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        known("signal", name, iter(NAMES))


def test_a_reference_is_the_attribute_of_its_module():
    assert resolve("hessian_lab.losses:mse") is mse


REFERENCES = [
    *ACTIVATIONS.values(),
    *(one.loader for one in SIGNALS.values()),
    *(kind.loader for kind in KINDS.values() if kind.loader),
]


@pytest.mark.parametrize("reference", REFERENCES)
def test_every_registered_reference_resolves(reference):
    assert callable(resolve(reference))


def test_a_module_is_imported_when_it_is_resolved(monkeypatch, tmp_path):
    (tmp_path / "resolved_late.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "resolved_late" not in sys.modules

    assert resolve("resolved_late:answer") == 42
    monkeypatch.delitem(sys.modules, "resolved_late")


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("hessian_lab.nowhere:mse", ModuleNotFoundError),
        ("hessian_lab.losses:nothing", AttributeError),
    ],
)
def test_a_wrong_reference_is_an_error(reference, error):
    with pytest.raises(error, match=re.escape(reference.partition(":")[0])):
        resolve(reference)
