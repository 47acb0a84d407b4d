import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hessian_lab.measures.lpips import load_lpips
from hessian_lab.measures.radiance import rendered
from hessian_lab.probe.kept_graph import hessian_rows
from hessian_lab.signals.posed_write import write_scene
from hessian_lab.signals.radiance import load_scene, rendered_scene
from hessian_lab.signals.render import torus
from hessian_lab.training.quality import psnr, ssim
from hessian_lab.training.run import load_run
from tests.cli.terminal import TINY, assert_refused, typed
from tests.measures.lpips_files import write_weights

FIELD = ("--act", "gaussian", "--sigma", "0.5", "--width", "8", "--depth", "2", "--samples", "10")
FIT = ("--size", "16", "--points", "300", *FIELD, "--steps", "25", "--checkpoint-every", "25")


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ring")
    words = ("train", "--signal", "torus-nerf", *FIT, "--out", "run", "--json")
    return directory, typed(directory, *words)


def test_a_scene_is_fitted_and_seen_from_elsewhere(ring):
    directory, told = ring
    assert told.status == 0
    run = load_run(directory / "run")
    assert run.metrics["psnr"].iloc[-1] > run.metrics["psnr"].iloc[0] + 4
    assert told.json["held_out"]["views"] == 6
    table = pd.read_csv(directory / told.json["views"])
    scene, model = load_scene("torus-nerf", 16), run.model(25)
    for row in table.itertuples():
        with torch.no_grad():
            shown = model(scene.picture_rays(row.view)).view(16, 16, 3).clamp(0, 1)
        true = torch.from_numpy(scene.pictures[row.view])
        assert row.psnr == pytest.approx(psnr(shown, true))
        assert row.ssim == pytest.approx(ssim(shown, true))
    assert told.json["held_out"]["psnr"] == pytest.approx(table["psnr"].mean())
    # Better than the best grey: it has learnt where the ring is.
    grey = scene.pictures[24:] - scene.pictures[24:].mean()
    assert table["psnr"].mean() > -10 * math.log10((grey**2).mean()) + 2


def test_its_turn_can_be_watched(ring):
    directory, told = ring
    with Image.open(directory / told.json["turntable"]) as turn:
        assert turn.n_frames == 36
        assert turn.size == (16, 16)
        first = np.asarray(turn.convert("RGB"), dtype=float)
        turn.seek(9)
        assert np.abs(np.asarray(turn.convert("RGB"), dtype=float) - first).max() > 30
    assert all((directory / path).stat().st_size > 5_000 for path in told.json["pictures"])


def test_people_are_told_what_was_held_out(ring):
    directory, told = ring
    again = typed(directory, "train", "--signal", "torus-nerf", *FIT, "--out", "run")
    mean = told.json["held_out"]
    assert f"6 views held out: PSNR {mean['psnr']:.2f} dB, SSIM {mean['ssim']:.4f}" in again.out


@pytest.mark.usefixtures("undrawn")
def test_its_spectrum_is_exact(ring):
    directory, _ = ring
    done = typed(directory, "eigs", "--run", "run", "--json")
    assert done.status == 0
    run = load_run(directory / "run")
    found = torch.linalg.eigvalsh(hessian_rows(run.model(25), run.loss, run.signal()))
    last = done.json["spectra"][-1]
    assert last["lambda_max"] == pytest.approx(float(found[-1]), rel=1e-9)
    assert last["lambda_min"] == pytest.approx(float(found[0]), rel=1e-9)


def test_depths_are_where_the_ring_is(ring):
    directory, _ = ring
    run, scene = load_run(directory / "run"), load_scene("torus-nerf", 16)
    rays = scene.picture_rays(24)
    _, depths = rendered(run.model(25), rays)
    met = depths.isfinite()
    assert 0.1 < float(met.double().mean()) < 0.8
    places = rays[met, :3] + depths[met, None] * rays[met, 3:6]
    # The middle of the ring's tube is 0.8/1.4 from the axis, and the tube 0.4 of that thick.
    from_tube = torch.hypot(torch.hypot(places[:, 0], places[:, 1]) - 0.8 / 1.4, places[:, 2])
    assert float(from_tube.median()) < 0.3


def test_a_folder_is_fitted_and_its_run_stands_alone(tmp_path):
    write_scene(rendered_scene(torus(rings=24, sides=12), 12, num_views=4), tmp_path / "scene")
    words = ("--points", "60", "--width", "3", "--depth", "1", "--samples", "4", "--steps", "2")
    words += ("--signal", "./scene", "--directions", "1", "--out", "run")
    told = typed(tmp_path, "train", *words, "--json")
    assert told.status == 0
    assert told.json["setup"]["signal"] == "radiance:./scene"
    (tmp_path / "scene").rename(tmp_path / "elsewhere")
    assert typed(tmp_path, "trace", "--run", "run", "--json").status == 0


