"""Videos: which frames are taken of a clip, what becomes of their pixels, what is refused."""

import io
import os
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy.interpolate import RegularGridInterpolator

from hessian_lab.errors import InputError, ResourceError
from hessian_lab.signals import frames as frames_module
from hessian_lab.signals import kind_of, load_signal
from hessian_lab.signals.gif import gif_bytes, read_gif, timing
from hessian_lab.signals.kenburns import FIRST, LAST, kenburns_clip
from hessian_lab.signals.video import Cut, natural_order


def levels(name, **options):
    """Return the level 0…255 of the red of the pixel (1, 1) of every frame."""
    signal = load_signal(str(name), **options)
    return (signal.values.reshape(*signal.shape, 3)[:, 1, 1, 0] * 255).round().int().tolist()


def flat(level, size=(4, 6), mode="RGB"):
    return Image.new(mode, (size[1], size[0]), level)


def saved_gif(path, grey=(0, 20, 40, 60), duration=100, **options):
    pictures = [flat((level,) * 3) for level in grey]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, **options)
    return path


def saved_folder(path, names):
    path.mkdir()
    for place, name in enumerate(names):
        flat((10 * place,) * 3).save(path / name)
    return path


# A camera over a photograph.


def test_kenburns_shows_the_photograph_where_the_camera_is():
    # So large that nothing is blurred: pixels of the last frame are a quarter of the photograph's.
    clip = kenburns_clip("kenburns", Cut(start=3.75, seconds=0.25, rate=8, size=400))
    photograph = skimage.data.chelsea() / 255
    before = kenburns_clip("kenburns", Cut(start=3.625, seconds=0.25, rate=8, size=400))
    assert np.array_equal(before.frames[1], clip.frames[0])
    rows, columns = clip.frames.shape[1:3]
    assert (rows, columns) == (400, 711)
    share = 3.75 / 4
    centre = [(1 - share) * FIRST[k] + share * LAST[k] for k in (0, 1)]
    step = FIRST[2] ** (1 - share) * LAST[2] ** share * 451 / columns
    y, x = (
        centre[k] * 451 - 0.5 + step * (np.arange(count) - (count - 1) / 2)
        for k, count in enumerate((rows, columns))
    )
    axes = [np.arange(length) for length in photograph.shape[:2]]
    looked_up = RegularGridInterpolator(axes, photograph, method="linear")
    expected = looked_up(np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1))
    # Cubic against linear; a shift by two thirds of one of the photograph's pixels is more.
    shown = clip.frames[0] / 255
    error = np.sqrt(((shown - expected) ** 2).mean())
    assert error < 0.01
    for axis in (0, 1):
        for shift in (-2, 2):
            moved = np.roll(expected, shift, axis)[2:-2, 2:-2]
            assert np.sqrt(((shown[2:-2, 2:-2] - moved) ** 2).mean()) > 1.5 * error


def test_kenburns_is_16_to_9_and_says_that_it_is_no_film():
    signal = load_signal("kenburns", size=18, seconds=0.5)
    assert signal.shape == (8, 18, 32)
    assert signal.values.shape == (8 * 18 * 32, 3)
    assert 0 <= float(signal.values.min()) < float(signal.values.max()) <= 1
    assert "no film" in signal.source.attribution
    assert "Stefan van der Walt" in signal.source.attribution
    assert kind_of("kenburns") == "video"


def test_time_and_place_go_from_minus_one_to_one():
    signal = load_signal("kenburns", size=3, seconds=0.25, rate=8, dtype=torch.float32)
    assert signal.shape == (2, 3, 5)
    assert signal.coords[0].tolist() == [-1, -1, -1]
    assert signal.coords[-1].tolist() == [1, 1, 1]
    assert signal.coords[5].tolist() == [-1, 0, -1]
    assert signal.coords[15].tolist() == [1, -1, -1]


