"""Sounds from the command line: trained, written, measured like an image."""

import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.io import wavfile

from hessian_lab import load_run
from hessian_lab.training.run import COLUMNS
from tests.cli.terminal import assert_refused, typed

FIELD = ("--width", "3", "--depth", "2", "--act", "sine", "--omega", "40,5", "--steps", "3")
CLIP = ("--signal", "bwv1007", "--start", "0.5", "--seconds", "0.01", "--rate", "4000")
TINY = (*CLIP, *FIELD)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    place = tmp_path_factory.mktemp("sound")
    return place, typed(place, "train", *TINY, "--out", "run")


def test_train_tells_snr_and_what_to_listen_to(told):
    place, answer = told
    assert answer.status == 0, answer.err
    run = load_run(place / "run")
    fitted = run.model(3)(run.signal().coords).detach()
    values = run.signal().values
    # 10 log₁₀ Σ y² / Σ (f - y)²
    snr = 10 * np.log10(float((values**2).sum() / ((fitted - values) ** 2).sum()))
    assert run.metrics["snr"].iloc[-1] == pytest.approx(snr, rel=1e-9)
    assert run.metrics["psnr"].isna().all()
    lines = answer.out.splitlines()
    assert "SNR dB" in lines[2]
    assert "PSNR" not in lines[2]
    assert lines[5].split()[2] == f"{snr:.1f}"
    assert lines[-1].endswith("listen to: run/fitted.wav, run/error.wav")
    assert "snr" in answer.err
    assert "psnr" not in answer.err


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("command", ["eigs", "trace", "sparsity", "derivatives"])
def test_tables_of_measurements_tell_the_snr(told, command, tmp_path, monkeypatch):
    for name in ("sparsity", "derivatives"):
        monkeypatch.setattr(f"hessian_lab.cli.{name}._draw", lambda _result: [])
    run = load_run(shutil.copytree(told[0] / "run", tmp_path / "run"))
    known = dict(zip(run.metrics["step"], run.metrics["snr"], strict=True))
    answer = typed(tmp_path, command, "--run", "run", "--json")
    assert answer.status == 0, answer.err
    for one in answer.json.get("spectra", [answer.json]):
        assert (one["psnr"], one["snr"]) == (None, pytest.approx(known[one["step"]], rel=1e-15))
    out = typed(tmp_path, command, "--run", "run").out
    assert "PSNR" not in out
    if command == "derivatives":
        assert f", SNR {known[3]:.1f} dB\n" in out
        return
    lines = out.splitlines()
    (head,) = [line for line in lines if line.startswith(" step     loss  SNR dB ")]
    row = lines[lines.index(head) + 1]
    assert row.split()[2] == row[15:22].strip() == f"{known[0]:.1f}"


def test_the_written_sounds_are_field_and_error(told):
    place, _ = told
    run = load_run(place / "run")
    fitted = run.model(3)(run.signal().coords)[:, 0].detach().numpy()
    error = fitted - run.signal().values[:, 0].numpy()
    for name, expected in (("fitted", fitted), ("error", error)):
        rate, samples = wavfile.read(place / "run" / f"{name}.wav")
        assert (rate, samples.dtype) == (4000, np.float32)
        assert np.array_equal(samples, expected.astype(np.float32))


def test_train_again_and_json(told):
    place, _ = told
    before = (place / "run" / "error.wav").read_bytes()
    answer = typed(place, "train", *TINY, "--out", "run", "--json")
    assert answer.json["sounds"] == ["run/fitted.wav", "run/error.wav"]
    assert answer.json["final"]["psnr"] is None
    assert answer.json["final"]["snr"] is not None
    assert answer.json["setup"]["omega"] == [40.0, 5.0]
    assert (place / "run" / "error.wav").read_bytes() == before


def test_an_image_writes_no_sound(tmp_path):
    words = ("--width", "3", "--depth", "1", "--size", "6", "--steps", "1", "--out", "run")
    answer = typed(tmp_path, "train", *words)
    assert "PSNR dB" in answer.out
    assert "listen" not in answer.out
    assert not list((tmp_path / "run").glob("*.wav"))
    assert "sounds" not in typed(tmp_path, "train", *words, "--json").json


@pytest.mark.parametrize(
    "words",
    [
        ("eigs",),
        ("eigs", "--method", "lanczos", "--every", "3"),
        ("trace", "--method", "exact"),
        ("cond",),
        ("sparsity", "--every", "3"),
        ("derivatives",),
    ],
)
def test_a_sound_is_measured_like_an_image(told, words):
    place, _ = told
    answer = typed(place, *words, "--run", "run", "--json", "--quiet")
    assert answer.status == 0, answer.err
    assert answer.json["setup"]["signal"] == "bwv1007"


def test_extended_precision_knows_the_omega_of_every_layer(told):
    pytest.importorskip("flint", reason="needs the extra exact")
    place, _ = told
    words = ("cond", "--run", "run", "--precision", "extended", "--every", "3", "--json", "-q")
    assert typed(place, *words).status == 0


def test_a_report_shows_the_line_and_the_omega_of_every_layer(told):
    place, _ = told
    answer = typed(place, "report", "run")
    assert answer.status == 0, answer.err
    page = (place / "run" / "report.html").read_text()
    assert "40/5" in page
    assert "BWV 1007" in page


