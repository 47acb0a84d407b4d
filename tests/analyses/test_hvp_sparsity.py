from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from analyses.hvp_sparsity import FULL, QUICK, STUDY, cells, packed
from analyses.hvp_sparsity_verdicts import equal_quality, verdicts
from figures.hvp_sparsity import CAPTION, draw, unpacked
from figures.records import read
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.signals import load_signal
from tests.reference import autograd_hessian

TINY = replace(
    QUICK,
    seeds=(0, 1),
    steps=4,
    every=2,
    octaves=(1, 2),
    size=16,
    width=12,
    batch_size=32,
    batch_sizes=(8,),
    num_probes=2,
    num_batches=3,
    num_small=2,
    small_size=6,
)
CLAIMS = ["C52", "C53", "C54", "C55", "C56", "C57", "C58", "C59", "C61", "C129"]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    STUDY.run(TINY, out=place)
    return read("hvp_sparsity", place)


def answers(rows):
    return {one.claim: one.answer for one in verdicts(pd.DataFrame(rows))}


def test_a_miniature_says_something_of_every_claim_but_the_noise(record):
    found = verdicts(pd.DataFrame(record["rows"]))
    # Four steps of Adam do not reach a quality that sine reaches too.
    assert [one.claim for one in found if one.claim != "C129"] == CLAIMS[:-1]
    assert all(one.measured and one.settings and "nan" not in one.measured for one in found)


def test_the_counterexample_and_the_smallest_shares_are_those_of_autograd(record):
    rows = pd.DataFrame(record["rows"])
    signal = load_signal("camera", 6)
    small = rows[(rows["kind"] == "small") & (rows["width"] == 16) & (rows["depth"] == 1)]
    for row in small.to_dict("records"):
        if row["positive"]:
            continue
        shares = []
        for seed in range(2):
            act = "relu_pe" if row["octaves"] else "relu"
            octaves = int(row["octaves"])
            field = make_field(act, 2, 1, width=16, depth=1, octaves=octaves, seed=seed)
            dense = autograd_hessian(field, mse, signal)
            shares.append(float((dense == 0).all(dim=1).double().mean()))
        ends = [row["quantiles"][0], row["quantiles"][-1]]
        assert ends == pytest.approx([min(shares), max(shares)], abs=1e-4)


def test_states_hold_together(record):
    paths = [row for row in record["rows"] if row["kind"] == "path"]
    assert {row["optimizer"] for row in paths} == {"esgd", "adam"}
    for row in paths:
        low, high = row["zero_range"]
        assert low <= row["zero"] <= high
        assert row["within"][0] >= row["zero"] - 1e-5
        if row["act"].startswith("relu"):
            assert row["zero_bce"] == row["zero"] > 0
            assert row["phi_zero_float64"][2] == [1.0] * 4
    kept = [row for row in paths if row.get("pattern")]
    # ReLU-PE and Gaussian, at the first and the last step.
    assert len(kept) == 4
    for row in kept:
        assert 1 - unpacked(row["pattern"]).mean() == pytest.approx(
            row["zero_by_layer"][3], abs=0.05
        )


def test_patterns_survive_packing():
    bits = torch.from_numpy(np.random.default_rng(0).random((12, 12)) > 0.5)
    assert (unpacked(packed(bits)) == bits.numpy()).all()


def test_the_figure_shows_the_record(record):
    figure = draw(record)
    assert isinstance(figure, Figure)
    assert figure.get_figwidth() == pytest.approx(7.1)
    figure.draw_without_rendering()
    esgd = next(axes for axes in figure.axes if axes.get_title(loc="left") == "ESGD")
    lines = {line.get_label(): line for line in esgd.lines}
    rows = pd.DataFrame(record["rows"])
    relu = rows[(rows["act"] == "relu") & (rows["optimizer"] == "esgd")]
    expected = relu.groupby("step")["zero"].median()
    assert list(lines["ReLU"].get_ydata()) == pytest.approx(list(expected))
    assert sum(bool(axes.images) for axes in figure.axes) == 4
    assert "Stefan van der Walt" in CAPTION