def test_a_clip_is_a_part_of_the_whole():
    whole = load_signal("kenburns", size=6, rate=4)
    part = load_signal("kenburns", size=6, start=1.5, seconds=0.5, rate=4)
    assert whole.shape[0] == 16
    per_frame = whole.num_points // 16
    assert torch.equal(part.values, whole.values[6 * per_frame : 8 * per_frame])
    assert load_signal("kenburns", size=6, start=3.5, seconds=9.0, rate=4).shape[0] == 2
    assert len(kenburns_clip("kenburns", Cut(start=3.5, size=6)).frames) == 8


# Animated pictures.


@pytest.mark.parametrize("name", ["a.gif", "a.apng"])
def test_at_every_time_the_frame_is_taken_that_is_shown(tmp_path, name):
    options = {"format": "PNG"} if name.endswith("apng") else {}
    path = saved_gif(tmp_path / name, duration=[100, 300, 100, 100], **options)
    assert levels(path, rate=10) == [0, 20, 20, 20, 40, 60]
    assert levels(path, rate=20, start=0.3, seconds=0.2) == [20, 20, 40, 40]
    assert levels(path, rate=5) == [0, 20, 40]
    assert load_signal(str(path), size=2).shape == (4, 2, 3)


def test_transparent_and_palette_frames_lie_over_white(tmp_path):
    pictures = [Image.new("LA", (6, 4), (level, alpha)) for level, alpha in ((0, 0), (51, 255))]
    path = tmp_path / "a.apng"
    pictures[0].save(path, "PNG", save_all=True, append_images=pictures[1:], duration=100)
    assert levels(path) == [255, 51]


def test_frames_without_a_duration_are_shown_as_browsers_do(tmp_path):
    path = saved_gif(tmp_path / "a.gif", duration=0)
    assert levels(path, rate=10) == [0, 20, 40, 60]


def test_truncated_animations_are_refused(tmp_path):
    whole = saved_gif(tmp_path / "a.gif").read_bytes()
    path = tmp_path / "b.gif"
    for length in (4, 20, len(whole) // 2, len(whole) - 3, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"signal must be a (whole )?video, .*b\.gif .+\."):
            load_signal(str(path))
    path.write_bytes(whole + b"\0\0")
    assert levels(path) == [0, 20, 40, 60]


def test_absurd_animations_are_refused(tmp_path, monkeypatch):
    path = saved_gif(tmp_path / "a.gif")
    data = bytearray(path.read_bytes())
    data[6:10] = 4 * b"\xff"
    (tmp_path / "b.gif").write_bytes(data)
    with pytest.raises(InputError, match=r"at most 67108864 pixels per frame, .*b\.gif has more"):
        load_signal(str(tmp_path / "b.gif"))
    monkeypatch.setattr(frames_module, "MOST_FRAMES", 3)
    with pytest.raises(InputError, match=r"at most 3 frames before the end of the clip"):
        load_signal(str(path))
    assert levels(path, seconds=0.3) == [0, 20, 40]
    monkeypatch.setattr(frames_module, "MOST_DECODED", 2 * 24)
    with pytest.raises(InputError, match=r"at most 2 frames before the end of the clip"):
        load_signal(str(path))


def test_a_still_picture_is_no_video(tmp_path):
    flat((9, 9, 9)).save(tmp_path / "a.gif")
    with pytest.raises(InputError, match=r"at least 2 frames, .*a\.gif has 1\. Save it as PNG"):
        load_signal(str(tmp_path / "a.gif"))


# Folders of frames.


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    names = ["f8.png", "f9.PNG", "f10.png", "f11.png"]
    folder = saved_folder(tmp_path / "clip", names)
    (folder / "notes.txt").write_text("no frame")
    (folder / ".f12.png").write_bytes(b"hidden")
    assert kind_of(str(folder)) == "video"
    assert levels(folder) == [0, 10, 20, 30]
    assert levels(folder, rate=2) == [0, 10, 20, 30]
    assert levels(folder, rate=2, start=0.5, seconds=1.0) == [10, 20]
    assert natural_order(["b2", "a10", "a9", "a010"]) == ["a9", "a010", "a10", "b2"]


def test_frames_are_resized_with_anti_aliasing_and_keep_their_aspect(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    board = np.indices((32, 64)).sum(axis=0) % 2 * 255
    for place in range(2):
        Image.fromarray(board.astype(np.uint8)).save(folder / f"{place}.png")
    signal = load_signal(str(folder), size=8)
    assert signal.shape == (2, 8, 16)
    assert (signal.values - 0.5).abs().max() < 0.02


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("L", 51, 51), ("RGBA", (0, 0, 0, 0), 255), ("I;16", 257 * 51, 51), ("1", 1, 255)],
)
def test_frames_of_other_kinds_become_rgb(tmp_path, mode, colour, expected):
    folder = tmp_path / "clip"
    folder.mkdir()
    for name in ("0.png", "1.png"):
        Image.new(mode, (5, 3), colour).save(folder / name)
    assert levels(folder) == [expected, expected]
    assert load_signal(str(folder)).values.shape == (30, 3)


