import json

import numpy as np
import pytest
import torch
from PIL import Image

from hessian_lab.errors import InputError, ResourceError, UsageError
from hessian_lab.probe import memory
from hessian_lab.signals import kind_of, load_signal, posed_files
from hessian_lab.signals.cameras import Cameras, looking_at
from hessian_lab.signals.kinds import with_kind
from hessian_lab.signals.posed_files import read_scene
from hessian_lab.signals.posed_write import write_scene
from hessian_lab.signals.radiance import rendered_scene
from hessian_lab.signals.render import render, torus


@pytest.fixture(scope="module")
def scene():
    return rendered_scene(torus(rings=24, sides=12), 12, num_views=5)


@pytest.fixture
def folder(scene, tmp_path):
    write_scene(scene, tmp_path / "scene")
    return tmp_path / "scene"


@pytest.fixture
def front(tmp_path):
    """Write a forward-facing scene as LLFF has it, and return its folder, cameras and world."""
    places = np.array([[x, y, 3.0 + 0.1 * x] for x in (-0.5, 0.0, 0.5) for y in (-0.3, 0.3, 0.6)])
    poses = looking_at(places, np.zeros(3), np.array([0.0, 1, 0]))
    cameras = Cameras(poses, (20, 30), 40.0)
    pictures = render(torus(rings=24, sides=12), cameras)[..., :3]
    (tmp_path / "front/images").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        pixels = Image.fromarray((picture * 255).round().astype(np.uint8))
        pixels.save(tmp_path / f"front/images/{number:02}.png")
    # Axes down, right, back; then height, width, focal length; then near and far.
    axes = np.stack([-poses[:, :, 1], poses[:, :, 0], poses[:, :, 2], poses[:, :, 3]], axis=2)
    lens = np.broadcast_to(np.array([[20.0], [30.0], [40.0]]), (9, 3, 1))
    table = np.concatenate(
        [np.concatenate([axes, lens], axis=2).reshape(9, 15), np.full((9, 2), [2.0, 4.0])], axis=1
    )
    np.save(tmp_path / "front/poses_bounds.npy", table)
    return tmp_path / "front", cameras


def test_what_is_written_is_read(folder, scene):
    found = read_scene(folder)
    assert found.held_out.tolist() == scene.held_out.tolist()
    assert np.abs(found.pictures - scene.pictures).max() <= 0.5 / 255 + 1e-9
    rays, others = (each.picture_rays(3) for each in (found, scene))
    # Cameras keep their directions; distances are those of the box of Blender's scenes.
    assert torch.allclose(rays[:, 3:6], others[:, 3:6], atol=1e-12)
    assert torch.allclose(rays[:, :3].norm(dim=1), torch.tensor(4.031128874149275 / 1.5).double())
    signal = load_signal(str(folder), points=30)
    assert signal.coords.shape == (30, 10)


def test_pictures_are_reduced_over_white(folder):
    assert read_scene(folder, 6).pictures.shape == (11, 6, 6, 3)
    pixels = np.zeros((12, 12, 4), np.uint8)
    pixels[:6] = [200, 100, 0, 128]
    Image.fromarray(pixels).save(folder / "train/r_0.png")
    picture = read_scene(folder).pictures[0]
    alpha = 128 / 255
    assert picture[0, 0] == pytest.approx(np.array([200, 100, 0]) / 255 * alpha + 1 - alpha)
    assert picture[-1, -1] == pytest.approx(1.0)


def test_one_file_of_transforms_holds_every_eighth_out(folder):
    frames = json.loads((folder / "transforms_train.json").read_text())["frames"]
    for name in ("transforms_train.json", "transforms_test.json"):
        (folder / name).unlink()
    text = json.dumps({"fl_x": 50.0, "w": 24, "frames": frames * 2})
    (folder / "transforms.json").write_text(text)
    found = read_scene(folder)
    assert np.flatnonzero(found.held_out).tolist() == [0, 8]
    assert found.cameras.focal == 25.0


