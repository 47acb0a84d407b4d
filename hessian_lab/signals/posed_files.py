"""Folders of posed pictures: Blender's transforms, and LLFF's poses and bounds."""

import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hessian_lab.errors import InputError
from hessian_lab.probe.memory import require_bytes
from hessian_lab.signal import Source
from hessian_lab.signals.cameras import Cameras, check_poses
from hessian_lab.signals.images import decode, expanded, read_bytes, resized, scaled
from hessian_lab.signals.posed_lens import brief, focal, require_one_lens
from hessian_lab.signals.scenes import Scene

Array = np.ndarray[Any, np.dtype[Any]]

POSES = "poses_bounds.npy"
# Files of transforms: training and testing apart, or one of which some pictures are held out.
SPLITS = ("transforms_train.json", "transforms_test.json")
WHOLE = "transforms.json"
ENDINGS = (".png", ".jpg", ".jpeg")
# Of a file of poses, of a picture, and of all pictures.
MOST_BYTES, MOST_PICTURE_BYTES, MOST_VIEWS = 1 << 24, 1 << 30, 10_000
# How far off a camera may stand, in units of the scene's own: beyond it digits are lost.
FARTHEST = 1e6
# Of pictures that are not split, every eighth is held out; of a test split, this many at most.
EVERY, MOST_HELD_OUT = 8, 8
# Half the box of Blender's scenes over the distance of their cameras.
REACH = 1.5 / 4.031128874149275
# LLFF: the nearest bound comes to lie this far behind the near plane.
BOUND_FACTOR = 0.75


@dataclass(frozen=True)
class _Frames:
    """Pictures that a scene names, and how they were taken; the poses may be of any scale."""

    paths: list[Path]
    poses: Array
    held_out: Array

    def __post_init__(self) -> None:
        if not self.paths or bool(self.held_out.all()):
            raise InputError("scene must have a picture to train with, it has none.")


def read_scene(path: str | Path, size: int | None = None) -> Scene:
    """Return the scene of a folder.

    Blender's layout holds ``transforms_train.json`` and, to test with, ``transforms_test.json`` (at
    most 8 evenly chosen views of it), or ``transforms.json``, of which every eighth view is held
    out; the box reaches as far around the origin as in Blender's scenes for cameras at that median
    distance. LLFF's holds ``poses_bounds.npy`` and ``images``, of which every eighth is held out;
    its rays are those of normalised device coordinates. Transparency is composited over white.

    Args:
        path: The folder. Nothing outside of it is read.
        size: Rows that larger pictures are reduced to; as they are by default.

    Raises:
        InputError: If poses or pictures are missing, damaged, not finite, of several sizes, or
            elsewhere.
        ResourceError: If the pictures do not fit in memory, before they are read.
    """
    folder = expanded(path)
    if not folder.is_dir():
        raise InputError(f"signal must be a folder of posed pictures, {folder} does not exist.")
    if (folder / POSES).is_file():
        return _read_llff(folder, size)
    if any((folder / name).is_file() for name in (WHOLE, SPLITS[0])):
        return _read_blender(folder, size)
    raise InputError(
        f"signal must be a folder of posed pictures, {folder} has none of {SPLITS[0]}, {WHOLE} and "
        f"{POSES}."
    )


def _read_blender(folder: Path, size: int | None) -> Scene:
    train, test = (folder / name for name in SPLITS)
    if train.is_file():
        lens, other = _load_json(train), _load_json(test) if test.is_file() else None
        entries, held_out = _frames(lens, train), []
        if other is not None:
            held_out = _frames(other, test)
            chosen = np.linspace(0, len(held_out) - 1, min(MOST_HELD_OUT, len(held_out)))
            held_out = [held_out[place] for place in chosen.round().astype(int)]
        split = np.arange(len(entries) + len(held_out)) >= len(entries)
        entries = entries + held_out
    else:
        lens, other = _load_json(folder / WHOLE), None
        entries = _frames(lens, folder / WHOLE)
        split = np.arange(len(entries)) % EVERY == 0 if len(entries) > 1 else np.zeros(1, bool)
    _check_count(len(entries))
    frames = _Frames(
        [_picture(folder, entry) for entry in entries],
        np.array([_matrix(entry, folder) for entry in entries]).reshape(-1, 3, 4),
        split[: len(entries)],
    )
    check_poses(frames.poses)
    pictures, digest = _read_pictures(frames.paths, size)
    with np.errstate(over="ignore"):
        distance = float(np.median(np.linalg.norm(frames.poses[:, :, 3], axis=1)))
    if not 0 < distance < np.inf:
        raise InputError(f"cameras must stand around the origin, those of {folder} stand in it.")
    poses = _in_units(frames.poses, REACH * distance, folder)
    cameras = Cameras(poses, pictures.shape[1:3], focal(lens, pictures.shape[2], folder))
    if other is not None:
        require_one_lens(lens, other, folder)
    return Scene(cameras, pictures, split, 1.0, _source(folder, digest))


