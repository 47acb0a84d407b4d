import hashlib
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

import hessian_lab as hl
from hessian_lab.errors import InputError, ResourceError
from hessian_lab.measures.eigenvalues import measure_eigenvalues
from hessian_lab.probe import memory
from hessian_lab.signal import Source
from hessian_lab.signals import terrain as terrain_module
from hessian_lab.signals.mesh_files import obj_bytes, ply_bytes, read_mesh
from hessian_lab.signals.meshes import MARGIN, Mesh, mesh_of_polygons, normalised
from hessian_lab.signals.occupancy import held_out_grid, occupancy
from hessian_lab.signals.shapes import load_shape
from hessian_lab.signals.surface import logits
from hessian_lab.signals.terrain import solid_under, terrain_mesh
from hessian_lab.training.quality import iou
from tests.reference import autograd_hessian
from tests.signals.solids import box, data_file, icosphere, torus, winding_numbers

BALL = icosphere(3, 5.0)
# A ball in the normalised mesh.
RADIUS = 1 - MARGIN


def parts(signal):
    """Return the thirds of a signal: uniform, far from the surface, near to it."""
    return signal.coords.numpy().reshape(3, -1, 3)


# Samples.


def test_a_signal_is_points_with_zeros_and_ones_for_the_cross_entropy():
    signal = occupancy(BALL, 1000)
    assert signal.coords.shape == (1000, 3)
    assert signal.values.shape == (1000, 1)
    assert signal.coords.dtype == signal.values.dtype == torch.float64
    assert set(signal.values.unique().tolist()) == {0, 1}
    assert signal.loss is hl.bce


def test_values_tell_the_inside_of_the_normalised_mesh():
    mesh = Mesh(3 * torus().vertices + 8, torus().faces)
    signal = occupancy(mesh, 600)
    expected = winding_numbers(normalised(mesh), signal.coords.numpy()) > 0.5
    assert (signal.values[:, 0].numpy() == expected).all()


def test_the_first_third_is_uniform_in_the_box():
    uniform = parts(occupancy(BALL, 30_000))[0]
    counts, _ = np.histogramdd(uniform, bins=4, range=[(-1, 1)] * 3)
    expected = 10_000 / 64
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - 63) < 4 * math.sqrt(2 * 63)


@pytest.mark.parametrize(("place", "spread"), [(1, 0.1), (2, 0.01)])
def test_the_other_thirds_lie_about_the_surface(place, spread):
    # A ball of radius ½: the box is too far away to cut the noise off.
    near = parts(occupancy(icosphere(4), 30_000, margin=0.5))[place]
    squares = (near**2).sum(axis=1)
    # Of r² + 2 r n + |n|² with normal n of three dimensions.
    mean = 0.25 + 3 * spread**2
    deviation = math.sqrt(spread**2 + 6 * spread**4)
    # The faces lie up to a thousandth within the ball.
    assert abs(squares.mean() - mean) < 4 * deviation / 100 + 1e-3
    assert squares.std() == pytest.approx(deviation, rel=4 / math.sqrt(2 * 10_000))


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_no_point_leaves_the_box(margin):
    signal = occupancy(box(1, 1, 1), 30_000, margin=margin)
    assert signal.coords.abs().max() <= 1
    # Neither does any stick to it: that would be a clamp.
    assert (signal.coords.abs() == 1).sum() == 0


def test_points_near_the_surface_are_spread_by_area():
    near = parts(occupancy(box(4, 2, 1), 60_000))[2] / (1 - MARGIN)
    distances = np.abs(np.array([1, 0.5, 0.25]) - np.abs(near))
    side = distances.argmin(axis=1)
    areas = np.array([2 * 1, 4 * 1, 4 * 2]) / 14
    shares = np.bincount(side, minlength=3) / len(side)
    # Points within 3 σ of an edge may be counted to either side.
    assert shares == pytest.approx(areas, abs=0.02)
    # And evenly on one face.
    top = near[(side == 2) & (near[:, 2] > 0)]
    counts, _, _ = np.histogram2d(*top[:, :2].T, bins=(8, 4), range=[(-0.9, 0.9), (-0.4, 0.4)])
    expected = counts.mean()
    assert abs(((counts - expected) ** 2 / expected).sum() - 31) < 4 * math.sqrt(62)


