"""The first bars of Bach's first cello suite, synthesised: a sound that needs no file."""

import hashlib
from functools import cache
from typing import Any

import numpy as np

from hessian_lab.signal import Signal, Source
from hessian_lab.signals.audio import Clip, Cut, signal_of

RATE = 44_100
# Semiquavers of bars 1 and 2; each bar is its figure twice. Semitones above A4.
PITCHES = {"G2": -26, "D3": -19, "E3": -17, "A3": -12, "B3": -10, "C4": -9}
BARS = (
    ("G2", "D3", "B3", "A3", "B3", "D3", "B3", "D3"),
    ("G2", "E3", "C4", "B3", "C4", "E3", "C4", "E3"),
)
NOTES = tuple(note for bar in BARS for note in bar * 2)
# Crotchets at 66 per minute.
SECONDS_PER_NOTE = 60 / 66 / 4
# How long a string sounds on under the next notes, s.
RINGING = 0.6
ATTACK = 0.02
# Amplitudes fall as h^-1.2 with the harmonic h, and in time at 3 + 0.8 h per second.
SLOPE, DECAY, DAMPING = 1.2, 3.0, 0.8
HIGHEST = 8_000.0
PEAK = 0.9
ATTRIBUTION = (
    "J. S. Bach, Suite no. 1 for cello, BWV 1007, prelude, bars 1-2 (public domain), synthesised "
    "by hessian-lab: no recording"
)

Array = np.ndarray[Any, np.dtype[Any]]


def load_cello(
    name: str, start: float | None = None, seconds: float | None = None, rate: int | None = None
) -> Signal:
    """Return a clip of 32 semiquavers by additive synthesis, 7.9 s at 44.1 kHz and 16 bits.

    Raises:
        InputError: If the clip begins after the end.
    """
    samples, cut = synthesised(), Cut(start, seconds, rate)
    begin, first, last, end = cut.places(len(samples), RATE, name)
    scaled = samples[begin:end, None].astype(np.float64) / 2**15
    digest = hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()
    clip = Clip(scaled, RATE, first - begin, last - first)
    return signal_of(clip, cut, Source(name, ATTRIBUTION, digest))


@cache
def synthesised() -> Array:
    """Return the samples as 16-bit integers: whole numbers, the same on every machine."""
    step = round(SECONDS_PER_NOTE * RATE)
    tones = {note: _tone(440 * 2 ** (semitones / 12)) for note, semitones in PITCHES.items()}
    length = len(next(iter(tones.values())))
    sound = np.zeros(step * (len(NOTES) - 1) + length)
    for place, note in enumerate(NOTES):
        sound[place * step : place * step + length] += tones[note]
    samples: Array = np.rint(sound * (PEAK * 2**15 / np.abs(sound).max())).astype(np.int16)
    return samples


def _tone(frequency: float) -> Array:
    """Return a plucked string: harmonics that die away, the higher the faster."""
    time = np.arange(round((SECONDS_PER_NOTE + RINGING) * RATE)) / RATE
    tone = np.zeros_like(time)
    for harmonic in range(1, int(HIGHEST / frequency) + 1):
        envelope = harmonic**-SLOPE * np.exp(-(DECAY + DAMPING * harmonic) * time)
        tone += envelope * np.sin(2 * np.pi * frequency * harmonic * time)
    # Neither beginning nor end of a note is a click.
    rise = np.minimum(time / ATTACK, 1)
    fall = np.minimum((time[-1] - time) / ATTACK, 1)
    tone *= np.sin(np.pi / 2 * rise) ** 2 * np.sin(np.pi / 2 * fall) ** 2
    return tone