def _read_llff(folder: Path, size: int | None) -> Scene:
    table = _load_poses(folder / POSES)
    _check_count(len(table))
    paths = _listed(folder, size)
    if len(paths) != len(table):
        raise InputError(
            f"scene must have a picture for each of its {len(table)} poses, {paths[0].parent} has "
            f"{len(paths)}."
        )
    split = np.arange(len(table)) % EVERY == 0 if len(table) > 1 else np.zeros(1, bool)
    frames = _Frames(paths, table[:, :15].reshape(-1, 3, 5), split)
    if not (np.isfinite(table).all() and (table[:, 15] > 0).all()):
        raise InputError(f"poses and bounds must be finite, bounds positive, {folder} has others.")
    pictures, digest = _read_pictures(paths, size)
    rows, columns, length = (float(number) for number in frames.poses[0, :, 4])
    if not (rows > 0 and abs(columns / rows * pictures.shape[1] - pictures.shape[2]) < 2):
        raise InputError(
            f"pictures must have the proportions of their poses, {rows:g}×{columns:g}, those of "
            f"{folder} have {pictures.shape[1]}×{pictures.shape[2]}."
        )
    # From down, right, back to right, up, back.
    poses = frames.poses[:, :, [1, 0, 2, 3]] * (1, -1, 1, 1)
    poses = _in_units(poses, float(table[:, 15].min()) * BOUND_FACTOR, folder)
    lens = length * pictures.shape[1] / rows
    cameras = Cameras(_recentred(poses, folder), pictures.shape[1:3], lens)
    return Scene(cameras, pictures, split, 0.0, _source(folder, digest), forward=True)


def _in_units(poses: Array, unit: float, folder: Path) -> Array:
    """Return poses [v, 3, 4] with places in another unit."""
    poses = poses.copy()
    with np.errstate(all="ignore"):
        poses[:, :, 3] /= unit
    if not (np.abs(poses[:, :, 3]) <= FARTHEST).all():
        raise InputError(
            f"cameras must stand near their scene, one of {folder} is more than {FARTHEST:g} times "
            "as far off as the scene is large."
        )
    return poses


def _check_count(num_views: int) -> None:
    if num_views > MOST_VIEWS:
        raise InputError(f"scene must have at most {MOST_VIEWS} pictures, it has {num_views}.")


def _recentred(poses: Array, folder: Path) -> Array:
    """Return poses in the axes of their mean camera, so that they look along -z from around 0."""
    check_poses(poses)
    back, up = poses[:, :, 2].sum(axis=0), poses[:, :, 1].sum(axis=0)
    right = np.cross(up, back)
    if not min(np.linalg.norm(back), np.linalg.norm(right)) > 1e-9:
        raise InputError(f"cameras must face one way, those of {folder} face all ways.")
    back, right = back / np.linalg.norm(back), right / np.linalg.norm(right)
    axes = np.stack([right, np.cross(back, right), back], axis=1)
    turned = axes.T @ poses
    turned[:, :, 3] -= turned[:, :, 3].mean(axis=0)
    return turned


def _frames(transforms: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    entries = transforms.get("frames")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"transforms must list their frames, {path} does not.")
    return entries


def _load_json(path: Path) -> dict[str, Any]:
    data = _bounded(path)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"transforms must be JSON, {path} is not: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"transforms must be a JSON object, {path} is none.")
    return found


def _load_poses(path: Path) -> Array:
    data = _bounded(path)
    try:
        table = np.load(io.BytesIO(data), allow_pickle=False)
        if table.dtype.kind not in "fiu":
            raise TypeError
        with np.errstate(over="ignore"):
            table = np.asarray(table, dtype=np.float64)
    except Exception as error:
        raise InputError(
            f"poses must be a NumPy array of real numbers, {path} cannot be read as one."
        ) from error
    if table.ndim != 2 or table.shape[1] != 17 or not len(table):
        raise InputError(f"poses must have shape [v, 17], {path} has {list(table.shape)}.")
    return table


