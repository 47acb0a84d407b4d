"""Sounds: what is read of a file, how it is cut and resampled, what is refused."""

import io
import math
import re
import struct
import wave

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from hessian_lab.errors import InputError, ResourceError
from hessian_lab.signals import audio, kind_of, load_signal
from hessian_lab.signals.cello import NOTES, RATE, SECONDS_PER_NOTE, synthesised

# Frequencies from MIDI numbers: G2 43, D3 50, E3 52, A3 57, B3 59, C4 60.
MIDI = {"G2": 43, "D3": 50, "E3": 52, "A3": 57, "B3": 59, "C4": 60}


def saved(path, samples, rate=8000):
    wavfile.write(path, rate, samples)
    return str(path)


def values(name, **options):
    return load_signal(name, **options).values[:, 0].numpy()


def tone(frequency, rate, seconds=1.0, phase=0.3):
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate + phase)


def noise(length, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, length)


# Reading.


@pytest.mark.parametrize(
    ("dtype", "levels", "expected"),
    [
        (np.uint8, [0, 128, 255], [-1, 0, 127 / 128]),
        (np.int16, [-(2**15), 0, 2**15 - 1], [-1, 0, 1 - 2.0**-15]),
        (np.int32, [-(2**31), 1, 2**31 - 1], [-1, 2.0**-31, 1 - 2.0**-31]),
        (np.float32, [-1.5, 0, 0.25], [-1.5, 0, 0.25]),
        (np.float64, [-1.5, 1e-12, 0.25], [-1.5, 1e-12, 0.25]),
    ],
)
def test_samples_are_a_share_of_full_scale(dtype, levels, expected, tmp_path):
    path = saved(tmp_path / "a.wav", np.array(levels, dtype))
    assert values(path).tolist() == expected


def test_24_bits_are_a_share_of_full_scale(tmp_path):
    levels = [-(2**23), 1, 2**23 - 1]
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 3, 8000, 0, "NONE", ""))
        file.writeframes(b"".join(level.to_bytes(3, "little", signed=True) for level in levels))
    assert values(str(tmp_path / "a.wav")).tolist() == [level / 2**23 for level in levels]


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([noise(50), noise(50, 1)], axis=1)
    path = saved(tmp_path / "a.wav", stereo)
    assert np.array_equal(values(path), (stereo[:, 0] + stereo[:, 1]) / 2)


def test_time_goes_from_minus_one_to_one(tmp_path):
    signal = load_signal(saved(tmp_path / "a.WAV", noise(5)), dtype=torch.float32)
    assert signal.coords[:, 0].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert signal.coords.dtype == torch.float32
    assert signal.shape == (5,)
    assert signal.source.name == "a.WAV"


def test_chunks_that_say_something_else_are_skipped(tmp_path):
    samples = noise(40).astype(np.float32)
    data = (tmp_path / "a.wav").with_suffix(".plain")
    wavfile.write(data, 8000, samples)
    data = data.read_bytes()
    place = data.index(b"data")
    other = b"LIST" + struct.pack("<I", 5) + b"hello\0"
    (tmp_path / "a.wav").write_bytes(data[:place] + other + data[place:])
    assert np.array_equal(values(str(tmp_path / "a.wav")), samples)


# Cutting and resampling.


def test_a_clip_is_a_part_of_the_whole(tmp_path):
    samples = noise(1000)
    path = saved(tmp_path / "a.wav", samples, rate=100)
    assert np.array_equal(values(path), samples)
    assert np.array_equal(values(path, start=2.5), samples[250:])
    assert np.array_equal(values(path, start=2.5, seconds=1.0), samples[250:350])
    assert np.array_equal(values(path, start=9.5, seconds=5.0, rate=100), samples[950:])
    assert len(values(path, seconds=1e300)) == 1000


