"""The benchmarks in miniature, without the libraries that they compare with."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import linregress

from figures.__main__ import draw
from figures.records import read
from hessian_lab.probe.density import spectral_measure
from tests.benchmarks import __main__ as command
from tests.benchmarks import case, peers, ranks, readme_table, table
from tests.benchmarks.case import BEST, OURS, Case, Contender, Target, Unit, run_case
from tests.benchmarks.cases import builders
from tests.benchmarks.cases.densities import TOLERANCE, smoothed_distance
from tests.benchmarks.scaling import CURVES, fitted

HAND, WHOLE = "kept double backward", "torch.func.hessian"


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Return the record of a quick run on a machine with torch alone."""
    path = tmp_path_factory.mktemp("benchmarks") / "benchmarks.json"
    with pytest.MonkeyPatch.context() as patch:
        here = {name for name, home in peers.LIBRARIES.items() if home == "torch"}
        found = peers.installed
        for module in ("case", "record"):
            patch.setattr(
                f"tests.benchmarks.{module}.installed",
                lambda name: found(name) if name in here else None,
            )
        command.main(["--quick", "--record", str(path)])
    return json.loads(path.read_text())


def test_every_case_and_curve_has_its_entry(record):
    assert [row["name"] for row in record["rows"]] == list(builders())
    assert [curve["name"] for curve in record["curves"]] == [*CURVES, "ranks"]
    assert record["kind"] == "quick"
    assert "skipped" in record["curves"][-1]


def test_every_answer_of_ours_is_right(record):
    for row in record["rows"]:
        assert row["ours"]["verdict"] == "agrees", row["name"]
        assert 0 <= row["ours"]["deviation"] <= row["tolerance"]


def test_what_is_not_installed_is_named_as_such(record):
    absent = {"curvlinops", "hessian-eigenthings", "PyHessian", "BackPACK", "pytorch_optimizer"}
    assert set(record["missing"]) == absent
    assert record["libraries"] == {}
    for row in record["rows"]:
        for each in row["others"]:
            verdict = "not installed" if each["library"] in absent else "agrees"
            assert each["verdict"] == verdict
            assert ("ratio" in each) == (verdict == "agrees")
    assert "curvlinops not installed" in readme_table.markdown(record)
    assert "Of a quick run" in readme_table.markdown(record)
    assert "PyHessian" in command.told(record)


def test_a_record_names_no_path(record):
    text = json.dumps(record)
    assert str(Path.home()) + "/" not in text
    assert str(Path(__file__).parents[1]) not in text


def test_the_figure_is_drawn(record, tmp_path):
    paths = draw("benchmarks", record, tmp_path)
    assert all(path.stat().st_size > 5_000 for path in paths)
    assert "quick" in (tmp_path / "benchmarks.txt").read_text()


def test_the_figure_of_a_partial_record_says_so(record, tmp_path):
    draw("benchmarks", record | {"kind": "partial"}, tmp_path)
    caption = (tmp_path / "benchmarks.txt").read_text()
    assert caption.endswith("(Of a run that is partial.)\n")


def contest(answers, *, ours=1.0, targets=(), shares=(1.0,), units=()):
    """Return the case of a number that is 1, with the answers of others."""
    others = tuple(
        Contender(HAND, lambda answer=answer: lambda: answer, how=str(place), share=share)
        for place, (answer, share) in enumerate(zip(answers, shares, strict=True))
    )
    return Case(
        name="one",
        work="say one",
        ours=Contender(OURS, lambda: lambda: ours),
        contenders=others,
        deviation=lambda answer: abs(answer - 1),
        measure="off 1",
        tolerance=1e-3,
        rounds=3,
        targets=targets,
        units=units,
    )


@pytest.fixture
def clock(monkeypatch):
    """Let the rounds take what they are told to."""

    def set_times(**times):
        def interleaved(works, rounds):
            return {name: times[name.split(", ")[-1]][: rounds[name]] for name in works}

        monkeypatch.setattr(case, "interleaved", interleaved)

    return set_times


@pytest.mark.parametrize("answer", [1.01, float("nan"), float("inf")])
def test_a_faster_wrong_answer_gets_no_ratio(answer):
    row = run_case(contest([answer], targets=(Target(BEST, 2),)))
    (entry,) = row["others"]
    assert entry["verdict"] == "wrong"
    assert not {"ratio", "seconds"} & set(entry)
    assert row["targets"][0]["met"] is None
    assert "wrong" in table.told(row)
    assert f"{HAND} wrong" in readme_table.markdown(whole([row]))