# The verdicts follow the numbers.


def state(act="relu", step=0, **more):
    octaves = 4 if act == "relu_pe" else None
    rough = act.startswith("relu")
    zero = (0.3 if step else 0.25) if rough else 0.0
    return {
        "kind": "path",
        "act": act,
        "octaves": octaves,
        "optimizer": "esgd",
        "seed": 0,
        "steps": 10,
        "step": step,
        "psnr": 20.0 + step / 10,
        "zero": zero,
        "zero_by_layer": [zero] * 5,
        "zero_float64": zero,
        "zero_bce": zero,
        "bce_differs": 0,
        "zero_where_gradient": 0.0,
        "gradient_zero_where_zero": 1.0 if rough else None,
        "zero_rows": zero / 2,
        "zero_columns": zero / 2,
        "zeros_in_lines": 1.0 if rough else None,
        "phi_zero_float32": [[0.5], [0.5], [1.0]] if rough else [[0.0]] * 3,
        "phi_zero_float64": [[0.5], [0.5], [1.0]] if rough else [[0.0]] * 3,
        "dead_float32": [0.0],
        "gradient_noise": 1.0,
        "roughness": 1.0,
    } | more


COUNTER = {"kind": "counter", "act": "sine", "rest": 1e-12, "random_zero": 0.0, "size": 881}
SMALL = {"kind": "small", "depth": 1, "width": 16, "octaves": 0, "positive": False, "seeds": 3}
SMALL |= {"quantiles": [0.6, 0.6, 0.7, 0.8, 0.9], "without_zeros": 0}
STEPS = (0, 10)


def path(*acts, **more):
    return [state(act, step, **more) for act, step in product(acts, STEPS)]


@pytest.mark.parametrize(
    ("claim", "rows", "answer"),
    [
        ("C52", [*path("sine"), COUNTER], "holds only under"),
        ("C52", [*path("sine"), COUNTER | {"rest": 0.5}], "holds"),
        ("C52", [*path("sine", zero=1e-4), COUNTER], "does not hold"),
        ("C52", [*path("sine", zero_float64=1e-4), COUNTER], "does not hold"),
        # One entry in 200,000 may cancel in single precision.
        ("C52", [*path("sine", zero=5e-6), COUNTER], "holds only under"),
        ("C53", [SMALL], "holds"),
        ("C53", [SMALL, SMALL | {"quantiles": [0.1, 0.2, 0.3, 0.4, 0.5]}], "holds only under"),
        ("C53", [SMALL, *path("relu")], "holds only under"),
        ("C53", [SMALL | {"quantiles": [0.0, 0.2, 0.3, 0.4, 0.5]}], "does not hold"),
        ("C54", path("relu"), "holds"),
        ("C54", path("relu", zero_bce=0.5), "does not hold"),
        ("C57", path("relu"), "holds"),
        ("C57", [state(), state(step=10, zero=0.9)], "holds only under"),
        ("C57", [state(), state(step=10, zero=0.0)], "does not hold"),
        ("C59", path("relu"), "does not hold"),
        ("C59", path("relu", zero_where_gradient=0.2), "holds only under"),
        ("C59", path("relu", zero_where_gradient=0.8), "holds"),
        ("C61", path("relu", "sine"), "holds"),
        ("C61", path("relu", "sine", phi_zero_float32=[[0.2]] * 3), "holds only under"),
    ],
)
def test_a_verdict_follows_the_numbers(claim, rows, answer):
    assert answers(rows)[claim] == answer


def ordered(relu=0.5, four=0.3, eight=0.2, sine=0.0):
    shares = [("relu", None, relu), ("relu_pe", 4, four), ("relu_pe", 8, eight)]
    shares += [("sine", None, sine), ("gaussian", None, 0.0)]
    return [
        state(act, step, octaves=octaves, zero=share, zero_by_layer=[share] * 5)
        for act, octaves, share in shares
        for step in STEPS
    ]


