"""The study in miniature, and its verdicts on rows of known outcome."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import preconditioned_conditioning
from analyses.preconditioned_conditioning import QUICK, SINE, STUDY
from analyses.preconditioned_verdicts import verdicts
from analyses.preconditioner_facts import bounds, estimators, field_of
from figures.preconditioned_conditioning import draw
from hessian_lab.losses import mse
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.signals import load_signal

SMALL = replace(
    QUICK,
    fields=(SINE,),
    proven_along=(SINE,),
    num_points=30,
    steps=4,
    every=2,
    proven_steps=(0, 4),
    rates=(0.03, 0.1),
    walk_losses=(10.0,),
    compared_seeds=(0,),
    scale=0.02,
    size=12,
    width=6,
    depth=1,
)
CLAIMS = ("C34", "C35", "C36", "C37", "C38", "C40", "C41", "C42", "C43", "C44", "C46", "C47", "C51")


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preconditioned_conditioning, "LINE_WIDTH", 3)
        STUDY.run(SMALL, out=out, kind="quick")
    return json.loads((out / "preconditioned_conditioning.json").read_text())


def test_it_answers_every_claim_of_its_rows(record):
    rows = pd.DataFrame(record["rows"])
    found = {one.claim: one for one in verdicts(rows)}
    assert set(CLAIMS) - {"C38"} <= found.keys()
    for one in found.values():
        assert one.measured
        assert one.settings
        assert "nan" not in one.measured


def test_proven_values_are_those_that_double_precision_resolves(record):
    rows = pd.DataFrame(record["rows"])
    proven = rows[rows.get("proven_identity").notna()]
    assert set(proven["step"]) == {0, 4}
    assert (proven["width"] < 1e-6).all()
    for name in ("identity", "equilibrated", "jacobi"):
        known = proven[proven[f"resolved_{name}"].astype(bool)]
        assert np.allclose(known[f"kappa_{name}"], known[f"proven_{name}"], atol=0.05)


def test_the_record_can_be_drawn(record):
    figure = draw(record)
    figure.draw_without_rendering()
    assert [axes.get_title(loc="left")[:3] for axes in figure.axes] == ["(a)", "(b)", "(c)", "(d)"]


def test_verdicts_are_given_for_what_is_there_alone(record):
    rows = pd.DataFrame(record["rows"])
    found = {one.claim for one in verdicts(rows[rows["kind"] == "bounds"])}
    assert found == {"C41"}
    assert verdicts(rows[rows["kind"] == "printed"]) == []


# Rows of known outcome.


def proven(kappa, by_equilibrated, by_jacobi, act="gaussian", sigma=0.1, seed=0, step=0):
    return {
        "kind": "path",
        "act": act,
        "sigma": sigma,
        "points": 100,
        "method": "identity",
        "seed": seed,
        "step": step,
        "loss": 0.5,
        "proven_identity": kappa,
        "proven_equilibrated": kappa + by_equilibrated,
        "proven_jacobi": kappa + by_jacobi,
        "resolved_identity": False,
        "kappa_identity": 13.0,
        "tenth_identity": 12.0,
    }


def answers(rows):
    return {one.claim: one.answer for one in verdicts(pd.DataFrame(rows))}


@pytest.mark.parametrize(
    ("rows", "lowers", "more"),
    [
        ([proven(30, -9, -2)], "holds", "holds"),
        ([proven(30, -9, -12)], "holds", "does not hold"),
        ([proven(30, -9, 1)], "does not hold", "holds"),
        ([proven(30, -9, -2), proven(8, -1, 0.5, act="sine")], "holds only under", "holds"),
        ([proven(30, -9, -2), proven(30, -2, -9, seed=1)], "holds", "holds only under"),
    ],
)
def test_changes_of_kappa_are_judged_by_their_signs(rows, lowers, more):
    found = answers(rows)
    assert (found["C34"], found["C35"]) == (lowers, more)


@pytest.mark.parametrize(
    ("gaps", "answer"),
    [
        ([-1.0, -0.1, -2.0], "holds"),
        ([1.0, -0.1, 2.0], "does not hold"),
        ([-1.0, -0.1, 2.0], "holds only under"),
    ],
)
def test_trajectories_are_compared_at_equal_loss(gaps, answer):
    rows = []
    for seed, gap in enumerate(gaps):
        for method, kappa in (("identity", 30.0), ("equilibrated", 30.0 + gap)):
            row = {"kind": "walk", "act": "gaussian", "sigma": 0.1, "method": method}
            rows.append(row | {"seed": seed, "target": 0.1, "kappa": kappa})
    # One that reached no loss.
    rows.append({"kind": "walk", "act": "sine", "omega": 30.0, "method": "identity", "seed": 0})
    assert answers(rows)["C36"] == answer


def compared(losses, method, exponent=0.5, act="sine", **more):
    return [
        {
            "kind": "rate",
            "act": act,
            "omega": 30.0,
            "method": method,
            "exponent": exponent,
            "seed": seed,
            "loss": loss,
            "steps_to": {"0.03": None if loss is None else int(1e4 * loss)},
            "log_kappa": 9.0,
            "log_tenth": 4.0,
            "log_own": 9.0,
            "log_own_tenth": 4.0,
            **more,
        }
        for seed, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(("wins", "answer"), [(8, "holds"), (7, "holds"), (6, "does not hold")])
def test_the_fastest_is_counted_over_seeds(wins, answer):
    rows = [
        *compared([0.5] * 8, "identity"),
        *compared([0.1] * 8, "jacobi"),
        *compared([0.01] * wins + [None] * (8 - wins), "equilibrated"),
        *compared([0.9] * 8, "equilibrated", exponent=1.0),
        {
            "kind": "printed",
            "act": "sine",
            "method": "jacobi",
            "start": 0.5,
            "loss": None,
            "seed": 0,
        },
    ]
    assert answers(rows)["C37"] == answer


@pytest.mark.parametrize(
    ("within", "between", "answer"),
    [(1, 10, "holds"), (-1, 10, "holds only under"), (-1, -10, "does not hold")],
)
def test_speed_is_correlated_with_kappa_between_fields_and_within_one(within, between, answer):
    rows = []
    for field, act in enumerate(("sine", "tanh", "relu", "wavelet")):
        for place in range(4):
            own = {"log_own_tenth": within * place + between * field}
            rows += compared([0.001 * (1 + place + 10 * field)], "jacobi", act=act, **own)
            rows[-1]["seed"] = place
    assert answers(rows)["C38"] == answer


def test_the_inverse_of_the_absolute_hessian_is_judged_by_both_exponents():
    gaps = [
        {"kind": "absolute", "exponent": exponent, "gap": gap}
        for exponent, gap in ((0.5, 3.0), (1.0, 1e-9))
    ]
    diagonal = [
        *compared([0.1] * 8, "identity"),
        *compared([0.1] * 8, "jacobi"),
        *compared([0.1] * 8, "equilibrated"),
    ]
    for half, whole, answer in (
        (0.01, 0.01, "holds"),
        (0.01, None, "holds only under"),
        (0.2, 0.3, "does not hold"),
    ):
        absolute = [
            *compared([half] * 8, "abs-hessian", 0.5),
            *compared([whole] * 8, "abs-hessian", 1.0),
        ]
        assert answers([*gaps, *diagonal, *absolute])["C40"] == answer


def fact(kind, **numbers):
    return {"kind": kind, "seed": 0, "act": "sine"} | numbers


@pytest.mark.parametrize(
    ("row", "claim", "answer"),
    [
        (
            {"kind": "bounds", "matrices": "random", "draws": 9, "printed": 0, "proven": 0}
            | {"largest_factor": -0.1},
            "C41",
            "holds",
        ),
        (
            {"kind": "bounds", "matrices": "random", "draws": 9, "printed": 5, "proven": 0}
            | {"largest_factor": -0.1},
            "C41",
            "does not hold",
        ),
        (
            fact("batches", noise=0.9, noise_ema=0.3, num_points=9, scale_error=1)
            | {"scale_error_ema": 1},
            "C46",
            "holds",
        ),
        (
            fact("batches", noise=0.1, noise_ema=0.09, num_points=9, scale_error=1)
            | {"scale_error_ema": 1},
            "C46",
            "does not hold",
        ),
        (fact("stability", factor=1.1, step=9), "C51", "holds"),
        (fact("stability", factor=2.1, step=9), "C51", "does not hold"),
        (
            fact("moments", stage="trained", spearman_ggn=0.3, log_ratio=0, log_spread=1)
            | {"tenth_root": 5.0, "tenth_rows": 4.0},
            "C47",
            "does not hold",
        ),
        (
            fact("moments", stage="trained", spearman_ggn=0.9, log_ratio=0, log_spread=1)
            | {"tenth_root": 4.1, "tenth_rows": 4.0},
            "C48",
            "does not hold",
        ),
        (
            fact("moments", stage="trained", spearman_ggn=0.9, log_ratio=0, log_spread=1)
            | {"tenth_root": 5.0, "tenth_rows": 4.0},
            "C48",
            "holds",
        ),
    ],
)
def test_facts_are_judged_by_their_thresholds(row, claim, answer):
    assert answers([row])[claim] == answer


@pytest.mark.parametrize(
    ("numbers", "rows", "diagonal"),
    [
        ({"square_ratio": 1.0, "printed_ratio": 5.0}, "holds only under", "holds only under"),
        ({"square_ratio": 1.0, "printed_ratio": 1.0}, "holds", "holds only under"),
        ({"square_ratio": 3.0, "printed_ratio": 5.0}, "does not hold", "holds only under"),
        (
            {"square_ratio": 1.0, "printed_ratio": 5.0, "diagonal_bias": 3.0},
            "holds only under",
            "does not hold",
        ),
    ],
)
def test_estimators_are_judged_by_bias_and_noise(numbers, rows, diagonal):
    row = fact("estimators", probes="rademacher", square_one_probe=1.3, diagonal_one_probe=9.0)
    found = answers([row | {"diagonal_bias": 0.01} | numbers])
    assert (found["C42"], found["C43"]) == (rows, diagonal)


def test_adahessian_is_judged_by_what_its_denominator_is():
    near, far = {"to_rows": 1.0, "to_rows_spread": 0.01}, {"to_rows": 0.1, "to_rows_spread": 0.9}
    diagonal = {"to_diagonal": 9.0, "to_diagonal_spread": 0.5}
    for numbers, answer in ((near, "holds"), (far, "does not hold")):
        row = {"kind": "adahessian", "seed": 0, "estimator": "equilibrated"} | numbers | diagonal
        assert answers([row])["C44"] == answer


# What is measured, against closed forms.


def test_the_bound_with_exponent_n_is_never_violated_and_the_printed_one_is():
    random, sine = bounds(SMALL, 0)
    assert random["printed"] > random["draws"] / 4
    assert (random["proven"], sine["proven"]) == (0, 0)
    # det(D) of rows is at most that of rows of equal norms.
    assert random["largest_factor"] <= 0


def test_squares_of_products_are_squares_of_rows():
    rows = estimators(replace(SMALL, scale=1.0), 0)
    assert {row["act"] for row in rows} == {"sine", "relu"}
    for row in rows:
        assert row["square_ratio"] == pytest.approx(1, abs=0.05)
        assert abs(row["diagonal_bias"]) < 0.5
        assert row["diagonal_spread"] == pytest.approx(1, abs=0.4)


def test_fields_are_those_of_the_library():
    field = field_of(SINE, num_inputs=1, depth=2, seed=3)
    matrix = dense_hessian(field, mse, load_signal("sines", 9))
    assert matrix.shape == (321, 321)
    assert torch.linalg.matrix_rank(matrix) > 9