@pytest.mark.parametrize(("old", "new"), [(44_100, 8000), (8000, 44_100), (8000, 7919), (100, 50)])
def test_resampling_keeps_a_tone_below_both_ends(old, new, tmp_path):
    frequency = 0.2 * min(old, new)
    path = saved(tmp_path / "a.wav", tone(frequency, old), rate=old)
    found, expected = values(path, rate=new), tone(frequency, new)
    assert len(found) == new
    inside = slice(new // 4, -new // 4)
    assert np.abs(found - expected)[inside].max() < 2e-3


def test_resampling_takes_away_what_would_be_an_alias(tmp_path):
    path = saved(tmp_path / "a.wav", tone(3000, 8000), rate=8000)
    assert np.abs(values(path, rate=4000)[200:-200]).max() < 2e-3
    # Every second sample, without a filter, is a loud tone of 1000 Hz.
    assert np.abs(values(path)[::2]).max() > 0.9


@pytest.mark.parametrize(("old", "new"), [(44_100, 8000), (8000, 22_050), (300, 200)])
@pytest.mark.parametrize("start", [0.0, 0.31, 0.7])
def test_a_resampled_clip_is_a_part_of_the_resampled_whole(old, new, start, tmp_path):
    path = saved(tmp_path / "a.wav", noise(2 * old), rate=old)
    start = round(start * 100) / 100
    whole = values(path, rate=new)
    found = values(path, start=start, seconds=0.5, rate=new)
    first = round(start * new)
    # Where the clip begins between two of the whole's samples, it has samples of its own.
    if start * old * new / math.gcd(old, new) % (old / math.gcd(old, new)) == 0:
        assert np.allclose(found, whole[first : first + len(found)], rtol=0, atol=1e-12)
    assert len(found) == round(0.5 * new)


def test_the_start_of_a_clip_between_samples_is_where_it_says(tmp_path):
    old, new, frequency = 44_100, 8000, 440.0
    path = saved(tmp_path / "a.wav", tone(frequency, old, 2.0, phase=0.0), rate=old)
    found = values(path, start=0.7001, seconds=0.5, rate=new)
    first = round(0.7001 * old) / old
    expected = np.sin(2 * np.pi * frequency * (first + np.arange(len(found)) / new))
    assert np.abs(found - expected).max() < 2e-3


# The cello.


def test_the_cello_plays_its_notes():
    sound = synthesised() / 2.0**15
    assert NOTES[:8] == ("G2", "D3", "B3", "A3", "B3", "D3", "B3", "D3")
    assert NOTES[16:24] == ("G2", "E3", "C4", "B3", "C4", "E3", "C4", "E3")
    assert len(NOTES) == 32
    length, former = 2**19, {}
    frequencies = np.fft.rfftfreq(length, 1 / RATE)
    for place, note in enumerate(NOTES):
        start, end = (round((place + more) * SECONDS_PER_NOTE * RATE) for more in (0, 1))
        part = sound[start:end]
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), length))
        heights = {
            name: spectrum[np.abs(frequencies - 440 * 2 ** ((midi - 69) / 12)) < 3].max()
            for name, midi in MIDI.items()
        }
        # Of the six pitches, that which is loud and did not ring on from the note before.
        risen = {name: heights[name] - 0.5 * former.get(name, 0) for name in MIDI}
        assert max(risen, key=risen.__getitem__) == note, place
        former = heights


def test_the_cello_is_the_same_every_time_and_within_full_scale():
    signal = load_signal("bwv1007")
    assert signal.num_points == len(synthesised())
    assert float(signal.values.abs().max()) == pytest.approx(0.9, abs=1e-4)
    assert (signal.values * 2**15 % 1 == 0).all()
    assert "no recording" in signal.source.attribution
    assert load_signal("bwv1007", seconds=0.1).source == signal.source
    assert np.array_equal(values("bwv1007", start=1.0, seconds=0.5), values("bwv1007")[44100:66150])


# Other formats.


def test_other_formats_by_soundfile(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="needs the extra audio")
    samples = np.round(noise(3000) * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", np.stack([samples, samples], axis=1), 8000)
    found = values(str(tmp_path / "a.flac"), start=0.1, seconds=0.2)
    assert np.array_equal(found, samples[800:2400] / 2**15)


def test_other_formats_refused_where_they_are_damaged(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="needs the extra audio")
    soundfile.write(tmp_path / "a.flac", noise(30_000), 8000)
    whole = (tmp_path / "a.flac").read_bytes()
    for text, data in (("cannot be read as one", b"no sound"), ("signal must be", whole[:20_000])):
        (tmp_path / "b.flac").write_bytes(data)
        with pytest.raises(InputError, match=text):
            load_signal(str(tmp_path / "b.flac"))


def test_other_formats_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    (tmp_path / "a.mp3").write_bytes(b"ID3")
    with pytest.raises(InputError, match=r"pip install 'hessian-lab\[audio\]'\. WAV files"):
        load_signal(str(tmp_path / "a.mp3"))


# Refusals.


@pytest.mark.parametrize("ending", ["wav", "flac", "OGG", "mp3"])
def test_a_file_is_a_sound_by_its_ending(ending):
    assert kind_of(f"./song.{ending}") == "audio"
    assert kind_of("./song.wav/picture") == "image"
    with pytest.raises(InputError, match=r"must be a sound file, \./song\.\w+ does not exist"):
        load_signal(f"./song.{ending}")


def test_refuses_empty_files_and_directories(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(InputError, match=r"a\.wav is empty"):
        load_signal(str(tmp_path / "a.wav"))
    (tmp_path / "b.wav").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        load_signal(str(tmp_path / "b.wav"))
    with pytest.raises(InputError, match="must be a readable sound file"):
        load_signal("~nobody-of-this-name/a.wav")


@pytest.mark.parametrize("data", [b"RIFF", b"not a sound", b"RIFF\4\0\0\0WAVE", b"\0" * 64])
def test_refuses_what_is_no_sound(data, tmp_path):
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.wav cannot be read as WAV: .+\."):
        load_signal(str(tmp_path / "a.wav"))


@pytest.mark.parametrize("cut", [1, 100, 2000])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_refuses_a_truncated_sound(cut, dtype, tmp_path):
    path = tmp_path / "a.wav"
    saved(path, (100 * noise(1000)).astype(dtype))
    path.write_bytes(path.read_bytes()[:-cut])
    message = rf"promises {1000 * np.dtype(dtype).itemsize} bytes of samples, \d+ are there"
    with pytest.raises(InputError, match=message):
        load_signal(str(path))


def header(*, channels=1, rate=8000, bits=16, form=1, data=b"\0" * 64, promised=None):
    """Return a WAV file whose header says what one likes."""
    align = channels * bits // 8 & 0xFFFF
    fields = (form, channels, rate, rate * align & 0xFFFFFFFF, align, bits)
    chunk = b"fmt " + struct.pack("<IHHIIHH", 16, *fields)
    size = len(data) if promised is None else promised
    chunk += b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunk) & 0xFFFFFFFF) + b"WAVE" + chunk


