"""How well a field shows the frames of the video that it was fitted to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hessian_lab.probe.memory import require_bytes
from hessian_lab.signals.gif import gif_bytes
from hessian_lab.training.files import write_atomically
from hessian_lab.training.quality import CHUNK, psnr
from hessian_lab.training.run import Run

FITTED, TABLE = "fitted.gif", "video.csv"

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class FittedClip:
    """A fitted video.

    Attributes:
        original: [frames, rows, columns, 3] in 8 bits.
        fitted: The field's values there, likewise.
        error: Their difference, in shares of the largest value, mean over channels, single
            precision [frames, rows, columns].
        table: One row per frame: frame, second and psnr (dB).
    """

    original: Array
    fitted: Array
    error: Array
    table: pd.DataFrame


def is_video(run: Run) -> bool:
    """Tell whether a run was fitted to a video that it can be asked for by name or path."""
    # By what it holds: a folder of frames may be gone.
    return run.record["shape"] == [3, 3] and run.setup.rate is not None


def measure_video(run: Run) -> FittedClip:
    """Compare the field at the last checkpoint with its video, frame by frame.

    Writes ``video.csv`` and ``fitted.gif``, the video and the field side by side. One forward pass.

    Raises:
        InputError: If the video is no longer there, or the module was a user's own.
        ResourceError: If the pictures do not fit in memory, or the disk is full.
    """
    signal, model = run.signal(), run.model(run.steps[-1])
    assert signal.shape is not None
    require_bytes(
        signal.num_points * (9 * signal.values.element_size() + 40),
        f"The fitted clip of {signal.num_points} pixels",
        device=torch.device("cpu"),
        cure="Free some memory; the training is done.",
    )
    with torch.no_grad():
        fitted = torch.cat([model(part) for part in signal.coords.split(CHUNK)])
    size = signal.num_points // signal.shape[0]
    pairs = zip(fitted.split(size), signal.values.split(size), strict=True)
    rate, start = float(run.setup.rate or 1), float(run.setup.start or 0)
    rows = [
        {"frame": place, "second": start + place / rate, "psnr": psnr(*pair)}
        for place, pair in enumerate(pairs)
    ]
    error = (fitted - signal.values).abs().mean(dim=1).float().cpu().numpy()
    pictures = [
        values.nan_to_num().clamp(0, 1).mul(255).round().to(device="cpu", dtype=torch.uint8)
        for values in (signal.values, fitted)
    ]
    original, shown = (each.numpy().reshape(*signal.shape, 3) for each in pictures)
    found = FittedClip(original, shown, error.reshape(signal.shape), pd.DataFrame(rows))
    text = found.table.to_csv(index=False).encode()
    write_atomically(run.path / TABLE, lambda stream: stream.write(text))
    data = gif_bytes(np.concatenate([original, shown], axis=2), rate)
    write_atomically(run.path / FITTED, lambda stream: stream.write(data))
    return found


def video_paths(run: Run) -> tuple[Path, Path]:
    """Return where the table and the clip of a fitted video lie."""
    return run.path / TABLE, run.path / FITTED
