import hashlib
import math
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage
import tifffile
import torch
from PIL import Image
from skimage.transform import resize

from hessian_lab.errors import InputError
from hessian_lab.signals import SIGNALS, bundled, is_path, load_signal
from hessian_lab.signals.images import load_file
from tests.reference import assert_same

# name -> (file in scikit-image's data folder, rows, columns, channels).
BUNDLED = {
    "camera": ("camera.png", 512, 512, 1),
    "astronaut": ("astronaut.png", 512, 512, 3),
    "chelsea": ("chelsea.png", 300, 451, 3),
    "coffee": ("coffee.png", 400, 600, 3),
    "retina": ("retina.jpg", 1411, 1411, 3),
}
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
COLOUR_TYPES = {1: GREY, 3: RGB, 2: GREY_ALPHA, 4: RGB_ALPHA}
each_depth = pytest.mark.parametrize("depth", [8, 16])


def noise(*shape, depth=8, seed=0):
    """Return random integers of ``depth`` bits, both ends of their range among them."""
    pixels = np.random.default_rng(seed).integers(0, 2**depth, shape)
    pixels.flat[:2] = 0, 2**depth - 1
    return pixels.astype(np.uint8 if depth == 8 else np.uint16)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path, pixels, *, depth, colour, extra=b""):
    """Write a PNG by hand: what is stored is ``pixels``, whatever an image library would do."""
    rows, columns = pixels.shape[:2]
    stored = pixels.astype(">u2" if depth == 16 else "u1").reshape(rows, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in stored)
    header = struct.pack(">IIBBBBB", columns, rows, depth, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )
    return str(path)


def write_tiff(path, pixels, **options):
    tifffile.imwrite(path, pixels, **options)
    return str(path)


def write(path, pixels, **options):
    """Write by Pillow, in the mode that the array's type and shape say."""
    Image.fromarray(pixels).save(path, **options)
    return str(path)


def over_white(pixels, depth):
    unit = pixels.astype(np.float64) / (2**depth - 1)
    return unit[..., :-1] * unit[..., -1:] + (1 - unit[..., -1:])


def values(name, size=None):
    """Return the values as an image [rows, columns, channels]."""
    signal = load_signal(name, size)
    return signal.values.reshape(*signal.shape, -1)


def assert_pixels(path, expected, *, roundings=4):
    """Assert that the file's values are ``expected`` [rows, columns, channels], up to rounding."""
    assert_same(values(path), torch.from_numpy(expected), scale=1.0, roundings=roundings)


def bundled_path(name):
    return Path(skimage.__file__).parent / "data" / BUNDLED[name][0]


# Bundled signals.


def test_every_bundled_image_and_the_sines_are_registered():
    named = {
        name for name, one in SIGNALS.items() if one.loader.endswith((":load_bundled", "sines"))
    }
    assert named == {*BUNDLED, "albert", "sines"}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_image_is_its_centred_square_in_the_unit_interval(name):
    _, rows, columns, channels = BUNDLED[name]
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    pixels = np.asarray(Image.open(bundled_path(name))).reshape(rows, columns, channels)
    expected = pixels[top : top + side, left : left + side] / 255

    signal = load_signal(name)
    assert signal.shape == (side, side)
    assert signal.coords.shape == (side**2, 2)
    assert torch.equal(signal.values, torch.from_numpy(expected.reshape(-1, channels)))
    assert signal.values.min() >= 0
    assert signal.values.max() <= 1


@pytest.mark.parametrize("name", BUNDLED)
def test_the_source_of_a_bundled_image_hashes_its_file(name):
    source = load_signal(name).source

    assert source.name == name
    assert source.attribution
    assert "scikit-image" in source.attribution
    assert source.sha256 == hashlib.sha256(bundled_path(name).read_bytes()).hexdigest()


