"""Bad input gets one clear sentence and its exit status, and nothing is lost."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from imageio import v3 as imageio

from hessian_lab import load_run
from hessian_lab.cli import COMMANDS
from tests.cli.terminal import FIELD, TINY, TRAINED, assert_refused, contents, typed

pytestmark = pytest.mark.usefixtures("undrawn")
DIVERGING = ("--size", "6", "--width", "3", "--depth", "1", "--steps", "3", "--act", "relu")
DIVERGING += ("--optimizer", "sgd", "--lr", "1e30", "--out", "run", "--quiet")


# Words.


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("egis", "'egis'.*must be one of train, eigs, trace, .* Did you mean eigs\\?"),
        ("eigs --act sien", "--act: must be one of relu, .*got 'sien'. Did you mean sine\\?"),
        ("--act sien eigs", "--act: must be one of relu, .*got 'sien'. Did you mean sine\\?"),
        ("eigs --signal camra", "--signal: must be .*got 'camra'. Did you mean camera\\?"),
        ("eigs --optimizer adm", "--optimizer: must be one of .*'adm'. Did you mean adam\\?"),
        ("eigs --init sirn", "--init: must be one of .*got 'sirn'. Did you mean siren\\?"),
        ("eigs --dtype float16", "--dtype: must be one of float64, float32, got 'float16'"),
        ("eigs --optimiser sgd", "'--optimiser' is no .*Did you mean --optimizer\\?"),
        ("train --wdith=3", "'--wdith=3' is no argument of train. Did you mean --width\\?"),
        ("train --run somewhere", "'--run' is no argument of train"),
        ("train --every 2", "'--every' is no argument of train"),
        ("eigs train", "'train' is no argument of eigs"),
        ("list act", "'act' must be one of acts, signals, .*recipes. Did you mean acts\\?"),
        ("list", "required: what"),
        ("--quiet", "required: COMMAND"),
        ("info --jsn", "'--jsn' is no argument of info. Did you mean --json\\?"),
        ("eigs --set histroy_size=3", "option of lbfgs.*'histroy_size'. Did you mean history_size"),
        ("eigs --optimizer sgd --set lr=3", "option of sgd must be one of .*got 'lr'"),
        ("eigs --set history_size", "--set: must have the form key=value, got 'history_size'"),
        ("eigs --set history_size=0", "history_size must be at least 1, got 0"),
        ("eigs --set history_size=many", "history_size of lbfgs must be .*got 'many'"),
        ("eigs --optimizer adam --set betas=3", "betas"),
        ("eigs --act", "--act: expected one argument"),
    ],
)
def test_unknown_words_are_answered_with_known_ones(tmp_path, line, message):
    assert_refused(typed(tmp_path, *line.split()), 2, message)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_flag_says_where_help_is(tmp_path, command):
    words = [command, "acts"] if command == "list" else [command]

    assert f"Try: hessian-lab {command} --help" in typed(tmp_path, *words, "--frobnicate").err


@pytest.mark.parametrize("flag", ["width", "depth", "steps", "seed", "size", "octaves", "threads"])
@pytest.mark.parametrize("text", ["x", "1.5", "1e3", "", "nan"])
def test_counts_must_be_whole_numbers(tmp_path, flag, text):
    answer = typed(tmp_path, "eigs", f"--{flag}={text}")

    assert_refused(answer, 2, f"--{flag}: must be a whole number, got '{text}'")


@pytest.mark.parametrize("flag", ["omega", "sigma", "lr", "lr-final"])
def test_sizes_must_be_numbers(tmp_path, flag):
    answer = typed(tmp_path, "eigs", f"--{flag}", "fast")

    assert_refused(answer, 2, f"--{flag}: must be a number, got 'fast'")


# Values.


@pytest.mark.parametrize("form", ["--{}={}", "--{} {}"])
@pytest.mark.parametrize(
    ("flag", "value", "bound"),
    [
        ("width", 0, 1),
        ("depth", -1, 0),
        ("steps", -1, 0),
        ("size", 1, 2),
        ("size", -3, 2),
        ("octaves", -1, 0),
        ("seed", -1, 0),
        ("threads", 0, 1),
        ("batch-size", 0, 1),
        ("checkpoint-every", 0, 1),
        ("every", 0, 1),
    ],
)
def test_counts_have_a_lowest_value(tmp_path, flag, value, bound, form):
    answer = typed(tmp_path, "eigs", *form.format(flag, value).split())
    name = flag.replace("-", "[-_]")

    assert_refused(answer, 2, f"{name} must be at least {bound}, got {value}\\.")
    assert list(tmp_path.iterdir()) == []


def test_seeds_have_a_highest_value(tmp_path):
    answer = typed(tmp_path, "eigs", "--seed", 1 << 63)

    assert_refused(answer, 2, rf"seed must be at most {(1 << 63) - 1}, got {1 << 63}\.")


@pytest.mark.parametrize("value", ["0", "-0.1", "nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("flag", ["omega", "sigma", "lr", "lr-final"])
def test_sizes_must_be_positive_and_finite(tmp_path, flag, value):
    act = "sine" if flag == "omega" else "gaussian"
    answer = typed(tmp_path, "eigs", "--act", act, f"--{flag}={value}", "--quiet")

    assert_refused(answer, 2, f"{flag.replace('-', '[-_]')} must be positive and finite, got ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("--octaves", "2000"), "octaves"),
        (("--act", "gaussian", "--sigma", "1e-200"), "sigma"),
        (("--act", "wavelet", "--sigma", "1e-200"), "sigma"),
    ],
)
def test_a_value_beyond_floating_point_is_named(tmp_path, words, name):
    field = ("--size", "6", "--width", "3", "--depth", "1")
    answer = typed(tmp_path, "train", *field, *words, "--quiet")

    assert_refused(answer, 2, f"{name} must ")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("nonsense", "device must be auto, cpu, cuda or cuda:N, got 'nonsense'"),
        ("", "device must be auto, cpu, cuda or cuda:N, got ''"),
        ("meta", "device must be auto, cpu, cuda or cuda:N, got 'meta'"),
        ("cuda:99", r"device must be available, got 'cuda:99': .* Use --device cpu\."),
        ("cuda", r"device must be available, got 'cuda': .* Use --device cpu\."),
    ],
)
def test_devices_must_be_there(tmp_path, device, message):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    assert_refused(typed(tmp_path, "eigs", *TINY, "--device", device), 2, message)


# Images.


def missing(path):
    pass


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("I am no image.\n")


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    data = imageio.imwrite("<bytes>", noise, extension=".png")
    path.write_bytes(data[: len(data) // 2])


def holding_nan(path):
    pixels = np.full((8, 8), 0.5, dtype=np.float32)
    pixels[3, 4] = np.nan
    tifffile.imwrite(path, pixels)


def holding_inf(path):
    tifffile.imwrite(path, np.full((8, 8), np.inf, dtype=np.float32))


def one_pixel_high(path):
    imageio.imwrite(path, np.zeros((1, 8), dtype=np.uint8), extension=".png")


def folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, r"signal must be an image file, \S+ does not exist\."),
        (empty, r"signal must be an image file, \S+ is empty\."),
        (text, r"signal must be an image file, \S+ cannot be read as one"),
        (truncated, r"signal must be an image file, \S+ cannot be read as one"),
        (holding_nan, r"signal must have finite pixels, \S+ has NaN or Inf\."),
        (holding_inf, r"signal must have finite pixels, \S+ has NaN or Inf\."),
        (one_pixel_high, r"signal must have at least 2 pixels a side, \S+ has \[1, 8\]\."),
        (folder, r"signal must be a folder of PNG or JPEG frames, \S+ has none\."),
    ],
)
@pytest.mark.parametrize("command", ["train", "eigs"])
def test_images_must_be_images(tmp_path, command, make, message):
    path = tmp_path / "image.tif"
    make(path)
    answer = typed(tmp_path, command, *TINY, "--signal", "./image.tif")

    assert_refused(answer, 4, message)
    assert not (tmp_path / "runs").exists()


# Run directories.


def changed(run, **entries):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | entries))


def without(run, name):
    record = json.loads((run / "run.json").read_text())
    del record[name]
    (run / "run.json").write_text(json.dumps(record))


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def keep_only_the_record(run):
    for name in TRAINED[1:]:
        (run / name).unlink()


def no_count(run):
    state = torch.load(run / "resume.pt", weights_only=True)
    del state["count"]
    torch.save(state, run / "resume.pt")


def unknown_act(run):
    setup = json.loads((run / "run.json").read_text())["setup"]
    changed(run, setup=setup | {"act": "swish"})


def other_width(run):
    setup = json.loads((run / "run.json").read_text())["setup"]
    changed(run, setup=setup | {"width": 4})


def other_data(run):
    record = json.loads((run / "run.json").read_text())
    changed(run, data=record["data"] | {"sha256_points": "0" * 64})


BROKEN = {
    "missing": (shutil.rmtree, "run must be a run directory, run does not exist"),
    "no-record": (lambda run: (run / "run.json").unlink(), "run has no run.json"),
    "only-record": (keep_only_the_record, "run must have a checkpoint, run has none yet"),
    "cut-record": (lambda run: cut(run / "run.json", 100), "run must be readable JSON"),
    "empty-record": (lambda run: cut(run / "run.json", 0), "run must be readable JSON"),
    "list": (lambda run: (run / "run.json").write_text("[]"), "must hold a JSON object"),
    "binary": (lambda run: (run / "run.json").write_bytes(b"\xff\0"), "must be readable JSON"),
    "newer": (lambda run: changed(run, format_version=2), "format 1 or older.* is of format 2"),
    "no-version": (lambda run: without(run, "format_version"), "must state its format_version"),
    "no-setup": (lambda run: without(run, "setup"), "run must be whole, .* lacks setup"),
    "no-id": (lambda run: without(run, "id"), "run must be whole, .* lacks id"),
    "no-loss": (lambda run: without(run, "own_loss"), "run must be whole, .* lacks own_loss"),
    "list-setup": (lambda run: changed(run, setup=[]), "run"),
    "unknown-act": (unknown_act, "'swish'"),
    "other-width": (other_width, "run"),
    "other-data": (other_data, "signal must be the one that was fitted"),
    "cut-trajectory": (lambda run: cut(run / "trajectory.npy", -50), "readable trajectory"),
    "empty-trajectory": (lambda run: cut(run / "trajectory.npy", 0), "readable trajectory"),
    "no-trajectory": (lambda run: (run / "trajectory.npy").unlink(), "must have a trajectory"),
    "cut-state": (lambda run: cut(run / "resume.pt", -100), "must have a readable resume.pt"),
    "half-state": (lambda run: cut(run / "resume.pt", 900), "must have a readable resume.pt"),
    "empty-state": (lambda run: cut(run / "resume.pt", 0), "must have a readable resume.pt"),
    "text-state": (lambda run: (run / "resume.pt").write_text("hi"), "have a readable resume.pt"),
    "no-count": (no_count, "must have a readable resume.pt"),
    "no-metrics": (lambda run: (run / "metrics.csv").unlink(), "run must have metrics, .*missing"),
    "empty-metrics": (lambda run: cut(run / "metrics.csv", 0), "must have readable metrics"),
    "cut-metrics": (lambda run: cut(run / "metrics.csv", 150), "must have 4 rows of metrics"),
    "cut-number": (lambda run: cut(run / "metrics.csv", -25), "metrics"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_a_run_must_be_whole(run, damage, message):
    damage(run)

    assert_refused(typed(run.parent, "eigs", "--run", "run", "--quiet"), 4, message)


@pytest.mark.parametrize("name", ["cut-record", "newer", "cut-trajectory", "cut-state"])
def test_a_broken_run_is_neither_continued_nor_touched(run, name):
    damage, message = BROKEN[name]
    damage(run)
    before = contents(run, TRAINED[1:])

    assert_refused(typed(run.parent, "train", *TINY, "--out", "run", "--quiet"), 4, message)
    assert contents(run, TRAINED[1:]) == before


@pytest.mark.parametrize("name", ["cut-record", "newer", "cut-trajectory", "cut-state"])
def test_a_broken_run_can_be_started_anew(run, name):
    BROKEN[name][0](run)

    assert typed(run.parent, "train", *TINY, "--out", "run", "--overwrite").status == 0
    assert load_run(run).complete


def test_a_half_written_run_is_continued(run):
    keep_only_the_record(run)

    assert typed(run.parent, "train", *TINY, "--out", "run").status == 0
    assert load_run(run).complete


def test_a_run_that_is_a_file_is_called_one(tmp_path):
    (tmp_path / "notes").write_text("no run")
    answer = typed(tmp_path, "eigs", "--run", "notes")

    assert_refused(answer, 4, "run must be a run directory, notes is ")


def test_a_run_without_its_device_says_so(run):
    setup = json.loads((run / "run.json").read_text())["setup"]
    changed(run, setup=setup | {"device": "cuda:99"})

    assert_refused(typed(run.parent, "eigs", "--run", "run"), 2, "device must be available")


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: cut(run / "eigenvalues.npy", 0),
        lambda run: cut(run / "eigenvalues.npy", 200),
        lambda run: cut(run / "eigs.json", 50),
        lambda run: (run / "eigs.json").write_text("[]"),
    ],
)
def test_broken_results_are_measured_anew(run, damage):
    typed(run.parent, "eigs", "--run", "run")
    before = (run / "eigenvalues.npy").read_bytes()
    damage(run)
    answer = typed(run.parent, "eigs", "--run", "run", "--quiet")

    assert answer.status == 0, answer.err
    assert (run / "eigenvalues.npy").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ("--act", "sine"),
        ("--seed", "0"),
        ("--out", "there"),
        ("--overwrite",),
        ("--set", "history_size=3"),
    ],
)
def test_run_stands_without_training_flags(run, words):
    answer = typed(run.parent, "eigs", "--run", "run", *words)

    assert_refused(answer, 2, f"--run must stand without {words[0]}: .* Leave it out to train")


# Output directories.


def test_out_with_another_setup_is_refused_with_the_differences(run):
    before = contents(run)
    words = ("--out", "run", "--lr", "0.5", "--seed", "3")
    answer = typed(run.parent, "train", *TINY, *words)

    assert_refused(answer, 2, "lr: 1.0 there, 0.5 asked; seed: 0 there, 3 asked")
    assert re.search("--overwrite", answer.err)
    assert not re.search("width|steps|octaves", answer.err)
    assert contents(run) == before


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_out_that_is_not_ours_is_refused_and_not_touched(tmp_path, flags):
    path = tmp_path / "thesis" / "chapter.tex"
    path.parent.mkdir()
    path.write_text("years of work")
    answer = typed(tmp_path, "train", *TINY, "--out", "thesis", *flags)

    assert_refused(answer, 2, "out must be a run or an empty directory, thesis holds chapter.tex")
    assert path.read_text() == "years of work"


def test_overwrite_keeps_what_is_not_ours(run):
    (run / "notes.txt").write_text("mine")

    assert typed(run.parent, "train", *TINY, "--out", "run", "--overwrite").status == 0
    assert (run / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_out_that_is_a_file_is_refused(tmp_path, out):
    (tmp_path / "file").write_text("mine")
    answer = typed(tmp_path, "train", *TINY, "--out", out)

    assert_refused(answer, 2, "out must be .*directory")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_that_may_not_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert_refused(typed(tmp_path, "train", *TINY, "--out", "run"), 1, "out must be writable")
    finally:
        tmp_path.chmod(0o700)


HOLDER = """
import sys
from pathlib import Path
from hessian_lab.training.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def held(trained_once, tmp_path_factory):
    """A run that another live process holds, and the id of that process."""
    run = shutil.copytree(trained_once, tmp_path_factory.mktemp("held") / "run")
    command = [sys.executable, "-c", HOLDER, str(run)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        yield run, holder.pid
        holder.stdin.close()


@pytest.mark.parametrize(
    "words",
    [
        ("train", *TINY, "--out", "run"),
        ("train", *TINY, "--out", "run", "--overwrite"),
        ("eigs", *TINY, "--out", "run"),
        ("eigs", "--run", "run"),
    ],
    ids=["train", "overwrite", "eigs", "run"],
)
def test_a_directory_in_use_is_refused(held, words):
    run, holder = held
    before = contents(run)

    assert_refused(typed(run.parent, *words, "--quiet"), 2, rf"in use.*\(pid {holder}\).*Wait")
    assert contents(run) == before


# What does not fit.


@pytest.mark.parametrize("words", [TINY, ("--run", "run")], ids=["trains", "run"])
def test_a_hessian_too_large_for_memory_is_refused(run, monkeypatch, words):
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _device: 2000)
    before = contents(run)
    answer = typed(run.parent, "eigs", "--method", "dense", *words, "--quiet")

    assert_refused(
        answer, 1, r"must fit in memory: it needs .*\(\d+ bytes\), and 1.95 KiB are free"
    )
    assert "Measure a smaller network" in answer.err
    assert contents(run) == before
    assert not (run / "eigenvalues.npy").exists()
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize(("room", "shown"), [(1010, "1010 B"), (1010 << 20, "1010 MiB")])
def test_memory_is_told_without_exponents(run, monkeypatch, room, shown):
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _device: room)
    answer = typed(run.parent, "eigs", "--width", "600", "--quiet")

    assert_refused(answer, 1, f"and {shown} are free on cpu")
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_a_trajectory_too_large_for_the_disk_is_refused(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1000, 990, 10))
    answer = typed(tmp_path, "train", *TINY, "--out", "run", "--quiet")

    needed = 4 * 37 * 8
    assert_refused(answer, 1, rf"must fit on the disk: it needs .*\({needed} bytes\), and 10 B are")
    assert "--checkpoint-every" in answer.err


