import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch

from hessian_lab.cli import sweep
from hessian_lab.errors import InputError
from hessian_lab.measures import shape
from hessian_lab.signals.mesh_files import obj_bytes, read_mesh
from hessian_lab.training.run import load_run
from hessian_lab.training.sweep import Sweep
from tests.cli.terminal import assert_refused, typed
from tests.reference import autograd_hessian
from tests.signals.solids import icosphere

FIT = ("--act", "gaussian", "--sigma", "0.3", "--width", "16", "--depth", "2", "--steps", "200")
FIT += ("--optimizer", "adam", "--lr", "0.01", "--batch-size", "512", "--checkpoint-every", "100")


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ball")
    (directory / "ball.obj").write_bytes(obj_bytes(icosphere(3, 5.0)))
    words = ("train", "--signal", "./ball.obj", "--points", "3000", *FIT, "--out", "run", "--json")
    return directory, typed(directory, *words)


def test_a_solid_is_fitted_drawn_and_written(ball):
    directory, told = ball
    assert told.status == 0
    assert told.json["iou"] > 0.85
    assert told.json["setup"]["points"] == 3000
    surface = read_mesh(directory / told.json["surface"])
    # A ball of radius 0.9 in the box.
    assert np.linalg.norm(surface.vertices, axis=1).mean() == pytest.approx(0.9, abs=0.05)
    assert all((directory / path).stat().st_size > 5_000 for path in told.json["pictures"])
    again = typed(
        directory, "train", "--signal", "./ball.obj", "--points", "3000", *FIT, "--out", "run"
    )
    assert f"IoU {told.json['iou']:.4f} on 64³ points" in again.out


def test_its_hessian_is_that_of_the_cross_entropy(ball):
    directory, _ = ball
    done = typed(directory, "eigs", "--run", "run", "--every", "2", "--json")
    assert done.status == 0
    run = load_run(directory / "run")
    model, signal = run.model(run.steps[-1]).double(), run.signal().to(dtype=torch.float64)
    found = torch.linalg.eigvalsh(autograd_hessian(model, run.loss, signal))
    assert done.json["spectra"][-1]["lambda_max"] == pytest.approx(float(found[-1]), rel=1e-6)
    assert done.json["spectra"][-1]["psnr"] is None


@pytest.mark.usefixtures("undrawn")
def test_its_tables_have_no_column_of_what_no_solid_has(tmp_path):
    (tmp_path / "ball.obj").write_bytes(obj_bytes(icosphere(1, 5.0)))
    words = ("--signal", "./ball.obj", "--points", "50", "--width", "3", "--depth", "1")
    words += ("--octaves", "2", "--steps", "1", "--out", "run")
    assert "SNR" not in typed(tmp_path, "eigs", *words).out
    out = typed(tmp_path, "trace", "--run", "run").out
    assert re.search(r"^ step     loss +trace +std", out, re.M)
    assert "SNR" not in out
    assert '"snr"' not in (tmp_path / "run/eigs.json").read_text()
    row = {"lr": 0.1, "seed": 0, "status": "done", "loss": 1.0, "psnr": math.nan, "wall_s": 1.0}
    table = pd.DataFrame([row | {"evaluations": 2, "products": 3}])
    told = sweep._table(Sweep(tmp_path, (), table)).splitlines()
    assert told[2].split() == ["best", "lr", "loss", "seeds", "evals", "s"]
    assert told[3].split()[:3] == ["0.1", "1.000e+00", "1"]


def test_the_terrain_needs_no_file(tmp_path):
    words = ("--signal", "terrain", "--points", "600", "--width", "4", "--depth", "1")
    told = typed(tmp_path, "train", *words, "--steps", "2", "--out", "run")
    assert told.status == 0
    assert "IoU" in told.out
    assert json.loads((tmp_path / "run/run.json").read_text())["data"]["num_points"] == 600


def test_a_field_that_is_outside_everywhere_has_no_surface(ball, monkeypatch):
    directory, _ = ball

    def nowhere(_model):
        raise InputError("mesh must enclose a volume, field is outside everywhere in the box.")

    monkeypatch.setattr(shape, "field_mesh", nowhere)
    words = ("train", "--signal", "./ball.obj", "--points", "3000", *FIT, "--out", "run")
    assert "outside everywhere: no surface" in typed(directory, *words).out
    assert typed(directory, *words, "--json").json["surface"] is None


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--signal", "./none.obj"), 4, "none.obj"),
        (("--signal", "terrain", "--points", "2"), 2, "points must be at least 3"),
        (("--signal", "camera", "--size", "9"), 0, ""),
        (("--signal", "spott"), 2, "Did you mean spot"),
    ],
)
def test_wrong_shapes_are_refused(tmp_path, monkeypatch, words, status, message):
    monkeypatch.delenv("HESSIAN_LAB_DATA", raising=False)
    small = ("--steps", "0", "--width", "2", "--depth", "1", "--out", "run")
    answer = typed(tmp_path, "train", "--points", "30", *words, *small)
    if status:
        assert_refused(answer, status, message)
    else:
        assert "--points has no effect on" in answer.err


def test_a_mesh_with_a_hole_is_told(tmp_path):
    whole = icosphere(2, 1.0)
    torn = obj_bytes(type(whole)(whole.vertices, whole.faces[1:]))
    (tmp_path / "torn.obj").write_bytes(torn)
    answer = typed(tmp_path, "train", "--signal", "./torn.obj", "--out", "run")
    assert answer.status in (0, 4)
    if answer.status == 4:
        assert_refused(answer, 4, r"3 open edges.*hessian-lab\[mesh\]")
    assert not (tmp_path / "run").exists() or answer.status == 0