def test_a_folder_is_told_by_what_is_in_it_and_stays_so(folder, monkeypatch):
    path = str(folder)
    assert kind_of(path) == "radiance"
    assert with_kind(path) == f"radiance:{path}"
    monkeypatch.chdir(folder.parent)
    assert with_kind("./scene") == "radiance:./scene"
    assert kind_of("radiance:gone") == "radiance"
    with pytest.raises(InputError, match="folder of posed pictures, gone does not exist"):
        load_signal("radiance:gone")


def test_a_forward_scene_sees_a_point_where_its_pictures_show_it(front):
    folder, cameras = front
    found = read_scene(folder)
    assert found.forward
    assert np.flatnonzero(found.held_out).tolist() == [0, 8]
    # The rays of all cameras through the pixel of one point of the world meet in one point.
    point, nearest = np.array([0.13, -0.1, 0.2]), []
    for view, pose in enumerate(cameras.poses):
        seen = (point - pose[:, 3]) @ pose[:, :3]
        column = 15 + 40 * seen[0] / -seen[2]
        row = 10 - 40 * seen[1] / -seen[2]
        ray = found.picture_rays(view)[int(row) * 30 + int(column)].numpy()
        nearest.append((ray[:3], ray[3:6]))
    origins, ways = (np.stack(part) for part in zip(*nearest, strict=True))
    across = np.eye(3) - ways[:, :, None] * ways[:, None]
    meeting = np.linalg.solve(across.sum(axis=0), (across @ origins[:, :, None]).sum(axis=0))[:, 0]
    gaps = np.linalg.norm((across @ (meeting - origins)[:, :, None])[:, :, 0], axis=1)
    # Half a pixel of 30 on a box of width 2.
    assert gaps.max() < 0.05
    assert np.abs(meeting).max() < 1
    assert np.ptp(origins[:, 0]) > 5 * gaps.max()


def test_the_smallest_pictures_that_are_large_enough_are_taken(front):
    folder, _ = front
    (folder / "images_2").mkdir()
    for path in (folder / "images").iterdir():
        Image.new("RGB", (15, 10), (255, 0, 0)).save(folder / "images_2" / path.name)
    assert read_scene(folder, 10).pictures[0, 0, 0].tolist() == [1, 0, 0]
    assert read_scene(folder, 12).pictures[0, 0, 0].tolist() == [0, 0, 0]
    assert read_scene(folder).pictures.shape[1:3] == (20, 30)


def change(path, edit):
    entries = json.loads(path.read_text())
    edit(entries)
    path.write_text(json.dumps(entries))


def no_angle(entries):
    del entries["camera_angle_x"]


def wide_angle(entries):
    entries["camera_angle_x"] = 4.0


def nan_pose(entries):
    entries["frames"][1]["transform_matrix"][0][3] = float("nan")


def sheared(entries):
    entries["frames"][1]["transform_matrix"][0][0] += 0.5


def short_pose(entries):
    entries["frames"][0]["transform_matrix"] = [[1, 0], [0, 1]]


def missing_picture(entries):
    entries["frames"][2]["file_path"] = "./train/r_77"


def outside(entries):
    entries["frames"][2]["file_path"] = "../secret.png"


def absolute(entries):
    entries["frames"][2]["file_path"] = "/etc/passwd"


def no_name(entries):
    entries["frames"][2]["file_path"] = 7


def distorted(entries):
    entries["k1"] = 0.3


def off_centre(entries):
    entries |= {"w": 24, "cx": 3.0}


def oblong(entries):
    entries |= {"fl_x": 20.0, "fl_y": 40.0}


def true_angle(entries):
    entries["camera_angle_x"] = True


def other_lens(entries):
    entries["camera_angle_x"] = 1.5


def no_frames(entries):
    entries["frames"] = []


