import math

import numpy as np
import pytest
import torch

from hessian_lab.errors import InputError, ResourceError
from hessian_lab.probe import memory
from hessian_lab.signal import Source
from hessian_lab.signals import load_signal
from hessian_lab.signals.cameras import Cameras, looking_at
from hessian_lab.signals.meshes import Mesh
from hessian_lab.signals.radiance import load_scene, rendered_scene
from hessian_lab.signals.render import render, torus
from hessian_lab.signals.scenes import Scene, through_box, to_device_coordinates
from tests.signals.solids import icosphere

UP = np.array([0.0, 0.0, 1.0])


def cameras(*places, shape=(12, 16), focal=20.0):
    return Cameras(looking_at(np.array(places, dtype=float), np.zeros(3), UP), shape, focal)


def test_rays_go_through_what_a_pinhole_shows_at_their_pixel():
    some = cameras((3, 1, 2), (-2, 2, 0.5))
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3))
    for view, pose in enumerate(some.poses):
        # The pinhole's own formula, by the 4×4 matrix from the world to the camera.
        inverse = np.linalg.inv(np.vstack([pose, [0, 0, 0, 1]]))
        seen = (np.column_stack([points, np.ones(20)]) @ inverse.T)[:, :3]
        column = 16 / 2 + some.focal * seen[:, 0] / -seen[:, 2]
        row = 12 / 2 - some.focal * seen[:, 1] / -seen[:, 2]
        pixels = np.floor(row).astype(int) * 16 + np.floor(column).astype(int)
        origins, directions = some.rays(np.full(20, view), pixels)
        # To the point's own depth, the ray passes within half a pixel of it.
        depth = -seen[:, 2:]
        gap = np.abs((origins + depth * directions - points) @ pose[:, :3])
        assert (gap[:, :2] <= 0.5 * depth / some.focal + 1e-12).all()
        assert gap[:, 2].max() < 1e-12


def test_a_ball_covers_the_disc_that_it_should():
    ball = icosphere(4, 0.8)
    lens = cameras((0, -3, 0), shape=(90, 90), focal=100.0)
    cover = render(ball, lens)[0, ..., 3]
    radius = 100 * math.tan(math.asin(0.8 / 3))
    assert cover.sum() == pytest.approx(math.pi * radius**2, rel=5e-3)
    down, across = np.meshgrid(np.arange(90) - 44.5, np.arange(90) - 44.5, indexing="ij")
    distance = np.hypot(down, across)
    assert (cover[distance < radius - 1.5] == 1).all()
    assert (cover[distance > radius + 1] == 0).all()


def test_what_is_near_hides_what_is_far_and_colours_lie_on_the_surface():
    # Of two triangles with one silhouette the nearer is seen, whatever their order.
    near = np.array([[-0.4, -0.5, -0.4], [0.4, -0.5, -0.4], [0.0, -0.5, 0.5]])
    eye = np.array([0, -3, 0])
    far = eye + (near - eye) * 7 / 4
    lens = cameras((0, -3, 0), shape=(40, 40), focal=60.0)
    alone = render(Mesh(near, np.array([[0, 1, 2]])), lens)
    for order in ([[0, 1, 2], [3, 4, 5]], [[3, 4, 5], [0, 1, 2]]):
        both = render(Mesh(np.concatenate([near, far]), np.array(order)), lens)
        inside = alone[..., 3] == 1
        assert np.abs(both - alone)[inside].max() < 1e-9


def test_a_camera_must_have_the_mesh_before_it():
    with pytest.raises(InputError, match="cameras must have all of mesh before them, one has not"):
        render(icosphere(1, 1.0), cameras((0.5, 0, 0.2)))


def test_the_torus_is_a_torus():
    mesh = torus(rings=300, sides=200, thickness=0.4)
    assert mesh.edges.oriented
    assert mesh.volume == pytest.approx(2 * math.pi**2 * 0.4**2 / 1.4**3, rel=1e-3)
    ring = np.hypot(mesh.vertices[:, 0], mesh.vertices[:, 1]) - 1 / 1.4
    assert np.allclose(np.hypot(ring, mesh.vertices[:, 2]), 0.4 / 1.4)


def test_rays_enter_and_leave_the_box_where_they_do():
    generator = np.random.default_rng(1)
    origins = generator.uniform(-3, 3, (300, 3))
    directions = generator.normal(size=(300, 3))
    # Some straight along an axis, and some from inside.
    directions[:40, :2] = 0
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    origins[40:80] = generator.uniform(-0.9, 0.9, (40, 3))
    near, far = through_box(origins, directions)
    steps = np.linspace(0, 12, 24_001)
    for start, way, low, high in zip(origins, directions, near, far, strict=True):
        inside = (np.abs(start + steps[:, None] * way) <= 1).all(axis=1)
        if not inside.any():
            assert high - low < 2 * steps[1]
            continue
        assert low == pytest.approx(steps[inside][0], abs=2 * steps[1])
        assert high == pytest.approx(steps[inside][-1], abs=2 * steps[1])


