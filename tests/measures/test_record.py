import json
import math
import shutil

import pytest

from hessian_lab.losses import mse
from hessian_lab.measures import record
from hessian_lab.measures.checkpoints import along, checkpoint, loss_failure
from hessian_lab.measures.estimates import Settings, measure_estimates
from hessian_lab.measures.record import Record, Throttle, can_read_back, mark, suffix
from hessian_lab.training.files import finite
from hessian_lab.training.loop import train
from hessian_lab.training.run import RESULTS, load_run
from hessian_lab.training.setup import Setup
from tests.cli.terminal import refuse_constant

TINY = Setup(act="tanh", signal="sines", size=8, width=3, depth=1, steps=4)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    return train(TINY, out=tmp_path_factory.mktemp("record") / "run")


@pytest.fixture
def run(trained_once, tmp_path):
    return load_run(shutil.copytree(trained_once.path, tmp_path / "run"))


class Measured:
    """A result that is its step and a value."""

    def __init__(self, step, value=0.5):
        self.step, self.value = step, value

    def __eq__(self, other):
        return (self.step, self.value) == (other.step, other.value)


def make_record(run, settings=None, name="some.json"):
    return Record(
        run,
        run.path / name,
        settings or {"num": 3},
        parse=lambda entry: Measured(entry["step"], entry["value"]),
        body=lambda results: {"spectra": [vars(one) for one in results]},
    )


# Names.


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ({}, ""),
        ({"method": "slq"}, "-slq"),
        ({"matrix": "ggn"}, "-ggn"),
        ({"layers": True}, "-layers"),
        ({"method": "lanczos", "matrix": "ggn", "layers": True}, "-lanczos-ggn-layers"),
    ],
)
def test_endings_tell_what_is_not_the_default(options, ending):
    assert suffix(**options) == ending


@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_overwriting_knows_every_file_that_a_measurement_writes(matrix, layers):
    kind = {"matrix": matrix, "layers": layers}
    names = [f"trace{suffix(**kind)}.json"]
    names += [f"eigs{suffix(method=method, **kind)}.json" for method in ("dense", "slq", "lanczos")]
    names += [f"eigenvalues{suffix(**kind)}.npy", f"spectrum{suffix(**kind)}.csv"]
    for ending in ("png", "pdf"):
        names += [f"figures/eigenvalues{suffix(matrix=matrix)}.{ending}"]
        for method in ("slq", "lanczos"):
            names += [f"figures/density{suffix(method=method, matrix=matrix)}.{ending}"]
    assert set(names) <= set(RESULTS)


# Reading back.


def test_what_was_saved_is_known(run):
    results = [Measured(0), Measured(3, 1 / 3)]
    make_record(run).save(results)
    assert make_record(load_run(run.path)).known() == results


def test_nothing_is_known_before_anything_is_saved(run):
    assert make_record(run).known() == []


def test_other_settings_are_not_known(run):
    make_record(run).save([Measured(0)])
    assert make_record(run, {"num": 4}).known() == []
    assert make_record(run, {"num": 3, "seed": 0}).known() == []


@pytest.mark.parametrize("name", ["run_id", "hessian_lab", "settings", "spectra"])
@pytest.mark.parametrize("change", ["other", None, [], {}, "gone"])
def test_a_record_of_something_else_is_not_known(run, name, change):
    one = make_record(run)
    one.save([Measured(0)])
    entries = json.loads(one.path.read_text())
    entries[name] = change
    if change == "gone":
        del entries[name]
    one.path.write_text(json.dumps(entries))
    assert one.known() == []


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", "3", '"text"', "{}", '{"spectra": []}', "\udcff"]
)
def test_a_broken_record_is_not_known(run, text):
    one = make_record(run)
    one.path.write_bytes(text.encode(errors="surrogateescape"))
    assert one.known() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda one: one.clear(),
        lambda one: one.pop("residuals"),
        lambda one: one.update(standard_errors=None),
        lambda one: one.update(density=3),
        lambda one: one.update(shares_within=[3]),
        lambda one: one.update(layers=[]),
    ],
)
def test_a_damaged_entry_is_measured_again(run, damage):
    settings = Settings(num=1, num_probes=3, num_steps=4)
    fresh = measure_estimates(run, settings, every=9).to_json()["spectra"]
    path = run.path / "eigs-slq.json"
    entries = json.loads(path.read_text())
    damage(entries["spectra"][0])
    path.write_text(json.dumps(entries))
    again = measure_estimates(run, settings, every=9).to_json()["spectra"]
    assert finite(again) == finite(fresh)


