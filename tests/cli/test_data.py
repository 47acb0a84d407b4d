"""``hessian-lab data``: nothing without being asked, nothing but what was registered."""

import contextlib
import http.server
import os
import sys
import threading

import pytest

from hessian_lab.signals.registry import cache_directory, entries
from tests.cli.terminal import assert_refused, typed
from tests.signals.files import DIGEST, registered, sound


class Server(http.server.BaseHTTPRequestHandler):
    """Sends what its class holds, and says how long it is."""

    body = sound()
    promised: int | None = None
    status = 200
    asked = 0

    def do_GET(self):
        type(self).asked += 1
        self.send_response(self.status)
        self.send_header("Content-Length", str(self.promised or len(self.body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(self.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A registry whose one file a server of this machine has."""
    pytest.importorskip("pooch", reason="needs the extra data")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    handler = type("Handler", (Server,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        registered(monkeypatch, tmp_path, f"http://127.0.0.1:{serving.server_port}/brahms.wav")
        yield handler
        serving.shutdown()
        thread.join()


def left(directory=None):
    place = directory or cache_directory()
    return sorted(os.listdir(place)) if place.exists() else []  # noqa: PTH208


# What there is.


def test_list_names_every_file_with_its_licence(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HESSIAN_LAB_DATA", raising=False)
    answer = typed(tmp_path, "data", "list")
    assert answer.status == 0
    for entry in entries().values():
        (line,) = [line for line in answer.out.splitlines() if line.startswith(entry.name)]
        assert line.split()[1:3] == [entry.kind, str(entry.bytes)]
        assert f"  {entry.licence} " in line
        assert line.endswith(" no")
    found = typed(tmp_path, "data", "list", "--json").json
    assert [one["name"] for one in found["files"]] == list(entries())
    assert all(one["path"] is None for one in found["files"])
    assert found["directories"] == [str(cache_directory())]


def test_list_tells_where_a_file_is(tmp_path, monkeypatch):
    entry = registered(monkeypatch, tmp_path)
    (tmp_path / entry.file).write_bytes(sound())
    monkeypatch.setenv("HESSIAN_LAB_DATA", str(tmp_path))
    assert typed(tmp_path, "data", "list").out.splitlines()[1].endswith(str(tmp_path / entry.file))


# Downloads.


def test_get_downloads_once(server, tmp_path):
    answer = typed(tmp_path, "data", "get", "brahms")
    path = cache_directory() / "brahms.wav"
    assert answer.status == 0, answer.err
    assert answer.out == f"brahms: downloaded, {path}\n  Somebody, free\n"
    assert path.read_bytes() == sound()
    assert left() == ["brahms.wav"]
    again = typed(tmp_path, "data", "get", "brahms", "brahms", "--json")
    assert [one["downloaded"] for one in again.json["files"]] == [False]
    assert again.json["files"][0]["path"] == str(path)
    assert server.asked == 1


def test_nothing_but_get_downloads(server, tmp_path):
    message = "hessian-lab data get brahms"
    for words in (("train", "--signal", "brahms"), ("data", "verify", "brahms")):
        assert_refused(typed(tmp_path, *words), 4, message)
    assert typed(tmp_path, "data", "list").status == 0
    assert typed(tmp_path, "data", "verify").status == 0
    assert server.asked == 0
    assert left() == []


def test_get_writes_where_one_says(server, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("HESSIAN_LAB_DATA", str(own))
    assert typed(tmp_path, "data", "get", "brahms").status == 0
    assert (left(own), left(), server.asked) == (["brahms.wav"], [], 1)


def test_get_writes_to_the_cache_where_ones_own_may_not_be_written(server, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("HESSIAN_LAB_DATA", str(own))
    monkeypatch.setattr("hessian_lab.signals.download.os.access", lambda *_: False)
    assert typed(tmp_path, "data", "get", "brahms").status == 0
    assert (left(own), left(), server.asked) == ([], ["brahms.wav"], 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (bytes(len(sound())), f"its SHA-256 is [0-9a-f]+, not {DIGEST}"),
        (sound()[:100], f"it has 100 bytes, not {len(sound())}"),
        (sound() + bytes(10**6), f"it has {len(sound()) + 1} bytes, not {len(sound())}"),
    ],
)
def test_another_file_is_refused_and_kept_aside(server, tmp_path, body, message):
    server.body = body
    answer = typed(tmp_path, "data", "get", "brahms")
    assert_refused(answer, 4, message)
    assert "kept as" in answer.err
    assert left() == ["brahms.wav.rejected"]
    # No more of an endless file than tells that it is another.
    kept = (cache_directory() / "brahms.wav.rejected").read_bytes()
    assert kept == body[: len(sound()) + 1]
    assert_refused(typed(tmp_path, "train", "--signal", "brahms"), 4, "hessian-lab data get")
    server.body = sound()
    assert typed(tmp_path, "data", "get", "brahms").status == 0


def test_a_download_that_breaks_off_leaves_nothing(server, tmp_path):
    server.body, server.promised = sound()[:300], len(sound())
    answer = typed(tmp_path, "data", "get", "brahms")
    assert_refused(
        answer, 4, r"could not be downloaded: 127\.0\.0\.1:\d+ sends nothing, or not all"
    )
    assert left() == []


def test_an_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch):  # noqa: ARG001
    def half(_self, _url, stream, _pooch):
        stream.write(sound()[:300])
        stream.flush()
        assert left() != []
        raise KeyboardInterrupt

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", half)
    assert typed(tmp_path, "data", "get", "brahms").status == 130
    assert not cache_directory().exists()


def test_what_a_server_answers_is_told_with_the_manual_steps(server, tmp_path):
    server.status = 404
    answer = typed(tmp_path, "data", "get", "brahms")
    assert_refused(answer, 4, r"127\.0\.0\.1:\d+ answers 404\. By hand: download http://\S+ as ")
    path = cache_directory() / "brahms.wav"
    steps = f"as {path} ({len(sound())} bytes, SHA-256 {DIGEST}; make the directory if there is "
    assert steps + "none), then: hessian-lab data verify brahms" in answer.err
    # Nothing is left, not even what it would have gone to.
    assert not cache_directory().parent.exists()
    path.parent.mkdir(parents=True)
    path.write_bytes(sound())
    assert typed(tmp_path, "data", "verify", "brahms").status == 0


def test_without_a_network_the_manual_steps_are_told(monkeypatch, tmp_path):
    pytest.importorskip("pooch", reason="needs the extra data")
    # A port of this machine that nobody listens to.
    registered(monkeypatch, tmp_path, "http://127.0.0.1:9/brahms.wav")
    answer = typed(tmp_path, "data", "get", "brahms")
    assert_refused(answer, 4, r"127\.0\.0\.1:9 sends nothing.* By hand: download http://127")
    assert "object at 0x" not in answer.err


def test_without_pooch_the_extra_is_named(monkeypatch, tmp_path):
    registered(monkeypatch, tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    answer = typed(tmp_path, "data", "get", "brahms")
    assert_refused(answer, 4, r"needs pooch .* pip install 'hessian-lab\[data\]'\. By hand: ")
    assert not cache_directory().exists()


# Checks.


def test_verify_tells_a_file_that_is_another(monkeypatch, tmp_path):
    entry = registered(monkeypatch, tmp_path)
    monkeypatch.setenv("HESSIAN_LAB_DATA", str(tmp_path))
    (tmp_path / entry.file).write_bytes(sound())
    assert typed(tmp_path, "data", "verify").out == f"{'brahms':<13} as registered\n"
    (tmp_path / entry.file).write_bytes(sound()[:-1] + b"?")
    answer = typed(tmp_path, "data", "verify")
    assert answer.status == 3
    assert "its SHA-256 is" in answer.out
    answer = typed(tmp_path, "data", "verify", "brahms", "--json")
    assert answer.status == 3
    assert answer.json["files"][0]["fault"].endswith(DIGEST)
    assert_refused(typed(tmp_path, "train", "--signal", "brahms"), 4, "it has|its SHA-256 is")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lst",), "'lst' must be one of list, get, verify. Did you mean list?"),
        (("get",), "data get must be told what, one of albert, bigbuckbunny, brahms"),
        (("get", "brams"), r"got 'brams'. Did you mean brahms\?"),
        (("verify", "brams"), r"Did you mean brahms\?"),
        (("list", "brahms"), "data list must stand alone, got 'brahms'"),
        (("get", "brahms", "--jsn"), "Did you mean --json"),
        (("get", "brahms", "--out", "there"), r"'--out' is no argument of data\.$"),
        (("verify", "--run", "there"), r"'--run' is no argument of data\.$"),
        # argparse itself takes them in any order from Python 3.12 on.
        pytest.param(
            *(
                ("get", "--json", "brahms"),
                r"'brahms' is no argument of data\. Put all names before",
            ),
            marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="an older argparse"),
        ),
        ((), "following arguments are required: what"),
    ],
)
def test_refuses_other_words(words, message, tmp_path):
    assert_refused(typed(tmp_path, "data", *words), 2, message)