def spoiled(folder, how):
    if how == "size":
        flat((1, 1, 1), (4, 7)).save(folder / "f3.png")
    elif how == "missing":
        (folder / "f2.png").unlink()
    elif how == "twice":
        flat((1, 1, 1)).save(folder / "f02.png")
    elif how == "truncated":
        path = folder / "f3.png"
        Image.effect_noise((40, 40), 50).convert("RGB").resize((6, 4)).save(path)
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "text":
        (folder / "f3.png").write_text("no picture")
    elif how == "program":
        (folder / "f3.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n")
    elif how == "empty":
        (folder / "f3.png").write_bytes(b"")
    elif how == "link":
        flat((1, 1, 1)).save(folder.parent / "elsewhere.png")
        (folder / "f3.png").unlink()
        (folder / "f3.png").symlink_to("../elsewhere.png")
    elif how == "broken link":
        (folder / "f5.png").symlink_to("nowhere.png")
    elif how == "loop":
        (folder / "f5.png").symlink_to("f5.png")
    elif how == "directory":
        (folder / "f5.png").mkdir()
    elif how == "none":
        for path in folder.iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("size", r"frames of one size, .*f0\.png has 4×6, .*f3\.png has 4×7"),
        ("missing", r"all of its frames, .*clip lacks number 2, after f1\.png"),
        ("twice", "every frame once, .*clip has 2 twice"),
        ("truncated", r"f3\.png cannot be read as one"),
        ("text", r"readable frames, .*f3\.png is no picture"),
        ("program", r"readable frames, .*f3\.png is no picture"),
        ("empty", r"f3\.png is empty"),
        ("link", r"its frames in its folder, .*f3\.png leads out of it"),
        ("broken link", r"readable frames, .*f5\.png: No such file"),
        ("loop", r"f5\.png( leads out of it|: )"),
        ("directory", "Is a directory"),
        ("none", "a folder of PNG or JPEG frames, .*clip has none"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(tmp_path, how, message):
    folder = saved_folder(tmp_path / "clip", [f"f{place}.png" for place in range(5)])
    spoiled(folder, how)
    with pytest.raises(InputError, match=rf"^signal must .*{message}[^.]*.*\.$"):
        load_signal(str(folder))


def test_a_link_inside_the_folder_is_followed(tmp_path):
    folder = saved_folder(tmp_path / "clip", ["0.png", "1.png", "2.png"])
    (folder / "3.png").symlink_to("1.png")
    assert levels(folder) == [0, 10, 20, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.2, "rate": 20}, r"longer than its start, .* has 0\.2 s, start is 0\.2 s"),
        ({"start": 9.0}, "start is 9 s"),
        ({"seconds": 0.01}, "at least 2 frames, the clip of .* has 1"),
        ({"start": 0.12}, "at least 2 frames"),
    ],
)
@pytest.mark.parametrize("name", ["a.gif", "clip"])
def test_clips_of_no_length_are_refused(tmp_path, name, options, message):
    if name == "clip":
        saved_folder(tmp_path / name, [f"{place}.png" for place in range(4)])
    else:
        saved_gif(tmp_path / name, duration=50)
    if name == "a.gif" and options == {"start": 0.12}:
        message = "at least 2 frames|$"
        options = {"start": 0.16}
    with pytest.raises(InputError, match=message):
        load_signal(str(tmp_path / name), **options)