def test_an_image_that_is_asked_for_again_is_the_same_and_the_askers_own():
    first, source = load_signal("camera", 9), load_file(bundled_path("camera"), 9)
    assert torch.equal(first.values, source.values)
    first.values.zero_()
    first.coords.zero_()
    again = load_signal("camera", 9)
    assert torch.equal(again.values, source.values)
    assert torch.equal(again.coords, source.coords)
    assert not torch.equal(load_signal("chelsea", 9).values[:, 0], again.values[:, 0])
    assert load_signal("camera", 8).num_points == 64


def test_an_image_that_has_changed_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    monkeypatch.setattr(bundled, "image_file", lambda _name: (path, "me"))
    for shade in (0, 255):
        Image.new("L", (12, 12), shade).save(path)
        os.utime(path, ns=(shade, shade))
        assert load_signal("camera", 5).values.unique().tolist() == [shade / 255]


@pytest.mark.parametrize("name", ["camera", "chelsea", "sines"])
@pytest.mark.parametrize("size", [2, 9])
def test_size_is_the_number_of_points_per_axis(name, size):
    signal = load_signal(name, size)
    num_axes = 1 if name == "sines" else 2

    assert signal.shape == (size,) * num_axes
    assert signal.num_points == size**num_axes
    assert signal.coords.min() == -1
    assert signal.coords.max() == 1


@pytest.mark.parametrize("name", ["camera", "sines"])
def test_single_precision_is_double_precision_rounded(name):
    double, single = load_signal(name, 9), load_signal(name, 9, dtype=torch.float32)

    assert double.coords.dtype == double.values.dtype == torch.float64
    assert torch.equal(single.coords, double.coords.float())
    assert torch.equal(single.values, double.values.float())


@pytest.mark.parametrize(("size", "num_points"), [(None, 256), (2, 2), (100, 100)])
def test_sines_are_the_sum_of_two_waves(size, num_points):
    signal = load_signal("sines", size)
    x = np.array([-1 + 2 * i / (num_points - 1) for i in range(num_points)])
    expected = np.sin(2 * np.pi * x) + np.sin(6 * np.pi * x)

    assert signal.shape == (num_points,)
    assert_same(signal.coords, torch.from_numpy(x[:, None]), roundings=4)
    assert_same(signal.values, torch.from_numpy(expected[:, None]), scale=1.0, roundings=100)


def test_the_source_of_the_sines_hashes_their_formula():
    source = load_signal("sines").source

    assert source.name == "sines"
    assert "sin 2πx + sin 6πx" in source.attribution
    assert source.sha256 == hashlib.sha256("sin 2πx + sin 6πx".encode()).hexdigest()


# Coordinates.


def test_coordinates_are_row_and_column_in_row_major_order(tmp_path):
    path = write(tmp_path / "image.png", noise(3, 3))
    ticks = [-1.0, 0.0, 1.0]
    expected = [[row, column] for row in ticks for column in ticks]

    assert load_signal(path).coords.tolist() == expected


@pytest.mark.parametrize("side", [2, 5, 8])
def test_coordinates_are_equally_spaced_from_end_to_end(side, tmp_path):
    path = write(tmp_path / "image.png", noise(side, side))
    axis = [-1 + 2 * i / (side - 1) for i in range(side)]
    expected = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)

    assert_same(load_signal(path).coords, torch.from_numpy(expected), roundings=2)


def test_a_value_stands_at_its_row_and_column(tmp_path):
    pixels = np.zeros((3, 3), dtype=np.uint8)
    pixels[0, 2] = 255
    signal = load_signal(write(tmp_path / "image.png", pixels))

    bright = signal.values.squeeze(1) == 1
    assert signal.coords[bright].tolist() == [[-1.0, 1.0]]


# Files by path.


@each_depth
@pytest.mark.parametrize("channels", [1, 3])
def test_png_integers_become_shares_of_the_largest(channels, depth, tmp_path):
    pixels = noise(5, 5, channels, depth=depth)
    colour = COLOUR_TYPES[channels]
    path = write_png(tmp_path / "image.png", pixels, depth=depth, colour=colour)

    assert_pixels(path, pixels / (2**depth - 1))


