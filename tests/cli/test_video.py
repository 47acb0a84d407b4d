"""Videos from the command line: trained, written, drawn, measured like an image."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hessian_lab import load_run
from hessian_lab.plots.video import plot_video
from hessian_lab.signals.gif import read_gif
from tests.cli.terminal import assert_refused, typed
from tests.reference import autograd_hessian

FIELD = ("--width", "4", "--depth", "1", "--act", "sine", "--omega", "5", "--steps", "2")
CLIP = (
    "--signal",
    "kenburns",
    "--start",
    "0.5",
    "--seconds",
    "0.4",
    "--rate",
    "10",
    "--size",
    "12",
)
TINY = (*CLIP, *FIELD)


@pytest.fixture
def unsaved(monkeypatch):
    """Leave pictures away, which take most of the time."""

    def save(_figure, stem, **_):
        return [stem.with_suffix(ending) for ending in (".png", ".pdf")]

    monkeypatch.setattr("hessian_lab.plots.style.save", save)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    place = tmp_path_factory.mktemp("video")
    return place, typed(place, "train", *TINY, "--out", "run", "--json")


def values_of(run):
    """Return the video and the field's values [frames, rows, columns, 3]."""
    signal = run.signal()
    with torch.no_grad():
        fitted = run.model(run.steps[-1])(signal.coords)
    return [each.reshape(*signal.shape, 3).numpy() for each in (signal.values, fitted)]


def test_train_tells_the_psnr_of_every_frame(told):
    place, answer = told
    assert answer.status == 0, answer.err
    run = load_run(place / "run")
    true, fitted = values_of(run)
    assert true.shape == (4, 12, 21, 3)
    errors = ((fitted - true) ** 2).mean(axis=(1, 2, 3))
    table = pd.read_csv(place / answer.json["table"])
    assert list(table.columns) == ["frame", "second", "psnr"]
    assert table["psnr"].to_numpy() == pytest.approx(-10 * np.log10(errors), rel=1e-9)
    assert table["second"].to_numpy() == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert [row["psnr"] for row in answer.json["frames"]] == pytest.approx(table["psnr"].tolist())
    assert answer.json["final"]["psnr"] == pytest.approx(-10 * np.log10(errors.mean()), rel=1e-9)


def test_the_written_clip_is_the_video_beside_the_field(told):
    place, answer = told
    assert answer.json["clip"] == "run/fitted.gif"
    true, fitted = values_of(load_run(place / "run"))
    expected = 255 * np.concatenate([true, fitted.clip(0, 1)], axis=2)
    shown = read_gif(place / "run/fitted.gif", 4, 10)
    # 256 colours, of 504 pixels.
    assert np.abs(shown - expected).mean() < 2
    with Image.open(place / "run/fitted.gif") as image:
        assert image.info["duration"] == 100


@pytest.mark.usefixtures("unsaved")
def test_people_are_told_of_frames_and_files(told):
    place, answer = told
    again = typed(place, "train", *TINY, "--points", "9", "--out", "run")
    assert "hessian-lab: --points has no effect on kenburns" in again.err.splitlines()
    decibels = sorted(row["psnr"] for row in answer.json["frames"])
    least, low, high, largest = decibels
    assert f"PSNR of 4 frames: median {(low + high) / 2:.2f} dB" in again.out
    assert f"least {least:.2f}, largest {largest:.2f}" in again.out
    for name in ("fitted.gif", "video.csv", "figures/video.png", "figures/video.pdf"):
        assert f"run/{name}" in again.out.splitlines()
        assert (place / "run" / name).stat().st_size > 50


@pytest.mark.usefixtures("undrawn")
def test_its_hessian_is_that_of_autograd(told):
    place, _ = told
    answer = typed(place, "eigs", "--run", "run", "--every", "2", "--json", "--quiet")
    assert answer.status == 0, answer.err
    run = load_run(place / "run")
    matrix = autograd_hessian(run.model(2), run.loss, run.signal())
    found = torch.linalg.eigvalsh(matrix)
    last = answer.json["spectra"][-1]
    assert last["lambda_max"] == pytest.approx(float(found[-1]), rel=1e-8)
    assert last["lambda_min"] == pytest.approx(float(found[0]), rel=1e-6)