def test_clips_that_do_not_fit_are_refused_before_they_are_read(tmp_path, monkeypatch):
    path = saved_gif(tmp_path / "a.gif", grey=range(0, 200, 2))
    folder = saved_folder(tmp_path / "clip", [f"{place}.png" for place in range(4)])
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _device: 30_000)
    for name in ("kenburns", str(path), str(folder)):
        with pytest.raises(ResourceError, match=r"must fit in memory: .*Take a shorter clip"):
            load_signal(name, size=60)
    with pytest.raises(ResourceError, match=r"clip of a\.gif of 2400 pixels must fit"):
        load_signal(str(path))
    assert len(levels(path, seconds=0.5)) == 5


def test_paths_that_lead_nowhere_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"must be a video, \./none\.mp4 does not exist"):
        load_signal("./none.mp4")
    (tmp_path / "a.gif").touch()
    with pytest.raises(InputError, match=r"a\.gif is empty"):
        load_signal(str(tmp_path / "a.gif"))
    with pytest.raises(InputError, match="must be a readable video"):
        load_signal("~nobody-of-this-name/a.mkv")
    with pytest.raises(ValueError, match="asked for start, seconds, rate, size alone, it has no p"):
        load_signal("kenburns", points=3)


# Films.


def filmed(path, count=20, codec="mpeg4", size=(64, 48), rate=10, gop=12, aspect=None):
    """Write a film whose k-th frame has level 10 k."""
    av = pytest.importorskip("av", reason="needs the extra video")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt, stream.gop_size = "yuv420p", gop
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for place in range(count):
            pixels = np.full((size[1], size[0], 3), 10 * place % 256, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "avi", "webm"])
def test_films_are_cut_by_time(tmp_path, ending):
    path = filmed(tmp_path / f"a.{ending}", codec="libvpx" if ending == "webm" else "mpeg4")
    for options, expected in (
        ({}, range(20)),
        ({"start": 0.5, "seconds": 1.0}, range(5, 15)),
        ({"start": 1.35, "rate": 5}, [13, 15, 17]),
        ({"seconds": 0.3, "rate": 20}, [0, 0, 1, 1, 2, 2]),
    ):
        found = np.array(levels(path, **options))
        assert np.abs(found - 10 * np.array(list(expected))).max() <= 3
    assert load_signal(str(path), size=12, seconds=0.2).shape == (2, 12, 16)


def test_no_more_is_decoded_than_the_clip_needs(tmp_path, monkeypatch):
    path = filmed(tmp_path / "a.mp4", count=200)
    from hessian_lab.signals import film

    seen = []
    decoded = film._decoded

    def counted(*args):
        for second, frame in decoded(*args):
            seen.append(second)
            yield second, frame

    monkeypatch.setattr(film, "_decoded", counted)
    assert load_signal(str(path), start=15.0, seconds=0.5, size=4).shape[0] == 5
    # From a key frame, one in twelve, to the frame after the clip.
    assert min(seen) > 15.0 - 1.3
    assert max(seen) <= 15.5 + 1e-6


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "avi"])
@pytest.mark.parametrize("share", [0.02, 0.6, 0.75])
def test_truncated_films_are_refused(tmp_path, ending, share):
    data = filmed(tmp_path / f"a.{ending}").read_bytes()
    (tmp_path / f"b.{ending}").write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=rf"^signal must be a (whole )?video, .*b\.{ending} .+\.$"):
        load_signal(str(tmp_path / f"b.{ending}"))


def test_films_that_are_damaged_or_something_else_are_refused(tmp_path):
    data = bytearray(filmed(tmp_path / "a.mp4", count=30).read_bytes())
    start = data.find(b"mdat") + 8
    data[start : start + 600] = bytes(600)
    path = tmp_path / "b.mp4"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"signal must be a (whole )?video, .*b\.mp4"):
        load_signal(str(path))
    # A playlist would make a decoder open what it names.
    for text in (f"#EXTM3U\n#EXTINF:2,\n{tmp_path}/a.mp4\n", "ffconcat version 1.0\nfile a.mp4\n"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"b\.mp4 cannot be read as one: Invalid data[^']*\.$"):
            load_signal(str(path))


