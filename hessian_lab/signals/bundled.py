"""Images by name: those that scikit-image ships in its wheel, and registered ones."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import skimage

from hessian_lab.errors import InputError
from hessian_lab.signal import Signal
from hessian_lab.signals.images import load_file
from hessian_lab.signals.registry import located

# name -> (file, attribution), as scikit-image states it.
FILES = {
    "camera": ("camera.png", "Cameraman by Lav Varshney, CC0, from scikit-image"),
    "astronaut": ("astronaut.png", "Eileen Collins by NASA, public domain, from scikit-image"),
    "chelsea": ("chelsea.png", "Chelsea the cat by Stefan van der Walt, CC0, from scikit-image"),
    "coffee": ("coffee.png", "Coffee by Rachel Michetti, CC0, from scikit-image"),
    "retina": ("retina.jpg", "Retina by Mikael Häggström, CC0, from scikit-image"),
}

# Images up to this many pixels a side are kept, some megabytes in all.
LARGEST_KEPT = 256


def load_bundled(name: str, size: int | None) -> Signal:
    """Return an image of scikit-image's, or one of the data registry."""
    path, attribution = image_file(name)
    if size is None or size > LARGEST_KEPT:
        return load_file(path, size, name=name, attribution=attribution)
    kept = _kept(path, size, name, attribution, path.stat().st_mtime_ns)
    # Whoever asks may write into their own.
    return replace(kept, coords=kept.coords.clone(), values=kept.values.clone())


@lru_cache(maxsize=8)
def _kept(path: Path, size: int, name: str, attribution: str, _changed_ns: int) -> Signal:
    """Return an image that many trainings of a process ask for: shrinking it is slow."""
    return load_file(path, size, name=name, attribution=attribution)


def image_file(name: str) -> tuple[Path, str]:
    """Return where the file of a named image lies, and whose it is.

    Raises:
        ValueError: For a name that neither scikit-image nor the registry has.
        InputError: If scikit-image was installed without it, or it must be downloaded first.
    """
    if name not in FILES:
        entry, path = located(name)
        return path, entry.credit
    file, attribution = FILES[name]
    path = Path(skimage.__file__).parent / "data" / file
    if not path.exists():
        raise InputError(
            f"signal {name} must be in scikit-image's data folder, {path} is missing. "
            "Reinstall it with: pip install --force-reinstall scikit-image"
        )
    return path, attribution
