"""Signals by name or path."""

from typing import TYPE_CHECKING, Any, NamedTuple

from hessian_lab.names import known, resolve
from hessian_lab.signals.kinds import KINDS, check_options, is_path, kind_of_path

if TYPE_CHECKING:
    import torch

    from hessian_lab.signal import Signal

__all__ = ["SIGNALS", "Named", "is_path", "kind_of", "load_signal"]


class Named(NamedTuple):
    """A signal that has a name: its kind, and its loader, which is resolved on use."""

    kind: str
    loader: str


SIGNALS = {
    "camera": Named("image", "hessian_lab.signals.bundled:load_bundled"),
    "astronaut": Named("image", "hessian_lab.signals.bundled:load_bundled"),
    "chelsea": Named("image", "hessian_lab.signals.bundled:load_bundled"),
    "coffee": Named("image", "hessian_lab.signals.bundled:load_bundled"),
    "retina": Named("image", "hessian_lab.signals.bundled:load_bundled"),
    "albert": Named("image", "hessian_lab.signals.bundled:load_bundled"),
    "mandelbrot": Named("image", "hessian_lab.signals.tiles:load_mandelbrot"),
    "sines": Named("line", "hessian_lab.signals.sines:load_sines"),
    "bwv1007": Named("audio", "hessian_lab.signals.cello:load_cello"),
    "brahms": Named("audio", "hessian_lab.signals.audio:load_registered"),
    "terrain": Named("shape", "hessian_lab.signals.shapes:load_shape"),
    "spot": Named("shape", "hessian_lab.signals.shapes:load_shape"),
    "nefertiti": Named("shape", "hessian_lab.signals.shapes:load_shape"),
    "torus-nerf": Named("radiance", "hessian_lab.signals.radiance:load_radiance"),
    "spot-nerf": Named("radiance", "hessian_lab.signals.radiance:load_radiance"),
    "nefertiti-nerf": Named("radiance", "hessian_lab.signals.radiance:load_radiance"),
    "kenburns": Named("video", "hessian_lab.signals.kenburns:load_kenburns"),
    "bigbuckbunny": Named("video", "hessian_lab.signals.video:load_registered"),
}


def kind_of(name: str) -> str:
    """Return the kind of a signal by its name or path: a key of ``KINDS``.

    Raises:
        ValueError: For an unknown name, with the nearest one.
    """
    return kind_of_path(name) if is_path(name) else SIGNALS[known("signal", name, SIGNALS)].kind


def load_signal(
    name: str,
    size: int | None = None,
    *,
    dtype: "torch.dtype | None" = None,
    device: "torch.device | str" = "cpu",
    **options: Any,
) -> "Signal":
    """Return a signal by its name, or that of a file by its path.

    Images are cropped to a centred square and resized with anti-aliasing; coordinates are (row,
    column) in [-1, 1], ends included, in row-major order; integer pixels become values in [0, 1].
    Sounds are averaged over their channels and resampled with anti-aliasing; time goes from -1 to
    1, ends included, and full scale from -1 to 1. Of a solid, points are drawn in the box [-1, 1]³,
    two thirds of them near its surface; values are 1 inside and 0 outside, to be fitted by logits.
    Of a scene, rays are drawn through its pictures; coordinates [r, 10] are rays, as
    ``RadianceField`` takes them, and values their colours.
    Videos are sampled in time and resized whole; coordinates are (t, y, x) in [-1, 1], values RGB.

    Args:
        name: camera, astronaut, chelsea, coffee, retina (images that scikit-image ships), albert
            (a photograph of 14 megapixels), mandelbrot (an image of any size), sines (sin 2πx +
            sin 6πx), bwv1007 (bars of Bach, synthesised), brahms (a recording), terrain (the solid
            under a landscape), spot, nefertiti (meshes), kenburns (a camera moved over a
            photograph), bigbuckbunny (a film), or the path of an image, a sound, a mesh, a video
            or a folder of its frames: whatever has a '/', '.' or '~' in it. albert, brahms, spot,
            nefertiti and bigbuckbunny need ``hessian-lab data get`` once.
        size: Pixels per side, points of ``sines`` or rows of a video; by default the own size of
            image or video, or 256.
        dtype: Of coordinates and values; float64 by default.
        device: Where they live.
        options: Of a sound or video: ``start`` and ``seconds`` of the clip, by default all of it,
            and its ``rate`` in samples or frames per second, by default its own. Of a solid: how
            many ``points``.

    Raises:
        ValueError: For an unknown name, with the nearest one, an option that signals of its kind
            do not have, or one out of range.
        InputError: For a file that is missing, or is not what its name says.
    """
    import torch

    kind = KINDS[kind_of(name)]
    given = {"size": size, **options}
    foreign = [key for key, value in given.items() if value is not None and key not in kind.options]
    if foreign:
        raise ValueError(
            f"signal {name} must be asked for {', '.join(kind.options)} alone, it has no "
            f"{foreign[0]}."
        )
    check_options(given)
    loader = kind.loader if is_path(name) else SIGNALS[name].loader
    told = {key: given.get(key) for key in kind.of_signal}
    signal = resolve(str(loader))(name, **told)
    return signal.to(dtype=dtype or torch.float64, device=device)  # type: ignore[no-any-return]