def test_films_without_pictures_are_refused(tmp_path):
    av = pytest.importorskip("av", reason="needs the extra video")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = np.zeros((1, 800), np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(InputError, match=r"a\.mkv has no video stream that can be read"):
        load_signal(str(tmp_path / "a.mkv"))


def test_films_of_absurd_size_or_start_are_refused(tmp_path, monkeypatch):
    path = filmed(tmp_path / "a.mp4")
    with pytest.raises(InputError, match=r"a\.mp4 has 2 s, start is 2 s"):
        load_signal(str(path), start=2.0)
    with pytest.raises(ResourceError, match="must fit in memory"):
        load_signal(str(path), rate=1_000_000, size=1000)
    monkeypatch.setattr("hessian_lab.signals.video.MOST_PIXELS", 3000)
    with pytest.raises(InputError, match=r"at most 3000 pixels per frame, .*a\.mp4 has 48×64"):
        load_signal(str(path))


def test_films_that_are_turned_or_squeezed_are_refused(tmp_path):
    path = filmed(tmp_path / "a.mp4")
    data = path.read_bytes()
    # The display matrix of the track's header: a quarter turn in place of none.
    straight = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    place = data.index(straight, data.index(b"tkhd"))
    path.write_bytes(data[:place] + turned + data[place + len(turned) :])
    with pytest.raises(InputError, match=r"upright video, .*a\.mp4 is to be turned by"):
        load_signal(str(path))
    squeezed = filmed(tmp_path / "b.mkv", aspect=Fraction(2, 1))
    with pytest.raises(InputError, match=r"square pixels, .*b\.mkv has some 2 as wide as high"):
        load_signal(str(squeezed))


def test_a_film_of_one_frame_is_refused(tmp_path):
    path = filmed(tmp_path / "a.mp4", count=1)
    with pytest.raises(InputError, match="must have at least 2 frames"):
        load_signal(str(path), rate=40)


def test_films_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "a.webm").write_bytes(b"film")
    with pytest.raises(InputError, match=r"pip install 'hessian-lab\[video\]'\. GIF files"):
        load_signal(str(tmp_path / "a.webm"))


def test_a_film_of_others():
    pytest.importorskip("av", reason="needs the extra video")
    if not Path(os.environ.get("HESSIAN_LAB_DATA", "."), "bigbuckbunny.mp4").exists():
        pytest.skip("needs HESSIAN_LAB_DATA with bigbuckbunny.mp4")
    signal = load_signal("bigbuckbunny", start=2.0, seconds=0.5, rate=8, size=18)
    assert signal.shape == (4, 18, 32)
    assert "CC BY 3.0" in signal.source.attribution


# GIF files of ours.


@pytest.mark.parametrize("rate", [3, 10, 16, 30, 50, 120])
def test_times_of_a_gif_do_not_drift(rate):
    kept, durations = timing(40, rate)
    ends = np.cumsum(durations)
    assert ends[-1] == round(100 * 40 / rate)
    begins = np.array(kept) / rate
    assert np.abs(np.append(0, ends[:-1]) / 100 - begins).max() <= 0.005 + 1e-9
    assert min(durations) >= 1
    assert (kept == list(range(40))) == (rate <= 50)


def test_a_gif_is_the_clip(tmp_path):
    clip = np.zeros((6, 4, 5, 3), np.uint8)
    clip[:] = np.array([0, 50, 50, 100, 150, 200])[:, None, None, None]
    path = tmp_path / "a.gif"
    path.write_bytes(gif_bytes(clip, 16))
    assert np.array_equal(read_gif(path, 6, 16), clip)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.info["loop"] == 0
    assert np.array_equal(read_gif(path, 6, 16), clip)
    path.write_bytes(gif_bytes(clip[:1].repeat(5, axis=0), 16))
    assert np.array_equal(read_gif(path, 5, 16), clip[:1].repeat(5, axis=0))
