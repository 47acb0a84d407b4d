"""Positional encodings of coordinates."""

import math

import torch
from torch import Tensor


def encode(coords: Tensor, octaves: int) -> Tensor:
    """Return [x, sin(2ˡ π x), cos(2ˡ π x)], l = 0 … L-1, of coordinates [p, d]: [p, d + 2 d L].

    Octave by octave, sines before cosines. ``octaves = 0`` returns the coordinates themselves.

    References:
        Mildenhall et al. (2020), https://arxiv.org/abs/2003.08934, Eq. 4.
    """
    if octaves == 0:
        return coords
    waves = [coords]
    for octave in range(octaves):
        phase = 2.0**octave * math.pi * coords
        waves += [torch.sin(phase), torch.cos(phase)]
    return torch.cat(waves, dim=-1)