SMALL = """
import json, resource, sys
from tests.cli.terminal import typed
answers = []
for kind, limit, words in json.loads(sys.argv[1]):
    kind = getattr(resource, kind)
    former = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, former[1]))
    try:
        answer = typed(".", *words, "--quiet")
    finally:
        resource.setrlimit(kind, former)
    answers.append((answer.status, answer.out, answer.err))
print(json.dumps(answers))
"""
FULL = {
    "record": ("RLIMIT_FSIZE", 1000, ("train", *TINY, "--out", "first")),
    "state": ("RLIMIT_FSIZE", 3000, ("train", *TINY, "--out", "second")),
    "trajectory": ("RLIMIT_FSIZE", 9000, ("train", *FIELD, "--steps", "40", "--out", "third")),
    "eigenvalues": ("RLIMIT_FSIZE", 1000, ("eigs", "--run", "measured")),
    "picture": ("RLIMIT_FSIZE", 9000, ("eigs", "--run", "drawn")),
    "steps": (
        *("RLIMIT_AS", 16 << 30),
        ("train", *FIELD, "--steps", "1000000000000", "--checkpoint-every", "1"),
    ),
}


@pytest.fixture(scope="module")
def full(trained_once, tmp_path_factory):
    """A directory, and what commands answered there while files and memory were limited."""
    place = tmp_path_factory.mktemp("full")
    for name in ("measured", "drawn"):
        shutil.copytree(trained_once, place / name)
    command = [sys.executable, "-c", SMALL, json.dumps(list(FULL.values()))]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place, dict(zip(FULL, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("record", r"run.json must fit on the disk: .* what was saved is intact\."),
        ("state", r"resume.pt must fit on the disk: .* what was saved is intact\."),
        ("trajectory", r"trajectory.npy must fit on the disk: .* what was saved is intact\."),
        ("eigenvalues", r"eig\S+ must fit on the disk: .* what was saved is intact\."),
        ("picture", r"eigenvalues.p.. must fit on the disk: .* what was saved is intact\."),
        ("steps", r"trajectory must fit on the disk: it needs .* \(296000000000296 bytes\)"),
    ],
)
def test_a_full_disk_is_told(full, name, message):
    status, out, err = full[1][name]

    assert_refused(type("Answer", (), {"status": status, "out": out, "err": err}), 1, message)