@pytest.mark.usefixtures("unsaved")
@pytest.mark.parametrize(
    "words", [("trace", "--method", "exact"), ("cond",), ("sparsity", "--every", "2")]
)
def test_a_video_is_measured_like_an_image(told, words):
    place, _ = told
    answer = typed(place, *words, "--run", "run", "--json", "--quiet")
    assert answer.status == 0, answer.err
    assert answer.json["setup"]["signal"] == "kenburns"


def test_a_report_tells_where_the_video_is_from(told):
    place, _ = told
    assert typed(place, "report", "run").status == 0
    assert "no film" in (place / "run/report.html").read_text()


@pytest.mark.usefixtures("unsaved")
def test_frames_of_ones_own_stay_with_their_run(tmp_path):
    (tmp_path / "clip").mkdir()
    for place in range(3):
        Image.new("L", (6, 4), 50 * place).save(tmp_path / f"clip/{place}.png")
    words = ("train", "--signal", "./clip", "--size", "4", *FIELD, "--out", "run", "--quiet")
    assert typed(tmp_path, *words).status == 0
    for path in (tmp_path / "clip").iterdir():
        path.unlink()
    (tmp_path / "clip").rmdir()
    assert load_run(tmp_path / "run").signal().shape == (3, 4, 6)
    assert typed(tmp_path, "trace", "--run", "run", "--quiet").status == 0


def test_overwrite_removes_the_clip_of_the_former_run(told, tmp_path):
    place, _ = told
    (tmp_path / "run/figures").mkdir(parents=True)
    names = ("fitted.gif", "video.csv", "figures/video.png", "figures/video.pdf")
    for name in ("run.json", *names):
        (tmp_path / "run" / name).write_bytes((place / "run" / name).read_bytes())
    words = ("--signal", "camera", "--size", "6", "--width", "3", "--steps", "1", "--overwrite")
    assert typed(tmp_path, "train", *words, "--out", "run", "--quiet").status == 0
    assert not [name for name in names if (tmp_path / "run" / name).exists()]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--start", "4"), 4, "kenburns has 4 s, start is 4 s"),
        (("--seconds", "0.01"), 4, "at least 2 frames, the clip of kenburns has 1"),
        (("--size", "1"), 2, "size must be at least 2"),
        (("--rate", "1000000", "--size", "900"), 1, "must fit in memory"),
        (("--signal", "./none.mp4"), 4, r"must be a video, \./none\.mp4 does not exist"),
        (("--signal", "./empty"), 4, "PNG or JPEG frames, empty has none"),
        (("--signal", "kenburn"), 2, "Did you mean kenburns"),
    ],
)
def test_refuses(tmp_path, words, status, message):
    (tmp_path / "empty").mkdir()
    assert_refused(typed(tmp_path, "train", *TINY, *words), status, message)
    assert not (tmp_path / "runs").exists()


def test_some_frames_are_drawn_and_all_are_in_the_curve():
    frames = np.random.default_rng(0).integers(0, 256, (9, 4, 6, 3), dtype=np.uint8)
    error = np.linspace(0, 1, 9 * 24).reshape(9, 4, 6)
    table = pd.DataFrame({"second": np.arange(9) / 3, "psnr": [*range(20, 28), np.inf]})
    figure = plot_video(frames, 255 - frames, error, table)
    above, below = figure.subfigs
    pictures = [axes.images[0].get_array() for axes in above.axes if axes.images]
    for column, place in enumerate((0, 3, 5, 8)):
        assert np.array_equal(pictures[column], frames[place])
        assert np.array_equal(pictures[4 + column], 255 - frames[place])
        assert np.array_equal(pictures[8 + column], error[place])
    curve, dots = below.axes[0].lines
    assert np.array_equal(curve.get_ydata()[:8], table["psnr"][:8])
    assert np.isnan(curve.get_ydata()[8])
    assert dots.get_xdata().tolist() == pytest.approx([0, 1, 5 / 3, 8 / 3])
    with pytest.raises(ValueError, match=r"of the same frames, got 9, 9, 8 and 9"):
        plot_video(frames, frames, error[1:], table)