@pytest.mark.parametrize(
    ("shares", "answer"),
    [
        ({}, "holds"),
        ({"eight": 0.4}, "holds only under"),
        ({"sine": 0.1}, "does not hold"),
        ({"four": 0.0, "eight": 0.0}, "does not hold"),
    ],
)
def test_the_order_of_fields_is_judged(shares, answer):
    assert answers(ordered(**shares))["C55"] == answer


@pytest.mark.parametrize(
    ("start", "end", "bell", "answer"),
    [
        (0.6, 0.7, 0.0, "holds"),
        (0.1, 0.7, 0.0, "holds only under"),
        (0.1, 0.2, 0.0, "does not hold"),
        (0.6, 0.7, 0.3, "does not hold"),
    ],
)
def test_the_picture_of_the_penultimate_layer_is_judged(start, end, bell, answer):
    shares = {0: start, 10: end}
    rows = [state("relu_pe", step, zero_by_layer=[0, 0, 0, shares[step], 0]) for step in STEPS]
    rows += [state("gaussian", step, zero_by_layer=[0, 0, 0, bell, 0]) for step in STEPS]
    assert answers(rows)["C56"] == answer


@pytest.mark.parametrize(
    ("start", "end", "answer"),
    [
        ((0.3, 0.2, 0.1), (0.9, 0.8, 0.7), "holds"),
        ((0.3, 0.2, 0.1), (0.9, 0.7, 0.8), "holds only under"),
        ((0.3, 0.2, 0.205), (0.9, 0.7, 0.8), "holds only under"),
        ((0.2, 0.3, 0.1), (0.9, 0.7, 0.8), "does not hold"),
    ],
)
def test_octaves_are_judged_by_their_order(start, end, answer):
    rows = [
        state("relu_pe", step, octaves=octaves, zero=share)
        for step, shares in zip(STEPS, (start, end), strict=True)
        for octaves, share in zip((1, 4, 8), shares, strict=True)
    ]
    assert answers(rows)["C58"] == answer
    # A seed that one of them lacks does not tilt the medians.
    odd = [state("relu_pe", step, octaves=4, seed=1, zero=1.0) for step in STEPS]
    assert answers([*rows, *odd, *odd])["C58"] == answer


@pytest.mark.parametrize(
    ("noise", "roughness", "answer"),
    [(2.0, 2.0, "holds"), (2.0, 0.5, "holds only under"), (0.5, 0.5, "does not hold")],
)
def test_noise_is_compared_at_equal_quality(noise, roughness, answer):
    rows = path("sine", optimizer="adam")
    rows += path("relu_pe", optimizer="adam", gradient_noise=noise, roughness=roughness)
    assert answers(rows)["C129"] == answer
    far = path("relu_pe", optimizer="adam", psnr=30.0)
    assert "C129" not in answers([*path("sine", optimizer="adam"), *far])


def test_pairs_are_nearest_in_quality():
    ones = pd.DataFrame([state(step=step, psnr=psnr) for step, psnr in ((1, 18.0), (2, 20.4))])
    others = pd.DataFrame([state(step=step, psnr=psnr) for step, psnr in ((3, 20.0), (4, 25.0))])
    ((first, second),) = equal_quality(ones, others)
    assert (first["step"], second["step"]) == (2, 3)


def test_nothing_is_said_of_what_was_not_measured():
    assert verdicts(pd.DataFrame([])) == []
    assert answers([COUNTER]) == {}


@pytest.mark.parametrize("config", [FULL, QUICK])
def test_cells_are_each_their_own(config):
    texts = [str(sorted(cell.items())) for cell in cells(config)]
    assert len(set(texts)) == len(texts)
    assert {cell["kind"] for cell in cells(config)} == {"path", "small", "counter"}
