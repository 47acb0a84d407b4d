"""What a field sounds like that was fitted to a sound, beside its trajectory."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hessian_lab.signals import kind_of
from hessian_lab.training.files import write_atomically
from hessian_lab.training.quality import CHUNK
from hessian_lab.training.run import Run

FITTED, ERROR = "fitted.wav", "error.wav"


def is_sound(run: Run) -> bool:
    """Tell whether a run was fitted to a sound that it can be asked for by name or path."""
    return kind_of(run.setup.signal) == "audio" and run.setup.rate is not None


def write_sounds(run: Run) -> list[Path]:
    """Write the field at the last checkpoint, and what it lacks, as ``fitted`` and ``error`` .wav.

    The error is field minus signal, as loud as it is. Both are 32-bit floating point, which neither
    clips what leaves full scale nor rounds small errors to steps of 16 bits. One forward pass.

    Raises:
        InputError: If the signal is no longer there, or the module was a user's own.
        ResourceError: If the disk is full; the former files are intact.
    """
    signal, model = run.signal(), run.model(run.steps[-1])
    with torch.no_grad():
        fitted = torch.cat([model(part) for part in signal.coords.split(CHUNK)])
    paths = [run.path / FITTED, run.path / ERROR]
    for path, values in zip(paths, (fitted, fitted - signal.values), strict=True):
        _write(path, run.setup.rate or 0, values[:, 0])
    return paths


def _write(path: Path, rate: int, samples: Tensor) -> None:
    from scipy.io import wavfile

    stream = io.BytesIO()
    wavfile.write(stream, rate, samples.cpu().numpy().astype(np.float32))
    write_atomically(path, lambda file: file.write(stream.getvalue()))
