"""The data registry: what it says, where its files are found, what is refused."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from hessian_lab.errors import InputError
from hessian_lab.signals import SIGNALS, load_signal, registry
from hessian_lab.signals.registry import (
    cache_directory,
    directories,
    entries,
    entry_of,
    fault_of,
    located,
)
from tests.signals.files import DIGEST, registered, sound

ROOT = Path(__file__).parents[2]
NAMES = ("albert", "bigbuckbunny", "brahms", "nefertiti", "spot")


def test_every_file_has_address_size_checksum_and_licence():
    assert tuple(entries()) == NAMES
    for entry in entries().values():
        # A commit never changes what is at an address.
        pattern = r"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/[0-9a-f]{40}/\S+"
        assert re.fullmatch(pattern, entry.url)
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert 10**5 < entry.bytes < 10**7
        assert entry.licence in ("public domain", "Public Domain Mark", "CC BY 3.0")
        assert entry.licence in entry.credit
        assert entry.attribution in entry.credit
        assert Path(entry.file).name == entry.file
    named = {name: entry.kind for name, entry in entries().items() if name in SIGNALS}
    assert named == {name: SIGNALS[name].kind for name in named}


def test_the_wheel_holds_the_registry_where_it_is_looked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    targets = project["targets"]
    installed = registry.INSTALLED.relative_to(ROOT).as_posix()
    assert targets["wheel"]["force-include"] == {"data/registry.toml": installed}
    # The wheel may be built from a source distribution.
    assert "data/registry.toml" in targets["sdist"]["include"]
    assert registry.CHECKOUT == ROOT / "data" / "registry.toml"


def test_an_installed_wheel_finds_the_registry(tmp_path):
    pytest.importorskip("hatchling", reason="builds a wheel")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "from hessian_lab.signals import registry as r; print(r.__file__, *r.entries())"
    words = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, 'site'); {code}"]
    told = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    place, *names = told.split()
    assert place.startswith("site") or place.startswith(str(tmp_path / "site"))
    assert tuple(names) == NAMES


def test_the_cache_directory_is_that_of_pooch(monkeypatch, tmp_path):
    pooch = pytest.importorskip("pooch", reason="needs the extra data")
    assert cache_directory() == Path(pooch.os_cache("hessian-lab"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == Path(pooch.os_cache("hessian-lab"))


@pytest.mark.skipif(sys.platform == "darwin", reason="the rule of other systems")
def test_the_cache_directory_follows_the_variable_where_it_is_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == tmp_path / ".cache" / "hessian-lab"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cache_directory() == tmp_path / "other" / "hessian-lab"


def test_files_of_ones_own_go_before_the_cache(monkeypatch, tmp_path):
    entry = registered(monkeypatch, tmp_path)
    assert entry == entry_of("brahms")
    cached = cache_directory() / entry.file
    cached.parent.mkdir(parents=True)
    cached.write_bytes(sound())
    assert located("brahms") == (entry, cached)
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("HESSIAN_LAB_DATA", str(own))
    assert directories() == [own, cached.parent]
    assert located("brahms") == (entry, cached)
    (own / entry.file).write_bytes(sound())
    assert located("brahms") == (entry, own / entry.file)
    # What is wrong is told, also where there is a right one behind it.
    (own / entry.file).write_bytes(b"?")
    with pytest.raises(InputError, match=r"own/brahms\.wav is not: it has 1 bytes"):
        located("brahms")


def test_the_variable_must_name_a_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HESSIAN_LAB_DATA", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"HESSIAN_LAB_DATA must name a directory, .*none is none"):
        directories()


def test_a_registered_sound_is_that_of_its_file(monkeypatch, tmp_path):
    entry = registered(monkeypatch, tmp_path)
    place = cache_directory() / entry.file
    place.parent.mkdir(parents=True)
    place.write_bytes(sound())
    signal = load_signal("brahms")
    assert np.array_equal(signal.values[:, 0].numpy() * 2**15, wavfile.read(place)[1])
    assert (signal.source.name, signal.source.sha256) == ("brahms", DIGEST)
    assert signal.source.attribution == "Somebody, free"


def test_a_file_that_is_not_here_is_told_how_to_get(monkeypatch, tmp_path):
    registered(monkeypatch, tmp_path)
    with pytest.raises(InputError, match=r"brahms\.wav is not in .*: hessian-lab data get brahms$"):
        load_signal("brahms")


@pytest.mark.parametrize("place", [0, 60, -1])
def test_a_file_with_one_bit_changed_is_refused(monkeypatch, tmp_path, place):
    entry = registered(monkeypatch, tmp_path)
    data = bytearray(sound())
    data[place] ^= 1
    path = cache_directory() / entry.file
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    assert fault_of(entry, path).startswith("its SHA-256 is ")
    with pytest.raises(InputError, match=rf"its SHA-256 is \w+, not {DIGEST}"):
        load_signal("brahms")


def test_unknown_names_have_suggestions():
    with pytest.raises(ValueError, match=r"data must be one of .*Did you mean brahms\?"):
        entry_of("brams")


def test_the_real_files_are_the_registered_ones():
    places = [registry.place_of(entry) for entry in entries().values()]
    here = [(entry, path) for entry, path in zip(entries().values(), places, strict=True) if path]
    if not here:
        pytest.skip("none is here: hessian-lab data get, or HESSIAN_LAB_DATA")
    assert [fault_of(entry, path) for entry, path in here] == [""] * len(here)


def test_the_real_photograph_is_a_signal():
    entry = entry_of("albert")
    if registry.place_of(entry) is None:
        pytest.skip("it is not here: hessian-lab data get albert")
    signal = load_signal("albert", 12)
    assert signal.shape == (12, 12)
    assert signal.source.attribution == entry.credit


def test_the_real_recording_is_a_signal():
    pytest.importorskip("soundfile", reason="needs the extra audio")
    if registry.place_of(entry_of("brahms")) is None:
        pytest.skip("it is not here: hessian-lab data get brahms")
    signal = load_signal("brahms", start=20.0, seconds=1.0, rate=8000)
    assert signal.num_points == 8000
    assert 0.03 < float(signal.values.std()) < 0.3
    assert load_signal("brahms").num_points == pytest.approx(45.8 * 44_100, rel=2e-3)
