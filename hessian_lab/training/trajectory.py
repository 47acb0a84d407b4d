"""The parameters of every checkpoint, one row each, in a plain ``.npy`` file."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_lab.errors import InputError
from hessian_lab.training.files import room_for

NAME = "trajectory.npy"


class TrajectoryWriter:
    """Writes rows into a file [rows, n] that was allocated whole.

    Rows are written with plain writes, not through a memory map: a full disk is then an error
    instead of a killed process.
    """

    def __init__(self, directory: Path, rows: int, size: int, dtype: torch.dtype) -> None:
        self.path = directory / NAME
        self.dtype = np.dtype(str(dtype).removeprefix("torch."))
        self.shape = (rows, size)
        if not self._matches():
            self._allocate()
        self.offset = self.path.stat().st_size - rows * size * self.dtype.itemsize
        self.stream = self.path.open("r+b")

    def _matches(self) -> bool:
        try:
            kept = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return False
        return bool(kept.shape == self.shape and kept.dtype == self.dtype)

    def _allocate(self) -> None:
        num_bytes = self.shape[0] * self.shape[1] * self.dtype.itemsize
        header: dict[str, Any] = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": self.shape,
        }
        with room_for(self.path), self.path.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            stream.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), stream.tell(), num_bytes)
            os.ftruncate(stream.fileno(), stream.tell() + num_bytes)

    def write(self, row: int, parameters: Tensor) -> None:
        """Write one row from a vector [n]; the kernel has it when this returns."""
        data = np.ascontiguousarray(parameters.cpu().numpy(), dtype=self.dtype)
        with room_for(self.path):
            self.stream.seek(self.offset + row * data.nbytes)
            self.stream.write(data.tobytes())
            self.stream.flush()

    def close(self) -> None:
        """Close the file."""
        self.stream.close()


def read_trajectory(directory: Path, count: int) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the first ``count`` rows, memory-mapped.

    Raises:
        InputError: If the file is missing, truncated or has fewer rows.
    """
    path = directory / NAME
    try:
        rows: np.ndarray[Any, np.dtype[Any]] = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise InputError(f"run must have a trajectory, {path} is missing.") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"run must have a readable trajectory, {path}: {error}.") from error
    if rows.ndim != 2 or len(rows) < count:
        raise InputError(
            f"run must have {count} rows of parameters, {path} has {list(rows.shape)}."
        )
    return rows[:count]