def test_a_file_of_ones_own_stays_with_its_run(tmp_path):
    samples = (8000 * np.sin(np.arange(200) / 5)).astype(np.int16)
    wavfile.write(tmp_path / "a.wav", 1000, np.stack([samples, samples], axis=1))
    words = ("train", "--signal", "./a.wav", "--rate", "1000", *FIELD, "--out", "run", "--quiet")
    assert typed(tmp_path, *words).status == 0
    (tmp_path / "a.wav").unlink()
    signal = load_run(tmp_path / "run").signal()
    assert np.array_equal(signal.values[:, 0].numpy(), samples / 2**15)
    assert typed(tmp_path, "trace", "--run", "run", "--quiet").status == 0


def test_overwrite_removes_the_sounds_of_the_former_run(told, tmp_path):
    place, _ = told
    (tmp_path / "run").mkdir()
    for name in ("run.json", "fitted.wav", "error.wav"):
        (tmp_path / "run" / name).write_bytes((place / "run" / name).read_bytes())
    words = ("--signal", "camera", "--size", "6", "--width", "3", "--steps", "1", "--overwrite")
    assert typed(tmp_path, "train", *words, "--out", "run", "--quiet").status == 0
    assert not list((tmp_path / "run").glob("*.wav"))


def test_a_run_from_before_there_was_snr_is_read_and_continued(tmp_path):
    words = ("--width", "3", "--depth", "1", "--size", "6", "--optimizer", "adam", "--out", "run")
    assert typed(tmp_path, "train", *words, "--steps", "4", "--quiet").status == 0
    path = tmp_path / "run" / "metrics.csv"
    whole = pd.read_csv(path)
    whole.drop(columns="snr").to_csv(path, index=False)
    metrics = load_run(tmp_path / "run").metrics
    assert list(metrics.columns) == list(COLUMNS)
    assert metrics["snr"].isna().all()
    assert metrics["grad_norm"].tolist() == whole["grad_norm"].tolist()
    assert typed(tmp_path, "train", *words, "--steps", "4").status == 0
    assert typed(tmp_path, "eigs", "--run", "run", "--quiet").status == 0
    whole.drop(columns="loss").to_csv(path, index=False)
    assert_refused(typed(tmp_path, "eigs", "--run", "run"), 4, "must have 5 rows of metrics")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "9"), "--size has no effect on bwv1007"),
        (("--octaves", "9"), "--octaves has no effect on sine"),
    ],
)
def test_what_a_sound_does_not_have_is_told(tmp_path, words, message):
    answer = typed(tmp_path, "train", *TINY, *words)
    assert answer.status == 0
    assert f"hessian-lab: {message}" in answer.err.splitlines()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--omega", "40,5,3"), 2, "omega must be one .* one for each of 2, got 3"),
        (("--omega", "40/5/3"), 2, "one for each of 2, got 3"),
        (("--omega", "40,"), 2, "must be a number, got '40,'; one for each hidden layer is 3000,"),
        (("--omega", "40,-5"), 2, "omega must be positive and finite, got -5"),
        (("--omega", ""), 2, "must be a number, got ''"),
        (("--rate", "8k"), 2, "--rate: must be a whole number, got '8k'"),
        (("--rate", "0"), 2, "rate must be at least 1, got 0"),
        (("--seconds", "0"), 2, "seconds must be positive, got 0"),
        (("--seconds", "1e-9"), 4, "must have at least 2 samples, the clip of bwv1007 has 1"),
        (("--start", "-1"), 2, "start must be at least 0, got -1"),
        (("--start", "60"), 4, r"bwv1007 has 7\.873 s, start is 60 s"),
        (("--signal", "bwv1006"), 2, "Did you mean bwv1007"),
        (("--signal", "./none.wav"), 4, r"must be a sound file, \./none\.wav does not exist"),
    ],
)
def test_refuses(tmp_path, words, status, message):
    assert_refused(typed(tmp_path, "train", *TINY, *words), status, message)
    assert not (tmp_path / "runs").exists()


def test_a_sweep_tells_layers_from_values(tmp_path):
    words = ("sweep", *CLIP, *FIELD[:6], "--omega", "7,40/5", "--steps", "2", "--json", "--quiet")
    answer = typed(tmp_path, *words)
    assert answer.status == 0, answer.err
    assert answer.json["varied"] == ["omega"]
    assert [str(row["omega"]) for row in answer.json["runs"]] == ["7.0", "40/5"]
    runs = [load_run(tmp_path / "runs" / "sweep" / row["run"]) for row in answer.json["runs"]]
    assert [run.setup.omega for run in runs] == [7.0, (40.0, 5.0)]
    assert {str(row["omega"]) for row in answer.json["best"]} == {"7.0", "40/5"}
    again = typed(tmp_path, *words[:-2])
    assert "40/5" in again.out
    many = typed(tmp_path, *words[:-2], "--omega", "30,30")
    assert_refused(many, 2, r"got 30\.0 twice .* Join the numbers of one field's layers: 3000/3000")


def test_compare_tells_layers_from_values(tmp_path):
    words = (
        "compare",
        *CLIP,
        *FIELD[:6],
        "--omega",
        "7,40/5",
        "--steps",
        "2",
        "--optimizer",
        "sgd",
    )
    grid = ("--lr", "1e-3", "--seed", "1", "--tune-seed", "0", "--json", "--quiet")
    answer = typed(tmp_path, *words, *grid)
    assert answer.status == 0, answer.err
    assert [str(row["omega"]) for row in answer.json["table"]] == ["7.0", "40/5"]