def test_device_coordinates_are_the_projection_of_the_points():
    generator = np.random.default_rng(2)
    lens = Cameras(np.eye(3, 4)[None], (30, 40), 35.0)
    origins = generator.uniform(-0.3, 0.3, (50, 3))
    directions = np.column_stack([generator.uniform(-0.4, 0.4, (50, 2)), np.full(50, -1.3)])
    starts, moves = to_device_coordinates(origins, directions, lens)
    for depth in (1.0, 1.5, 20.0, 1e6):
        places = origins + ((-depth - origins[:, 2]) / directions[:, 2])[:, None] * directions
        # The projection matrix of OpenGL with the near plane 1 and the far plane at infinity.
        expected = np.column_stack(
            [
                places[:, 0] * 35 / 20 / depth,
                places[:, 1] * 35 / 15 / depth,
                np.full(50, (depth - 2) / depth),
            ]
        )
        found = starts + (1 - 1 / depth) * moves
        assert np.abs(found - expected).max() < 1e-12
    with pytest.raises(InputError, match="must look along -z"):
        to_device_coordinates(origins, -directions, lens)


def test_poses_are_checked():
    good = cameras((3, 0, 1)).poses
    for wrong, reason in (
        (good * np.nan, "that of view 0 has NaN or Inf"),
        (good * [1.1, 1, 1, 1], "rigid motions, the axes of view 0 are not orthonormal"),
        (good * [-1, 1, 1, 1], "right-handed"),
        (good[:, :2], r"shape \[v, 3, 4\]"),
    ):
        with pytest.raises(InputError, match=reason):
            Cameras(wrong, (4, 4), 5.0)
    with pytest.raises(InputError, match="focal length must be between 1e-06 and"):
        Cameras(good, (4, 4), 0.0)
    with pytest.raises(ValueError, match="not straight above"):
        looking_at(np.array([[0.0, 0, 2]]), np.zeros(3), UP)


@pytest.fixture(scope="module")
def small():
    return rendered_scene(torus(rings=24, sides=12), 10, num_views=5)


def test_a_signal_holds_rays_of_training_views_with_their_colours(small):
    signal = small.signal(200)
    assert signal.coords.shape == (200, 10)
    assert signal.values.shape == (200, 3)
    every = torch.cat([small.picture_rays(view) for view in range(5)])
    pictures = torch.from_numpy(small.pictures[:5].reshape(-1, 3))
    for ray, colour in zip(signal.coords[::20], signal.values[::20], strict=True):
        (place,) = torch.nonzero((every == ray).all(dim=1)).flatten().tolist()
        assert torch.equal(pictures[place], colour)
    assert torch.equal(signal.coords, small.signal(200).coords)
    assert small.signal(10**6).num_points == 500
    few = small.signal(10**6, 2)
    assert len(few.coords[:, :3].unique(dim=0)) == 2


def test_rays_are_unit_and_their_samples_in_the_box(small):
    rays = small.picture_rays(0)
    assert torch.allclose(rays[:, 3:6].norm(dim=1), torch.ones(100, dtype=torch.float64))
    hit = rays[:, 7] > 0
    assert float(hit.double().mean()) > 0.9
    ends = rays[hit, :3] + rays[hit, 7:8] * rays[hit, 3:6]
    assert torch.allclose(ends.abs().amax(dim=1), torch.ones(int(hit.sum()), dtype=torch.float64))
    assert bool(((rays[:, 8] >= 0) & (rays[:, 8] < 1)).all())


def test_named_scenes_are_signals():
    signal = load_signal("torus-nerf", 8, points=50, views=3)
    assert signal.coords.shape == (50, 10)
    assert "rendered by hessian-lab" in signal.source.attribution
    assert bool(((signal.values >= 0) & (signal.values <= 1)).all())
    with pytest.raises(ValueError, match="it has no rate"):
        load_signal("torus-nerf", rate=8)


def test_a_scene_is_rendered_once_and_each_has_its_own(monkeypatch):
    first = load_scene("torus-nerf", 9)
    true = first.pictures.copy()
    first.pictures[:] = 0
    monkeypatch.setattr("hessian_lab.signals.radiance.rendered_scene", None)
    assert np.array_equal(load_scene("torus-nerf", 9).pictures, true)


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda _device: 1_000_000)
    with pytest.raises(ResourceError, match="30 pictures of 500×500 pixels must fit"):
        load_scene("torus-nerf", 500)


def test_a_scene_in_front_has_rays_in_device_coordinates():
    places = np.array([[0.1, 0, 0], [-0.1, 0.05, 0.0]])
    poses = np.concatenate([np.broadcast_to(np.eye(3), (2, 3, 3)), places[:, :, None]], axis=2)
    scene = Scene(
        Cameras(poses, (4, 6), 7.0),
        np.zeros((2, 4, 6, 3)),
        np.array([False, True]),
        0.0,
        Source("front", "", ""),
        forward=True,
    )
    rays = scene.picture_rays(0)
    assert torch.equal(rays[:, 6], torch.zeros(24, dtype=torch.float64))
    far = rays[:, :3] + rays[:, 7:8] * rays[:, 3:6]
    assert torch.allclose(far[:, 2], torch.ones(24, dtype=torch.float64))
    assert torch.allclose(rays[:, 2], torch.full((24,), -1.0, dtype=torch.float64))
