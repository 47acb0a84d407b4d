"""What the commands print, write and leave alone."""

import contextlib
import csv
import io
import logging
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import pytest
import torch

from hessian_lab import Setup, load_run
from hessian_lab.cli import COMMANDS
from hessian_lab.cli.main import main
from hessian_lab.fields import ACTIVATIONS
from hessian_lab.optim import OPTIMIZERS
from hessian_lab.signals import SIGNALS
from hessian_lab.training.setup import LATER
from tests.cli.terminal import COMMAND, LONG, TINY, contents, stopped, typed
from tests.reference import assert_same, autograd_hessian

KEYS = {
    *("command", "run", "setup", "num_parameters", "method", "matrix", "preconditioned", "reason"),
    *("spectra", "pooled"),
}
EPS = np.finfo(np.float64).eps
# What each scalar of a spectrum is, from its eigenvalues (design.md).
SCALARS = {
    "lambda_min": lambda values: values.min(),
    "lambda_max": lambda values: values.max(),
    "tolerance": lambda values: len(values) * EPS * abs(values).max(),
    "structural_zeros": None,
    "numerical_zeros": lambda values: (abs(values) <= floor(values)).sum(),
    "negative": lambda values: (values < -floor(values)).sum(),
    "smallest_magnitude": lambda values: abs(values).min(),
    "smallest_magnitude_resolved": lambda values: abs(values).min() > floor(values),
    "condition_number": lambda values: abs(values).max() / max(abs(values).min(), floor(values)),
    "condition_number_resolved": lambda values: abs(values).min() > floor(values),
    "effective_condition_number": lambda values: (
        abs(values).max() / abs(values)[abs(values) > floor(values)].min()
    ),
    "trace": lambda values: values.sum(),
    "frobenius_norm": lambda values: (values**2).sum() ** 0.5,
    "effective_rank": lambda values: abs(values).sum() ** 2 / (values**2).sum(),
}
SHARES = [f"1e-{exponent:02d}" for exponent in range(3, 14)]
POOLED = {
    "numerical_zero_share",
    "structural_zero_share",
    "negative_share",
    "smallest_magnitude",
}
FLAGS = [
    *("--signal", "--size", "--act", "--width", "--depth", "--omega", "--sigma", "--octaves"),
    *("--init", "--optimizer", "--lr", "--lr-final", "--set", "--steps", "--checkpoint-every"),
    *("--batch-size", "--seed", "--dtype", "--device", "--threads", "--out", "--overwrite"),
    *("--json", "--quiet", "--verbose"),
]


def batched(words):
    return zip(words[::2], words[1::2], strict=True)


def floor(values):
    return len(values) * EPS * abs(values).max()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("eigs")


@pytest.fixture(scope="module")
def answer(place):
    return typed(place, "eigs", *TINY, "--json")


@pytest.fixture(scope="module")
def measured(place, answer):
    """The run directory that ``answer`` names."""
    return place / answer.json["run"]


@pytest.fixture(scope="module")
def table(place, answer):
    """The same command without --json."""
    assert answer.status == 0
    return typed(place, "eigs", *TINY)


# The JSON object.


def test_json_is_one_object_on_one_line(answer):
    assert answer.status == 0
    assert answer.out.count("\n") == 1
    assert answer.json.keys() == KEYS


def test_json_says_what_was_asked_and_how(answer):
    assert answer.json["command"] == "eigs"
    assert answer.json["method"] == "dense"
    # An image has none of what came later.
    assert answer.json["setup"].keys() == {entry.name for entry in fields(Setup)} - set(LATER)
    assert answer.json["setup"]["octaves"] == 2
    assert answer.json["num_parameters"] == 37


