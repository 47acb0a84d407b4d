"""The study in miniature, its predictions of zeros, and its verdicts on known rows."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.dead_units import dead_by_layer, explained, paths_of, rescalings
from analyses.zero_anatomy import QUICK, ROUGH, SMOOTH, STUDY, anatomy, bells
from figures.zero_anatomy import CAPTION, draw
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.signals import load_signal
from tests.reference import autograd_hessian, points, small_field

SMALL = replace(
    QUICK,
    rough=tuple({**one, "width": 4} for one in ROUGH),
    smooth=tuple({**one, "width": 4} for one in SMOOTH),
    units=tuple({**one, "width": 4} for one in ROUGH),
    steps=(0, 2),
    late=3,
    draws=3,
    size=6,
)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    STUDY.run(SMALL, out=out, kind="quick")
    return json.loads((out / "zero_anatomy.json").read_text())


def test_it_answers_every_claim_once(record):
    found = STUDY.verdicts(pd.DataFrame(record["rows"]))
    assert [one.claim for one in found] == ["C21", "C22", "C23"]
    for one in found:
        assert one.measured
        assert one.settings
        assert "nan" not in one.measured


def test_it_is_drawn(record):
    assert draw(record).get_figwidth() == 7.1
    assert "scikit-image" in CAPTION


@pytest.mark.parametrize(("act", "octaves"), [("relu", None), ("relu_pe", 2)])
def test_paths_predict_the_zero_rows_of_autograd(act, octaves):
    signal = points(60)
    seen = {"dead": 0, "cut": 0, "apart": 0}
    for seed in range(12):
        model = make_field(act, 2, 1, width=4, depth=3, octaves=octaves, seed=seed)
        reasons = explained(paths_of(model, signal.coords))
        predicted = torch.stack(list(reasons.values())).sum(dim=0)
        assert int(predicted.max()) <= 1
        zero = (autograd_hessian(model, mse, signal) == 0).all(dim=1)
        assert torch.equal(predicted.bool(), zero)
        for name, part in reasons.items():
            seen[name] += int(part.sum())
    assert seen["dead"] > 0
    assert seen["apart"] + seen["cut"] > 0


def test_a_dead_unit_takes_its_own_parameters_and_no_others():
    signal, model = points(), make_field("relu", 2, 1, width=5, depth=2, seed=3)
    with torch.no_grad():
        model.layers[0].bias.fill_(10.0)
        model.layers[1].bias.fill_(100.0)
        model.layers[1].bias[2] = -100.0
    paths = paths_of(model, signal.coords)
    assert dead_by_layer(paths) == [0, 1]
    reasons = explained(paths)
    # Five weights and a bias into it, a weight out of it.
    assert int(reasons["dead"].sum()) == 7
    assert int(reasons["cut"].sum() + reasons["apart"].sum()) == 0


def test_a_rescaling_leaves_the_field_as_it_is():
    signal, model = points(), small_field("relu", width=4)
    directions = rescalings(model, paths_of(model, signal.coords))
    here = model(signal.coords).detach()
    place = torch.cat([value.detach().flatten() for value in model.parameters()])
    for direction in directions.T:
        copy = small_field("relu", width=4)
        torch.nn.utils.vector_to_parameters(place + 1e-5 * direction, copy.parameters())
        change = float((copy(signal.coords) - here).detach().abs().max())
        assert change < 1e-8 * float(direction.norm())


def test_units_that_act_alike_make_zeros_without_zero_rows():
    signal = load_signal("camera", 8)
    model = make_field("relu", 2, 1, width=4, depth=2, seed=0)
    with torch.no_grad():
        for layer in model.maps[:2]:
            layer.bias.fill_(20.0)
    row = anatomy(model, signal)
    assert row["structural"] == row["dead"] == 0
    assert row["always_on"] == [4, 4]
    assert row["others"] > 10
    assert row["alike"] == pytest.approx(row["others"], rel=1e-3)
    values = torch.linalg.eigvalsh(dense_hessian(model, mse, signal)).abs()
    assert row["others"] == int((values <= len(values) * 2**-52 * values.max()).sum())


def test_a_bell_far_from_its_points_has_small_rows():
    signal = points()
    model = make_field("gaussian", 2, 1, width=4, depth=1, sigma=0.1, seed=0)
    with torch.no_grad():
        model.layers[0].bias[1] = 3.0
    row = bells(model, signal, scale=0.1)
    assert int(np.argmin(row["rows"])) == int(np.argmin(row["slopes"])) == 1
    assert row["least_row"] < -10
    assert row["farthest"] > 10
    assert row["correlation"] > 0.9
    assert row["floor_rows"] == 1


def answer_of(rows, claim):
    (found,) = [one for one in STUDY.verdicts(pd.DataFrame(rows)) if one.claim == claim]
    return found.answer


def changed(record, part, change):
    rows = json.loads(json.dumps(record["rows"]))
    for row in rows:
        if row["part"] == part:
            change(row)
    return rows


@pytest.mark.parametrize(
    ("dead", "answer"), [(95, "holds"), (70, "holds only under"), (30, "does not hold")]
)
def test_dead_units_are_judged_by_their_share_of_all_zeros(record, dead, answer):
    def change(row):
        row.update(dead=dead, structural=dead, others=100 - dead, alike=100 - dead)

    assert answer_of(changed(record, "zeros", change), "C21") == answer


@pytest.mark.parametrize(
    ("shares", "answer"),
    [
        ([0.9, 0.9, 1.0, 1.0], "holds"),
        ([0.0, 0.4, 1.0, 1.0], "holds only under"),
        ([0.0, 0.1, 0.2, 0.3], "does not hold"),
    ],
)
def test_dead_layers_are_judged_one_by_one(record, shares, answer):
    def change(row):
        row["any_dead"] = shares

    assert answer_of(changed(record, "units", change), "C22") == answer


def test_full_rank_is_judged_by_field(record):
    def none(row):
        row["zero"] = 0.0

    def some(row):
        row["zero"] = 0.1 if row["act"] == "gaussian" and row["sigma"] < 0.1 else 0.0

    def all_zero(row):
        row["zero"] = 0.1

    assert answer_of(changed(record, "bells", none), "C23") == "holds"
    assert answer_of(changed(record, "bells", some), "C23") == "holds only under"
    assert answer_of(changed(record, "bells", all_zero), "C23") == "does not hold"