def test_what_makes_no_sense_is_refused(tmp_path):
    for words, reason in (
        (("--samples", "0"), "samples must be at least 1, got 0"),
        (("--directions", "2"), "directions must be at most 1, got 2"),
        (("--points", "2"), "points must be at least 3"),
        (("--views", "0"), "views must be at least 1"),
    ):
        assert_refused(typed(tmp_path, "train", "--signal", "torus-nerf", *words), 2, reason)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/transforms.json").write_text("{}")
    told = typed(tmp_path, "train", "--signal", "./empty", "--out", "run")
    assert_refused(told, 4, "transforms must list their frames")
    assert not (tmp_path / "run").exists()


# LPIPS, with weights of one's own.

SEEN = ("--signal", "./scene", "--points", "50", "--width", "3", "--depth", "1")
SEEN += ("--samples", "3", "--steps", "1", "--size", "32", "--out", "run")


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Write a scene and files of weights, draw nothing, and return what names the files."""
    write_scene(rendered_scene(torus(rings=24, sides=12), 32, num_views=2), tmp_path / "scene")
    monkeypatch.setattr("hessian_lab.plots.style.save", lambda *_: [])
    monkeypatch.setattr("hessian_lab.measures.radiance.write_turn", lambda *_: tmp_path / "no")
    return ",".join(str(path) for path in write_weights(tmp_path))


def test_views_are_compared_by_lpips_where_there_are_weights(tmp_path, weights):
    told = typed(tmp_path, "train", *SEEN, "--lpips-weights", weights)
    assert told.status == 0, told.err
    run, lpips = load_run(tmp_path / "run"), load_lpips(*weights.split(","))
    table = pd.read_csv(tmp_path / "run/views.csv")
    scene, model = load_scene(str(tmp_path / "scene"), 32), run.model(1)
    for row in table.itertuples():
        shown = rendered(model, scene.picture_rays(row.view))[0].view(32, 32, 3)
        expected = lpips(shown, torch.from_numpy(scene.pictures[row.view]))
        assert row.lpips == pytest.approx(expected, rel=1e-9)
    assert f", LPIPS {table['lpips'].mean():.4f}\n" in told.out


def test_small_views_have_no_lpips(tmp_path, weights):
    words = (*SEEN, "--size", "12", "--lpips-weights", weights)
    told = typed(tmp_path, "train", *words)
    assert told.status == 0
    assert ", LPIPS –\n" in told.out
    assert "LPIPS needs 31 pixels a side, views have 12×12: take a larger --size" in told.err
    assert typed(tmp_path, "train", *words, "--json").json["held_out"]["lpips"] is None
    # The run is the same without the weights; what is told of it is not.
    plain = typed(tmp_path, "train", *words[:-2], "--json")
    assert "lpips" not in plain.json["held_out"]
    assert "lpips" not in (tmp_path / "run/views.csv").read_text()


def test_bad_weights_are_refused_before_training(tmp_path, weights):
    backbone = weights.split(",")[0]
    for names, status, reason in (
        (backbone, 2, "must be two files with a comma between"),
        (f"{weights},x", 2, "must be two files with a comma between"),
        (f"{backbone},none.pth", 4, r"must be two files, none\.pth: No such file"),
        (f"{backbone},{backbone}", 4, r"has no tensor lin0\.model\.1\.weight"),
    ):
        told = typed(tmp_path, "train", *SEEN, "--lpips-weights", names)
        assert_refused(told, status, reason)
        assert not (tmp_path / "run").exists()
    told = typed(tmp_path, "distil", "--run", "gone", "--lpips-weights", f"{backbone},none.pth")
    assert_refused(told, 4, r"must be two files, none\.pth")


def test_weights_have_no_effect_on_an_image(tmp_path):
    told = typed(tmp_path, "train", *TINY, "--out", "run", "--lpips-weights", "no,where")
    assert told.status == 0
    assert "--lpips-weights has no effect on camera" in told.err


def test_a_scene_without_views_held_out_is_fitted_too(tmp_path):
    write_scene(rendered_scene(torus(rings=12, sides=6), 12, num_views=2), tmp_path / "scene")
    (tmp_path / "scene/transforms_test.json").unlink()
    words = (
        "--signal",
        "./scene",
        "--points",
        "20",
        "--width",
        "2",
        "--depth",
        "1",
        "--steps",
        "1",
    )
    told = typed(tmp_path, "train", *words, "--out", "run", "--json")
    assert told.status == 0
    assert told.json["held_out"] == {"views": 0}
    assert (tmp_path / told.json["turntable"]).exists()
    told = typed(tmp_path, "distil", "--run", "run", "--cells", "1", "--cell-points", "9", "--json")
    assert told.status == 0