def test_every_spectrum_holds_every_scalar(answer):
    for one in answer.json["spectra"]:
        assert {"step", "loss", "psnr", "shares_below", *SCALARS} <= one.keys()
        assert list(one["shares_below"]) == SHARES
    assert [one["step"] for one in answer.json["spectra"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", [name for name, formula in SCALARS.items() if formula])
def test_scalars_are_what_they_say_of_the_eigenvalues(answer, measured, name):
    for one, values in zip(answer.json["spectra"], saved(measured), strict=True):
        assert one[name] == pytest.approx(SCALARS[name](values), rel=1e-12)


@pytest.mark.parametrize("rung", SHARES)
def test_shares_count_eigenvalues_below_a_rung(answer, measured, rung):
    for one, values in zip(answer.json["spectra"], saved(measured), strict=True):
        share = (abs(values) <= float(rung) * abs(values).max()).mean()
        assert one["shares_below"][rung] == pytest.approx(share)


def test_pooled_numbers_pool_all_checkpoints(answer, measured):
    values, pooled = saved(measured), answer.json["pooled"]
    floors = np.array([floor(row) for row in values])[:, None]

    assert pooled.keys() == POOLED
    assert pooled["numerical_zero_share"] == pytest.approx((abs(values) <= floors).mean())
    assert pooled["negative_share"] == pytest.approx((values < -floors).mean())
    assert pooled["smallest_magnitude"] == abs(values).min()
    assert 0 <= pooled["structural_zero_share"] <= pooled["numerical_zero_share"]


@pytest.mark.usefixtures("undrawn")
def test_psnr_is_null_where_values_leave_the_unit_interval(tmp_path):
    answer = typed(tmp_path, "eigs", *TINY, "--signal", "sines", "--json")

    assert answer.status == 0
    assert [one["psnr"] for one in answer.json["spectra"]] == [None] * 4


@pytest.mark.usefixtures("undrawn")
def test_a_zero_hessian_is_told_in_strict_json(run, monkeypatch):
    monkeypatch.setattr("hessian_lab.measures.eigenvalues.dense_hessian", zeros)
    monkeypatch.setattr("hessian_lab.measures.eigenvalues._product_error", lambda *_: 0.0)
    answer = typed(run, "eigs", "--run", run, "--json")

    assert answer.status == 0, answer.err
    assert answer.json["pooled"]["numerical_zero_share"] == 1
    assert answer.json["spectra"][0]["condition_number"] is None


@pytest.mark.usefixtures("undrawn")
def test_a_failed_check_exits_3_and_still_writes(run, monkeypatch):
    monkeypatch.setattr("hessian_lab.measures.eigenvalues.dense_hessian", zeros)
    answer = typed(run, "eigs", "--run", run, "--json", "--quiet")

    assert answer.status == 3
    assert "check failed: step 0: a product differs from double backward" in answer.err
    assert answer.json["num_parameters"] == 37
    assert (run / "eigenvalues.npy").exists()


def zeros(model, loss, signal):  # noqa: ARG001
    size = sum(value.numel() for value in model.parameters())
    return torch.zeros(size, size, dtype=torch.float64)


def saved(directory):
    return np.load(directory / "eigenvalues.npy")


# Files.


def test_saved_eigenvalues_ascend(answer, measured):
    values = saved(measured)

    assert values.shape == (len(answer.json["spectra"]), answer.json["num_parameters"])
    assert values.dtype == np.float64
    assert (np.diff(values) >= 0).all()


def test_saved_eigenvalues_are_those_of_the_autograd_hessian(measured):
    run = load_run(measured)
    for step, row in zip(run.steps, saved(measured), strict=True):
        hessian = autograd_hessian(run.model(step), run.loss, run.signal())
        assert_same(torch.from_numpy(row), torch.from_numpy(np.linalg.eigvalsh(hessian.numpy())))


def test_the_table_holds_what_the_json_holds(answer, measured):
    rows = list(csv.DictReader((measured / "spectrum.csv").read_text().splitlines()))

    for one, row in zip(answer.json["spectra"], rows, strict=True):
        assert {"step", "loss", "psnr", *SCALARS} <= row.keys()
        assert float(row["loss"]) == one["loss"]
        assert float(row["share_below_1e-07"]) == one["shares_below"]["1e-07"]


@pytest.mark.parametrize(("name", "magic"), [("png", b"\x89PNG\r\n"), ("pdf", b"%PDF-")])
def test_the_picture_is_drawn(measured, name, magic):
    assert (measured / "figures" / f"eigenvalues.{name}").read_bytes().startswith(magic)


def test_only_the_promised_files_are_left(measured):
    found = {path.relative_to(measured).as_posix() for path in measured.rglob("*.*")}

    assert {path for path in found if not path.startswith(".")} == {
        *("run.json", "metrics.csv", "trajectory.npy", "resume.pt"),
        *("eigenvalues.npy", "spectrum.csv", "eigs.json"),
        *("figures/eigenvalues.png", "figures/eigenvalues.pdf"),
    }


def test_the_default_directory_is_named_after_act_and_hash(answer):
    assert re.fullmatch(r"runs/relu_pe-[0-9a-f]{8}", answer.json["run"])


def test_out_names_the_directory_exactly(tmp_path):
    assert typed(tmp_path, "train", *TINY, "--out", "a/b", "--json").json["run"] == "a/b"
    assert (tmp_path / "a" / "b" / "run.json").exists()


# What is there is not done again.


@pytest.mark.usefixtures("undrawn")
def test_eigs_after_train_does_not_train_again(tmp_path):
    directory = tmp_path / typed(tmp_path, "train", *TINY, "--json").json["run"]
    before = contents(directory)
    answer = typed(tmp_path, "eigs", *TINY, "--json")

    assert tmp_path / answer.json["run"] == directory
    assert contents(directory) == before


@pytest.mark.usefixtures("undrawn")
def test_eigs_of_a_run_trains_nothing(run):
    before = contents(run)

    assert typed(run.parent, "eigs", "--run", "run").status == 0
    assert contents(run) == before


def test_measuring_twice_gives_the_same(place, answer, measured):
    before = saved(measured)

    assert typed(place, "eigs", *TINY, "--json").json == answer.json
    assert (saved(measured) == before).all()


@pytest.mark.usefixtures("undrawn")
def test_measuring_anew_gives_the_same_bytes(tmp_path, measured):
    typed(tmp_path, "eigs", *TINY, "--out", "again")

    again = tmp_path / "again" / "eigenvalues.npy"
    assert again.read_bytes() == (measured / "eigenvalues.npy").read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_a_moved_run_is_measured_the_same(run, answer):
    moved = run.rename(run.parent / "moved")
    found = typed(moved.parent, "eigs", "--run", "moved", "--json").json

    assert found == answer.json | {"run": "moved"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (9, [0, 3])])
def test_every_measures_every_kth_checkpoint_and_the_last(run, answer, every, steps):
    found = typed(run.parent, "eigs", "--run", "run", "--every", every, "--json").json

    assert found["spectra"] == [answer.json["spectra"][step] for step in steps]
    assert len(saved(run)) == len(steps)


@pytest.mark.usefixtures("undrawn")
def test_overwrite_starts_anew_and_drops_old_results(run):
    typed(run.parent, "eigs", "--run", "run")
    answer = typed(run.parent, "train", *TINY, "--seed", 1, "--out", "run", "--overwrite")

    assert answer.status == 0
    assert load_run(run).setup.seed == 1
    assert not (run / "eigenvalues.npy").exists()


@pytest.mark.usefixtures("undrawn")
def test_single_precision_training_is_measured_in_double(tmp_path):
    answer = typed(tmp_path, "eigs", *TINY, "--dtype", "float32", "--out", "single", "--json")

    assert answer.status == 0, answer.err
    assert np.load(tmp_path / "single" / "trajectory.npy").dtype == np.float32
    assert saved(tmp_path / "single").dtype == np.float64


# What people read.


def test_people_get_a_table_and_a_histogram(table):
    assert table.status == 0
    assert re.search(r"^ +step +loss +PSNR dB .* κ$", table.out, re.MULTILINE)
    assert [int(step) for step in re.findall(r"^ +(\d+) +\d\.\d+e", table.out, re.MULTILINE)] == [
        *(0, 2, 3)
    ]
    assert re.search(r"pooled over training: [\d.]+% zero \([\d.]+% structural\)", table.out)
    assert re.search(r"1e-01 … 1e-00 +[\d.]+% [█▒]+", table.out)


def test_an_unresolved_condition_number_is_printed_as_a_bound(table):
    assert "≥ 1.2e+14" in table.out


def test_progress_is_plain_lines_where_stderr_is_no_terminal(answer):
    lines = answer.err.splitlines()

    assert "\r" not in answer.err
    assert re.fullmatch(r"hessian-lab: training 3/3, loss \S+, psnr \S+", lines[0])
    assert re.fullmatch(r"hessian-lab: eigenvalues 4/4, loss \S+, psnr \S+, λmax \S+", lines[-1])


def test_progress_of_a_continued_training_counts_on(tmp_path):
    with stopped(tmp_path, "train", *LONG, "--out", "run") as process:
        process.send_signal(signal.SIGKILL)
    done = len(load_run(tmp_path / "run").steps)
    answer = typed(tmp_path, "train", *LONG, "--out", "run")

    assert 0 < done < 151
    assert "training 3000/3000, loss" in answer.err


@pytest.mark.parametrize("command", ["train", "eigs"])
def test_quiet_is_silent(tmp_path, command):
    answer = typed(tmp_path, command, *TINY, "--act", "sine", "--quiet")

    assert answer.status == 0
    assert answer.err == ""


def test_train_prints_a_table(tmp_path):
    answer = typed(tmp_path, "train", *TINY)

    assert answer.status == 0
    assert re.search(r"^ +step +loss +PSNR dB", answer.out, re.MULTILINE)
    assert "4 checkpoints in runs/relu_pe-" in answer.out


def test_train_prints_one_json_object(tmp_path):
    answer = typed(tmp_path, "train", *TINY, "--signal", "sines", "--json")

    assert answer.json["command"] == "train"
    assert answer.json["num_parameters"] == load_run(tmp_path / answer.json["run"]).num_parameters
    assert answer.json["final"]["step"] == 3
    assert answer.json["final"]["psnr"] is None


@pytest.mark.parametrize(
    ("what", "names"), [("acts", ACTIVATIONS), ("signals", SIGNALS), ("optimizers", OPTIMIZERS)]
)
def test_list_names_what_there_is(tmp_path, what, names):
    answer = typed(tmp_path, "list", what)

    assert answer.status == 0
    assert set(names) <= {line.split()[0] for line in answer.out.splitlines()}


def test_info_tells_versions(tmp_path):
    assert typed(tmp_path, "info", "--json").json["torch"] == torch.__version__
    assert torch.__version__ in typed(tmp_path, "info").out


# Words, in any order.


def test_alone_it_prints_short_help(tmp_path):
    answer = typed(tmp_path)

    assert (answer.status, answer.err) == (0, "")
    assert "hessian-lab eigs --act relu_pe" in answer.out
    assert len(answer.out.splitlines()) <= 12


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_exits_0(tmp_path, command, flag):
    answer = typed(tmp_path, *([command] if command else []), flag)

    assert (answer.status, answer.err) == (0, "")
    assert answer.out.startswith(f"usage: hessian-lab{f' {command}' if command else ''}")


@pytest.mark.parametrize("command", ["train", "eigs"])
def test_help_tells_every_flag(tmp_path, command):
    words = typed(tmp_path, command, "--help").out.split()

    assert [flag for flag in FLAGS if flag not in words and f"{flag}," not in words] == []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "words",
    [
        [*TINY, "eigs", "--json"],
        ["--json", "eigs", *TINY],
        ["--quiet", *TINY, "--json", "eigs"],
        ["eigs", *(f"{flag}={value}" for flag, value in batched(TINY)), "--json"],
    ],
)
def test_flags_stand_anywhere(place, answer, words):
    assert typed(place, *words).json == answer.json


