import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hessian_lab.plots.tile_maps import plot_clip_tiles, plot_tiles
from tests.cli.terminal import assert_refused, typed

TINY = ("--size", "24", "--tile", "8", "--width", "3", "--depth", "1", "--steps", "3")


def test_kilo_trains_measures_and_draws(tmp_path):
    told = typed(tmp_path, "kilo", *TINY, "--spectra", "--out", "run", "--quiet")
    assert told.status == 0
    assert told.err == ""
    assert "9 fields sine 1×3 (21 parameters each) on 8×8 tiles of retina 24×24" in told.out
    assert "spectra of 9 fields, float64" in told.out
    assert np.asarray(Image.open(tmp_path / "run/fitted.png")).shape == (24, 24, 3)
    for name in ("tiles.png", "tiles.pdf"):
        assert (tmp_path / "run/figures" / name).stat().st_size > 5_000


def test_kilo_prints_one_json_object(tmp_path):
    told = typed(tmp_path, "kilo", *TINY, "--json", "--out", "run").json
    assert told["command"] == "kilo"
    assert len(told["tiles"]) == 9
    assert told["spectra"] is None
    again = typed(tmp_path, "kilo", *TINY, "--json", "--out", "run", "--spectra").json
    assert again["tiles"] == told["tiles"]
    assert len(again["spectra"]) == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tile", "1"), "tile must be at least 2"),
        (("--block", "0"), "block must be at least 1"),
        (("--every", "0"), "every must be at least 1"),
        (("--optimizer", "newton"), "optimizer must be lbfgs or adam"),
        (("--signal", "sines"), "signal must be an image or a video"),
        (("--signal", "kenburns", "--tile-frames", "17"), "at most the clip's 16 frames, got 17"),
    ],
)
def test_wrong_flags_are_refused(tmp_path, words, message):
    assert_refused(typed(tmp_path, "kilo", *words, "--out", "run"), 2, message)


def test_divergence_is_told(tmp_path):
    words = ("--optimizer", "adam", "--lr", "1e30", "--act", "relu", "--spectra")
    answer = typed(tmp_path, "kilo", *TINY, *words, "--out", "run", "--json")
    assert answer.status == 1
    assert "9 of 9 tiles diverged" in answer.err
    assert all(one["resolved"] is None for one in answer.json["spectra"])


def test_flags_that_images_have_not_are_told(tmp_path):
    answer = typed(tmp_path, "kilo", *TINY, "--points", "7", "--out", "run")
    assert "--points has no effect on retina" in answer.err or "on image" in answer.err


def test_a_missing_image_is_told(tmp_path):
    answer = typed(tmp_path, "kilo", "--signal", "none.png", "--out", "run")
    assert_refused(answer, 4, r"none\.png does not exist")


def test_maps_hold_every_tile_in_its_place():
    table = pd.DataFrame(
        [(row, column, 10.0 * row + column) for row in (0, 4, 6) for column in (0, 4, 8, 9)],
        columns=["row", "column", "psnr"],
    )
    spectra = table.assign(kappa=1e3, resolved=[True] * 11 + [False], zero_share=0.25)
    figure = plot_tiles(None, table, spectra, shape=(10, 13), tile=4)
    found = figure.axes[0].images[0].get_array()
    assert found.shape == (3, 4)
    assert np.array_equal(found.ravel(), table["psnr"])
    assert np.all(figure.axes[1].images[0].get_array() == 3)
    dots = figure.axes[1].lines[0].get_xydata()
    assert dots.tolist() == [[3, 2]]
    assert np.all(figure.axes[2].images[0].get_array() == 25)


FILM = ("--signal", "kenburns", "--size", "9", "--seconds", "0.5", "--tile", "8", "--width", "3")
FILM += ("--tile-frames", "4", "--depth", "1", "--steps", "2")


def test_kilo_cuts_a_video_in_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr("hessian_lab.plots.style.save", lambda *_: [])
    words = ("kilo", *FILM, "--spectra", "--every", "3", "--out", "run", "--json", "--quiet")
    told = typed(tmp_path, *words)
    assert told.status == 0, told.err
    assert told.err == ""
    found = told.json
    assert found["shape"] == [8, 9, 16, 3]
    assert found["tile_frames"] == 4
    assert [one["frame"] for one in found["tiles"]] == [0] * 4 + [4] * 4
    assert len({one["tile"] for one in found["spectra"]}) == 3
    assert found["setup"]["seconds"] == 0.5
    assert found["pictures"][0] == "run/fitted.gif"
    with Image.open(tmp_path / "run/fitted.gif") as image:
        assert (image.size, image.n_frames) == ((16, 9), 8)


def test_flags_of_videos_are_told_where_there_is_none(tmp_path):
    words = ("--tile-frames", "3", "--optimizer", "newton", "--out", "run")
    answer = typed(tmp_path, "kilo", *TINY, *words)
    assert "hessian-lab: --tile-frames has no effect on retina" in answer.err.splitlines()


def test_every_slab_of_a_video_has_its_maps():
    corners = [(frame, row, column) for frame in (0, 3, 5) for row in (0, 2) for column in (0, 4)]
    table = pd.DataFrame(corners, columns=["frame", "row", "column"]).assign(psnr=np.arange(12.0))
    spectra = table[::2].assign(kappa=1e2, resolved=False, zero_share=0.5)
    frames = np.random.default_rng(0).integers(0, 256, (8, 6, 8, 3), dtype=np.uint8)
    figure = plot_clip_tiles(frames, table, spectra, shape=(6, 8), tile=4)
    grid = [axes for axes in figure.axes if axes.images and axes.get_label() != "<colorbar>"]
    assert len(grid) == 12
    for place, (middle, first) in enumerate(((1, 0), (4, 4), (6, 8))):
        picture, decibels, kappa, _ = grid[4 * place : 4 * place + 4]
        assert np.array_equal(picture.images[0].get_array(), frames[middle])
        assert decibels.images[-1].get_clim() == (0, 11)
        # Rows of tiles: 0 and 1, of which the second was moved inwards.
        assert decibels.images[-1].get_array().ravel().tolist() == [*range(first, first + 4)]
        assert np.nanmax(kappa.images[-1].get_array()) == 2
        assert len(kappa.lines) == 1
    without = plot_clip_tiles(None, table, None, shape=(6, 8), tile=4)
    assert len([axes for axes in without.axes if axes.get_label() != "<colorbar>"]) == 3
