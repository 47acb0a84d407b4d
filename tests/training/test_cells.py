import json

import numpy as np
import pytest
import torch

from hessian_lab.errors import InputError, ResourceError, UsageError
from hessian_lab.fields.kilo_radiance import KiloRadiance, read_out, targets
from hessian_lab.fields.stack import make_stack
from hessian_lab.losses import mse
from hessian_lab.measures.tile_spectra import measure_tiles
from hessian_lab.probe import memory
from hessian_lab.signal import Signal
from hessian_lab.signals.radiance import load_scene
from hessian_lab.training.cells import cell_points, load_cell_run, occupied_cells, train_cells
from hessian_lab.training.loop import train
from hessian_lab.training.setup import Setup
from hessian_lab.training.tiles import load_tile_run
from tests.cli.terminal import assert_refused, typed
from tests.fields.test_radiance import some_rays
from tests.measures.lpips_files import write_weights
from tests.reference import assert_same, autograd_hessian

SMALL = Setup(act="tanh", width=10, depth=1, steps=100)


@pytest.fixture(scope="module")
def nerf(tmp_path_factory):
    """Train a field of a smooth scene, quickly."""
    setup = Setup(
        signal="torus-nerf", size=10, points=150, samples=8, act="tanh", width=8, depth=2, steps=20
    )
    return train(setup, out=tmp_path_factory.mktemp("nerf") / "run")


@pytest.fixture(scope="module")
def cells(nerf, tmp_path_factory):
    out = tmp_path_factory.mktemp("cells") / "run"
    return train_cells(SMALL, nerf, cells=3, points=80, block=10, out=out)


def make_kilo(side=3, samples=6):
    stack = make_stack("sine", 4, 3, 4, width=5, depth=1)
    names = torch.randint(-1, 4, (side, side, side), generator=torch.Generator().manual_seed(0))
    return KiloRadiance(stack, names, samples=samples)


@torch.no_grad()
def test_every_place_is_told_by_the_network_of_its_cell():
    kilo = make_kilo()
    places = 2 * torch.rand(60, 3, dtype=torch.float64) - 1
    places[0], places[1] = 1.0, -1.0
    density, colours = kilo.radiance(places, places)
    for place, found, colour in zip(places, density, colours, strict=True):
        cell = [min(2, int((float(number) + 1) * 1.5)) for number in place]
        name = int(kilo.get_buffer("cells")[tuple(cell)])
        if name < 0:
            assert float(found) == 0
            continue
        middle = (torch.tensor(cell, dtype=torch.float64) + 0.5) * 2 / 3 - 1
        outputs = kilo.stack.field(name)(((place - middle) * 3)[None])
        expected, shade = read_out(outputs)
        assert_same(found.detach(), expected[0].detach())
        assert_same(colour.detach(), shade[0].detach())


def test_all_networks_can_be_trained_together_on_rays():
    kilo, rays = make_kilo(), some_rays(12)
    kilo(rays).square().sum().backward()
    moved = kilo.parameters_of_all.grad.abs().sum(dim=1) > 0
    assert moved.any()
    names = [name for name, _ in kilo.named_parameters()]
    assert names == ["parameters_of_all"]


def test_what_a_grid_cannot_be_is_refused():
    stack = make_stack("sine", 2, 3, 4, width=3, depth=1)
    with pytest.raises(ValueError, match=r"shape \[g, g, g\]"):
        KiloRadiance(stack, torch.zeros(2, 2, 3, dtype=torch.long), samples=3)
    with pytest.raises(ValueError, match="one of 2 networks each"):
        KiloRadiance(stack, torch.full((2, 2, 2), 2), samples=3)
    flat = make_stack("sine", 2, 2, 4, width=3, depth=1)
    with pytest.raises(ValueError, match="3 coordinates to 4 numbers"):
        KiloRadiance(flat, torch.zeros(2, 2, 2, dtype=torch.long), samples=3)


def test_targets_are_what_is_read_out():
    outputs = torch.tensor([[2.0, 0.3, -1.0, 2.0], [40.0, 9.0, -9.0, 0.0], [-30.0, 0, 0, 0]])
    density, colours = read_out(targets(outputs.double()))
    expected = 10 * torch.nn.functional.softplus(outputs[:, 0].double() - 3)
    assert_same(density[0], expected[0])
    assert_same(colours[0], torch.sigmoid(outputs[0, 1:].double()))
    # What light passes, or does not, is not told apart further.
    assert density[1] == pytest.approx(170, rel=1e-3)
    assert density[2] == pytest.approx(10 * np.log1p(np.exp(-13)))
    assert colours[1, 0] == pytest.approx(1 / (1 + np.exp(-6)))


def test_points_of_a_cell_fill_it_evenly():
    points = cell_points(4096)
    assert bool((points.abs() <= 1).all())
    boxes = ((points + 1) * 2).long() @ torch.tensor([1, 4, 16])
    # 64 in each of 64 boxes; of random points the deviation is 8.
    assert float(torch.bincount(boxes, minlength=64).double().std()) < 4


def test_cells_learn_what_the_teacher_tells(nerf, cells):
    assert 1 < len(cells.table) <= 27
    teacher = cells.teacher()
    assert torch.equal(
        torch.cat([value.flatten() for value in teacher.parameters()]),
        torch.cat([value.flatten() for value in nerf.model(20).parameters()]),
    )
    field, scene = cells.field(), load_scene("torus-nerf", 10)
    rays = scene.picture_rays(25)
    with torch.no_grad():
        assert float((field(rays) - teacher(rays)).abs().mean()) < 0.02
        # Where the cells are left out, the teacher is all but empty.
        places = 2 * torch.rand(2000, 3, dtype=torch.float64) - 1
        out = field.located(places)[0] < 0
        thickness = teacher.radiance(places, places)[0] * 2 / 3
        assert float(thickness[out].max()) < 0.02
    losses = cells.losses
    assert losses.shape == (len(cells.table), 101)
    assert (losses[:, -1] < 0.02 * losses[:, 0]).all()