def test_a_header_of_ones_own_is_read(tmp_path):
    (tmp_path / "a.wav").write_bytes(header(data=struct.pack("<3h", 1, 2, -3)))
    assert (values(str(tmp_path / "a.wav")) * 2**15).tolist() == [1, 2, -3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0}, "1 to 1e+06 samples per second, .* states 0"),
        ({"rate": 2_000_000_000}, "states 2000000000"),
        ({"channels": 0}, "cannot be read as WAV"),
        ({"channels": 65_535}, "cannot be read as WAV"),
        ({"bits": 0}, "cannot be read as WAV"),
        ({"bits": 7}, "cannot be read as WAV"),
        ({"form": 85}, "cannot be read as WAV: .*MPEGLAYER3"),
        ({"data": b""}, "sound of some length, .* has 0 samples"),
        ({"promised": 2**32 - 2}, "promises 4294967294 bytes of samples, 64 are there"),
        ({"data": b"\0\0"}, "at least 2 samples, the clip of a.wav has 1"),
    ],
)
def test_refuses_absurd_headers(fields, message, tmp_path):
    (tmp_path / "a.wav").write_bytes(header(**fields))
    with pytest.raises(InputError, match=message.replace("+", r"\+")):
        load_signal(str(tmp_path / "a.wav"))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_refuses_samples_that_are_not_finite(number, tmp_path):
    path = saved(tmp_path / "a.wav", np.array([0.0, number, 0.0]))
    with pytest.raises(InputError, match=r"must have finite samples, a\.wav has NaN or Inf"):
        load_signal(path)


@pytest.mark.parametrize("start", [0.1, 0.2, 1e9])
def test_refuses_a_start_at_or_after_the_end(start, tmp_path):
    path = saved(tmp_path / "a.wav", noise(10), rate=100)
    with pytest.raises(InputError, match=rf"has 0\.1 s, start is {re.escape(f'{start:g}')} s"):
        load_signal(path, start=start)


def test_refuses_options_that_a_kind_does_not_have(tmp_path):
    path = saved(tmp_path / "a.wav", noise(10))
    with pytest.raises(ValueError, match="asked for start, seconds, rate alone, it has no size"):
        load_signal(path, 9)
    with pytest.raises(ValueError, match="camera must be asked for size alone, it has no rate"):
        load_signal("camera", rate=9)
    with pytest.raises(ValueError, match="seconds must be positive, got -1"):
        load_signal(path, seconds=-1.0)


def test_refuses_what_does_not_fit_before_it_is_made(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.wav", noise(2000).astype(np.float32), rate=1000)
    room = 40_000
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _device: room)
    with pytest.raises(ResourceError, match=r"clip of .*a\.wav must fit in memory"):
        load_signal(path)
    assert len(values(path, seconds=0.2)) == 200
    with pytest.raises(ResourceError, match=r"resampled clip of .*a\.wav must fit in memory"):
        load_signal(path, seconds=0.2, rate=100_000)
    room = 10_000
    with pytest.raises(ResourceError, match=r"sound .*a\.wav must fit in memory"):
        load_signal(path, seconds=0.2)


def test_a_truncated_64_bit_file_is_refused():
    data = b"RF64" + b"\xff" * 4 + b"WAVE" + b"ds64" + struct.pack("<IQQQI", 28, 0, 500, 0, 0)
    data += b"data" + b"\xff" * 4 + bytes(100)
    with pytest.raises(ValueError, match="promises 500 bytes of samples, 100 are there"):
        audio._require_whole(data)
    audio._require_whole(data + bytes(400))
    stream = io.BytesIO()
    wavfile.write(stream, 8000, np.zeros(9))
    audio._require_whole(stream.getvalue())