@each_depth
@pytest.mark.parametrize("channels", [2, 4])
def test_png_alpha_is_composited_over_white(channels, depth, tmp_path):
    pixels = noise(5, 5, channels, depth=depth)
    colour = COLOUR_TYPES[channels]
    path = write_png(tmp_path / "image.png", pixels, depth=depth, colour=colour)

    assert_pixels(path, over_white(pixels, depth))


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize(("alpha", "share"), [(0, 0.0), (255, 1.0)])
def test_what_is_transparent_is_white_and_what_is_opaque_stays(channels, alpha, share, tmp_path):
    pixels = noise(5, 5, channels)
    pixels[..., -1] = alpha
    path = write(tmp_path / "image.png", pixels)

    assert_pixels(path, share * (pixels[..., :-1] / 255) + (1 - share), roundings=0)


def test_palette_indices_become_their_colours(tmp_path):
    indices, colours = noise(5, 5) % 16, noise(16, 3, seed=1)
    extra = chunk(b"PLTE", colours.tobytes())
    path = write_png(tmp_path / "image.png", indices, depth=8, colour=PALETTE, extra=extra)

    assert_pixels(path, colours[indices] / 255)


def test_transparent_palette_colours_are_composited_over_white(tmp_path):
    indices, colours = noise(5, 5) % 16, noise(16, 4, seed=1)
    extra = chunk(b"PLTE", colours[:, :3].tobytes()) + chunk(b"tRNS", colours[:, 3].tobytes())
    path = write_png(tmp_path / "image.png", indices, depth=8, colour=PALETTE, extra=extra)

    assert_pixels(path, over_white(colours[indices], 8))


def test_a_grey_level_declared_transparent_is_white(tmp_path):
    pixels = noise(5, 5, 1)
    pixels[2:] = 7
    extra = chunk(b"tRNS", struct.pack(">H", 7))
    path = write_png(tmp_path / "image.png", pixels, depth=8, colour=GREY, extra=extra)

    assert_pixels(path, np.where(pixels == 7, 1, pixels / 255))


def test_one_bit_png_is_black_and_white(tmp_path):
    pixels = noise(9, 9) > 127
    path = write(tmp_path / "image.png", pixels)

    assert_pixels(path, pixels.astype(np.float64)[..., None], roundings=0)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_boolean_tiff_is_black_and_white(photometric, tmp_path):
    pixels = noise(9, 9) > 127
    path = write_tiff(tmp_path / "image.tif", pixels, photometric=photometric)

    white = pixels if photometric == "minisblack" else ~pixels
    assert_pixels(path, white.astype(np.float64)[..., None], roundings=0)


