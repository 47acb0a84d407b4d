"""What the study of videos says of curves that are known."""

import numpy as np
import pandas as pd
import pytest

from analyses import video_fields
from analyses.study import Verdict
from figures.video_fields import draw
from hessian_lab.training.files import finite


def verdict(rows, claim) -> Verdict:
    found = video_fields.verdicts(pd.DataFrame(finite(rows)))
    (one,) = [each for each in found if each.claim == claim]
    return one


def clips(*, gain, speed, slow_gain=9.0):
    """Return rows of curves: L-BFGS ends ``gain`` dB above Adam, which takes ``speed`` times the
    gradients of L-BFGS to the same end.
    """
    rows = []
    for seed, more in ((1, -0.1), (2, 0.1), (3, 0.0)):
        top = 30.0 + more
        for method, end, seconds in (
            ("lbfgs", top, 1.0),
            ("adam", top - gain + more, None),
            ("adam 1e-4", top - slow_gain, 3.0),
        ):
            # Curves rise linearly; L-BFGS reaches Adam's end after a share of its own gradients.
            until = seconds or speed * (end / top) * (1 + more)
            row = {"part": "clip", "act": "sine", "image": "kenburns", "seed": seed}
            row |= {"shape": "4×64", "method": method, "at_edge": False, "lr": 1.0}
            row |= {"step": [0, 100], "wall": [0.0, 7.0], "evaluations": [0, 1000 * until]}
            row |= {"psnr": [0.0, end]}
            rows.append(row)
    return rows


def test_a_clip_is_judged_by_gain_and_time():
    held = verdict(clips(gain=3.63, speed=2.0), "C103")
    assert held.answer == "holds"
    assert "3.63 dB" in held.measured
    assert verdict(clips(gain=3.63, speed=4.0), "C103").answer == "holds only under"
    assert verdict(clips(gain=1.0, speed=2.0), "C103").answer == "holds only under"
    worse = clips(gain=-2.0, speed=2.0, slow_gain=-1.0)
    assert verdict(worse, "C103").answer == "does not hold"
    slow = verdict(clips(gain=-2.0, speed=2.0), "C103")
    assert slow.answer == "holds only under"
    assert "ahead against: Adam at 1e-4; in its interval as printed: speed" in slow.settings


def test_of_a_clip_seconds_are_neither_compared_nor_drawn():
    rows = clips(gain=3.63, speed=2.0)
    bare = [{name: value for name, value in row.items() if name != "wall"} for row in rows]
    assert verdict(bare, "C103") == verdict(rows, "C103")
    assert "seconds" not in verdict(rows, "C103").measured
    figure = draw({"rows": finite([*bare, *boxes(1, 2)])})
    assert [axes.get_xlabel() for axes in figure.axes] == ["step", "seconds of one core"]
    assert [len(axes.lines) for axes in figure.axes] == [3, 3]


def test_gains_are_read_at_the_last_common_step():
    rows = clips(gain=4.0, speed=2.0)
    for row in rows:
        if row["method"] == "adam":
            row |= {"step": [0, 200], "psnr": [0.0, 2 * row["psnr"][1]]}
    gains = video_fields._gains(pd.DataFrame(rows), "adam")
    assert gains == pytest.approx([4.1, 3.9, 4.0])


def boxes(*times, last=1.0):
    """Return rows in which Adam takes so many times the seconds of L-BFGS on each box."""
    entries = np.arange(101)
    fast = np.minimum(entries, 1) * 20.0
    slow = [np.minimum(entries / each, 1) * 20.0 for each in times]
    rows = []
    for method, curves, wall in (
        ("lbfgs", [fast] * len(times), 500.0),
        ("adam 1e-3", slow, 500.0),
        ("adam 1e-4", slow, last * 500.0),
    ):
        row = {"part": "boxes", "image": "kenburns", "shape": "3×64", "box": "8×12×12"}
        row |= {"method": method, "steps": 500, "wall": wall}
        rows.append(row | {"psnr": [curve.tolist() for curve in curves]})
    return rows


def test_boxes_are_judged_by_median_and_largest():
    held = verdict(boxes(3, 4, 4, 4, 4, 4, 5, 12), "C107")
    assert held.answer == "holds"
    assert "median over boxes: 4.00" in held.measured
    assert "largest 12.00" in held.measured
    faster = verdict(boxes(3, 4, 4, 4, 5), "C107")
    assert faster.answer == "holds only under"
    assert "Adam at its best rate (faster)" in faster.settings
    assert verdict(boxes(1, 1, 1, 1, 1), "C107").answer == "does not hold"
    slow = verdict(boxes(1, 1, 1, 1, 1, last=5.0), "C107")
    assert slow.answer == "holds only under"
    assert slow.settings.endswith("holds against: Adam at 1e-4 (printed median)")


def test_what_was_not_measured_is_not_judged(monkeypatch):
    assert not video_fields.verdicts(pd.DataFrame({"part": []}))
    assert len(video_fields.verdicts(pd.DataFrame(boxes(1, 2)))) == 1
    monkeypatch.setattr(video_fields, "place_of", lambda _entry: None)
    cells = video_fields.cells(video_fields.FULL)
    assert {cell["image"] for cell in cells} == {"kenburns"}
    assert len(cells) == 4