@pytest.mark.parametrize("name", ["measured", "drawn"])
def test_a_full_disk_leaves_what_was_saved(full, trained_once, name):
    for file in TRAINED:
        assert (full[0] / name / file).read_bytes() == (trained_once / file).read_bytes()
    assert list((full[0] / name).rglob(".*.tmp")) == []


@pytest.mark.parametrize("name", ["first", "second"])
def test_training_continues_when_there_is_room_again(full, trained_once, name):
    assert typed(full[0], "train", *TINY, "--out", name).status == 0
    trajectory = (full[0] / name / "trajectory.npy").read_bytes()
    assert trajectory == (trained_once / "trajectory.npy").read_bytes()


# Divergence.


def test_divergence_names_the_step_and_keeps_what_was_there(tmp_path):
    answer = typed(tmp_path, "train", *DIVERGING)

    assert_refused(answer, 1, r"loss must stay finite, it became \S+ at step 2 \(lr 1e\+30\)\.")
    assert "hessian-lab eigs --run run" in answer.err
    run = load_run(tmp_path / "run")
    assert run.steps == [0, 1]
    assert run.metrics["loss"].map(np.isfinite).all()
    assert run.record["status"] == "diverged"


def test_a_diverged_run_can_be_measured(tmp_path):
    typed(tmp_path, "train", *DIVERGING)
    answer = typed(tmp_path, "eigs", "--run", "run", "--json")

    assert answer.status == 0, answer.err
    assert [one["step"] for one in answer.json["spectra"]] == [0, 1]