def test_where_ours_is_wrong_nobody_is_compared():
    row = run_case(contest([1.0], ours=1.01, targets=(Target(BEST, 0),)))
    assert row["ours"]["verdict"] == "wrong"
    assert "seconds" not in row["ours"]
    assert "ratio" not in row["others"][0]
    assert row["targets"][0]["met"] is None
    assert "**wrong**" in readme_table.markdown(whole([row]))


def test_an_answer_at_the_tolerance_agrees():
    assert run_case(contest([1.0009]))["others"][0]["verdict"] == "agrees"


def test_ratios_are_medians_of_those_of_each_round(clock):
    clock(ours=[1.0, 2.0, 4.0], **{"0": [10.0, 40.0, 20.0], "1": [1.0, 1.0, 1.0]}, unit=[4, 4, 4])
    unit = Unit("unit", lambda: lambda: None)
    targets = Target(BEST, 4), Target(BEST, 6), Target(HAND, 4), Target("unit", 0.6)
    row = run_case(
        contest(
            [1.0, 1.0],
            shares=(1.0, 0.05),
            units=(unit,),
            targets=(*targets, Target("unit", 0.4), Target(WHOLE, 1)),
        )
    )
    first, second = row["others"]
    assert (first["ratio"], first["low"], first["high"]) == (10.0, 5.0, 20.0)
    # A twentieth of the work was timed.
    assert (second["ratio"], second["seconds"]) == (10.0, 20.0)
    assert row["units"][0]["ratio"] == 0.5
    assert [each["met"] for each in row["targets"]] == [True, True, True, True, False, None]


def test_the_best_of_the_others_counts(clock):
    clock(ours=[1.0] * 3, **{"0": [9.0] * 3, "1": [3.0] * 3})
    row = run_case(contest([1.0, 1.0], shares=(1.0, 1.0), targets=(Target(BEST, 4),)))
    assert row["targets"][0]["found"] == 3.0
    assert row["targets"][0]["met"] is False
    assert f"{HAND} 3 ×" in readme_table.markdown(whole([row]))
    assert "**missed**" in readme_table.markdown(whole([row]))


def test_one_that_raises_is_named_with_the_first_line():
    def prepare():
        raise RuntimeError("gone since 1.9.\nSee elsewhere.")

    broken = Contender(WHOLE, prepare)
    found = contest([1.0])
    row = run_case(Case(**{**vars(found), "contenders": (broken, *found.contenders)}))
    assert row["others"][0]["note"] == "RuntimeError: gone since 1.9."
    assert row["others"][1]["ratio"] > 0
    assert f"{WHOLE} raises RuntimeError" in readme_table.markdown(whole([row]))


def test_an_error_of_ours_is_not_hidden():
    def prepare():
        raise RuntimeError("ours")

    found = contest([1.0])
    with pytest.raises(RuntimeError, match="ours"):
        run_case(Case(**{**vars(found), "ours": Contender(OURS, prepare)}))


def whole(rows):
    """Return a record of some rows."""
    head = {
        "kind": "full",
        "torch": "2",
        "cpu": "a chip",
        "threads": 2,
        "libraries": {},
        "missing": [],
    }
    return head | {"rows": rows, "curves": []}


def test_the_table_of_a_partial_record_names_what_is_not_there(record):
    rows = [row for row in record["rows"] if row["name"] != "density"]
    text = readme_table.markdown(record | {"kind": "partial", "rows": rows, "curves": []})
    assert "*Of a partial run, some of it timed once, without density, dense-n, " in text
    assert "without" not in readme_table.markdown(record)


@pytest.mark.parametrize("exponent", [-1.0, 1.0, 2.0])
def test_exponents_of_powers_are_found(exponent):
    places = [3, 10, 40, 200]
    fit = fitted(places, [7e-4 * place**exponent for place in places])
    np.testing.assert_allclose([fit.exponent, fit.margin], [exponent, 0], atol=1e-9)


