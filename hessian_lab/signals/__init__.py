"""Signals by name or path."""

from typing import TYPE_CHECKING

from hessian_lab.names import known, resolve

if TYPE_CHECKING:
    import torch

    from hessian_lab.signal import Signal

# name -> the loader, called with (name, size); resolved on use.
SIGNALS = {
    "camera": "hessian_lab.signals.bundled:load_bundled",
    "astronaut": "hessian_lab.signals.bundled:load_bundled",
    "chelsea": "hessian_lab.signals.bundled:load_bundled",
    "coffee": "hessian_lab.signals.bundled:load_bundled",
    "retina": "hessian_lab.signals.bundled:load_bundled",
    "sines": "hessian_lab.signals.sines:load_sines",
}


def is_path(name: str) -> bool:
    """Tell whether ``--signal NAME`` names a file: it has a '/', a '.' or a '~' in it."""
    return any(mark in name for mark in "/.~")


def load_signal(
    name: str,
    size: int | None = None,
    *,
    dtype: "torch.dtype | None" = None,
    device: "torch.device | str" = "cpu",
) -> "Signal":
    """Return a bundled signal by name, or an image file by path.

    Images are cropped to a centred square and resized with anti-aliasing; coordinates are (row,
    column) in [-1, 1], ends included, in row-major order; integer pixels become values in [0, 1].

    Args:
        name: camera, astronaut, chelsea, coffee, retina (images that scikit-image ships), sines
            (sin 2πx + sin 6πx), or the path of an image: whatever has a '/', '.' or '~' in it.
        size: Pixels per side, or points of ``sines``; by default the image's own size, or 256.
        dtype: Of coordinates and values; float64 by default.
        device: Where they live.

    Raises:
        ValueError: For an unknown name, with the nearest one, or a size below 2.
        InputError: For a file that is missing or no image.
    """
    import torch

    if size is not None and size < 2:
        raise ValueError(f"size must be at least 2, got {size}.")
    if is_path(name):
        from hessian_lab.signals.images import load_file

        signal = load_file(name, size)
    else:
        known("signal", name, SIGNALS)
        signal = resolve(SIGNALS[name])(name, size)
    return signal.to(dtype=dtype or torch.float64, device=device)  # type: ignore[no-any-return]