def _bounded(path: Path) -> bytes:
    """Return the bytes of a file of poses."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"poses must have at most {MOST_BYTES} bytes, {path} has more.")
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"poses must be readable, {path}: {reason}.") from error


def _matrix(entry: dict[str, Any], folder: Path) -> Array:
    try:
        matrix = np.array(entry["transform_matrix"], dtype=np.float64)
    except (KeyError, TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape not in ((4, 4), (3, 4)):
        raise InputError(
            "frames must have a transform_matrix of 4×4 numbers, "
            f"{brief(entry.get('file_path'))} of {folder} has none."
        )
    return matrix[:3]


def _picture(folder: Path, entry: dict[str, Any]) -> Path:
    """Return the picture of a frame; its ending may be left out, as Blender's scenes do."""
    name = entry.get("file_path")
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"frames must name their pictures by file_path, one of {folder} does not.")
    try:
        path = _inside(folder, folder / name)
        named = [path, *(path.with_name(path.name + ending) for ending in ENDINGS)]
        found = next((other for other in named if other.is_file()), None)
        if found is not None:
            return _inside(folder, found)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError):
        pass
    raise InputError(f"frames must have their pictures, {brief(name)} of {folder} does not exist.")


def _listed(folder: Path, size: int | None) -> list[Path]:
    """Return the pictures of an LLFF scene, in order of their names.

    Those of the smallest ``images_N`` that are large enough, where such folders are.
    """
    places = [place for place in folder.glob("images*") if place.is_dir()]
    listed = [
        sorted(
            path for path in place.iterdir() if path.suffix.lower() in ENDINGS and path.is_file()
        )
        for place in places
    ]
    listed = [paths for paths in listed if paths]
    if not listed:
        raise InputError(f"scene must have its pictures in images, {folder} has none.")
    heights = {_size(_inside(folder, paths[0]))[0]: paths for paths in listed}
    enough = [height for height in heights if size is not None and height >= size]
    return [_inside(folder, path) for path in heights[min(enough, default=max(heights))]]


def _inside(folder: Path, path: Path) -> Path:
    """Return a path that stays in a folder, links included."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"pictures must lie in the folder of their scene, {brief(str(path))} does not."
        )
    return path


def _read_pictures(paths: Sequence[Path], size: int | None) -> tuple[Array, str]:
    """Return pictures [v, rows, columns, 3] and a digest of their files."""
    rows, columns = _size(paths[0])
    size = rows if size is None else min(size, rows)
    shape = (size, max(1, round(columns * size / rows)))
    require_bytes(
        8 * (3 * len(paths) * shape[0] * shape[1] + 10 * rows * columns),
        f"{len(paths)} pictures of {shape[0]}×{shape[1]} pixels",
        device=torch.device("cpu"),
        cure="Take a smaller --size.",
    )
    pictures, digest = np.empty((len(paths), *shape, 3)), hashlib.sha256()
    for picture, path in zip(pictures, paths, strict=True):
        if _size(path) != (rows, columns):
            raise InputError(
                f"pictures must have one size, {paths[0]} has {rows}×{columns} and {path} "
                f"{_size(path)[0]}×{_size(path)[1]}."
            )
        if path.stat().st_size > MOST_PICTURE_BYTES:
            raise InputError(
                f"pictures must have at most {MOST_PICTURE_BYTES} bytes, {path} has more."
            )
        data = read_bytes(path)
        digest.update(data)
        pixels = scaled(decode(data, path), path)
        if pixels.min() < 0 or pixels.max() > 1:
            raise InputError(f"pictures must have colours in [0, 1], {path} has others.")
        picture[...] = _reduced(pixels, shape)
    return pictures, digest.hexdigest()


def _reduced(pixels: Array, shape: tuple[int, int]) -> Array:
    """Return pixels [rows, columns, channels] over white as RGB of another size."""
    channels = pixels.shape[2]
    alpha = pixels[..., -1:] if channels in (2, 4) else np.ones_like(pixels[..., :1])
    # Premultiplied colours are those that may be averaged.
    colours = pixels[..., :3] if channels > 2 else np.repeat(pixels[..., :1], 3, axis=2)
    whole = colours * alpha + (1 - alpha)
    return whole if whole.shape[:2] == shape else np.clip(resized(whole, shape), 0, 1)


def _size(path: Path) -> tuple[int, int]:
    """Return rows and columns of a picture, from its header alone."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.height, image.width
    except Exception as error:
        raise InputError(f"pictures must be images, {path} cannot be read as one.") from error


def _source(folder: Path, digest: str) -> Source:
    name = folder.resolve().name
    return Source(name, f"Posed pictures of folder {name}", digest)