def frames_of_text(entries):
    entries["frames"] = "many"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (no_angle, "must have camera_angle_x, .* has none"),
        (wide_angle, "camera_angle_x, an angle between 0 and π .* has 4.0"),
        (nan_pose, "that of view 1 has NaN or Inf"),
        (sheared, "axes of view 1 are not orthonormal"),
        (short_pose, "transform_matrix of 4×4 numbers, ./train/r_0"),
        (missing_picture, "r_77 of .* does not exist"),
        (outside, "must lie in the folder of their scene"),
        (absolute, "must lie in the folder of their scene"),
        (no_name, "must name their pictures by file_path"),
        (no_frames, "must have a picture to train with"),
        (distorted, "pinhole with square pixels .* have k1 0.3: undistort"),
        (off_centre, "have cx 3.0"),
        (oblong, "have fl_y 40.0"),
        (true_angle, "must have camera_angle_x"),
        (other_lens, "one lens, .* camera_angle_x 1.5 to train and 0.69"),
        (frames_of_text, "must list their frames"),
    ],
)
def test_bad_transforms_are_told_in_a_sentence(folder, edit, reason):
    (folder.parent / "secret.png").write_bytes((folder / "train/r_0.png").read_bytes())
    change(folder / "transforms_train.json", edit)
    with pytest.raises(InputError, match=reason):
        read_scene(folder)


def test_bad_pictures_are_told_in_a_sentence(folder):
    picture = folder / "train/r_1.png"
    good = picture.read_bytes()
    for data, reason in ((b"", "cannot be read"), (good[:80], "cannot be read"), (b"x", "read")):
        picture.write_bytes(data)
        with pytest.raises(InputError, match=reason):
            read_scene(folder)
    Image.new("RGB", (12, 11)).save(picture)
    with pytest.raises(InputError, match=r"must have one size, .* has 12×12 and .* 11×12"):
        read_scene(folder)
    picture.unlink()
    picture.symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="must lie in the folder of their scene"):
        read_scene(folder)


def test_bad_files_of_poses_are_told_in_a_sentence(folder, front, monkeypatch):
    path, (forward, _) = folder / "transforms_train.json", front
    for text, reason in (("{", "must be JSON"), ("[]", "must be a JSON object")):
        path.write_text(text)
        with pytest.raises(InputError, match=reason):
            read_scene(folder)
    table = np.load(forward / "poses_bounds.npy")
    for changed, reason in (
        (table[:, :16], r"must have shape \[v, 17\]"),
        (table[:7], "a picture for each of its 7 poses"),
        (table * np.nan, "must be finite"),
        (table * [*[1] * 15, 0, 1], "bounds positive"),
        (table * [*[1, 1, 1, 1, 2], *[1] * 12], "must have the proportions of their poses"),
    ):
        np.save(forward / "poses_bounds.npy", changed)
        with pytest.raises(InputError, match=reason):
            read_scene(forward)
    np.save(forward / "poses_bounds.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read as one"):
        read_scene(forward)
    monkeypatch.setattr(posed_files, "MOST_BYTES", 10)
    with pytest.raises(InputError, match="at most 10 bytes"):
        read_scene(forward)


def test_a_folder_without_poses_or_pictures_is_no_scene(tmp_path, front):
    with pytest.raises(InputError, match=r"has none of transforms_train\.json"):
        read_scene(tmp_path)
    forward, _ = front
    for path in (forward / "images").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="must have its pictures in images"):
        read_scene(forward)


def test_pictures_that_do_not_fit_are_refused_before_they_are_read(folder, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda _device: 10_000)
    monkeypatch.setattr(posed_files, "read_bytes", None)
    with pytest.raises(ResourceError, match="11 pictures of 12×12 pixels must fit"):
        read_scene(folder)


def test_nothing_is_written_over(folder, scene, front):
    with pytest.raises(UsageError, match="must be new or empty"):
        write_scene(scene, folder)
    with pytest.raises(UsageError, match="faces forward"):
        write_scene(read_scene(front[0]), folder.parent / "other")


def test_small_pictures_are_not_enlarged(folder):
    assert read_scene(folder, 100).pictures.shape == (11, 12, 12, 3)