@each_depth
@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"bigtiff": True}], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_integers_become_shares_of_the_largest(channels, options, depth, tmp_path):
    pixels = noise(5, 5, channels, depth=depth)
    photometric = "rgb" if channels == 3 else "minisblack"
    stored = pixels.squeeze()
    path = write_tiff(tmp_path / "image.tif", stored, photometric=photometric, **options)

    assert_pixels(path, pixels / (2**depth - 1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_point_tiff_is_taken_as_it_is(dtype, tmp_path):
    pixels = np.random.default_rng(0).random((5, 5)).astype(dtype)
    path = write_tiff(tmp_path / "image.tif", pixels)

    assert_pixels(path, pixels.astype(np.float64)[..., None], roundings=0)


def test_tiff_whose_zero_is_white_is_inverted(tmp_path):
    pixels = noise(5, 5)
    path = write_tiff(tmp_path / "image.tif", pixels, photometric="miniswhite")

    assert_pixels(path, 1 - pixels[..., None] / 255)


def test_planar_tiff_is_the_same_image_as_interleaved(tmp_path):
    pixels = noise(5, 5, 3)
    planes = np.moveaxis(pixels, 2, 0)
    path = write_tiff(tmp_path / "image.tif", planes, photometric="rgb", planarconfig="separate")

    assert_pixels(path, pixels / 255)


@pytest.mark.parametrize("frame_shape", [(5, 5), (5, 5, 3)])
def test_of_several_tiff_frames_the_first_is_taken(frame_shape, tmp_path):
    frames = noise(6, *frame_shape)
    photometric = "rgb" if len(frame_shape) == 3 else "minisblack"
    path = write_tiff(tmp_path / "image.tif", frames, photometric=photometric)

    assert_pixels(path, frames[0].reshape(5, 5, -1) / 255)


def test_of_several_png_frames_the_first_is_taken(tmp_path):
    frames = [Image.fromarray(np.full((5, 5), level, np.uint8)) for level in (51, 204)]
    path = tmp_path / "image.png"
    frames[0].save(path, save_all=True, append_images=frames[1:])

    assert (values(str(path)) == 0.2).all()


def test_jpeg_is_the_image_up_to_its_loss(tmp_path):
    rows, columns = 4 * np.indices((64, 64))
    pixels = np.stack([rows, columns, np.full_like(rows, 128)], axis=-1)
    path = write(tmp_path / "image.jpg", pixels.astype(np.uint8), quality=95)

    difference = values(path) - torch.from_numpy(pixels / 255)
    assert difference.abs().max() < 0.03
    assert difference.abs().mean() < 0.01


@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 3)])
def test_eight_and_sixteen_bits_of_one_image_have_the_same_values(shape, tmp_path):
    pixels = noise(*shape)
    colour = GREY if len(shape) == 2 else RGB
    photometric = "minisblack" if len(shape) == 2 else "rgb"
    wide = pixels.astype(np.uint16) * 257
    paths = [
        write_png(tmp_path / "8.png", pixels, depth=8, colour=colour),
        write_png(tmp_path / "16.png", wide, depth=16, colour=colour),
        write_tiff(tmp_path / "8.tif", pixels, photometric=photometric),
        write_tiff(tmp_path / "16.tif", wide, photometric=photometric),
    ]

    first, *others = [values(path) for path in paths]
    assert all(torch.equal(other, first) for other in others)


def test_a_dark_sixteen_bit_image_stays_dark(tmp_path):
    pixels = noise(5, 5) // 2
    path = write_png(tmp_path / "image.png", pixels, depth=16, colour=GREY)

    assert_pixels(path, pixels[..., None] / 65535)


@pytest.mark.parametrize(
    "make",
    [
        lambda path, pixels: Image.frombytes("CMYK", (8, 8), pixels.tobytes()).save(
            path.with_suffix(".jpg")
        ),
        lambda path, pixels: tifffile.imwrite(
            path.with_suffix(".tif"), pixels, photometric="separated"
        ),
    ],
    ids=["jpeg", "tiff"],
)
def test_the_black_of_a_cmyk_image_is_not_taken_for_alpha(make, tmp_path):
    # No ink at all: white, or refused, as neither grey nor RGB.
    make(tmp_path / "image", np.zeros((8, 8, 4), np.uint8))
    (path,) = tmp_path.iterdir()
    inked = tmp_path / "inked"
    make(inked, np.full((8, 8, 4), 255, np.uint8))
    try:
        white, black = values(str(path)), values(str(inked.with_suffix(path.suffix)))
    except InputError:
        return
    assert white.min() > 0.99
    assert black.max() < 0.2


def test_a_tiff_palette_becomes_its_colours(tmp_path):
    indices, colours = noise(5, 5), noise(256, 3, seed=1)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "image.tif")

    assert_pixels(str(tmp_path / "image.tif"), colours[indices] / 255)


