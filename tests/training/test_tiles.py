import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hessian_lab.errors import InputError, ResourceError, UsageError
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.measures import tile_spectra
from hessian_lab.measures.tile_spectra import measure_tiles, sampled
from hessian_lab.optim.lbfgs import LBFGS
from hessian_lab.signal import Signal
from hessian_lab.signals.gif import read_gif
from hessian_lab.training import tiles as module
from hessian_lab.training.quality import psnr
from hessian_lab.training.setup import Setup
from hessian_lab.training.tiles import load_tile_run, train_tiles
from tests.reference import autograd_hessian

SETUP = Setup(signal="chelsea", size=40, act="sine", width=5, depth=1, steps=6, omega=10.0)


def trained(path, setup=SETUP, **options):
    return train_tiles(setup, tile=8, out=path, **({"block": 7} | options))


def loss_of(model, coords, values):
    return mse(model(coords), values)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("tiles") / "run")


def test_every_tile_is_fitted_as_it_would_be_alone(run):
    image = run.image()
    assert len(run.table) == image.num_tiles == 25
    for index in (0, 11, 24):
        values, coords = image.values(index, index + 1)[0], image.coords()
        model = make_field("sine", 2, 3, width=5, depth=1, omega=10.0, seed=index)
        optimizer = LBFGS(model.parameters())
        for _ in range(6):
            optimizer.step(partial(loss_of, model, coords, values))
        with torch.no_grad():
            expected = model(coords)
        row = run.table.iloc[index]
        assert row["psnr"] == pytest.approx(psnr(expected, values), abs=1e-6)
        assert torch.allclose(run.stack(index, index + 1)(coords)[0], expected, atol=1e-7)
        assert (row["row"], row["column"]) == image.corner(index)
    assert run.losses.shape == (25, 7)
    assert run.losses[:, -1] == pytest.approx(run.table["loss"].to_numpy(), rel=1e-6)


def test_losses_are_those_before_every_step(run):
    image = run.image()
    begun = module._stack(run.setup, 1, 3, first=7).field(0)
    with torch.no_grad():
        first = float(mse(begun(image.coords()), image.values(7, 8)[0]))
    assert run.losses[7, 0] == pytest.approx(first, rel=1e-6)
    assert np.all(np.diff(run.losses, axis=1) < 0)


def test_a_kill_between_two_files_does_not_shift_the_curves(run, tmp_path, monkeypatch):
    def stopping(self, rows, losses, seconds):
        if len(rows) == 14:
            stream = tmp_path / "run/losses.npy"
            np.save(stream, np.stack(losses))
            raise KeyboardInterrupt
        saved(self, rows, losses, seconds)

    saved = module._Training._save
    monkeypatch.setattr(module._Training, "_save", stopping)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run")
    monkeypatch.undo()
    again = trained(tmp_path / "run")
    assert (again.path / "losses.npy").read_bytes() == (run.path / "losses.npy").read_bytes()


def test_an_image_that_has_changed_is_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    setup = Setup(**{**SETUP.__dict__, "signal": str(tmp_path / "a.png"), "size": None})
    run = trained(tmp_path / "run", setup)
    Image.fromarray(255 - pixels).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="must be the one that was fitted"):
        measure_tiles(run)


