import re

import pytest

from hessian_lab.measures import doctor
from hessian_lab.probe.curvature import HessianOperator
from tests.cli.terminal import assert_refused, typed

LINE = r"(ok|note|FAILED) +\d+\.\d\d s (\S.*?)  +(\S.*)"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("HESSIAN_LAB_DATA", raising=False)


@pytest.fixture
def broken(monkeypatch):
    """A product that is wrong by a millionth."""
    real = HessianOperator.matmat
    monkeypatch.setattr(
        HessianOperator, "matmat", lambda self, block: real(self, block) * (1 + 1e-6)
    )
    return {"finite differences", "double backward", "closed form"}


def lines(answer):
    found = [re.fullmatch(LINE, line) for line in answer.out.splitlines()[2:-2]]
    assert all(found), answer.out
    return {match[2]: (match[1], match[3]) for match in found}


def test_a_line_for_every_check(tmp_path):
    answer = typed(tmp_path, "doctor", "--device", "cpu")
    assert (answer.status, answer.err) == (0, "")
    found = lines(answer)
    assert list(found) == list(doctor._checks())
    assert {status for status, _ in found.values()} <= {"ok", "note"}
    assert re.match(r"cpu \(.+\), float64, torch \d", answer.out)
    assert re.search(rf"\nall {len(found)} checks passed in \d+\.\d s\n$", answer.out)
    assert max(len(line) for line in answer.out.splitlines()) <= 80
    assert not list(tmp_path.iterdir())


def test_what_fails_is_named_with_status_3(tmp_path, broken):
    answer = typed(tmp_path, "doctor", "--device", "cpu")
    assert answer.status == 3
    found = lines(answer)
    assert {name for name, (status, _) in found.items() if status == "FAILED"} == broken
    last = f"3 checks of {len(found)} failed: finite differences, double backward, closed form"
    assert answer.out.splitlines()[-1] == last
    told = [
        f"hessian-lab: check failed: {name}: {found[name][1]}" for name in found if name in broken
    ]
    assert answer.err.splitlines() == told


def test_json_holds_every_number(tmp_path, broken):
    answer = typed(tmp_path, "doctor", "--device", "auto", "--dtype", "float32", "--json", "-q")
    assert (answer.status, answer.err) == (0, "")
    found = answer.json
    assert (found["command"], found["dtype"], found["passed"]) == ("doctor", "float32", True)
    assert found["provenance"]["torch"]
    for one in found["checks"]:
        assert one.keys() == {"name", "status", "told", "value", "tolerance", "seconds"}
        if one["value"] is not None:
            assert 0 <= one["value"] <= one["tolerance"]
    answer = typed(tmp_path, "doctor", "--device", "cpu", "--json")
    assert answer.status == 3
    assert not answer.json["passed"]
    assert {one["name"] for one in answer.json["checks"] if one["status"] == "FAILED"} == broken


def test_verbose_shows_where_a_check_raised(tmp_path, monkeypatch):
    def lost(_case):
        raise RuntimeError("CUDA error: device lost\nmore")

    checks = {"lost": lost, "device": doctor.machine.device}
    monkeypatch.setattr(doctor, "_checks", lambda: checks)
    answer = typed(tmp_path, "doctor", "--device", "cpu", "--verbose")
    assert answer.status == 3
    assert lines(answer)["lost"] == ("FAILED", "raised RuntimeError: CUDA error: device lost")
    assert lines(answer)["device"][0] == "ok"
    assert "Traceback" in answer.err
    assert "Traceback" not in typed(tmp_path, "doctor", "--device", "cpu").err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "nonsense"), "device must be auto, cpu, cuda or cuda:N, got 'nonsense'"),
        (("--device", "cuda:99"), "device must be available, got 'cuda:99'"),
        (("--dtype", "float16"), "--dtype: must be one of float64, float32, got 'float16'"),
        (("--every", "3"), "'--every' is no argument of doctor"),
    ],
)
def test_wrong_words_are_refused(tmp_path, words, message):
    assert_refused(typed(tmp_path, "doctor", *words), 2, message)