def test_nothing_is_taken_over_for_a_loss_or_a_module_that_was_handed_in(run):
    make_record(run).save([Measured(0)])
    for other in (load_run(run.path, loss=mse), load_run(run.path, model=run.model(0))):
        assert not can_read_back(other)
        assert make_record(other).known() == []
    assert can_read_back(run)


def test_what_a_loss_of_a_users_own_gave_is_not_taken_for_the_run_s(run):
    make_record(load_run(run.path, loss=mse)).save([Measured(0)])
    assert make_record(run).known() == []


def test_files_are_strict_json_and_carry_the_mark(run):
    one = make_record(run)
    one.save([Measured(0, math.nan), Measured(1, math.inf)])
    entries = json.loads(one.path.read_text(), parse_constant=refuse_constant)
    assert entries["spectra"][0]["value"] is None
    assert mark(run).items() <= entries.items()
    assert entries["settings"] == {"num": 3}


def test_two_trainings_have_two_marks(run, tmp_path):
    assert mark(run) != mark(train(TINY, out=tmp_path / "again"))


# How often partial results are written.


def test_saving_takes_a_twentieth_of_the_time(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(record.time, "perf_counter", lambda: clock[0])
    throttle = Throttle(last=100.0)
    assert throttle.due

    def save():
        clock[0] += 2

    throttle.run(save)
    assert not throttle.due
    clock[0] += 39
    assert not throttle.due
    clock[0] += 1
    assert throttle.due


# Going through the checkpoints.


class Shelf:
    """A store in memory that keeps what it was given each time."""

    def __init__(self, *known):
        self.results, self.saved = list(known), []

    def known(self):
        return list(self.results)

    def save(self, results):
        self.saved.append([one.step for one in results])


def test_results_are_saved_in_order_whatever_was_known(run, monkeypatch):
    monkeypatch.setattr(record, "SAVING_SHARE", math.inf)
    shelf, seen = Shelf(Measured(3), Measured(1)), []
    found = along(run, lambda one: Measured(one.step), every=2, store=shelf, watch=seen.append)
    assert [one.step for one in found] == [one.step for one in seen] == [0, 2, 4]
    assert shelf.saved[0] == [0, 1, 3]
    assert shelf.saved[-1] == [0, 1, 2, 3, 4]


def test_all_is_saved_at_the_end_however_long_saving_takes(run, monkeypatch):
    monkeypatch.setattr(record, "SAVING_SHARE", 1e-12)
    shelf = Shelf()
    along(run, lambda one: Measured(one.step), every=1, store=shelf)
    assert shelf.saved == [[0], [0, 1, 2, 3, 4]]


def test_a_checkpoint_holds_what_training_recorded(run):
    signal = run.signal()
    for step, loss in zip(run.steps, run.metrics["loss"], strict=True):
        one = checkpoint(run, signal, step)
        assert (one.step, one.loss) == (step, loss)
        assert one.loss_error < 1e-12
        again = mse(one.model(signal.coords), signal.values).detach()
        assert float(again) == pytest.approx(loss)


@pytest.mark.parametrize(("error", "fails"), [(0.0, False), (1e-12, False), (1e-11, True)])
def test_a_loss_may_differ_by_rounding(run, error, fails):
    failure = loss_failure(run, 2, error)
    assert (failure is not None) == fails
    if fails:
        assert failure.startswith("step 2: the loss computed again differs by 1.0e-11")


def test_a_loss_that_is_not_finite_is_not_called_random(run):
    assert "not deterministic" not in loss_failure(run, 2, math.nan)