def test_a_diverged_training_fails_again_in_the_same_way(tmp_path):
    first = typed(tmp_path, "train", *DIVERGING)
    before = contents(tmp_path / "run", TRAINED[1:])

    assert typed(tmp_path, "train", *DIVERGING) == first
    assert typed(tmp_path, "eigs", *DIVERGING) == first
    assert contents(tmp_path / "run", TRAINED[1:]) == before


def test_a_step_without_end_is_divergence_too(tmp_path):
    words = ("--optimizer", "sgd", "--lr", "1e308", "--out", "run", "--quiet")
    answer = typed(tmp_path, "train", *TINY, *words)

    assert_refused(answer, 1, r"step length must stay finite, it became (inf|nan) at step 1")
    assert load_run(tmp_path / "run").steps == [0]


# Tracebacks.


@pytest.mark.parametrize(
    ("words", "status"), [(("--width", "0"), 2), (("--signal", "./no.png"), 4)]
)
def test_verbose_shows_a_traceback_and_then_the_sentence(tmp_path, words, status):
    answer = typed(tmp_path, "eigs", *words, "--verbose")

    assert answer.status == status
    assert "Traceback (most recent call last)" in answer.err
    assert re.match(r"hessian-lab: error: \w+ must", answer.err.splitlines()[-1])


def test_an_error_of_ours_is_one_sentence_too(tmp_path, monkeypatch):
    def fail(*_given, **_more):
        raise LookupError("lost")

    monkeypatch.setattr("hessian_lab.cli.progress.trained", fail)
    answer = typed(tmp_path, "train", *TINY)

    assert_refused(answer, 1, "LookupError: lost.* --verbose for the traceback")