def test_the_source_of_a_file_is_its_name_and_hash(tmp_path):
    path = write(tmp_path / "image.png", noise(5, 5))
    source = load_signal(path).source

    assert source.name == "image.png"
    assert source.attribution == "file image.png"
    assert source.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pixels = noise(5, 5)
    write(tmp_path / "image.png", pixels)

    assert_pixels("~/image.png", pixels[..., None] / 255)


def test_a_relative_path_starts_where_the_program_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = noise(5, 5)
    write(tmp_path / "image.png", pixels)

    assert_pixels("image.png", pixels[..., None] / 255)


@pytest.mark.parametrize("name", ["image.png", "./image", "folder/image", "~", "~/image"])
def test_a_dot_a_slash_or_a_tilde_makes_a_path(name):
    assert is_path(name)


@pytest.mark.parametrize("name", SIGNALS)
def test_no_registered_name_is_a_path(name):
    assert not is_path(name)


# Cropping and resizing.


@pytest.mark.parametrize("shape", [(7, 7), (4, 9), (4, 8), (9, 4), (8, 5), (2, 30)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_crop_is_the_centred_square(shape, channels, tmp_path):
    pixels = noise(*shape, channels)
    path = write(tmp_path / "image.png", pixels.squeeze())
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2

    assert_pixels(path, pixels[top : top + side, left : left + side] / 255, roundings=0)


def test_without_a_size_every_pixel_is_kept(tmp_path):
    pixels = noise(7, 7)
    path = write(tmp_path / "image.png", pixels)

    assert torch.equal(values(path, None), torch.from_numpy(pixels[..., None] / 255))
    assert torch.equal(values(path, 7), values(path, None))


@pytest.mark.parametrize("size", [2, 5, 16, 31, 50])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_that_of_scikit_image_with_anti_aliasing(size, channels, tmp_path):
    pixels = noise(31, 40, channels)
    path = write(tmp_path / "image.png", pixels.squeeze())
    expected = resize(pixels[:, 4:35] / 255, (size, size), anti_aliasing=True)

    assert_same(values(path, size), torch.from_numpy(expected), roundings=10)


def test_the_finest_checkerboard_becomes_grey(tmp_path):
    # A third of the pixels a side: without a filter every sample would hit a pixel's centre.
    board = (np.indices((63, 63)).sum(axis=0) % 2 * 255).astype(np.uint8)
    path = write(tmp_path / "image.png", board)

    inner = values(path, 21)[1:-1, 1:-1]
    assert (inner - 0.5).abs().max() < 0.01


def test_resizing_keeps_the_mean_of_a_smooth_image(tmp_path):
    wave = 0.5 + 0.4 * np.sin(np.linspace(0, 2 * math.pi, 64))
    pixels = (np.outer(wave, wave) * 255).round().astype(np.uint8)
    path = write(tmp_path / "image.png", pixels)

    assert abs(values(path, 16).mean() - pixels.mean() / 255) < 1e-3


@pytest.mark.parametrize("size", [2, 13, 50])
def test_resized_values_stay_in_the_unit_interval(size, tmp_path):
    path = write(tmp_path / "image.png", np.where(noise(31, 31) > 127, 255, 0).astype(np.uint8))
    resized = values(path, size)

    assert resized.min() >= 0
    assert resized.max() <= 1


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_constant_image_stays_constant_and_in_the_unit_interval(level, tmp_path):
    path = write(tmp_path / "image.png", np.full((31, 31), level, np.uint8))
    resized = values(path, 7)

    assert_same(resized, torch.full_like(resized, level / 255), scale=1.0, roundings=10)
    assert resized.max() <= 1


# Refusals.


@pytest.mark.parametrize("size", [1, 0, -3])
@pytest.mark.parametrize("name", ["camera", "sines", "image.png"])
def test_refuses_fewer_than_two_points_a_side(name, size):
    with pytest.raises(ValueError, match=rf"size must be at least 2, got {size}\.") as caught:
        load_signal(name, size)
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cameraman",
            "signal must be one of camera, astronaut, chelsea, coffee, retina, albert, mandelbrot, "
            "sines, bwv1007, brahms, terrain, spot, nefertiti, torus-nerf, spot-nerf, "
            "nefertiti-nerf, kenburns, bigbuckbunny, got 'cameraman'. Did you mean camera?",
        ),
        ("astronuat", "got 'astronuat'. Did you mean astronaut?"),
        ("sine", "got 'sine'. Did you mean sines?"),
        ("Camera", "got 'Camera'. Did you mean camera?"),
    ],
)
def test_refuses_an_unknown_name_and_suggests_the_nearest(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_signal(name)


def test_refuses_an_unknown_name_without_a_suggestion_when_none_is_near():
    with pytest.raises(ValueError, match=r"got 'xyzzy'\.$"):
        load_signal("xyzzy")


@pytest.mark.parametrize("name", ["./missing.png", "missing.png", "missing/image.png"])
def test_refuses_a_missing_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"signal must be an image file, missing\S* does not exist\."
    ):
        load_signal(name)