def test_spectra_of_cells_are_those_of_their_fields(cells):
    table = measure_tiles(cells, every=5)
    image = cells.image()
    row = table.iloc[1]
    index = int(row["tile"])
    assert (row["x"], row["y"], row["z"]) == image.corner(index)
    signal = Signal(image.coords(), image.values(index, index + 1)[0])
    field = cells.stack(index, index + 1).field(0)
    found = torch.linalg.eigvalsh(autograd_hessian(field, mse, signal))
    assert row["spectral_radius"] == pytest.approx(float(found.abs().max()), rel=1e-9)


def test_memory_of_spectra_is_that_of_the_points_of_a_cell(cells, monkeypatch):
    asked = []

    def told(_model, num_points):
        asked.append(num_points)
        raise ResourceError("enough")

    monkeypatch.setattr("hessian_lab.measures.tile_spectra.dense_bytes", told)
    with pytest.raises(ResourceError, match="enough"):
        measure_tiles(cells)
    assert asked == [80]


def test_a_killed_run_continues_with_the_next_block(nerf, cells, tmp_path):
    class Killed(Exception):
        pass

    def kill(_count, table):
        if len(table) == 10:
            raise Killed

    options = {"cells": 3, "points": 80, "block": 10, "out": tmp_path / "run"}
    with pytest.raises(Killed):
        train_cells(SMALL, nerf, **options, watch=kill)
    assert len(load_cell_run(tmp_path / "run").table) == 10
    done = train_cells(SMALL, nerf, **options)
    assert torch.equal(done.stack(0, 99).parameters, cells.stack(0, 99).parameters)


def test_what_cannot_be_distilled_is_told(nerf, cells, tmp_path, monkeypatch):
    image = train(Setup(signal="camera", size=6, width=3, depth=1, steps=0), out=tmp_path / "image")
    with pytest.raises(InputError, match="must hold a radiance field whose colours"):
        train_cells(SMALL, image, out=tmp_path / "a")
    for options, reason in (
        ({"cells": 0}, "cells must be in"),
        ({"points": 0}, "points must be in"),
        ({"block": 0}, "block must be at least 1"),
    ):
        with pytest.raises(UsageError, match=reason):
            train_cells(SMALL, nerf, **options, out=tmp_path / "a")
    with pytest.raises(UsageError, match="must hold the same run"):
        train_cells(SMALL, nerf, cells=2, points=80, out=cells.path)
    with pytest.raises(InputError, match="one of cells"):
        load_tile_run(cells.path)
    (cells.path / "teacher.npy").rename(tmp_path / "kept.npy")
    with pytest.raises(InputError, match="must hold its teacher"):
        cells.teacher()
    np.save(cells.path / "teacher.npy", 3 * np.load(tmp_path / "kept.npy"))
    with pytest.raises(InputError, match=r"teacher\.npy is another"):
        cells.image()
    (cells.path / "teacher.npy").write_bytes(b"")
    with pytest.raises(InputError, match="missing or damaged"):
        cells.teacher()
    (tmp_path / "kept.npy").rename(cells.path / "teacher.npy")
    monkeypatch.setattr(memory, "available_bytes", lambda _device: 1000)
    with pytest.raises(ResourceError, match="A grid of 100³ cells must fit"):
        train_cells(SMALL, nerf, cells=100, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_an_empty_field_has_no_cells(nerf):
    model = nerf.model(20)
    with torch.no_grad():
        model.field.maps[-1].weight[0] = 0
        model.field.maps[-1].bias[0] = -20
    with pytest.raises(InputError, match="empty everywhere"):
        occupied_cells(model, 2, 10)


def test_distil_prints_one_json_object(nerf, tmp_path):
    words = ("distil", "--run", nerf.path, "--cells", "2", "--cell-points", "40", "--width", "4")
    words += ("--depth", "1", "--steps", "4", "--out", "run")
    words += ("--lpips-weights", ",".join(str(path) for path in write_weights(tmp_path)))
    told = typed(tmp_path, *words, "--spectra", "--every", "3", "--json", "--quiet")
    assert told.status == 0
    found = told.json
    assert found["held_out"]["views"] == 6
    # Its views are too small.
    assert found["held_out"]["lpips"] is None
    assert len(found["fields"]) <= 8
    assert len(found["spectra"]) == -(-len(found["fields"]) // 3)
    assert found["psnr_to_teacher"] > 10
    assert all((tmp_path / path).stat().st_size > 2000 for path in found["pictures"])
    assert json.loads((tmp_path / "run/tiles.json").read_text())["teacher"]["id"]
    (tmp_path / "run/figures/tiles.png").write_text("of another run")
    lost = typed(tmp_path, *words, "--optimizer", "adam", "--lr", "1e30", "--overwrite", "--quiet")
    assert lost.status == 1
    assert "cells diverged: try a lower --lr" in lost.err
    assert not (tmp_path / "run/figures/tiles.png").exists()
    refused = typed(tmp_path, *words, "--size", "7")
    assert_refused(refused, 2, "--size must be left out: the scene is that of --run")