@pytest.mark.parametrize(("number", "first"), [(3, 1), (10, 4), (100, 34), (101, 35)])
def test_what_is_left_of_a_third_is_uniform(number, first):
    mesh = box(1, 1, 1)
    signal = occupancy(mesh, number, seed=3)
    near = signal.coords[first:].abs().max(dim=1).values
    assert len(signal.coords) == number
    assert len(near) % 2 == 0
    assert (near[len(near) // 2 :] - RADIUS).abs().max() < 0.06


def test_a_seed_makes_the_points():
    first, again, other = (occupancy(BALL, 100, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.coords, again.coords)
    assert not torch.equal(first.coords, other.coords)


def test_the_global_generators_are_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    occupancy(BALL, 100)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_becomes_a_signal_with_its_source(tmp_path):
    path = tmp_path / "ball.ply"
    path.write_bytes(ply_bytes(BALL))
    signal = load_shape(str(path), 50)
    assert signal.num_points == 50
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert signal.source == Source("ball.ply", "file ball.ply", digest)
    assert torch.equal(signal.coords, occupancy(BALL, 50).coords)


# The held-out grid.


def test_the_grid_is_the_centres_of_cubes_with_the_last_coordinate_fastest():
    grid = held_out_grid(BALL, 4)
    assert grid.shape == (4, 4, 4)
    axis = [-0.75, -0.25, 0.25, 0.75]
    expected = [[x, y, z] for x in axis for y in axis for z in axis]
    assert grid.coords.tolist() == expected
    radii = grid.coords.norm(dim=1)
    assert (grid.values[:, 0].bool() == (radii < RADIUS)).all()


def test_the_grid_and_the_signal_are_of_one_mesh():
    mesh = Mesh(100 * torus().vertices - 50, torus().faces)
    grid = held_out_grid(mesh, 8)
    expected = winding_numbers(normalised(mesh), grid.coords.numpy()) > 0.5
    assert (grid.values[:, 0].numpy() == expected).all()


# Intersection over union.


# Terrain.


def test_the_terrain_is_a_closed_solid_of_the_elevations_volume():
    mesh = terrain_mesh()
    assert mesh.edges.oriented
    path = Path(matplotlib.get_data_path()) / terrain_module.FILE
    with np.load(path, allow_pickle=False) as arrays:
        heights = arrays["elevation"] * terrain_module.EXAGGERATION
    floor = heights.min() - terrain_module.BASE * np.ptp(heights)
    # Of cells cut in two, each triangle has the mean of its corners.
    low, high = heights[1:], heights[:-1]
    means = (2 * low[:, :-1] + low[:, 1:] + high[:, :-1] + 2 * high[:, 1:]) / 6
    other = (low[:, :-1] + 2 * low[:, 1:] + 2 * high[:, :-1] + high[:, 1:]) / 6
    (west, south, _), (east, north, _) = mesh.bounds
    area = (east - west) * (north - south)
    found = mesh.volume / area
    assert min(means.mean(), other.mean()) - floor <= found * (1 + 1e-12)
    assert found <= (max(means.mean(), other.mean()) - floor) * (1 + 1e-12)
    assert (east - west, north - south) == pytest.approx((29_980, 31_900), rel=1e-3)
    assert mesh.bounds[:, 2] == pytest.approx([floor, heights.max()])
    assert mesh.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_solid_under_a_plane_is_a_wedge():
    x, y = np.array([0.0, 1, 3]), np.array([4.0, 2, 1, 0])
    heights = np.add.outer(2 * y, x)
    mesh = solid_under(heights, x, y)
    floor = -terrain_module.BASE * 11
    # The mean height of a plane is that of the middle.
    assert mesh.volume == pytest.approx(12 * (5.5 - floor), rel=1e-14)
    assert mesh.edges.oriented
    assert len(mesh.faces) == 2 * 6 + 2 * 10 + 3 + 2 + 3
    probe = np.array([[0.5, 3, 6.4], [0.5, 3, 6.6], [2.9, 3.9, floor + 0.01]])
    assert (winding_numbers(mesh, probe) > 0.5).tolist() == [True, False, True]


def test_north_is_up_in_the_terrain():
    mesh = terrain_mesh()
    path = Path(matplotlib.get_data_path()) / terrain_module.FILE
    with np.load(path, allow_pickle=False) as arrays:
        heights, north_first = arrays["elevation"], arrays["ymin"] > arrays["ymax"]
    assert north_first
    highest = mesh.vertices[mesh.vertices[:, 2].argmax()]
    row, column = np.unravel_index(heights.argmax(), heights.shape)
    share = [column / (heights.shape[1] - 1), 1 - row / (heights.shape[0] - 1)]
    assert highest[:2] / mesh.bounds[1, :2] == pytest.approx(share, abs=1e-12)


def test_the_terrain_is_a_signal_without_any_file():
    signal = load_shape("terrain", 3000)
    assert signal.num_points == 3000
    assert signal.source.name == "terrain"
    assert "matplotlib" in signal.source.attribution
    assert 0.2 < signal.values.mean() < 0.6


@pytest.mark.parametrize("damage", [None, b"", b"PK\3\4", 10_000, 150_000])
def test_refuses_a_matplotlib_without_its_sample_data(damage, tmp_path, monkeypatch):
    (tmp_path / "sample_data").mkdir()
    if isinstance(damage, int):
        data = bytearray((Path(matplotlib.get_data_path()) / terrain_module.FILE).read_bytes())
        data[damage] ^= 255
        damage = bytes(data)
    if damage is not None:
        (tmp_path / terrain_module.FILE).write_bytes(damage)
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(InputError, match="signal terrain must be in matplotlib's data folder"):
        terrain_mesh()


def test_refuses_elevations_that_would_need_pickle(tmp_path, monkeypatch):
    (tmp_path / "sample_data").mkdir()
    entries = {key: np.array([{}], dtype=object) for key in ("elevation", "xmin", "xmax")}
    np.savez(tmp_path / terrain_module.FILE, **entries)
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(InputError, match="missing or damaged"):
        terrain_mesh()


def test_refuses_a_height_field_of_two_rows():
    with pytest.raises(ValueError, match=r"heights must have shape \[3, 2\] or more"):
        solid_under(np.eye(2), np.arange(2.0), np.arange(2.0))


def test_iou_of_two_balls_is_the_ratio_of_their_volumes():
    grid = held_out_grid(BALL, 64)
    smaller = 0.7 - grid.coords.norm(dim=1, keepdim=True)
    assert iou(smaller, grid.values) == pytest.approx((0.7 / RADIUS) ** 3, rel=0.02)


# Refusals.


def test_refuses_a_torn_mesh(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "igl", None)
    torn = Mesh(BALL.vertices, BALL.faces[1:])
    for make in (occupancy, held_out_grid):
        with pytest.raises(InputError, match="mesh must be watertight, mesh has 3 open edges"):
            make(torn)


def test_refuses_a_mesh_without_a_volume():
    sheet = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    mesh = mesh_of_polygons(sheet, [0, 1, 2, 0, 2, 1], [3, 3], Source("sheet.obj", "", ""))
    with pytest.raises(
        InputError, match=r"must enclose a volume, none of 300 points of sheet\.obj is inside\."
    ):
        occupancy(mesh, 300)


@pytest.mark.parametrize("number", [0, -5])
def test_refuses_no_points(number):
    with pytest.raises(ValueError, match=f"num_points must be at least 1, got {number}"):
        occupancy(BALL, number)
    with pytest.raises(ValueError, match=f"resolution must be at least 1, got {number}"):
        held_out_grid(BALL, number)


def test_refuses_what_does_not_fit_in_memory():
    with pytest.raises(ResourceError, match=r"A signal of 1000000000000000 points must fit"):
        occupancy(BALL, 10**15)
    with pytest.raises(ResourceError, match=r"A grid of 1000000³ points must fit in memory"):
        held_out_grid(BALL, 10**6)


def test_bytes_are_computed_before_points_are_drawn(monkeypatch):
    monkeypatch.setattr(memory, "_system_bytes", lambda: 1000)
    with pytest.raises(ResourceError, match="Take a smaller --size"):
        occupancy(BALL, 100)


# Trained.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    setup = hl.Setup(
        act="gaussian",
        width=32,
        depth=2,
        optimizer="adam",
        lr=1e-2,
        steps=300,
        batch_size=256,
        checkpoint_every=300,
    )
    out = tmp_path_factory.mktemp("shape") / "run"
    return hl.train(setup, signal=occupancy(icosphere(2), 2400), out=out)


def test_a_small_field_learns_a_ball(trained):
    grid = held_out_grid(icosphere(2), 32)
    before, after = (
        iou(logits(trained.model(step), grid.coords), grid.values) for step in (0, 300)
    )
    assert before < 0.5
    assert after > 0.9


def test_a_run_tells_its_loss_and_no_psnr(trained):
    assert trained.loss is hl.bce
    assert trained.metrics.psnr.isna().all()
    assert trained.metrics.loss.iloc[-1] < trained.metrics.loss.iloc[0] / 2


def test_the_hessian_of_the_cross_entropy_is_measured_along_a_run(trained):
    measured = measure_eigenvalues(trained).measured
    assert [one.step for one in measured] == [0, 300]
    assert all(one.product_error < 1e-12 for one in measured)
    # The last, of another origin: autograd alone, on fewer points.
    signal = trained.signal()
    few = hl.Signal(signal.coords[::60], signal.values[::60], hl.bce)
    model = trained.model(300)
    dense = hl.dense_hessian(model, hl.bce, few)
    expected = autograd_hessian(model, hl.bce, few)
    assert torch.allclose(dense, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["spot_low_resolution.obj"])
def test_a_real_mesh_survives_being_written_and_fitted(name, tmp_path):
    mesh = read_mesh(data_file(name))
    (tmp_path / "copy.obj").write_bytes(obj_bytes(mesh))
    first, second = (
        load_shape(str(data_file(name)), 300),
        load_shape(str(tmp_path / "copy.obj"), 300),
    )
    assert torch.equal(first.coords, second.coords)
    assert torch.equal(first.values, second.values)
