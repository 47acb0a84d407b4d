"""Signals that are folders: told by what is in them, and remembered with their kind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hessian_lab import load_run
from hessian_lab.signals.posed_write import write_scene
from hessian_lab.signals.radiance import rendered_scene
from hessian_lab.signals.render import torus
from tests.cli.terminal import assert_refused, typed

TINY = ("--size", "6", "--width", "3", "--depth", "1", "--octaves", "1", "--steps", "1")


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch):
    monkeypatch.setattr("hessian_lab.plots.style.save", lambda *_: [])


@pytest.fixture
def frames(tmp_path):
    """A folder of frames in a directory, and that directory."""
    folder = tmp_path / "frames"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for place in range(3):
        pixels = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"f{place}.png")
    return tmp_path


@pytest.fixture
def fitted(frames):
    told = typed(frames, "train", "--signal", "./frames", *TINY, "--out", "run", "--json")
    assert told.status == 0, told.err
    assert told.json["setup"]["signal"] == "video:./frames"
    return frames


def posed(folder):
    shutil.rmtree(folder)
    write_scene(rendered_scene(torus(rings=12, sides=6), 8, num_views=2), folder)


def other_frames(folder):
    for path in folder.iterdir():
        Image.new("RGB", (8, 6), (255, 0, 0)).save(path)


def test_a_run_is_measured_when_its_folder_is_another_or_gone(fitted):
    before = typed(fitted, "trace", "--run", "run", "--json")
    # One after the other; a file is in the place of the folder that is gone.
    for change in (other_frames, posed, shutil.rmtree, Path.touch):
        (fitted / "run/trace.json").unlink()
        change(fitted / "frames")
        after = typed(fitted, "trace", "--run", "run", "--json")
        assert after.status == 0, after.err
        assert after.json == before.json
    assert load_run(fitted / "run").signal().shape == (3, 6, 8)


def test_a_run_whose_folder_is_another_is_not_continued_with_it(fitted):
    posed(fitted / "frames")
    again = ("train", "--signal", "./frames", *TINY, "--out", "run")
    assert_refused(typed(fitted, *again), 2, "signal: video:./frames there, radiance:./frames ask")
    shutil.rmtree(fitted / "frames")
    assert_refused(typed(fitted, *again), 4, "frames does not exist")
    assert_refused(
        typed(fitted, "train", "--signal", "video:./frames", *again[3:]), 4, "frames does not exist"
    )


def test_a_folder_may_be_typed_with_its_kind(fitted):
    before = (fitted / "run/run.json").read_bytes()
    words = ("train", "--signal", "video:./frames", *TINY, "--out", "run", "--json")
    told = typed(fitted, *words)
    assert told.status == 0, told.err
    # The same run: it is not trained again.
    assert (fitted / "run/run.json").read_bytes() == before
    assert json.loads(before)["data"]["name"] == "frames"


@pytest.mark.parametrize(
    ("signal", "reason"),
    [
        ("radiance:./nothing", "must be a folder of posed pictures, nothing does not exist"),
        ("video:./nothing", "nothing does not exist"),
        ("radiance:./frames", "frames has none of transforms_train.json"),
        ("radiance:", "must be a folder of posed pictures"),
        ("video:", "must be"),
        ("radiance:torus-nerf", "torus-nerf does not exist"),
        ("video:./frames/f0.png", "f0.png"),
    ],
)
def test_what_is_no_such_folder_is_refused(frames, signal, reason):
    answer = typed(frames, "train", "--signal", signal, *TINY, "--out", "run")
    assert_refused(answer, 4, reason)
    assert not (frames / "run").exists()


def test_sweeps_and_comparisons_take_folders(frames):
    grid = ("--optimizer", "adam", "--lr", "0.01", *TINY[:-2], "--steps", "1")
    swept = typed(frames, "sweep", "--signal", "./frames,./frames/f0.png", *grid, "--json")
    assert swept.status == 0, swept.err
    assert [row["signal"] for row in swept.json["runs"]] == ["video:./frames", "./frames/f0.png"]
    assert [row["status"] for row in swept.json["runs"]] == ["done"] * 2
    compared = typed(frames, "compare", "--signal", "video:./frames", *grid, "--json")
    assert compared.status == 0, compared.err
    assert_refused(typed(frames, "sweep", "--signal", "radiance:./gone", *grid), 4, "not exist")
