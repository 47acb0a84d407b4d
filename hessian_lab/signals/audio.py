"""Sounds as signals: reading, cutting, resampling."""

import hashlib
import io
import math
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hessian_lab.errors import InputError
from hessian_lab.probe.memory import require_bytes
from hessian_lab.signal import Signal, Source
from hessian_lab.signals.kinds import RANGES
from hessian_lab.signals.registry import located

CPU = torch.device("cpu")
CURE = "Take a shorter clip (--seconds) or a lower --rate."
# Half the length of the filter that resamples, in samples of the lower of the two rates.
HALF_FILTER = 10

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Clip:
    """Consecutive samples of a sound, and how many of them are context alone.

    Attributes:
        samples: [samples, channels], full scale from -1 to 1.
        rate: Samples per second.
        before: Samples before the clip, which the filter of the resampling looks at.
        length: Samples of the clip; what follows is context again.
    """

    samples: Array
    rate: int
    before: int
    length: int


@dataclass(frozen=True)
class Cut:
    """Which part of a sound is wanted, at which rate; None is all of it, at its own."""

    start: float | None = None
    seconds: float | None = None
    rate: int | None = None

    def ratio(self, own: int) -> tuple[int, int]:
        """Return the new rate over a sound's own, in lowest terms."""
        rate = own if self.rate is None else self.rate
        common = math.gcd(rate, own)
        return rate // common, own // common

    def places(self, num_samples: int, own: int, what: str) -> tuple[int, int, int, int]:
        """Return where context, clip, and context again begin, and where that ends.

        Raises:
            InputError: If there is nothing to cut from, or the sound ends before the clip begins.
        """
        first = round((self.start or 0.0) * own)
        if first >= num_samples:
            raise InputError(
                f"signal must be a sound that is longer than its start, {what} has "
                f"{num_samples / own:.4g} s, start is {self.start or 0:g} s."
            )
        last = num_samples
        if self.seconds is not None and first + self.seconds * own < num_samples:
            last = first + max(1, round(self.seconds * own))
        up, down = self.ratio(own)
        if up == down:
            return first, first, last, last
        context = math.ceil(HALF_FILTER * max(up, down) / up)
        # Whole steps of both rates, so that the clip begins where one of the new samples is.
        before = min(math.ceil(context / down), first // down) * down
        return first - before, first, last, min(last + context, num_samples)


def load_file(
    path: str | Path,
    start: float | None = None,
    seconds: float | None = None,
    rate: int | None = None,
    *,
    name: str | None = None,
    attribution: str = "",
) -> Signal:
    """Return a sound file as a signal: time from -1 to 1, the mean of its channels.

    Integers are a share of full scale, and lie in [-1, 1); floating point is taken as it is. WAV
    files are read by SciPy; FLAC, Ogg and MP3 need soundfile, the extra ``audio``.

    Args:
        path: The file.
        start: Second at which the clip begins; by default 0.
        seconds: Length of the clip, which ends where the sound does; by default all that follows.
        rate: Samples per second to resample to; by default the sound's own.
        name: What the record calls it; by default the name of the file.
        attribution: What the record says of it.

    Raises:
        InputError: If the file is missing, empty, truncated, no sound, or has NaN or Inf in it, or
            if it ends before the clip begins.
        ResourceError: If it does not fit in memory.
    """
    path = _expanded(path)
    cut = Cut(start, seconds, rate)
    clip = _wav(path, cut) if path.suffix.lower() == ".wav" else _encoded(path, cut)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    source = Source(name or path.name, attribution or f"file {path.name}", digest)
    return signal_of(clip, cut, source)


def load_registered(
    name: str, start: float | None = None, seconds: float | None = None, rate: int | None = None
) -> Signal:
    """Return a sound of the data registry, which must have been downloaded."""
    entry, path = located(name)
    return load_file(path, start, seconds, rate, name=name, attribution=entry.credit)


def signal_of(clip: Clip, cut: Cut, source: Source) -> Signal:
    """Return a clip as a signal at the rate that is wanted.

    Raises:
        InputError: If it has NaN or Inf in it, or fewer than 2 samples.
        ResourceError: If it does not fit in memory.
    """
    if not np.isfinite(clip.samples).all():
        raise InputError(f"signal must have finite samples, {source.name} has NaN or Inf.")
    mono = _resampled(clip.samples.mean(axis=1), *cut.ratio(clip.rate), clip, source.name)
    if len(mono) < 2:
        raise InputError(
            f"signal must have at least 2 samples, the clip of {source.name} has {len(mono)}."
        )
    coords = torch.linspace(-1, 1, len(mono), dtype=torch.float64).unsqueeze(1)
    values = torch.from_numpy(np.ascontiguousarray(mono)).unsqueeze(1)
    return Signal(coords, values, shape=(len(mono),), source=source)


def _resampled(mono: Array, up: int, down: int, clip: Clip, name: str) -> Array:
    """Return the clip alone at ``up / down`` times its rate, without aliases."""
    if up == down:
        return mono[clip.before : clip.before + clip.length]
    from scipy.signal import resample_poly

    taps = 2 * HALF_FILTER * max(up, down)
    require_bytes(
        8 * (3 * taps + 3 * (len(mono) * up // down + 1)),
        f"The resampled clip of {name}",
        device=CPU,
        cure=CURE,
    )
    whole: Array = resample_poly(mono, up, down)
    first = clip.before * up // down
    return whole[first : first + max(1, round(clip.length * up / down))]


def _expanded(path: str | Path) -> Path:
    """Return a path to a file that is there and not empty."""
    try:
        found = Path(path).expanduser()
        size = found.stat().st_size
        found.open("rb").close()
    except FileNotFoundError:
        raise InputError(f"signal must be a sound file, {path} does not exist.") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"signal must be a readable sound file, {path}: {reason}.") from None
    if not size:
        raise InputError(f"signal must be a sound file, {path} is empty.")
    return found


def _wav(path: Path, cut: Cut) -> Clip:
    """Return what SciPy reads of a WAV file, no more than the file itself holds."""
    from scipy.io import wavfile

    require_bytes(2 * path.stat().st_size, f"The sound {path}", device=CPU, cure="Cut the file.")
    data = path.read_bytes()
    try:
        _require_whole(data)
        with warnings.catch_warnings():
            # What chunks it skips concerns nobody; what is missing was found above.
            warnings.simplefilter("ignore")
            rate, samples = wavfile.read(io.BytesIO(data))
    except Exception as error:
        raise InputError(
            f"signal must be a sound file, {path} cannot be read as WAV: {_told(error)}."
        ) from error
    samples = samples[:, None] if samples.ndim == 1 else samples
    _require_sound(rate, len(samples), samples.shape[1], path)
    begin, first, last, end = cut.places(len(samples), rate, str(path))
    _require_room(end - begin, samples.shape[1], path)
    return Clip(_scaled(samples[begin:end]), int(rate), first - begin, last - first)


def _require_whole(data: bytes) -> None:
    """Check that the samples that the header promises are there.

    Raises:
        ValueError: If not.
    """
    order = ">" if data[:4] == b"RIFX" else "<"
    long = 0
    for name, place, size in _chunks(data, order):
        if name == b"ds64" and place + 16 <= len(data):
            (long,) = struct.unpack_from("<Q", data, place + 8)
        if name == b"data":
            promised = long if data[:4] == b"RF64" else size
            if promised > len(data) - place:
                raise ValueError(
                    f"its header promises {promised} bytes of samples, "
                    f"{len(data) - place} are there"
                )
            return


def _chunks(data: bytes, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, place and promised size of the chunks of a RIFF file."""
    place = 12
    while place + 8 <= len(data):
        name, size = struct.unpack_from(f"{order}4sI", data, place)
        yield name, place + 8, size
        place += 8 + size + size % 2


def _encoded(path: Path, cut: Cut) -> Clip:
    """Return the clip of a FLAC, Ogg or MP3 file; the rest of it is not decoded at once."""
    try:
        import soundfile
    except (ImportError, OSError):
        raise InputError(
            f"signal {path} needs soundfile to be read: pip install 'hessian-lab[audio]'. "
            "WAV files need nothing."
        ) from None
    try:
        with soundfile.SoundFile(path) as file:
            rate, length, channels = file.samplerate, file.frames, file.channels
            _require_sound(rate, length, channels, path)
            begin, first, last, end = cut.places(length, rate, str(path))
            _require_room(end - begin, channels, path)
            file.seek(begin)
            samples = file.read(end - begin, dtype="float64", always_2d=True)
    except soundfile.SoundFileError as error:
        raise InputError(
            f"signal must be a sound file, {path} cannot be read as one: {_told(error)}."
        ) from error
    if len(samples) != end - begin:
        raise InputError(
            f"signal must be a whole sound file, {path} ends after {begin + len(samples)} of "
            f"{length} samples."
        )
    return Clip(samples, rate, first - begin, last - first)


def _require_sound(rate: int, length: int, channels: int, path: Path) -> None:
    least, most = RANGES["rate"]
    if not least <= rate <= most:
        raise InputError(
            f"signal must have {least:g} to {most:g} samples per second, {path} states {rate}."
        )
    if not length or not channels:
        raise InputError(
            f"signal must be a sound of some length, {path} has {length} samples of {channels} "
            "channels."
        )


def _require_room(length: int, channels: int, path: Path) -> None:
    require_bytes(8 * length * (2 * channels + 4), f"The clip of {path}", device=CPU, cure=CURE)


def _scaled(samples: Array) -> Array:
    """Return samples in float64; integers as a share of full scale."""
    if np.issubdtype(samples.dtype, np.floating):
        return samples.astype(np.float64)
    # 8 bits are unsigned, and 24 bits come as the upper ones of 32.
    middle = 128 if samples.dtype == np.uint8 else 0
    scaled: Array = (samples.astype(np.float64) - middle) / 2 ** (8 * samples.dtype.itemsize - 1)
    return scaled


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
