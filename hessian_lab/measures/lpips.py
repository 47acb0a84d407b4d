"""LPIPS, how different two pictures look to people, with weights that the user supplies."""

import os
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.nn import functional

from hessian_lab.errors import InputError

# AlexNet's convolutions as torchvision names them: channels in and out, side of the kernel, stride
# and padding. The first two are followed by a pooling.
STAGES = {
    "features.0": (3, 64, 11, 4, 2),
    "features.3": (64, 192, 5, 1, 2),
    "features.6": (192, 384, 3, 1, 1),
    "features.8": (384, 256, 3, 1, 1),
    "features.10": (256, 256, 3, 1, 1),
}
NUM_POOLED = 2
# Of the mean and the deviation of ImageNet, for colours in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Where all features are 0, so that they stay 0.
TINY = 1e-10
# Of a smaller picture the last stage sees nothing.
LEAST = 31
MOST_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class LPIPS:
    """AlexNet's convolutions and the weights of their features, in float64.

    Attributes:
        convolutions: Weight [out, in, k, k] and bias [out] of each stage.
        heads: Weights [channels] of each stage's features.

    References:
        Zhang, Isola, Efros, Shechtman & Wang (2018), https://doi.org/10.1109/CVPR.2018.00068,
        version 0.1 of their code.
    """

    convolutions: list[tuple[Tensor, Tensor]]
    heads: list[Tensor]

    @torch.no_grad()
    def __call__(self, one: Tensor, other: Tensor) -> float:
        """Return the distance of two pictures [rows, columns, 3] in [0, 1]; 0 for equal ones.

        Raises:
            ValueError: If the shapes differ, or a side is shorter than 31 pixels.
        """
        if one.shape != other.shape or one.ndim != 3 or one.shape[2] != 3:
            raise ValueError(
                f"pictures must have one shape [rows, columns, 3], got {list(one.shape)} and "
                f"{list(other.shape)}."
            )
        if not is_wide(one):
            raise ValueError(
                f"pictures must have at least {LEAST} pixels a side, got {list(one.shape[:2])}."
            )
        distance = 0.0
        pairs = zip(self._features(one), self._features(other), self.heads, strict=True)
        for first, second, head in pairs:
            squares = (_unit(first) - _unit(second)).square()
            distance += float(torch.einsum("chw,c->hw", squares, head).mean())
        return distance

    def _features(self, picture: Tensor) -> list[Tensor]:
        """Return what the stages find [channels, rows, columns], after their rectifiers."""
        colours = 2 * picture.double().cpu() - 1
        scaled = (colours - colours.new_tensor(SHIFT)) / colours.new_tensor(SCALE)
        found, signal = [], scaled.movedim(2, 0).unsqueeze(0)
        stages = zip(self.convolutions, STAGES.values(), strict=True)
        for place, ((weight, bias), (*_, stride, padding)) in enumerate(stages):
            if 0 < place <= NUM_POOLED:
                signal = functional.max_pool2d(signal, 3, 2)
            signal = functional.conv2d(signal, weight, bias, stride, padding).relu()
            found.append(signal[0])
        return found


def is_wide(picture: Tensor) -> bool:
    """Tell whether a picture [rows, columns, 3] is large enough for all stages."""
    return min(picture.shape[:2]) >= LEAST


def load_lpips(backbone: str | Path, heads: str | Path) -> LPIPS:
    """Return LPIPS from two files of weights; code in them is not run.

    Args:
        backbone: The state of torchvision's AlexNet, of which the convolutions are taken.
        heads: The linear heads of LPIPS for it, version 0.1.

    Raises:
        InputError: If a file is missing, too large, or does not hold finite weights of these
            shapes.
    """
    network, linear = _read(Path(backbone)), _read(Path(heads))
    convolutions = []
    for name, (inner, outer, side, *_) in STAGES.items():
        weight = _entry(network, f"{name}.weight", (outer, inner, side, side), backbone)
        convolutions.append((weight, _entry(network, f"{name}.bias", (outer,), backbone)))
    weights = [
        _entry(linear, f"lin{place}.model.1.weight", (1, outer, 1, 1), heads).flatten()
        for place, (_, outer, *_) in enumerate(STAGES.values())
    ]
    return LPIPS(convolutions, weights)


def _read(path: Path) -> dict[str, Any]:
    path = _expanded(path)
    if path.exists() and not path.is_file():
        raise InputError(f"lpips-weights must be two files, {path} is none.")
    try:
        stream = path.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"lpips-weights must be two files, {path}: {reason}.") from error
    with stream:
        if _num_bytes(stream) > MOST_BYTES:
            raise InputError(
                f"lpips-weights must have at most {MOST_BYTES} bytes, {path} has more."
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:
            raise InputError(
                f"lpips-weights must be files of tensors that torch.save wrote, {path} cannot be "
                "read as one without running code of it."
            ) from error
    if not isinstance(state, dict):
        raise InputError(
            f"lpips-weights must hold tensors by name, {path} holds a {type(state).__name__}."
        )
    return state


def _num_bytes(stream: IO[bytes]) -> int:
    """Return the size of a file, or that of what is packed in it."""
    try:
        with zipfile.ZipFile(stream) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return size


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise InputError(f"lpips-weights must be two files, {path}: {error}.") from error


def _entry(state: dict[str, Any], name: str, shape: tuple[int, ...], path: str | Path) -> Tensor:
    found = state.get(name)
    if not isinstance(found, Tensor):
        raise InputError(
            f"lpips-weights must be AlexNet's features and the heads of LPIPS for it, {path} has "
            f"no tensor {name}."
        )
    plain = found.layout == torch.strided and found.is_floating_point() and not found.is_meta
    if not plain or tuple(found.shape) != shape:
        raise InputError(
            f"lpips-weights must be those of AlexNet, {name} of {path} must be real numbers of "
            f"shape {list(shape)}, got {found.dtype} of {list(found.shape)}."
        )
    weights = found.detach().double().contiguous()
    if not bool(weights.isfinite().all()):
        raise InputError(f"lpips-weights must be finite, {name} of {path} has NaN or Inf.")
    return weights


def _unit(features: Tensor) -> Tensor:
    """Return features [channels, rows, columns] of length 1 at every pixel."""
    lengths: Tensor = torch.linalg.vector_norm(features, dim=0, keepdim=True)
    return features / (lengths + TINY)
