"""A registry of one small sound, wherever a test wants it."""

import hashlib
import io

import numpy as np
from scipy.io import wavfile

from hessian_lab.signals import registry

LINES = """
[brahms]
kind = "audio"
file = "brahms.wav"
url = "{url}"
bytes = {bytes}
sha256 = "{sha256}"
licence = "free"
attribution = "Somebody"
"""


def sound():
    """Return the bytes of a WAV file of 400 samples."""
    stream = io.BytesIO()
    wavfile.write(stream, 8000, (1000 * np.sin(np.arange(400) / 3)).astype(np.int16))
    return stream.getvalue()


DIGEST = hashlib.sha256(sound()).hexdigest()


def registered(monkeypatch, tmp_path, url="http://nowhere.invalid/brahms.wav"):
    """Make the registry that of one file, the cache directory one of the test's own."""
    path = tmp_path / "registry.toml"
    path.write_text(LINES.format(url=url, bytes=len(sound()), sha256=DIGEST))
    with path.open("rb") as stream:
        entries = registry.read(stream)
    # First where it may be imported now, with the registry that is to come back.
    monkeypatch.setattr("hessian_lab.cli.data.entries", lambda: entries)
    monkeypatch.setattr(registry, "entries", lambda: entries)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HESSIAN_LAB_DATA", raising=False)
    return entries["brahms"]
