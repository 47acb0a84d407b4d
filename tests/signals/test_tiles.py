import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from hessian_lab.errors import InputError, ResourceError, UsageError
from hessian_lab.probe import memory
from hessian_lab.signals import load_signal
from hessian_lab.signals.tiles import load_tiles


def assembled(image):
    """Return the image from its tiles, and how often each pixel was covered."""
    pixels, count = np.zeros(image.shape), np.zeros(image.shape[:2])
    for index, values in enumerate(image.values(0, image.num_tiles)):
        row, column = image.corner(index)
        place = slice(row, row + image.tile), slice(column, column + image.tile)
        pixels[place] = values.numpy().reshape(image.tile, image.tile, -1)
        count[place] += 1
    return pixels, count


@pytest.mark.parametrize("tile", [16, 37, 100])
def test_tiles_cover_a_bundled_image(tile):
    image = load_tiles("chelsea", tile, 128)
    from skimage import data

    whole = data.chelsea() / 255
    top, left = (whole.shape[0] - 128) // 2, (whole.shape[1] - 128) // 2
    pixels, count = assembled(image)
    assert np.array_equal(pixels, whole[top : top + 128, left : left + 128])
    assert count.min() >= 1
    assert image.num_tiles == (-(-128 // tile)) ** 2


def test_a_whole_image_need_not_be_square(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 47, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_tiles(str(tmp_path / "a.png"), 8)
    assert image.shape == (30, 47, 3)
    assert image.grid == (4, 6)
    assert np.array_equal(assembled(image)[0], pixels / 255)


def test_coordinates_are_those_of_an_image_of_that_size():
    image = load_tiles("camera", 32, 64)
    assert torch.equal(image.coords(), load_signal("camera", 32).coords)


def test_a_computed_image_is_the_same_in_any_tiles():
    parts = [assembled(load_tiles("mandelbrot", tile, 60))[0] for tile in (7, 20, 60)]
    assert np.array_equal(parts[0], parts[1])
    assert np.array_equal(parts[0], parts[2])
    signal = load_signal("mandelbrot", 60)
    assert np.array_equal(signal.values.numpy().reshape(60, 60, 3), parts[0])
    assert parts[0].std() > 0.1
    assert 0 <= parts[0].min() <= parts[0].max() <= 1


def test_points_inside_the_mandelbrot_set_are_black():
    image = load_tiles("mandelbrot", 101, 101)
    pixels = image.window(0, 0, 101, 101)
    # c = 0 lies at column (0.7 + 1.25) / 2.5 of the width.
    assert np.all(pixels[50, int(0.78 * 101)] == 0)
    assert np.all(pixels[0, 0] > 0)


def test_tiles_cover_a_video():
    whole = load_signal("kenburns", size=10, start=1.0, seconds=0.7, rate=10)
    frames = whole.values.reshape(*whole.shape, 3)
    clip = load_tiles("kenburns", 4, 10, frames=3, start=1.0, seconds=0.7, rate=10)
    assert clip.shape == (7, 10, 18, 3)
    assert clip.grid == (3, 3, 5)
    assert clip.num_tiles == 45
    count = torch.zeros(clip.shape[:3], dtype=torch.long)
    for index, values in enumerate(clip.values(0, 45)):
        frame, row, column = clip.corner(index)
        part = frames[frame : frame + 3, row : row + 4, column : column + 4]
        assert torch.equal(values, part.reshape(48, 3))
        count[frame : frame + 3, row : row + 4, column : column + 4] += 1
    # The last ones are moved inwards, and columns come before rows before frames.
    assert count.min() == 1
    assert [clip.corner(index) for index in (1, 5, 14, 15, 44)] == [
        *((0, 0, 4), (0, 4, 0), (0, 6, 14), (3, 0, 0), (4, 6, 14))
    ]
    assert torch.equal(clip.coords()[[0, 1, 4, 16, 47]][:, 0], torch.tensor([-1, -1, -1, 0, 1.0]))
    assert clip.coords()[1].tolist() == [-1, -1, pytest.approx(-1 / 3)]


def test_frames_of_a_folder_are_cut_in_tiles(tmp_path):
    for place in range(8):
        Image.new("L", (6, 4), 10 * place).save(tmp_path / f"{place}.png")
    clip = load_tiles(str(tmp_path), 2, seconds=0.5, rate=16)
    assert clip.shape == (8, 4, 6, 3)
    assert clip.sides == (8, 2, 2)
    assert clip.values(5, 6)[0, ::4, 0].mul(255).round().tolist() == [10 * k for k in range(8)]


@pytest.mark.parametrize(
    ("tile", "frames", "message"),
    [
        (1, 2, "tile must be at least 2 and at most the video's 6 pixels"),
        (7, 2, "at most the video's 6 pixels, got 7"),
        (4, 0, "tile_frames must be at least 1 and at most the clip's 4 frames, got 0"),
        (4, 5, "at most the clip's 4 frames, got 5"),
    ],
)
def test_tiles_that_a_video_does_not_hold_are_refused(tile, frames, message):
    with pytest.raises(UsageError, match=message):
        load_tiles("kenburns", tile, 6, frames=frames, seconds=0.25)


def test_a_computed_image_may_be_of_any_size():
    image = load_tiles("mandelbrot", 64, 1 << 20)
    assert image.num_tiles == (1 << 14) ** 2
    assert image.values(12345, 12346).shape == (1, 64 * 64, 3)


@pytest.mark.parametrize(
    ("name", "tile", "size", "message"),
    [
        ("chelsea", 1, None, "tile must be at least 2"),
        ("chelsea", 400, None, "tile must be at least 2 and at most the image's 300"),
        ("chelsea", 64, 50, "size must be at least the tile's 64"),
        ("chelsea", 64, 5000, "at most the image's 300 pixels"),
        ("sines", 8, None, "signal must be an image or a video"),
        ("retnia", 8, None, "retina"),
        ("mandelbrot", 8, 1 << 21, "size must be at most"),
    ],
)
def test_what_does_not_fit_is_refused(name, tile, size, message):
    with pytest.raises(UsageError, match=message):
        load_tiles(name, tile, size)


def test_a_computed_image_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda _device: 1 << 20)
    with pytest.raises(ResourceError, match="An image of 5000×5000 pixels"):
        load_signal("mandelbrot", 5000)


def test_files_that_are_no_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_tiles(str(tmp_path / "none.png"), 8)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot be read as one"):
        load_tiles(str(tmp_path / "a.png"), 8)


def test_bundled_files_are_those_of_scikit_image():
    assert "skimage" in skimage.__file__
    assert load_tiles("retina", 32).shape == (1411, 1411, 3)
