"""``report``: what it reads, tells, writes, refuses and leaves alone."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from hessian_lab import Setup, Signal, bce, load_run, train
from tests.cli.terminal import TINY, TRAINED, assert_refused, contents, typed
from tests.pages import assert_self_contained, frames, images, tables, values

# What each command leaves, and the heading of it.
COMMANDS = {
    "eigs": ("eigs.json", "Eigenvalues of the Hessian"),
    "cond": ("cond.json", "Condition numbers of the Hessian, before and after scaling"),
    "trace": ("trace.json", "Trace of the Hessian"),
    "sparsity": ("sparsity.json", "Zeros of Hessian–vector products"),
}
TABLE = "First, middle and last of 4 measured checkpoints"


@pytest.fixture(scope="module")
def measured_once(trained_once, tmp_path_factory):
    """A run that everything was measured of."""
    place = tmp_path_factory.mktemp("measured")
    shutil.copytree(trained_once, place / "run")
    for command in COMMANDS:
        words = ["--layers"] if command == "eigs" else []
        answer = typed(place, command, "--run", "run", "--quiet", *words)
        assert answer.status == 0, answer.err
    return place / "run"


@pytest.fixture
def measured(measured_once, tmp_path):
    return shutil.copytree(measured_once, tmp_path / "run")


def reported(directory, *words):
    """Return what the command answers, and the page that it wrote."""
    answer = typed(directory, "report", *words, "--json")
    assert answer.status == 0, answer.err
    page = (directory / answer.json["out"]).read_text()
    assert answer.json["bytes"] == len(page.encode())
    return answer, assert_self_contained(page)


def record(run, name):
    return json.loads((run / name).read_text())


def picked(entries):
    return [entries[place] for place in (0, 2, 3)]


def headings(root):
    return [each.text for each in root.all("h3")]


# What it tells.


def test_every_number_of_the_spectra_is_the_records(measured):
    _, root = reported(measured.parent, "run")
    entries = picked(record(measured, "eigs-layers.json")["spectra"])
    (rows,) = [each for each in tables(root)[TABLE] if "effective rank" in each]
    for name, key in {
        "loss": "loss",
        "PSNR (dB)": "psnr",
        "λmin": "lambda_min",
        "λmax": "lambda_max",
        "smallest |λ|": "smallest_magnitude",
        "rounding floor": "tolerance",
        "κ": "condition_number",
        "effective κ": "effective_condition_number",
        "effective rank": "effective_rank",
        "trace": "trace",
    }.items():
        assert values(rows[name]) == [entry[key] for entry in entries], name
    for name, key in {
        "zero (≤ floor)": "numerical_zeros",
        "of them structural": "structural_zeros",
        "negative": "negative",
    }.items():
        assert values(rows[name]) == [entry[key] / 37 for entry in entries]
    assert values(rows["|λ| ≤ 10⁻⁵ max|λ|"]) == [each["shares_below"]["1e-05"] for each in entries]
    marks = [cell.text.startswith("≥") for cell in rows["κ"]]
    assert marks == [not entry["condition_number_resolved"] for entry in entries]


def test_every_number_of_the_layers_is_the_records(measured):
    _, root = reported(measured.parent, "run")
    layers = record(measured, "eigs-layers.json")["spectra"][-1]["layers"]
    (rows,) = tables(root)["The diagonal blocks of the layers at step 3"]
    for name, part in layers.items():
        size = part["num_parameters"]
        shares = [part[key] / size for key in ("numerical_zeros", "structural_zeros", "negative")]
        expected = [size, part["lambda_min"], part["lambda_max"], *shares, part["condition_number"]]
        assert values(rows[name]) == expected


def test_every_number_of_the_training_is_the_metrics(measured):
    _, root = reported(measured.parent, "run")
    table = picked(load_run(measured).metrics.to_dict("records"))
    (rows,) = tables(root)["First, middle and last of 4 checkpoints"]
    for name, key in {
        "loss": "loss",
        "PSNR (dB)": "psnr",
        "gradient norm": "grad_norm",
        "evaluations": "evaluations",
        "seconds": "wall_s",
    }.items():
        assert values(rows[name]) == [row[key] for row in table]


def test_every_number_of_traces_conditions_and_zeros_is_the_records(measured):
    _, root = reported(measured.parent, "run")
    found = {
        name: rows
        for each in tables(root).values()
        for table in each
        for name, rows in table.items()
    }
    traces = [each["trace"] for each in picked(record(measured, "trace.json")["spectra"])]
    assert values(found["standard error"]) == [each["standard_error"] for each in traces]
    assert values(found["interval, lower end"]) == [each["low"] for each in traces]
    scaled = [each["scaled"] for each in picked(record(measured, "cond.json")["spectra"])]
    for label, key in {"H": "identity", "Dᴱ": "equilibrated", "Dᴶ": "jacobi"}.items():
        assert values(found[f"κ, {label}"]) == [each[key]["kappa"] for each in scaled]
        marks = [cell.text.startswith("≥") for cell in found[f"κ, {label}"]]
        assert marks == [not each[key]["resolved"] for each in scaled]
    last = record(measured, "sparsity.json")["spectra"][-1]
    rows = next(each for each in tables(root).values() if "all" in each[0])[0]
    shares = [last["whole"]["zero"]["mean"], *(each["mean"] for each in last["whole"]["within"])]
    assert values(rows["all"]) == [37, *shares, last["whole"]["gradient_zero"]]


def test_settings_and_provenance_are_the_records(measured):
    _, root = reported(measured.parent, "run")
    told = {
        line.one("dt").text: line.one("dd").text
        for part in root.all("div", class_="facts")
        for line in part.one("dl").all("div")
    }
    kept = record(measured, "run.json")
    for name in ("signal", "act", "width", "depth", "octaves", "optimizer", "lr", "steps", "seed"):
        assert told[name] == str(kept["setup"][name])
    for name in ("python", "torch", "numpy", "platform", "device", "threads"):
        assert told[name] == str(kept["provenance"][name])
    assert told["hessian-lab"] == kept["provenance"]["hessian_lab"]
    assert told.get("git commit") == kept["provenance"]["git_commit"]
    assert told["run id"] == kept["id"]
    assert told["attribution and licence"] == kept["data"]["attribution"]
    assert "CC0" in told["attribution and licence"]
    assert told["SHA-256"] == kept["data"]["sha256"]
    assert "sigma" not in told


def test_signal_and_field_are_those_of_the_last_checkpoint(measured):
    reported(measured.parent, "run")
    run = load_run(measured)
    target, field, _ = images((measured / "report.html").read_text())
    expected = run.model(3)(run.signal().coords).detach().clamp(0, 1).reshape(6, 6).numpy()
    assert field == pytest.approx(expected, abs=0.51 / 255)
    assert target == pytest.approx(run.signal().values.reshape(6, 6).numpy(), abs=0.51 / 255)


def test_the_slider_goes_through_every_measured_checkpoint(measured):
    _, root = reported(measured.parent, "run")
    (shown,) = frames(root)
    assert [frame["texts"]["step"] for frame in shown] == ["0", "1", "2", "3"]


def test_what_was_not_measured_is_listed_with_its_command(run):
    answer, root = reported(run.parent, "run")
    commands = [f"hessian-lab {name} --run run" for name in COMMANDS]
    assert answer.json["runs"][0]["missing"] == commands
    assert [each.text for each in root.all("code")] == commands
    assert "Not measured" in headings(root)
    for command in commands:
        done = typed(run.parent, *command.split()[1:], "--quiet")
        assert done.status == 0, done.err
    answer, root = reported(run.parent, "run")
    assert answer.json["runs"][0]["missing"] == []
    assert answer.json["runs"][0]["shown"] == [heading for _, heading in COMMANDS.values()]
    assert "Not measured" not in headings(root)


def test_commands_name_a_path_as_a_shell_takes_it(run):
    moved = run.rename(run.parent / "it's a <b>run</b>".replace("/", "_"))
    answer, root = reported(run.parent, moved.name)
    command = answer.json["runs"][0]["missing"][0]
    assert command == "hessian-lab eigs --run 'it'\"'\"'s a <b>run<_b>'"
    assert root.all("code")[0].text == command
    assert not root.all("b")


def test_the_record_with_most_checkpoints_is_shown(run):
    for words in (["--layers", "--every", "3"], []):
        assert typed(run.parent, "eigs", "--run", "run", "--quiet", *words).status == 0
    _, root = reported(run.parent, "run")
    assert headings(root).count("Eigenvalues of the Hessian") == 1
    assert "at 4 checkpoints; eigs.json" in root.text


@pytest.mark.parametrize(
    ("words", "heading"),
    [
        (["--matrix", "ggn"], "Eigenvalues of the Gauss–Newton matrix"),
        (["--method", "lanczos", "--matrix", "ggn"], "Spectrum of the Gauss–Newton matrix"),
    ],
)
def test_other_matrices_do_not_stand_for_the_hessian(run, words, heading):
    assert typed(run.parent, "eigs", "--run", "run", "--quiet", *words).status == 0
    answer, root = reported(run.parent, "run")
    assert any(each.startswith(heading) for each in headings(root))
    assert "hessian-lab eigs --run run" in answer.json["runs"][0]["missing"]


def test_estimates_are_the_records(run):
    words = ("--method", "slq", "--probes", "3", "--lanczos-steps", "6", "--every", "3")
    assert typed(run.parent, "eigs", "--run", "run", "--quiet", *words).status == 0
    answer, root = reported(run.parent, "run")
    entries = record(run, "eigs-slq.json")["spectra"]
    (rows,) = tables(root)["First, middle and last of 2 measured checkpoints"]
    for name, key in {
        "λmin": "lambda_min",
        "λmax": "lambda_max",
        "κ": "condition_number",
        "trace": "trace",
    }.items():
        assert values(rows[name]) == [entry[key] for entry in entries]
    lumps = [entry["density"]["share_below_floor"] for entry in entries]
    assert values(rows["share below"]) == [lump["estimate"] for lump in lumps]
    assert "hessian-lab eigs --run run" not in answer.json["runs"][0]["missing"]


def test_several_runs_have_a_summary_and_stand_once_each(measured, trained_once):
    other = shutil.copytree(trained_once, measured.parent / "other")
    answer, root = reported(measured.parent, "run", "other", "./run/")
    assert answer.json["out"] == "report.html"
    assert [each["run"] for each in answer.json["runs"]] == ["run", "other"]
    assert len(root.one("section", class_="summary").one("tbody").all("tr")) == 2
    assert not (other / "report.html").exists()


# Runs that are not whole.


class Stop(Exception):
    """Ends a training."""


def interrupted(place):
    def watch(row):
        if row["step"] == 2:
            raise Stop

    setup = Setup(act="tanh", width=3, depth=1, size=6, steps=50, optimizer="adam")
    with pytest.raises(Stop):
        train(setup, out=place, watch=watch)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("interrupted", "Training was interrupted: it reached step {} of 50."),
        ("running", "Training is running, or was killed: it reached step {} of 50."),
    ],
)
def test_an_unfinished_run_says_so(tmp_path, status, words):
    interrupted(tmp_path / "run")
    kept = record(tmp_path / "run", "run.json") | {"status": status}
    (tmp_path / "run" / "run.json").write_text(json.dumps(kept))
    answer, root = reported(tmp_path, "run")
    reached = load_run(tmp_path / "run").steps[-1]
    assert reached < 50
    assert root.one("p", class_=status).text == words.format(reached)
    told = answer.json["runs"][0]
    assert (told["status"], told["step"]) == (status, reached)


def test_an_unfinished_run_of_the_command_line_says_what_continues_it(run):
    kept = record(run, "run.json")
    kept["status"] = "interrupted"
    kept["setup"]["steps"] = kept["identity"]["steps"] = 5
    kept["provenance"]["command"] = ["/usr/bin/hessian-lab", "train", "--signal", "my photo.png"]
    (run / "run.json").write_text(json.dumps(kept))
    _, root = reported(run.parent, "run")
    told = root.one("p", class_="interrupted").text
    assert told.endswith("this continues it: hessian-lab train --signal 'my photo.png'")


def test_a_diverged_run_says_how(tmp_path):
    words = ("--act", "relu", "--size", "6", "--width", "3", "--depth", "2", "--optimizer", "sgd")
    assert typed(tmp_path, "train", *words, "--lr", "1e9", "--out", "run").status == 1
    answer, root = reported(tmp_path, "run")
    assert answer.json["runs"][0]["status"] == "diverged"
    told = root.one("p", class_="diverged").text
    assert told.startswith("Training diverged: step length must stay finite, it became inf at step")
    last = load_run(tmp_path / "run").steps[-1]
    assert told.endswith(f"with a lower lr. The last checkpoint is at step {last} of 50.")


def test_a_checkpoint_that_is_not_finite_is_told(run):
    rows = np.load(run / "trajectory.npy")
    rows[-1] = np.nan
    np.save(run / "trajectory.npy", rows)
    assert typed(run.parent, "eigs", "--run", "run", "--quiet").status == 3
    answer, root = reported(run.parent, "run")
    assert "The field at step 3 is not finite." in root.text
    assert "eigs.json: step 3: the matrix is not finite." in answer.json["runs"][0]["notes"]
    assert len(frames(root)[0]) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "results must be readable"), ("another", "results must be of this run")],
)
def test_records_that_cannot_be_read_are_told(measured, text, words):
    if text == "another":
        text = json.dumps(record(measured, "trace.json") | {"run_id": "another"})
    (measured / "trace.json").write_text(text)
    answer, root = reported(measured.parent, "run")
    (note,) = answer.json["runs"][0]["notes"]
    assert note.startswith(words)
    assert note in root.one("ul", class_="notes").text
    assert "Trace of the Hessian" not in headings(root)
    assert "hessian-lab trace --run run" in answer.json["runs"][0]["missing"]


def test_a_record_of_another_version_is_told(measured):
    kept = record(measured, "trace.json") | {"hessian_lab": "0.0.9"}
    (measured / "trace.json").write_text(json.dumps(kept))
    answer, root = reported(measured.parent, "run")
    assert answer.json["runs"][0]["notes"] == ["trace.json was measured by hessian-lab 0.0.9."]
    assert "Trace of the Hessian" in headings(root)


# Signals and modules of a user's own.


def test_a_module_of_a_users_own_has_no_picture_and_is_measured_in_python(tmp_path):
    module = type("<script>alert(1)</script>", (nn.Linear,), {})(2, 1)
    coords = torch.rand(20, 2, dtype=torch.float64)
    train(
        Setup(steps=1, optimizer="sgd"),
        out=tmp_path / "run",
        model=module,
        signal=Signal(coords, coords[:, :1]),
    )
    answer, root = reported(tmp_path, "run")
    assert "The field is a module of your own, <script>alert(1)</script>, which" in root.text
    missing = answer.json["runs"][0]["missing"]
    assert missing == ["hessian_lab.load_run('run', model=…)"]
    assert len(root.all("script")) == 1


def test_a_signal_of_a_users_own_has_no_known_licence(tmp_path):
    coords = torch.rand(30, 3, dtype=torch.float64)
    setup = Setup(act="tanh", width=3, depth=1, steps=1)
    train(setup, out=tmp_path / "run", signal=Signal(coords, coords[:, :1]))
    _, root = reported(tmp_path, "run")
    assert "licencenot known: it is a signal of your own" in root.text
    run = load_run(tmp_path / "run")
    gaps = (run.model(1)(run.signal().coords) - run.signal().values).detach().numpy()
    assert "neither an image nor a line: 30 points with 3 coordinates and 1 values" in root.text
    assert f"by {math.sqrt((gaps**2).mean()):.3g} in root mean square" in root.text
    assert f"and by {np.abs(gaps).max():.3g} at most" in root.text


def test_a_line_is_drawn(tmp_path):
    words = ("--signal", "sines", "--size", "20", "--act", "sine", "--width", "3", "--depth", "1")
    assert typed(tmp_path, "train", *words, "--steps", "2", "--out", "run").status == 0
    _, root = reported(tmp_path, "run")
    chart = root.one("svg", aria_label="the signal and the field against the coordinate")
    assert [each.attributes["d"].count("L") for each in chart.all("path", class_="curve")] == [
        19,
        19,
    ]


def test_logits_are_shown_as_probabilities(tmp_path):
    coords = torch.cartesian_prod(*[torch.linspace(-1, 1, 4, dtype=torch.float64)] * 2)
    values_of = (coords[:, :1] > 0).double()
    setup = Setup(act="tanh", width=3, depth=1, steps=1)
    train(setup, out=tmp_path / "run", signal=Signal(coords, values_of, loss=bce, shape=(4, 4)))
    reported(tmp_path, "run")
    run = load_run(tmp_path / "run")
    expected = torch.special.expit(run.model(1)(coords)).detach().reshape(4, 4).numpy()
    _, field, _ = images((tmp_path / "run" / "report.html").read_text())
    assert field == pytest.approx(expected, abs=0.51 / 255)


def test_a_signal_that_has_changed_is_told(run):
    kept = record(run, "run.json")
    kept["data"]["sha256_points"] = "0" * 64
    (run / "run.json").write_text(json.dumps(kept))
    _, root = reported(run.parent, "run")
    assert "There is no picture: signal must be the one that was fitted" in root.text


# Where it goes.


def test_it_writes_its_page_and_nothing_else(measured):
    names = [path.name for path in measured.iterdir() if path.is_file()]
    before = contents(measured, names)
    answer, _ = reported(measured.parent, "run")
    assert answer.json["out"] == "run/report.html"
    assert contents(measured, names) == before
    assert {path.name for path in measured.iterdir() if path.is_file()} == {*names, "report.html"}


def test_reporting_twice_writes_the_same_bytes(measured):
    reported(measured.parent, "run")
    first = (measured / "report.html").read_bytes()
    reported(measured.parent, "run")
    assert (measured / "report.html").read_bytes() == first


def test_out_may_be_anywhere(run):
    answer, _ = reported(run.parent, "run", "--out", "deep/down/page.HTML")
    assert answer.json["out"] == "deep/down/page.HTML"
    assert not (run / "report.html").exists()


def test_people_are_told_where_it_is(run):
    answer = typed(run.parent, "report", "run", "--quiet")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.splitlines()[0].startswith("relu_pe 1×3 (37 parameters) on camera")
    assert answer.out.splitlines()[-1].startswith("run/report.html (0.0")


def test_a_failure_leaves_the_old_page(run, monkeypatch):
    assert typed(run.parent, "report", "run").status == 0
    before = contents(run, ["report.html"])

    def full(_source, _target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    answer = typed(run.parent, "report", "run")
    assert answer.status != 0
    assert "report.html" in answer.err
    assert contents(run, ["report.html"]) == before
    assert not list(run.glob(".report*"))


def test_training_anew_clears_the_page(run):
    assert typed(run.parent, "report", "run").status == 0
    assert typed(run.parent, "train", *TINY, "--out", "run", "--overwrite").status == 0
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("absent", 4, "run must be a run directory, absent does not exist"),
        ("file.html", 4, "run must be a run directory, file.html is a file"),
        ("empty", 4, "run must be a run directory, empty has no run.json"),
        ("run absent", 4, "absent does not exist"),
        ("", 2, "the following arguments are required: RUN"),
        ("run --out page.txt", 2, "out must end in .html or .htm, got 'page.txt'"),
        ("run --out page", 2, "out must end in .html or .htm, got 'page'"),
        ("run --out dir.html", 2, "out must be a file, dir.html is a directory"),
        ("run --out file.html", 2, "out must be new or a report, file.html is another file"),
        ("run --out file.html/page.html", 2, "out must be a (directory to write in|file to write)"),
        ("run --outt x", 2, "'--outt' is no argument of report. Did you mean --out"),
    ],
)
def test_bad_words_are_refused(run, words, status, message):
    place = run.parent
    (place / "file.html").write_text("mine")
    (place / "dir.html").mkdir()
    (place / "empty").mkdir()
    before = sorted(place.rglob("*"))
    assert_refused(typed(place, "report", *words.split()), status, message)
    assert sorted(place.rglob("*")) == before
    assert (place / "file.html").read_text() == "mine"


def test_an_empty_name_is_refused(run):
    assert_refused(typed(run.parent, "report", ""), 2, "RUN must name a directory, got ''")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_is_told(run):
    (run.parent / "closed").mkdir(mode=0o500)
    answer = typed(run.parent, "report", "run", "--out", "closed/page.html")
    assert_refused(answer, 2, "out must be a file to write, closed/page.html: Permission denied")


def test_runs_of_a_newer_format_are_refused(run):
    (run / "run.json").write_text(json.dumps(record(run, "run.json") | {"format_version": 99}))
    answer = typed(run.parent, "report", "run")
    assert_refused(answer, 4, "format 1 or older, run is of format 99. Update hessian-lab")


def test_a_run_without_a_checkpoint_is_refused(run):
    (run / "resume.pt").unlink()
    assert_refused(
        typed(run.parent, "report", "run"), 4, "run must have a checkpoint, run has none"
    )


def test_a_run_trained_elsewhere_is_reported_here(run):
    kept = record(run, "run.json")
    kept["setup"]["device"] = kept["identity"]["device"] = "cuda:7"
    (run / "run.json").write_text(json.dumps(kept))
    _, root = reported(run.parent, "run")
    assert "devicecuda:7" in root.text
    assert len(root.all("img")) == 3


def test_it_trains_and_measures_nothing(measured, monkeypatch):
    for name in (
        "eigenvalues._measure",
        "traces._measure",
        "conditioning._measure",
        "sparsity._measure",
    ):
        monkeypatch.setattr(f"hessian_lab.measures.{name}", None)
    before = contents(measured, TRAINED)
    reported(measured.parent, "run")
    assert contents(measured, TRAINED) == before


def test_help_needs_no_torch(tmp_path):
    code = (
        "import sys; from hessian_lab.cli.main import main\n"
        "try: main(['report', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "usage: hessian-lab report" in done.stdout
