"""Scenes that were made to do harm, or badly damaged: one sentence, soon, in little memory."""

import io
import json
import math
import os
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from hessian_lab.errors import InputError, ResourceError
from hessian_lab.signals import posed_files
from hessian_lab.signals.images import decode
from hessian_lab.signals.posed_files import read_scene
from hessian_lab.signals.radiance import load_radiance

# A camera that stands on the z axis and looks at the origin.
POSE = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 4.0], [0.0, 0.0, 0.0, 1.0]]


@pytest.fixture(autouse=True)
def soon():
    """Let no test of this file take long, whatever it refuses."""
    started = time.process_time()
    yield
    assert time.process_time() - started < 5


@pytest.fixture
def folder(tmp_path):
    """A scene of one picture in Blender's layout."""
    Image.new("RGB", (12, 10), (255, 0, 0)).save(tmp_path / "r.png")
    write(tmp_path)
    assert load_radiance(str(tmp_path)).values.shape == (120, 3)
    return tmp_path


@pytest.fixture
def front(tmp_path):
    """A forward-facing scene of one picture as LLFF has it; its folder and its table."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (12, 10), (255, 0, 0)).save(tmp_path / "images/0.png")
    lens = np.array([[10.0], [12.0], [15.0]])
    axes = np.array([[0.0, 1, 0, 0.1], [-1, 0, 0, 0.2], [0, 0, 1, 0.3]])
    table = np.concatenate([np.concatenate([axes, lens], axis=1).ravel(), [1.0, 3.0]])[None]
    np.save(tmp_path / "poses_bounds.npy", table)
    assert load_radiance(str(tmp_path)).values.shape == (120, 3)
    return tmp_path, table


def write(folder, *, frame=None, frames=None, **entries):
    """Write transforms with some entries of their own."""
    frame = {"file_path": "r", "transform_matrix": POSE} | (frame or {})
    text = {"camera_angle_x": 0.7, "frames": [frame] if frames is None else frames} | entries
    (folder / "transforms.json").write_text(json.dumps(text))


def refused(folder, reason, kind=InputError):
    with pytest.raises(kind, match=reason) as error:
        load_radiance(str(folder))
    told = str(error.value)
    assert "\n" not in told
    assert len(told.replace(str(folder), "")) < 250


def at(place):
    return [[*row[:3], number] for row, number in zip(POSE, (*place, 1.0), strict=True)]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ({"file_path": "a" * 5000}, "aaa… of .* does not exist"),
        ({"file_path": "a\n" * 50}, r"a\\na\\n.*… of .* does not exist"),
        ({"file_path": "\ud800"}, r"'\\ud800' of .* does not exist"),
        ({"file_path": "../" * 2000}, "must lie in the folder of their scene, .*… does not"),
        ({"file_path": "."}, "does not exist"),
        ({"file_path": "r", "transform_matrix": [[10**400] * 4] * 4}, "of 4×4 numbers, r of"),
        ({"file_path": "r", "transform_matrix": [["x\ny"] * 4] * 4}, "of 4×4 numbers, r of"),
        ({"file_path": ["a" * 900], "transform_matrix": 3}, "must name their pictures"),
        ({"transform_matrix": at((1e308, 1e308, 1e308))}, "must stand around the origin"),
        ({"transform_matrix": at((0, 0, 1e-320))}, "must stand near|stand around the origin"),
        ({"transform_matrix": np.multiply(POSE, 1e200).tolist()}, "not orthonormal"),
    ],
)
def test_absurd_frames_are_refused(folder, frame, reason):
    write(folder, frame=frame)
    refused(folder, reason)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"camera_angle_x": math.nan}, "between 0 and π .* has nan"),
        ({"camera_angle_x": 10**400}, r"between 0 and π .* has 1000.*…"),
        ({"camera_angle_x": "a\n" * 900}, r"has 'a\\na.*…"),
        ({"camera_angle_x": {"a": [1] * 900}}, "has {'a': .*…"),
        ({"camera_angle_x": 1e-320}, "focal length must be between"),
        ({"camera_angle_x": None, "fl_x": 10**400, "w": 12}, "focal length must be between"),
        ({"camera_angle_x": None, "fl_x": 9, "w": 10**400}, "focal length must be between"),
        ({"camera_angle_x": None, "fl_x": 1e-300, "w": 12}, "focal length must be between"),
        ({"camera_angle_x": None, "fl_x": math.nan, "w": 12}, "focal length must be between"),
        ({"frames": []}, "must have a picture to train with"),
    ],
)
def test_absurd_lenses_are_refused(folder, entries, reason):
    write(folder, **entries)
    refused(folder, reason)


def test_a_camera_far_from_the_others_is_refused(folder):
    frames = [{"file_path": "r", "transform_matrix": at((0, 0, z))} for z in (4, 4, 1e9)]
    write(folder, frames=frames)
    refused(folder, r"must stand near their scene, .* more than 1e\+06 times")


def test_more_frames_than_anyone_takes_are_refused_unread(folder, monkeypatch):
    monkeypatch.setattr(posed_files, "_picture", None)
    write(folder, frames=[{}] * 200_000)
    refused(folder, "must have at most 10000 pictures, it has 200000")
    (folder / "transforms.json").write_text("[" * 100_000)
    refused(folder, "must be JSON")
    (folder / "transforms.json").write_text('{"frames": ' + "9" * 5000 + "}")
    refused(folder, "must be JSON|must list their frames")


def header(rows, columns, depth=8, colour=2):
    """Return a PNG that promises so many pixels and has none."""
    parts = b"\x89PNG\r\n\x1a\n"
    body = struct.pack(">IIBBBBB", columns, rows, depth, colour, 0, 0, 0)
    return parts + chunk(b"IHDR", body) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("shape", [(1 << 31, 1 << 31), (10**6, 10**6), (1, 1 << 31), (0, 12)])
def test_a_picture_that_promises_too_much_is_refused(folder, shape, depth):
    (folder / "r.png").write_bytes(header(*shape, depth=depth))
    refused(folder, "must be images|must fit in memory", (InputError, ResourceError))


def test_no_more_is_unpacked_than_a_picture_has(folder):
    bomb = zlib.compress(bytes(1 << 28))
    body = struct.pack(">IIBBBBB", 12, 10, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", body) + chunk(b"IDAT", bomb) + chunk(b"IEND", b"")
    (folder / "r.png").write_bytes(data)
    tracemalloc.start()
    try:
        refused(folder, "expected 730 bytes of pixels, got 731")
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()
    for shape in ((1 << 30, 1), (1, 0), (1 << 17, 1 << 17)):
        with pytest.raises(InputError, match=r"it has \d+×\d+ pixels"):
            decode(header(*shape, depth=16), folder / "r.png")


def test_a_file_too_large_to_be_a_picture_is_refused(folder, monkeypatch):
    monkeypatch.setattr(posed_files, "MOST_PICTURE_BYTES", 20)
    monkeypatch.setattr(posed_files, "read_bytes", None)
    refused(folder, "must have at most 20 bytes")


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (3, 1e308, "must stand near their scene"),
        (15, 1e-320, "must stand near their scene"),
        (0, 1e200, "not orthonormal"),
        (14, 1e-300, "focal length must be between"),
        (14, -1.0, "focal length must be between"),
        (14, 1e308, "focal length must be between"),
        (4, 1e-300, "must have the proportions"),
        (9, 1e308, "must have the proportions"),
    ],
)
def test_absurd_poses_are_refused(front, place, value, reason):
    folder, table = front
    table[0, place] = value
    np.save(folder / "poses_bounds.npy", table)
    refused(folder, reason)


def test_poses_of_other_numbers_are_refused(front):
    folder, table = front
    for other in (table + 1j, table.astype("U5"), table.astype("M8[s]"), table > 0):
        np.save(folder / "poses_bounds.npy", other)
        refused(folder, "NumPy array of real numbers")
    stream = io.BytesIO()
    np.savez(stream, table)
    (folder / "poses_bounds.npy").write_bytes(stream.getvalue())
    refused(folder, "NumPy array of real numbers")
    # A header that promises 136 TB.
    np.save(folder / "poses_bounds.npy", table)
    data = (folder / "poses_bounds.npy").read_bytes()
    (folder / "poses_bounds.npy").write_bytes(
        data.replace(b"(1, 17), }" + b" " * 12, b"(1000000000000, 17), }")
    )
    refused(folder, "NumPy array of real numbers")


def test_what_is_no_file_is_no_picture(front):
    folder, _ = front
    os.mkfifo(folder / "images/1.png")
    (folder / "images/2.png").mkdir()
    assert read_scene(folder).pictures.shape == (1, 10, 12, 3)
