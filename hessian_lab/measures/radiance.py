"""How well a radiance field shows its scene from where it was never seen, and a turn around it."""

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hessian_lab.errors import InputError
from hessian_lab.fields.radiance import RadianceField
from hessian_lab.fields.volume import Volume, composited
from hessian_lab.measures.lpips import LPIPS, is_wide
from hessian_lab.signals import kind_of
from hessian_lab.signals.cameras import Cameras, looking_at
from hessian_lab.signals.radiance import circle, load_scene
from hessian_lab.signals.scenes import Scene
from hessian_lab.training.files import write_atomically
from hessian_lab.training.quality import WINDOW, psnr, ssim
from hessian_lab.training.run import Run

Array = np.ndarray[Any, np.dtype[Any]]

TABLE, TURN = "views.csv", "turntable.gif"
# Samples of rays that go through a field at once.
CHUNK = 1 << 16
# Pictures of a turn, and how long each is shown (ms).
NUM_FRAMES, DURATION = 36, 80


@dataclass(frozen=True, eq=False)
class Seen:
    """Views of a fitted scene.

    Attributes:
        scene: What was fitted.
        views: Numbers of the views that were held out.
        pictures: What the field shows there [v, rows, columns, 3], in [0, 1].
        depths: How far the light of each pixel comes on average [v, rows, columns], NaN where
            nothing is met.
        table: Per view its number, ``psnr`` (dB), ``ssim`` (NaN below 11 pixels a side),
            ``mean_absolute_error`` and, with weights for it, ``lpips`` (NaN below 31 pixels).
    """

    scene: Scene
    views: Array
    pictures: Array
    depths: Array
    table: pd.DataFrame


def is_radiance(run: Run) -> bool:
    """Tell whether a run was fitted to a scene that it can be asked for by name or path."""
    return kind_of(run.setup.signal) == "radiance" and run.setup.samples is not None


def measure_views(run: Run, *, lpips: LPIPS | None = None) -> Seen:
    """Render the views that were held out from the field at the last checkpoint, and compare.

    Writes ``views.csv`` beside the trajectory. One evaluation per sample of every ray.

    Args:
        run: What was trained.
        lpips: Compares them too, where they are large enough.

    Raises:
        InputError: If the scene is no longer there, or the module was a user's own.
        ResourceError: If the disk is full.
    """
    scene = load_scene(run.setup.signal, run.setup.size)
    seen = views_of(radiance_of(run), scene, lpips=lpips)
    write_views(run.path, seen)
    return seen


def views_of(model: Volume, scene: Scene, *, lpips: LPIPS | None = None) -> Seen:
    """Render the views of a scene that are held out, and compare; nothing is written.

    Args:
        model: What was fitted.
        scene: To what.
        lpips: Compares them too, where they are large enough.
    """
    views = np.flatnonzero(scene.held_out)
    rows, columns = scene.cameras.shape
    if not len(views):
        nothing = np.empty((0, rows, columns))
        table = pd.DataFrame(columns=["view", "psnr", "ssim", "mean_absolute_error"])
        return Seen(scene, views, np.empty((0, rows, columns, 3)), nothing, table)
    found = [rendered(model, scene.picture_rays(int(view))) for view in views]
    pictures = torch.stack([colours for colours, _ in found]).view(-1, rows, columns, 3)
    entries = [
        _compared(int(view), picture, torch.from_numpy(scene.pictures[view]), lpips)
        for view, picture in zip(views, pictures, strict=True)
    ]
    depths = torch.stack([depth for _, depth in found]).view(-1, rows, columns).numpy()
    return Seen(scene, views, pictures.numpy(), depths, pd.DataFrame(entries))


def write_views(directory: Path, seen: Seen) -> None:
    """Write the table of views as ``views.csv``.

    Raises:
        ResourceError: If the disk is full.
    """
    text = seen.table.to_csv(index=False).encode()
    write_atomically(directory / TABLE, lambda stream: stream.write(text))


def write_turn(
    directory: Path, model: Volume, scene: Scene, *, num_frames: int = NUM_FRAMES
) -> Path:
    """Write a turn around the fitted scene as an animated GIF, ``turntable.gif``.

    The cameras go round at the median distance and height of those of the scene; of one that is
    seen from one side only, they sway in front of it.

    Args:
        directory: Of the run.
        model: What was fitted.
        scene: The scene.
        num_frames: Pictures of the turn.

    Raises:
        ResourceError: If the disk is full.
    """
    from PIL import Image

    moving = _around(scene, num_frames)
    frames = []
    for view in range(num_frames):
        colours, _ = rendered(model, moving.picture_rays(view))
        pixels = (colours.view(*scene.cameras.shape, 3) * 255).round().byte().numpy()
        frames.append(Image.fromarray(pixels))
    stream = io.BytesIO()
    frames[0].save(
        stream, format="GIF", save_all=True, append_images=frames[1:], duration=DURATION, loop=0
    )
    path = directory / TURN
    write_atomically(path, lambda file: file.write(stream.getvalue()))
    return path


@torch.no_grad()
def rendered(model: Volume, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Return colours [r, 3] in [0, 1] and mean depths [r] of rays [r, 10], on the CPU.

    The depth is NaN where more light passes than is absorbed.
    """
    like = next(model.parameters())
    colours, depths = [], []
    for part in rays.split(max(1, CHUNK // model.samples)):
        own = part.to(like)
        lengths, weights, behind, shades = model.along(own)
        seen = composited(weights, behind, shades, own)
        mean = (weights * lengths).sum(dim=1) / weights.sum(dim=1)
        colours.append(seen.cpu().double().clamp(0, 1))
        depths.append(torch.where(behind[:, 0] < 0.5, mean, math.nan).cpu().double())
    return torch.cat(colours), torch.cat(depths)


def radiance_of(run: Run) -> RadianceField:
    """Return the field at the last checkpoint.

    Raises:
        InputError: If it is a module of a user's own.
    """
    model = run.model(run.steps[-1])
    if not isinstance(model, RadianceField):
        raise InputError(f"run {run.path} must hold a radiance field, it holds a module of yours.")
    return model


def _compared(view: int, picture: Tensor, true: Tensor, lpips: LPIPS | None) -> dict[str, float]:
    wide = min(picture.shape[:2]) >= WINDOW
    found = {
        "view": view,
        "psnr": psnr(picture, true),
        "ssim": ssim(picture, true) if wide else math.nan,
        "mean_absolute_error": float((picture - true).abs().mean()),
    }
    if lpips is not None:
        found["lpips"] = lpips(picture, true) if is_wide(picture) else math.nan
    return found


def _around(scene: Scene, count: int) -> Scene:
    """Return the scene with cameras on a turn in place of its own; their pictures are not used."""
    cameras = scene.cameras
    turn = 2 * np.pi * np.arange(count) / count
    if scene.forward:
        reach = 0.6 * np.abs(cameras.places).max(axis=0)
        places = np.stack([np.sin(turn), np.cos(turn), np.zeros(count)], axis=1) * reach
        turned = np.broadcast_to(np.eye(3), (count, 3, 3))
        poses = np.concatenate([turned, places[:, :, None]], axis=2)
    else:
        distances = np.linalg.norm(cameras.places, axis=1)
        rise = math.degrees(math.asin(float(np.median(cameras.places[:, 2] / distances))))
        places = circle(count, elevation=rise) * float(np.median(distances))
        poses = looking_at(places, np.zeros(3), np.array([0.0, 0.0, 1.0]))
    return replace(scene, cameras=Cameras(poses, cameras.shape, cameras.focal))