@pytest.mark.usefixtures("undrawn")
def test_a_value_that_is_also_a_command_is_a_value(tmp_path):
    answer = typed(tmp_path, "--out", "train", "eigs", *TINY, "--json")

    assert answer.json["command"] == "eigs"
    assert answer.json["run"] == "train"


def test_version_names_the_package_and_torch(tmp_path):
    answer = typed(tmp_path, "--version")

    assert answer.status == 0
    release = torch.__version__.split("+")[0]
    assert re.fullmatch(rf"hessian-lab 0.1.0 \(torch {release}\S*\)\n", answer.out)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["eigs", "--help"], ["list", "acts"]])
def test_help_imports_no_torch(words):
    code = (
        "import contextlib, sys\n"
        "from hessian_lab.cli.main import main\n"
        f"with contextlib.suppress(SystemExit): main({words})\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_answers_at_once(word):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([COMMAND, word], check=True, capture_output=True)
        times.append(time.perf_counter() - start)

    # The promise is 0.3 s; this machine may be busy.
    assert statistics.median(times) < 1.0


def test_the_package_is_a_command_too(tmp_path):
    command = [sys.executable, "-m", "hessian_lab"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)

    assert done.stdout == typed(tmp_path).out


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["list", "acts"]])
def test_a_reader_that_leaves_gets_no_traceback(words):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([COMMAND, *words], stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)

    assert done.stderr == ""