def test_refuses_the_home_of_nobody():
    with pytest.raises(InputError, match="signal must be"):
        load_signal("~nobody-of-this-name/image.png")


def test_refuses_an_empty_file(tmp_path):
    (tmp_path / "image.png").touch()
    with pytest.raises(InputError, match=r"signal must be an image file, .*image\.png is empty\."):
        load_signal(str(tmp_path / "image.png"))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_refuses_a_truncated_image(suffix, tmp_path):
    path = tmp_path / f"image.{suffix}"
    write(path, noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(InputError, match=r"signal must be an image file, .* cannot be read as one"):
        load_signal(str(path))


@pytest.mark.parametrize("suffix", ["png", "txt", "tif", "jpg"])
@pytest.mark.parametrize("data", [b"Not an image at all.", b"\0", b"II*\0", b"\x89PNG\r\n\x1a\n"])
def test_refuses_what_is_no_image(data, suffix, tmp_path):
    path = tmp_path / f"image.{suffix}"
    path.write_bytes(data)

    with pytest.raises(InputError, match=r"signal must be an image file, .* cannot be read as one"):
        load_signal(str(path))


def test_the_refusal_of_a_text_file_names_no_object_in_memory(tmp_path):
    (tmp_path / "image.png").write_bytes(b"Not an image at all.")

    with pytest.raises(InputError) as caught:
        load_signal(str(tmp_path / "image.png"))
    assert "object at 0x" not in str(caught.value)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_refuses_pixels_that_are_not_finite(number, tmp_path):
    pixels = np.ones((5, 5), np.float32)
    pixels[3, 1] = number
    path = write_tiff(tmp_path / "image.tif", pixels)

    with pytest.raises(InputError, match=r"signal must have finite pixels, .* has NaN or Inf\."):
        load_signal(path)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_refuses_a_single_pixel_a_side(shape, tmp_path):
    path = write(tmp_path / "image.png", np.zeros(shape, np.uint8))

    message = rf"signal must have at least 2 pixels a side, .* has \[{shape[0]}, {shape[1]}\]\."
    with pytest.raises(InputError, match=message):
        load_signal(path)


def test_refuses_more_than_four_channels(tmp_path):
    path = write_tiff(tmp_path / "image.tif", noise(9, 9, 5), planarconfig="contig")

    with pytest.raises(InputError, match=r"must be a grey or RGB image, .* has shape \[9, 9, 5\]"):
        load_signal(path)


@pytest.mark.parametrize("level", [-1, 65536])
def test_refuses_signed_pixels_of_neither_eight_nor_sixteen_bits(level, tmp_path):
    path = write_tiff(tmp_path / "image.tif", np.full((5, 5), level, np.int32))

    with pytest.raises(
        InputError, match=r"signal must have 8-bit, 16-bit or real pixels, .* has int32\."
    ):
        load_signal(path)