def test_exponents_and_margins_are_those_of_scipy():
    places, seconds = [3.0, 10.0, 40.0, 200.0], [0.2, 0.5, 2.3, 30.0]
    expected = linregress(np.log(places), np.log(seconds))
    fit = fitted(places, seconds)
    # Student's t of two degrees of freedom is below 4.302653 in 97.5 % of cases.
    np.testing.assert_allclose(fit.exponent, expected.slope, rtol=1e-12)
    np.testing.assert_allclose(fit.margin, 4.302653 * expected.stderr, rtol=1e-6)
    assert fitted(places[:2], seconds[:2]).margin is None


@pytest.mark.parametrize("num_steps", [20, 40])
def test_a_density_is_right_whatever_its_random_vectors(num_steps):
    values = torch.cat([torch.linspace(-2, 2, 280) ** 3, torch.tensor([20.0, 31.0, 50.0])])
    exact = values.double().sort().values
    for seed in range(5):
        found = spectral_measure(torch.diag(exact), num_probes=10, num_steps=num_steps, seed=seed)
        off = smoothed_distance(found.nodes, found.weights, exact, num_steps=num_steps)
        assert off < TOLERANCE


WRONG = {
    "all at zero": lambda values: 0 * values,
    "half as large": lambda values: values / 2,
    "of the other sign": lambda values: -values,
    "nothing negative": lambda values: values.clamp(min=0),
    "not finite": lambda values: values / 0,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_density_is_told(wrong):
    values = torch.cat([torch.linspace(-2, 2, 280) ** 3, torch.tensor([20.0, 31.0, 50.0])])
    exact = values.double().sort().values
    nodes = wrong(exact).expand(10, -1)
    weights = torch.full_like(nodes, 1 / len(exact))
    assert not smoothed_distance(nodes, weights, exact, num_steps=80) <= TOLERANCE
    same = exact.expand(10, -1)
    assert smoothed_distance(same, weights, exact, num_steps=80) < 1e-9


@pytest.fixture
def jobs(monkeypatch):
    """Let jobs on ranks end at once, and the clock say that they took long."""

    class Done:
        returncode = 0
        stdout = '{"command": "eigs"}\n'
        now = 0.0

    def run(command, **_):
        count = int(command[4].removeprefix("--nproc-per-node="))
        Done.now += 3 + (8 / count if str(ranks.WIDTH) in command else 0)
        return Done

    monkeypatch.setattr(ranks.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(ranks.subprocess, "run", run)
    monkeypatch.setattr(ranks.time, "perf_counter", lambda: Done.now)
    return Done


@pytest.mark.usefixtures("jobs")
def test_the_start_of_ranks_is_not_counted():
    assert ranks.rank_seconds(2) == {1: 8.0, 2: 4.0}


def test_ranks_that_each_answer_for_themselves_share_nothing(jobs):
    jobs.stdout *= 2
    assert "several answers" in ranks.rank_seconds(1)


def test_why_ranks_are_not_timed_is_told(jobs, monkeypatch):
    jobs.returncode = 3
    assert "status 3 on 2 ranks" in ranks.rank_seconds(1)
    monkeypatch.setattr(ranks.os, "cpu_count", lambda: 1)
    assert ranks.rank_seconds(1) == "needs two cores"


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--rounds", "0"]])
def test_what_makes_no_sense_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    assert "must" in capsys.readouterr().err


def test_one_case_runs_alone(tmp_path, capsys):
    path = tmp_path / "some.json"
    assert command.main(["--only", "shampoo", "--quick", "--record", str(path)]) == 0
    out = capsys.readouterr().out
    assert "[shampoo]" in out
    assert "[density]" not in out
    record = json.loads(path.read_text())
    assert [row["name"] for row in record["rows"]] == ["shampoo"]
    assert record["kind"] == "partial"


def test_a_run_of_fewer_rounds_is_no_full_one(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "builders", dict)
    monkeypatch.setattr(command, "run_curve", lambda name, **_: {"name": name})
    monkeypatch.setattr(command.table, "curve", lambda entry: entry["name"])
    path = tmp_path / "some.json"
    for more, kind in ((), "full"), (("--rounds", "1"), "partial"):
        assert command.main(["--record", str(path), *more]) == 0
        assert json.loads(path.read_text())["kind"] == kind


def test_the_table_of_the_readme_is_that_of_the_record():
    found = read("benchmarks")
    assert readme_table.between(readme_table.README.read_text()) == readme_table.markdown(found)
