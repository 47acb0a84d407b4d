"""The study in miniature, its measures against closed forms, and its verdicts on known rows."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.hessian_terms import FIELDS, QUICK, STUDY, parts_of
from analyses.smoothness import ACROSS, LENGTHS, flat, missed, moved, smoothness, unit
from figures.hessian_terms import CAPTION, draw
from hessian_lab.losses import mse
from hessian_lab.probe.hessian import dense_ggn, dense_hessian
from tests.reference import autograd_hessian, points, small_field

SMALL = replace(
    QUICK,
    fields=tuple(
        {**one, "depth": 2, "width": 3} for one in (FIELDS[0], FIELDS[2], FIELDS[3], FIELDS[5])
    ),
    steps=(0, 2),
    late=4,
    smooth_steps=(0, 2),
    sizes=(4, 6),
    size=5,
    smooth_size=5,
    kink_steps=5,
    kink_size=5,
)
CLAIMS = ["C19", "C20", "C24", "C25", "C26", "C27", "C49"]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    STUDY.run(SMALL, out=out, kind="quick")
    return json.loads((out / "hessian_terms.json").read_text())


def test_it_answers_every_claim_once(record):
    found = STUDY.verdicts(pd.DataFrame(record["rows"]))
    assert sorted(one.claim for one in found) == CLAIMS
    for one in found:
        assert one.measured
        assert one.settings
        assert "nan" not in one.measured


def test_it_is_drawn(record):
    figure = draw(record)
    assert figure.get_figwidth() == 7.1
    assert "scikit-image" in CAPTION


def test_parts_are_norms_of_the_parts():
    signal = points()
    for act in ("sine", "relu"):
        model = small_field(act)
        row = parts_of(model, mse, signal, spectra=True)
        whole, ggn = autograd_hessian(model, mse, signal), dense_ggn(model, mse, signal)
        norm = torch.linalg.matrix_norm
        assert row["identity"] < 1e-12
        assert row["residual"] == pytest.approx(float(norm(whole - ggn) / norm(whole)), rel=1e-3)
        assert row["ggn"] == pytest.approx(float(norm(ggn) / norm(whole)), rel=1e-3)
        assert (row["activation"] == 0) == (act == "relu")
        # Blocks on the diagonal stand once in the matrix, the others twice.
        pairs = np.array(row["pairs"]["ggn"])
        once = np.array([1.0, 2.0, 1.0, 2.0, 2.0, 1.0])
        assert np.sqrt(once @ pairs**2) == pytest.approx(row["ggn"], rel=1e-3)


def test_a_smooth_field_misses_the_square_of_the_length():
    model, signal = small_field("sine", omega=3.0), points()
    direction = unit(len(flat(model)), seed=0)
    short, long = (missed(model, signal, direction, length) for length in (1e-3, 1e-2))
    assert long / short == pytest.approx(100, rel=0.05)
    here = dense_hessian(model, mse, signal)
    there = autograd_hessian(moved(model, flat(model) + 0.01 * direction), mse, signal)
    row = smoothness(model, signal, direction)
    expected = torch.linalg.matrix_norm(there - here) / torch.linalg.matrix_norm(here)
    assert row["moved"][LENGTHS.index(0.01)] == pytest.approx(float(expected), rel=1e-3)


def test_the_hessian_jumps_at_a_kink_and_nowhere_else():
    signal = points()
    for act, least, most in (("relu", 1e3, np.inf), ("tanh", 1e-3, 1e2)):
        model = small_field(act)
        row = smoothness(model, signal, unit(len(flat(model)), seed=0))
        assert least < row["jump"] / ACROSS < most


def answer_of(rows, claim):
    (found,) = [one for one in STUDY.verdicts(pd.DataFrame(rows)) if one.claim == claim]
    return found.answer


def changed(record, part, change):
    """Return the rows of a record, those of a part changed."""
    rows = json.loads(json.dumps(record["rows"]))
    for row in rows:
        if row["part"] == part:
            change(row)
    return rows


@pytest.mark.parametrize(
    ("start", "end", "answer"),
    [(0.9, 0.01, "holds only under"), (0.01, 0.01, "holds"), (0.9, 0.8, "does not hold")],
)
def test_gauss_newton_is_judged_at_both_ends(record, start, end, answer):
    def change(row):
        row["residual"] = start if row["step"] == 0 else end

    assert answer_of(changed(record, "terms", change), "C19") == answer


def test_the_approximation_is_judged_at_the_end(record):
    def small(row):
        row["residual"] = 0.05

    def large(row):
        row["residual"] = 0.5

    assert answer_of(changed(record, "terms", small), "C49") == "holds"
    assert answer_of(changed(record, "terms", large), "C49") == "does not hold"


def test_smoothness_is_judged_by_how_it_falls(record):
    quick = [length**2 for length in LENGTHS]
    flat_line = [0.3 for _ in LENGTHS]

    def true(row):
        rough = row["act"].startswith("relu")
        row["missed"] = flat_line if rough else quick
        row["moved"] = [0.1 * length if rough else 2 * length for length in LENGTHS]
        row["jump"] = 1e-3 if rough else 1e-9

    def all_smooth(row):
        row["missed"] = quick
        row["jump"] = 1e-9

    def none_smooth(row):
        row["missed"] = flat_line

    assert answer_of(changed(record, "smooth", true), "C24") == "holds"
    assert answer_of(changed(record, "smooth", all_smooth), "C24") == "holds only under"
    assert answer_of(changed(record, "smooth", none_smooth), "C24") == "holds only under"
    assert answer_of(changed(record, "smooth", true), "C25") == "holds only under"
    assert answer_of(changed(record, "smooth", all_smooth), "C25") == "does not hold"


def test_kinks_are_judged_by_the_number_of_points(record):
    def kept(row):
        row["missed"] = [0.3, 0.3]

    def lost(row):
        row["missed"] = [0.3 / row["size"] ** 2] * 2

    assert answer_of(changed(record, "points", kept), "C26") == "holds"
    assert answer_of(changed(record, "points", lost), "C26") == "does not hold"


def test_ends_are_judged_by_an_excess_near_zero(record):
    def none(row):
        row["near_end"] = [0, 1, 10, 100]

    def some(row):
        row["near_end"] = [40, 50, 60, 100] if row["act"] == "relu" else [0, 1, 10, 100]

    def rough(row):
        row["near_end"] = [0, 1, 10, 100] if row["act"] == "sine" else [40, 50, 60, 100]

    def all_alike(row):
        row["near_end"] = [40, 50, 60, 100]

    assert answer_of(changed(record, "kinks", none), "C27") == "does not hold"
    assert answer_of(changed(record, "kinks", some), "C27") == "holds only under"
    assert answer_of(changed(record, "kinks", rough), "C27") == "holds"
    assert answer_of(changed(record, "kinks", all_alike), "C27") == "does not hold"
