"""The papers' 1-D signal."""

import hashlib
import math

import torch

from hessian_lab.signal import Signal, Source


def load_sines(name: str, size: int | None) -> Signal:
    """Return sin 2πx + sin 6πx on ``size`` (256) equally spaced points of [-1, 1]."""
    coords = torch.linspace(-1, 1, size or 256, dtype=torch.float64).unsqueeze(1)
    values = torch.sin(2 * math.pi * coords) + torch.sin(6 * math.pi * coords)
    formula = "sin 2πx + sin 6πx"
    digest = hashlib.sha256(formula.encode()).hexdigest()
    source = Source(name, f"{formula}, computed; SHA-256 of the formula", digest)
    return Signal(coords, values, shape=(len(coords),), source=source)
