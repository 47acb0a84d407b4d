"""``eigs --scratch``: what memory cannot hold, in files that nobody sees."""

import json
from argparse import Namespace
from dataclasses import replace

import pytest

from hessian_lab.cli import eigs
from hessian_lab.probe import hessian, memory, scratch
from hessian_lab.probe.ranks import ALONE
from tests.cli.terminal import assert_refused, typed

FEW = ("--probes", "3", "--lanczos-steps", "20", "--num", "2", "--every", "9", "--quiet", "--json")
# Sixty vectors of a field of 37 parameters: not those of three probes and what a step takes.
ROOM = 8 * 37 * 60


@pytest.fixture(autouse=True)
def disk(monkeypatch, tmp_path):
    """Return a directory, and leave the pictures away."""
    monkeypatch.setattr(scratch, "IN_MEMORY", ())
    monkeypatch.setattr("hessian_lab.cli.eigs._draw_dense", lambda _result: [])
    monkeypatch.setattr("hessian_lab.cli.eigs._draw_density", lambda _result: [])
    place = tmp_path / "disk"
    place.mkdir()
    return place


@pytest.fixture
def filed(monkeypatch):
    """Return the shapes of what goes to files from now on."""
    shapes, make = [], scratch.temporary

    def counted(shape, **given):
        shapes.append(shape)
        return make(shape, **given)

    monkeypatch.setattr(scratch, "temporary", counted)
    monkeypatch.setattr("hessian_lab.measures.eigenvalues.temporary", counted)
    return shapes


def limit_memory(monkeypatch, there):
    monkeypatch.setattr(memory, "available_bytes", lambda _device: there)
    monkeypatch.setattr(hessian, "available_bytes", lambda _device: there)
    monkeypatch.setattr("hessian_lab.measures.planning.available_bytes", lambda _device: there)


def test_lanczos_vectors_in_a_file_give_the_same_record(run, disk, filed, monkeypatch):
    words = ("eigs", "--run", "run", "--method", "slq", *FEW)
    expected = typed(run.parent, *words).json
    record = run / "eigs-slq.json"
    written = json.loads(record.read_text())
    record.unlink()
    limit_memory(monkeypatch, ROOM)
    assert_refused(typed(run.parent, *words), 1, r"scratch directory \(scratch=, --scratch\)")
    answer = typed(run.parent, *words, "--scratch", str(disk))
    assert answer.status == 0, answer.err
    assert (3, 21, 37) in filed
    assert not list(disk.iterdir())
    assert json.loads(record.read_text()).keys() == written.keys()
    ours, theirs = (one["spectra"][0] for one in (answer.json, expected))
    assert ours["lambda_max"] == pytest.approx(theirs["lambda_max"], rel=1e-6)
    # The scratch is no part of what is measured.
    monkeypatch.setattr("hessian_lab.measures.estimates._extremes", None)
    limit_memory(monkeypatch, None)
    assert typed(run.parent, *words).json == answer.json


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_a_dense_matrix_in_a_file_gives_the_same_spectrum(run, disk, filed, monkeypatch, matrix):
    words = ("eigs", "--run", "run", "--method", "dense", "--matrix", matrix, "--every", "9")
    words = (*words, "--layers", "--quiet", "--json")
    expected = typed(run.parent, *words).json
    for path in run.glob("eig*"):
        path.unlink()
    monkeypatch.setattr("hessian_lab.measures.eigenvalues.require_dense", lambda *_: True)
    answer = typed(run.parent, *words, "--scratch", str(disk))
    assert answer.status == 0, answer.err
    assert filed == [(37, 37)] * len(answer.json["spectra"])
    assert not list(disk.iterdir())
    for ours, theirs in zip(answer.json["spectra"], expected["spectra"], strict=True):
        assert ours["lambda_max"] == pytest.approx(theirs["lambda_max"], rel=1e-12)
        assert ours["lambda_min"] == pytest.approx(theirs["lambda_min"], rel=1e-9, abs=1e-12)
        assert ours["product_error"] < 1e-13
        assert ours["layers"].keys() == theirs["layers"].keys()


def test_a_dry_run_tells_the_disk(run, disk, monkeypatch):
    limit_memory(monkeypatch, ROOM)
    words = ("eigs", "--run", "run", "--method", "slq", *FEW, "--dry-run")
    plain = typed(run.parent, *words).json
    assert (plain["disk_bytes"], plain["scratch"]) == (0, None)
    found = typed(run.parent, *words, "--scratch", str(disk)).json
    assert found["disk_bytes"] == 3 * 21 * 37 * 8
    assert found["needed_bytes"] < plain["needed_bytes"]
    assert 0 < found["disk_seconds"] < found["seconds"]
    text = typed(run.parent, *words[:-3], "--dry-run", "--scratch", str(disk)).out
    assert f"\ndisk        18.2 KiB in {disk}, " in text
    assert not list(disk.iterdir())


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_preconditioned_matrix_stays_in_memory_and_says_so(run, disk, more):
    words = ("eigs", "--run", "run", "--method", "dense", "--preconditioned", "--every", "9")
    answer = typed(run.parent, *words, "--scratch", str(disk), *more)
    assert "--scratch has no effect on a dense matrix with --preconditioned" in answer.err


def test_a_dry_run_keeps_a_preconditioned_matrix_in_memory(run, disk, monkeypatch):
    limit_memory(monkeypatch, 8 * 37**2 + 100)
    words = ("eigs", "--run", "run", "--method", "dense", "--dry-run", "--quiet", "--json")
    words = (*words, "--scratch", str(disk))
    assert typed(run.parent, *words).json["disk_bytes"] == 8 * 37**2
    found = typed(run.parent, *words, "--preconditioned").json
    assert (found["disk_bytes"], found["scratch"]) == (0, None)


def test_columns_of_ranks_stay_in_memory_and_say_so(disk, caplog):
    two = replace(ALONE, count=2)
    args = Namespace(scratch=disk, preconditioned=False, split="columns", method="auto", ranks=two)
    assert eigs._matrix_scratch(args) is None
    eigs._warn_of_scratch(args)
    assert "no effect on a dense matrix with --split columns" in caplog.text
    assert eigs._matrix_scratch(Namespace(**{**vars(args), "ranks": ALONE})) == disk


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_scratch_that_is_no_directory_is_refused(run, more):
    for method in ("dense", "slq"):
        words = ("eigs", "--run", "run", "--method", method, *FEW, "--scratch", "none", *more)
        assert_refused(typed(run.parent, *words), 2, "scratch must be a directory to write in, no")


def test_a_disk_that_is_too_small_is_refused(run, disk, monkeypatch):
    limit_memory(monkeypatch, ROOM)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    words = ("eigs", "--run", "run", "--method", "slq", *FEW, "--scratch", str(disk))
    assert_refused(typed(run.parent, *words), 1, "must fit on the disk: it needs")
