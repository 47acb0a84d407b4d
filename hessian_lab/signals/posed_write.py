"""Scenes as folders in Blender's layout."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from hessian_lab.errors import UsageError
from hessian_lab.signals.posed_files import REACH, SPLITS
from hessian_lab.signals.scenes import Scene

# Cameras at this distance: what readers of such folders take for a box of half side 1.5.
DISTANCE = 1.5 / REACH


def write_scene(scene: Scene, folder: str | Path) -> list[Path]:
    """Write a scene as PNG pictures and ``transforms_*.json``, as NeRF's synthetic scenes are.

    Distances are scaled so that the median camera stands as far from the origin as theirs. Eight
    bits per colour.

    Args:
        scene: Pictures from all around.
        folder: New or empty.

    Returns:
        The files of transforms.

    Raises:
        UsageError: If the folder holds something, or the scene faces forward.
    """
    from PIL import Image

    place = Path(folder).expanduser()
    if scene.forward:
        raise UsageError("scene must be one from all around to be written, it faces forward.")
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise UsageError(f"folder must be new or empty, {place} is not.")
    cameras = scene.cameras
    scale = DISTANCE / float(np.median(np.linalg.norm(cameras.places, axis=1)))
    angle = 2 * math.atan(cameras.shape[1] / 2 / cameras.focal)
    written = []
    for name, chosen in zip(SPLITS, (~scene.held_out, scene.held_out), strict=True):
        split = name.removeprefix("transforms_").removesuffix(".json")
        (place / split).mkdir(parents=True, exist_ok=True)
        frames: list[dict[str, Any]] = []
        for number, view in enumerate(np.flatnonzero(chosen)):
            stream = io.BytesIO()
            pixels = (scene.pictures[view] * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(stream, format="PNG")
            (place / split / f"r_{number}.png").write_bytes(stream.getvalue())
            pose = np.vstack([cameras.poses[view] * [1, 1, 1, scale], [0, 0, 0, 1]])
            frames.append({"file_path": f"./{split}/r_{number}", "transform_matrix": pose.tolist()})
        text = json.dumps({"camera_angle_x": angle, "frames": frames}, indent=1)
        (place / name).write_text(text + "\n")
        written.append(place / name)
    return written