# Stopped half-way.


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run with 151 spectra, measured without a stop."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    assert typed(directory, "eigs", *LONG, "--out", "run").status == 0
    return directory / "run"


def unmeasured(source, directory):
    run = directory / "run"
    run.mkdir()
    for name in ("run.json", "metrics.csv", "trajectory.npy", "resume.pt"):
        shutil.copy2(source / name, run / name)
    return run


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_stopped_measurement_continues_to_the_same_bytes(uninterrupted, tmp_path, number, status):
    run = unmeasured(uninterrupted, tmp_path)
    with stopped(tmp_path, "eigs", "--run", "run", sign="eigs.json") as process:
        process.send_signal(number)
    half_way = len(saved(run))
    answer = typed(tmp_path, "eigs", "--run", "run")

    assert process.returncode == status
    assert 0 < half_way < 151
    assert answer.status == 0
    expected = (uninterrupted / "eigenvalues.npy").read_bytes()
    assert (run / "eigenvalues.npy").read_bytes() == expected


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_training_says_so_and_continues_to_the_same_bytes(uninterrupted, tmp_path):
    words = ("train", *LONG, "--out", "run")
    with stopped(tmp_path, *words) as process:
        process.send_signal(signal.SIGINT)
    half_way = load_run(tmp_path / "run")

    assert process.returncode == 130
    assert process.err.splitlines()[-1] == ("hessian-lab: interrupted. The same command continues.")
    assert not half_way.complete
    assert typed(tmp_path, *words).status == 0
    expected = (uninterrupted / "trajectory.npy").read_bytes()
    assert (tmp_path / "run" / "trajectory.npy").read_bytes() == expected