def test_tiles_that_are_fitted_exactly_are_not_lost(tmp_path):
    Image.fromarray(np.zeros((8, 16, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    setup = Setup(
        **{**SETUP.__dict__, "signal": str(tmp_path / "a.png"), "size": None}
        | {"depth": 0, "steps": 30}
    )
    run = trained(tmp_path / "run", setup)
    assert run.table["psnr"].min() > 100


def test_a_run_without_a_tile_has_no_spectra(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module._Training, "_train", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run")
    with pytest.raises(InputError, match="must have a tile that is done"):
        measure_tiles(load_tile_run(tmp_path / "run"))


def test_threads_are_those_asked_for(tmp_path, monkeypatch):
    seen = []
    inner = module._Training._train

    def train(self, *args):
        seen.append(torch.get_num_threads())
        return inner(self, *args)

    monkeypatch.setattr(module._Training, "_train", train)
    before = torch.get_num_threads()
    trained(tmp_path / "run", Setup(**{**SETUP.__dict__, "threads": before + 1}), block=25)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_the_picture_is_the_fields_values(run):
    image, pixels = run.image(), np.asarray(Image.open(run.path / "fitted.png"))
    assert pixels.shape == (40, 40, 3)
    index = 13
    row, column = image.corner(index)
    values = run.stack(index, index + 1)(image.coords())[0].clamp(0, 1) * 255
    part = pixels[row : row + 8, column : column + 8].reshape(-1, 3)
    assert np.abs(part - values.numpy()).max() <= 0.5 + 1e-6


def test_a_run_that_stopped_continues_to_the_same_bytes(run, tmp_path):
    class StopError(Exception):
        pass

    def stop(_count, table):
        if len(table) >= 14:
            raise StopError

    with pytest.raises(StopError):
        trained(tmp_path / "run", watch=stop)
    assert len(load_tile_run(tmp_path / "run").table) == 14
    seen = []
    again = trained(tmp_path / "run", watch=lambda _count, table: seen.append(len(table)))
    assert seen == [21, 25]
    for name in ("trajectory.npy", "tiles.csv", "losses.npy", "fitted.png"):
        assert (again.path / name).read_bytes() == (run.path / name).read_bytes()


def test_blocks_change_rounding_alone(run, tmp_path):
    other = trained(tmp_path / "run", block=25)
    assert other.table["psnr"].to_numpy() == pytest.approx(run.table["psnr"].to_numpy(), abs=1e-3)


def test_adam_is_torchs_on_every_tile(tmp_path):
    setup = Setup(**{**SETUP.__dict__, "optimizer": "adam", "lr": 0.01})
    run = trained(tmp_path / "run", setup)
    image = run.image()
    model = module._stack(setup.resolved(), 1, 3, first=4).field(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(6):
        optimizer.zero_grad()
        mse(model(image.coords()), image.values(4, 5)[0]).backward()
        optimizer.step()
    with torch.no_grad():
        loss = float(mse(model(image.coords()), image.values(4, 5)[0]))
    assert run.table["loss"].iloc[4] == pytest.approx(loss, rel=1e-9)


def test_another_run_in_the_directory_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match="another"):
        train_tiles(SETUP, tile=10, out=run.path)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"holds letter\.txt"):
        trained(tmp_path)
    other = trained(tmp_path / "new", Setup(**{**SETUP.__dict__, "seed": 5}))
    anew = train_tiles(SETUP, tile=8, block=7, out=other.path, overwrite=True)
    assert (anew.path / "tiles.csv").read_bytes() == (run.path / "tiles.csv").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "esgd"}, "optimizer must be lbfgs or adam"),
        (
            {"options": {"line_search_fn": None}},
            "options of lbfgs for fields",
        ),
        ({"batch_size": 5}, "batch_size must be left out"),
        ({"act": "snake"}, "act must be one of"),
    ],
)
def test_what_stacks_cannot_do_is_refused(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        trained(tmp_path / "run", Setup(**{**SETUP.__dict__, **change}))
    assert not (tmp_path / "run").exists()


def test_spectra_are_those_of_every_field(run):
    seen = []
    table = measure_tiles(run, every=6, watch=lambda row: seen.append(row["tile"]))
    assert seen == sampled(25, 6)
    assert len(seen) == 5
    image = run.image()
    for _, row in table.iterrows():
        index = int(row["tile"])
        model = run.stack(index, index + 1).field(0)
        signal = Signal(image.coords(), image.values(index, index + 1)[0])
        values = torch.linalg.eigvalsh(autograd_hessian(model, mse, signal))
        largest = float(values.abs().max())
        assert row["spectral_radius"] == pytest.approx(largest, rel=1e-9)
        assert row["negative_share"] == float((values < -1e-13 * largest).double().mean())
        if row["resolved"]:
            kappa = largest / float(values.abs().min())
            assert row["kappa"] == pytest.approx(kappa, rel=1e-4)
    # What is there is not measured again.
    seen.clear()
    again = measure_tiles(run, every=3, watch=lambda row: seen.append(row["tile"]))
    assert len(seen) == 4
    assert sorted(seen + sampled(25, 6)) == sampled(25, 3)
    assert len(again) == 9
    assert len(pd.read_csv(run.path / "tile_spectra.csv")) == 9


def test_the_record_says_where_the_picture_is_from(run):
    record = json.loads((run.path / "tiles.json").read_text())
    assert "Stefan van der Walt" in record["data"]["attribution"]
    assert record["num_parameters"] == 5 * 3 + 3 * 6
    assert record["seconds"] > 0


# Videos.

CLIP = Setup(**{**SETUP.__dict__, "signal": "kenburns", "size": 9, "seconds": 0.5, "steps": 4})


def filmed(path, **options):
    return train_tiles(CLIP, tile=8, out=path, **({"block": 3, "tile_frames": 5} | options))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return filmed(tmp_path_factory.mktemp("film") / "run")


def test_every_box_of_a_video_is_fitted_as_it_would_be_alone(film):
    clip = film.image()
    assert clip.shape == (8, 9, 16, 3)
    assert len(film.table) == clip.num_tiles == 8
    assert list(film.table.columns[:4]) == ["tile", "frame", "row", "column"]
    for index in (0, 7):
        values, coords = clip.values(index, index + 1)[0], clip.coords()
        model = make_field("sine", 3, 3, width=5, depth=1, omega=10.0, seed=index)
        optimizer = LBFGS(model.parameters())
        for _ in range(4):
            optimizer.step(partial(loss_of, model, coords, values))
        with torch.no_grad():
            expected = model(coords)
        row = film.table.iloc[index]
        assert row["psnr"] == pytest.approx(psnr(expected, values), abs=1e-6)
        assert tuple(row[["frame", "row", "column"]]) == clip.corner(index)
    assert film.record["num_parameters"] == 5 * 4 + 3 * 6


def test_the_clip_is_the_fields_values(film):
    clip, shown = film.image(), read_gif(film.shown, 8, 16)
    # No other tile lies over the last one. 256 colours are more than a frame's 144 pixels.
    values = film.stack(7, 8)(clip.coords())[0].clamp(0, 1) * 255
    part = shown[clip.place(7)].reshape(-1, 3)
    assert np.abs(part - values.numpy()).max() <= 0.5 + 1e-6


def test_a_film_that_stopped_continues_to_the_same_bytes(film, tmp_path):
    class StopError(Exception):
        pass

    def stop(_count, table):
        if len(table) >= 3:
            raise StopError

    with pytest.raises(StopError):
        filmed(tmp_path / "run", watch=stop)
    assert not (tmp_path / "run/fitted.gif").exists()
    again = filmed(tmp_path / "run")
    for name in ("trajectory.npy", "tiles.csv", "losses.npy", "fitted.gif"):
        assert (again.path / name).read_bytes() == (film.path / name).read_bytes()
    with pytest.raises(UsageError, match="another"):
        filmed(tmp_path / "run", tile_frames=None)


def test_spectra_of_a_video_are_those_of_every_field(film):
    table = measure_tiles(film, every=5)
    assert list(table.columns[:4]) == ["tile", "frame", "row", "column"]
    clip = film.image()
    for _, row in table.iterrows():
        index = int(row["tile"])
        assert tuple(row[["frame", "row", "column"]]) == clip.corner(index)
        signal = Signal(clip.coords(), clip.values(index, index + 1)[0])
        values = torch.linalg.eigvalsh(
            autograd_hessian(film.stack(index, index + 1).field(0), mse, signal)
        )
        assert row["spectral_radius"] == pytest.approx(float(values.abs().max()), rel=1e-9)


def test_a_video_in_tiles_that_do_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _device: 10_000)
    with pytest.raises(ResourceError, match="must fit in memory"):
        filmed(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_spectra_of_fields_together_are_those_of_each_alone(run, monkeypatch):
    (run.path / tile_spectra.SPECTRA).unlink(missing_ok=True)
    together = measure_tiles(run, every=2)
    (run.path / tile_spectra.SPECTRA).unlink(missing_ok=True)
    monkeypatch.setattr(tile_spectra, "SMALL", 0)
    monkeypatch.setattr(tile_spectra, "stacked_hessians", None)
    alone = measure_tiles(run, every=2)
    (run.path / tile_spectra.SPECTRA).unlink(missing_ok=True)
    assert len(alone) > 2
    for name in ("spectral_radius", "negative_share", "effective_kappa"):
        assert together[name].to_numpy() == pytest.approx(alone[name].to_numpy(), rel=1e-6)


def test_a_sample_of_tiles_lies_all_over():
    chosen = np.array(sampled(64, 8))
    assert len(np.unique(chosen)) == 8
    assert len(np.unique(chosen % 8)) > 3
    assert sampled(5, 1) == [0, 1, 2, 3, 4]
    assert len(sampled(5, 9)) == 1