@pytest.mark.usefixtures("undrawn")
def test_half_a_training_can_be_measured(uninterrupted, tmp_path):
    run = unmeasured(uninterrupted, tmp_path)
    state = torch.load(run / "resume.pt", weights_only=True)
    torch.save(state | {"count": 3}, run / "resume.pt")
    answer = typed(tmp_path, "eigs", "--run", "run", "--json")

    assert answer.status == 0
    assert [one["step"] for one in answer.json["spectra"]] == [0, 20, 40]
    assert "run ends at step 40 of 3000: measuring what is there" in answer.err


def test_main_reads_the_command_line(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["hessian-lab", "list", "optimizers"])
    with contextlib.redirect_stdout(out):
        assert main() == 0
    assert "lbfgs" in out.getvalue()


def test_a_command_leaves_the_callers_logs_as_they_were(tmp_path, caplog):
    logger = logging.getLogger("hessian_lab")
    former = logger.handlers[:], logger.level, logger.propagate

    for words in (["list", "acts"], ["eigs", "--run", "nowhere", "--quiet"]):
        typed(tmp_path, *words)
        assert (logger.handlers[:], logger.level, logger.propagate) == former
        logging.getLogger("hessian_lab.training.loop").warning("heard after %s", words[0])

    assert "heard after list" in caplog.text
    assert "heard after eigs" in caplog.text
