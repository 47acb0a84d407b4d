"""The page of runs: true to its data, safe, whole in one file, and the same without scripts."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from hessian_lab.plots import report
from hessian_lab.plots.report import MAX_BYTES, report_page
from hessian_lab.plots.report_data import (
    Conditions,
    Detail,
    Estimates,
    Fit,
    RunPart,
    Spectra,
    Traces,
    Zeros,
    chosen,
)
from hessian_lab.plots.report_spectrum import through
from hessian_lab.plots.report_svg import LARGE, MOST_POINTS, Axis, band, line, span, thinned
from hessian_lab.plots.report_text import bound, count, decibels, percent, seconds, written
from hessian_lab.probe.bands import Band
from hessian_lab.probe.conditioning import ConditionEnclosure
from hessian_lab.probe.conditions import Conditioning
from hessian_lab.probe.log_density import LogDensity
from hessian_lab.probe.spectrum import Spectrum
from tests.pages import (
    assert_self_contained,
    bars,
    frames,
    images,
    number,
    points,
    read,
    tables,
    values,
)

GENERATOR = np.random.default_rng(0)
HOSTILE = "</title></style></script><script>alert(1)</script><img src=x onerror='alert(2)'>&amp;\""
COMMON = {"title": "what", "origin": "how", "losses": [1.0, 0.5], "psnrs": [3.0, math.nan]}


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def spectrum(*numbers, structural_zeros=0):
    return Spectrum(tensor(*sorted(numbers)), structural_zeros=structural_zeros)


# Ten eigenvalues; the floor of the first is 10 · 2.2e-16 · 4 = 8.9e-15.
FIRST = spectrum(-1.0, -1e-3, 0.0, 0.0, 1e-16, 1e-15, 1e-6, 1e-6, 2.0, 4.0, structural_zeros=2)
SECOND = spectrum(*np.linspace(0.1, 1, 9), -0.5)
SPECTRA = Spectra(**COMMON, steps=[0, 7], spectra=[FIRST, SECOND], layers={"layers.0": SECOND})


def density(scale=1.0):
    share = tensor(0.3, 0.2, 0.25, 0.1) * scale
    lump = Band(*(tensor(part)[0] for part in (0.2, 0.1, 0.4)), 0.9)
    return LogDensity(tensor(-3, -2, -1, 0), Band(share, share / 2, 2 * share, 0.9), 1e-3, lump, 1)


ESTIMATES = Estimates(
    **COMMON,
    steps=[0, 7],
    extremes=[(-2.0, 1.0), (0.25, 3.0)],
    densities=[density(), density(0.5)],
    kappas=[100.0, 50.0],
    traces=[(4.0, 0.5), (5.0, 0.25)],
    floors=[1e-13, 2e-13],
)
TRACES = Traces(
    **COMMON, steps=[0, 7], means=[4.0, 5.0], errors=[0.5, 0.25], lows=[3.0, 4.5], highs=[5.0, 6.0]
)
KAPPA = Conditioning(1e6, True, 1e5, 1e3, True, 0)
BOUND = Conditioning(1e13, False, 1e8, 1e13, False, 3)
CONDITIONS = Conditions(
    **COMMON,
    steps=[0, 7],
    scaled={"identity": [BOUND, KAPPA], "jacobi": [KAPPA, KAPPA]},
    exact={"identity": [ConditionEnclosure(20.5, 20.5001), None]},
)
ZEROS = Zeros(
    **COMMON,
    steps=[0, 7],
    curves={"H v exactly 0": [0.25, 0.5]},
    head=["", "entries", "H v = 0"],
    parts=[("layers.0", [count(12), percent(0.5)])],
    told="by layer",
)
MEASUREMENTS = (SPECTRA, ESTIMATES, TRACES, CONDITIONS, ZEROS)


def metrics(steps=3):
    places = np.arange(steps)
    return pd.DataFrame(
        {
            "step": places,
            "loss": 0.123456789 * 0.5**places,
            "psnr": 5.0 + places,
            "grad_norm": 2.0**-places,
            "evaluations": 2 * places,
            "wall_s": 0.5 * places,
        }
    )


def made(text=None, **changes):
    """Return a run; every text of it is ``text`` if that is given."""

    def words(plain):
        return plain if text is None else text

    target = GENERATOR.random((12, 1))
    part = RunPart(
        title=words("sine 2×4 on camera"),
        headline=words("a headline"),
        path=words("runs/a"),
        status="done",
        told="",
        num_parameters=1234,
        num_points=12,
        metrics=metrics(),
        fit=Fit(2, target, target / 2, shape=(3, 4)),
        measurements=[
            replace(each, title=words("a title"), origin=words("an origin"))
            for each in MEASUREMENTS
        ],
        settings=[("optimizer", words("lbfgs")), ("seed", words("0")), (words("a"), words("b"))],
        provenance=[("torch", words("2.13")), ("git commit", words("abc"))],
        data=[("attribution", words("Cameraman by Lav Varshney, CC0"))],
        notes=[words("a note")],
        missing=[(words("The trace:"), words("hessian-lab trace --run runs/a"))],
    )
    return replace(part, **changes)


def tags(element):
    """Return the tree of tags below an element."""
    return [
        (part.tag, sorted(part.attributes), tags(part))
        for part in element.children
        if not isinstance(part, str)
    ]


# Numbers as people read them.


@pytest.mark.parametrize("digits", [1, 2, 3, 5])
def test_a_written_number_is_the_number_to_its_digits(digits):
    numbers = GENERATOR.standard_normal(300) * 10.0 ** GENERATOR.integers(-30, 30, 300)
    for value in (*numbers, 0.00999999, 0.0100000001, 99.9999, 999.996, 1.0, 1e5, 1e-300):
        assert number(written(value, digits)) == pytest.approx(value, rel=0.51 * 10 ** (1 - digits))


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.125, 3, "0.125"),
        (3.047e-5, 3, "3.05×10⁻⁵"),
        (-3.047e-5, 2, "−3.0×10⁻⁵"),
        (27.04, 3, "27.0"),
        (1060, 4, "1060"),
        (86000, 2, "8.6×10⁴"),
        (1e-3, 1, "10⁻³"),
        (0, 3, "0"),
        (-0.0, 3, "0"),
        (math.nan, 3, "–"),
        (math.inf, 3, "∞"),
        (-math.inf, 3, "−∞"),
    ],
)
def test_numbers_are_written_as_people_do(value, digits, text):
    assert written(value, digits) == text


def test_kinds_of_cells():
    assert percent(0.2684).text == "26.8\u202f%"
    assert decibels(-1310.21).text == "−1310.2"
    assert count(1234567).text == "1\u202f234\u202f567"
    assert seconds(0.007).text == "0.01"
    assert seconds(1234.5).text == "1.23×10³"
    assert bound(6e12, resolved=False).text == "≥\u202f6.0×10¹²"
    assert bound(6e12, resolved=True).text == "6.0×10¹²"
    assert bound(math.nan, resolved=False).text == "–"


# Charts.


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [
        (0.0, 50.0, False),
        (-0.04, 0.03, False),
        (2.46, 2.61, False),
        (1e-9, 3e-9, False),
        (-15.0, 2.0, True),
        (-3.2, -0.5, True),
        (-0.26, -0.24, True),
        (-2.8, -2.1, True),
        (-0.5, 125.0, True),
    ],
)
def test_ticks_stand_where_their_labels_say(low, high, log):
    axis = Axis(low, high, 46, 350, log=log)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 9
    for place, label in ticks:
        value = math.log10(number(label)) if log else number(label)
        assert place == pytest.approx(46 + 304 * (value - low) / (high - low), abs=0.5)
        assert 45.9 <= place <= 350.1


def test_an_axis_without_room_is_made_some():
    assert span([2.0, 2.0]) == (1.0, 3.0)
    assert span([0.0]) == (-0.5, 0.5)
    assert span([math.nan]) == span([]) == (0.0, 1.0)
    assert span([100.0, math.inf, 0.0, -1.0], log=True) == (1.5, 2.5)


def test_curves_have_gaps_where_nothing_is_known():
    nan = math.nan
    x, y = np.arange(5.0), np.array([1.0, 2.0, nan, 3.0, 4.0])
    assert line(x, y) == "M0.0 1.0L1.0 2.0M3.0 3.0L4.0 4.0"
    assert band(x, y, y + 1) == "M0.0 2.0L1.0 3.0L1.0 2.0L0.0 1.0ZM3.0 4.0L4.0 5.0L4.0 4.0L3.0 3.0Z"
    assert Axis(0, 1, 0, 10, log=True).places([1.0, 0.0, -1.0])[0] == 0
    assert np.isnan(Axis(0, 1, 0, 10, log=True).places([1.0, 0.0, -1.0])[1:]).all()


def test_long_curves_keep_ends_extremes_and_gaps():
    y = GENERATOR.standard_normal(5000)
    y[1234], y[4321], y[2500] = 50.0, -60.0, math.nan
    places, heights = thinned(range(5000), y)
    assert len(places) < 2 * MOST_POINTS
    assert {0.0, 1234.0, 2500.0, 4321.0, 4999.0} <= set(places)
    assert (np.diff(places) > 0).all()
    assert np.array_equal(heights, y[places.astype(int)], equal_nan=True)


@pytest.mark.parametrize(("total", "most"), [(1, 5), (5, 5), (6, 5), (1000, 60), (3, 2)])
def test_chosen_places_are_spread_and_hold_both_ends(total, most):
    places = chosen(total, most)
    assert len(places) == min(total, most)
    assert (places[0], places[-1]) == (0, total - 1)
    if len(places) > 1:
        assert max(np.diff(places)) - min(np.diff(places)) <= 1


# The spectrum.


def heights(path, unit):
    """Return the bars of a histogram by the middle of each, in percent."""
    return {(left + right) / 2: (low - high) / unit for left, low, right, high in bars(path)}


def test_bars_are_shares_of_eigenvalues_where_they_lie():
    root = read(report_page([made(measurements=[SPECTRA])]))
    first, second = frames(root)[0]
    for paths, one in ((first["paths"], FIRST), (second["paths"], SECOND)):
        values_of = one.values.numpy()
        zero = np.abs(values_of) <= 10 * 2.0**-52 * np.abs(values_of).max()
        shares = [~zero & (values_of > 0), ~zero & (values_of < 0), zero]
        totals = [
            sum(heights(paths[name], 1.0).values()) for name in ("positive", "negative", "zero")
        ]
        # The unit is that of the page; ratios are those of the eigenvalues.
        assert np.abs(totals) / sum(np.abs(totals)) == pytest.approx(
            [share.mean() for share in shares], abs=0.01
        )
        assert totals[0] > 0
        assert totals[1] < 0


def test_bars_of_one_decade_hold_its_eigenvalues():
    """1, 4 and 2 among decades: the place of a bar is on the log scale of the axis."""
    root = read(report_page([made(measurements=[SPECTRA])]))
    first, _ = frames(root)[0]
    chart = root.all("svg", aria_label="what at step 7")[0]
    ticks = {
        number(text.text): float(text.attributes["x"])
        for text in chart.all("text")
        if text.attributes["text-anchor"] == "middle" and text.text.startswith("10")
    }
    (low, start), (high, end) = min(ticks.items()), max(ticks.items())
    decade = (end - start) / (math.log10(high) - math.log10(low))

    def place(value):
        return start + (math.log10(value) - math.log10(low)) * decade

    positive = [middle for middle, height in heights(first["paths"]["positive"], 1).items()]
    for value in (1e-6, 2.0, 4.0):
        assert min(abs(middle - place(value)) for middle in positive) <= decade / 4 + 0.3
    assert len(positive) == 3
    floor = float(re.match(r"M([\d.]+) ", first["paths"]["floor"])[1])
    assert floor == pytest.approx(place(10 * 2.0**-52 * 4), abs=0.2)
    # Zeros and 1e-16 stand beside the scale or below the floor, on its left.
    assert all(middle < floor for middle in heights(first["paths"]["zero"], 1))


def test_texts_of_the_slider_are_the_numbers_of_each_checkpoint():
    root = read(report_page([made(measurements=[SPECTRA])]))
    for frame, one, step in zip(frames(root)[0], (FIRST, SECOND), (0, 7), strict=True):
        texts = frame["texts"]
        assert number(texts["step"]) == step
        assert number(texts["λmax"]) == pytest.approx(one.lambda_max, rel=5e-3)
        assert number(texts["λmin"]) == pytest.approx(one.lambda_min, rel=5e-3)
        assert texts["κ"].startswith("≥") == (one is FIRST)
    assert frames(root)[0][0]["texts"]["zero"] == "40.0\u202f%"
    assert frames(root)[0][0]["texts"]["structural"] == "20.0\u202f%"
    assert frames(root)[0][1]["texts"]["κ"] == "10"


def test_without_a_script_the_last_checkpoint_and_small_pictures_are_there():
    root = read(report_page([made(measurements=[SPECTRA])]))
    part = root.one("div", class_="through")
    last = frames(root)[0][-1]
    drawn = {
        each.attributes["data-path"]: each.attributes["d"]
        for each in part.all("path")
        if "data-path" in each.attributes
    }
    assert drawn == last["paths"]
    told = {each.attributes["data-text"]: each.text for each in part.all("dd")}
    assert told == last["texts"]
    cursor = part.one("path", data_cursor="")
    assert cursor.attributes["transform"] == f"translate({last['x']} 0)"
    small = root.one("div", class_="multiples")
    assert [each.all("text", class_="label")[0].text for each in small.all("svg")] == [
        "step 0",
        "step 7",
    ]
    # Only a script hides them, and shows the slider.
    style = root.one("style").text
    assert ".js .multiples, html:not(.js) .slider { display: none; }" in style
    assert "js" not in (root.one("html").attributes.get("class") or "")


def test_a_table_tells_three_checkpoints():
    steps = list(range(9))
    many = [Spectrum(tensor(-1e-3, 1e-2, 1.0 + step)) for step in steps]
    part = replace(SPECTRA, steps=steps, spectra=many, losses=[0.1] * 9, psnrs=[5.0] * 9, layers={})
    root = read(report_page([made(measurements=[part])]))
    (rows,) = tables(root)["First, middle and last of 9 measured checkpoints"]
    assert values(rows["λmax"]) == [1.0, 5.0, 9.0]
    assert values(rows["κ"]) == [one.condition_number for one in (many[0], many[4], many[8])]
    assert values(rows["rounding floor"]) == [3 * 2.0**-52 * top for top in (1, 5, 9)]


@pytest.mark.parametrize(
    ("spectra", "words"),
    [
        ([spectrum(0.0, 0.0)] * 2, "Every eigenvalue is zero."),
        ([spectrum(math.nan, math.nan)] * 2, "No matrix was finite."),
    ],
)
def test_nothing_to_draw_is_a_sentence(spectra, words):
    part = replace(SPECTRA, spectra=spectra, layers={})
    assert words in read(report_page([made(measurements=[part])])).text


def test_checkpoints_that_are_not_finite_are_left_out_of_the_pictures():
    part = replace(SPECTRA, spectra=[FIRST, spectrum(math.nan, 1.0)], layers={})
    root = read(report_page([made(measurements=[part])]))
    assert [frame["texts"]["step"] for frame in frames(root)[0]] == ["0"]
    # One checkpoint needs no slider.
    assert not root.all("input")


def test_long_measurements_are_thinned():
    steps = list(range(500))
    part = replace(
        SPECTRA, steps=steps, spectra=[FIRST] * 500, losses=[0.1] * 500, psnrs=[5.0] * 500
    )
    root = read(report_page([made(measurements=[part])]))
    (shown,) = frames(root)
    assert len(shown) == Detail().frames
    assert [shown[0]["texts"]["step"], shown[-1]["texts"]["step"]] == ["0", "499"]
    assert root.one("input").attributes["max"] == str(len(shown) - 1)


# Estimates and the rest.


def test_a_density_is_drawn_with_its_band_and_its_lump():
    root = read(report_page([made(measurements=[ESTIMATES])]))
    first, second = frames(root)[0]
    curve, half = (points(each["paths"]["curve one"]) for each in (first, second))
    base = LARGE.height - LARGE.bottom
    rises = [base - y for _, y in curve]
    assert np.array(rises) / rises[0] == pytest.approx([1, 2 / 3, 2.5 / 3, 1 / 3], abs=0.01)
    assert base - half[0][1] == pytest.approx(rises[0] / 2, abs=0.11)
    edge = points(first["paths"]["band one"].removesuffix("Z"))
    assert base - edge[0][1] == pytest.approx(2 * rises[0], abs=0.11)
    assert base - edge[-1][1] == pytest.approx(rises[0] / 2, abs=0.11)
    top = float(re.search(r"V([\d.]+)h", first["paths"]["zero"])[1])
    assert base - top == pytest.approx(rises[0] * 0.2 / 0.3, abs=0.11)
    texts = first["texts"]
    assert (texts["not resolved"], texts["below"]) == (
        "20.0\u202f%",
        "10⁻³".replace("10", "1.0×10"),
    )
    assert texts["κ"] == "≥\u202f100"


def test_extremes_alone_make_a_chart_and_a_table():
    part = replace(ESTIMATES, densities=[None, None])
    root = read(report_page([made(measurements=[part])]))
    assert not root.all("div", class_="through")
    (rows,) = tables(root)["First, middle and last of 2 measured checkpoints"]
    assert values(rows["λmin"]) == [-2.0, 0.25]
    assert values(rows["κ"]) == [100.0, 50.0]
    assert all(cell.text.startswith("≥") for cell in rows["κ"])
    assert "share below" not in rows


def test_traces_have_their_intervals():
    root = read(report_page([made(measurements=[TRACES])]))
    (rows,) = [each for each in tables(root)[""] if "trace" in each]
    assert values(rows["trace"]) == [4.0, 5.0]
    assert values(rows["standard error"]) == [0.5, 0.25]
    assert values(rows["interval, lower end"]) == [3.0, 4.5]
    area = root.one("path", class_="band").attributes["d"]
    upper, lower = points(area.removesuffix("Z"))[0][1], points(area.removesuffix("Z"))[-1][1]
    mean = points(
        root.one("svg", aria_label="trace against optimizer steps")
        .one("path", class_="curve")
        .attributes["d"]
    )[0][1]
    assert lower - mean == pytest.approx(mean - upper, abs=0.11)


def test_condition_numbers_are_bounds_where_they_are_not_resolved():
    root = read(report_page([made(measurements=[CONDITIONS])]))
    (rows,) = [each for each in tables(root)[""] if "κ, H" in each]
    assert [cell.text.startswith("≥") for cell in rows["κ, H"]] == [True, False]
    assert values(rows["κ, H"]) == [1e13, 1e6]
    assert values(rows["log₁₀ κ, H, proven"]) == [pytest.approx(20.50005), None]
    chart = root.one("svg", aria_label="condition numbers against optimizer steps")
    assert len(chart.all("path", class_="open")) == 1
    dotted, solid = (chart.all("path", class_=name) for name in ("dotted", "c0"))
    assert len(points(dotted[0].attributes["d"])) == len(dotted) == 2
    # Of H only the second is a value.
    assert points(solid[1].attributes["d"]) == points(dotted[0].attributes["d"])[1:]


def test_shares_of_zeros_are_drawn_in_percent():
    root = read(report_page([made(measurements=[ZEROS])]))
    assert values(tables(root)["by layer"][0]["layers.0"]) == [12, 0.5]
    chart = root.one("svg", aria_label="shares of zeros against optimizer steps")
    start, end = points(chart.one("path", class_="curve").attributes["d"])
    base = LARGE.height - LARGE.bottom
    assert base - end[1] == pytest.approx(2 * (base - start[1]), abs=0.11)


# Signal and field.


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_the_signal_and_the_field(channels):
    target = GENERATOR.random((5 * 7, channels))
    fit = Fit(2, target, 1 - target, shape=(5, 7))
    shown, fitted, error = images(report_page([made(fit=fit)]))
    shape = (5, 7, 3) if channels == 3 else (5, 7)
    assert shown == pytest.approx(target.reshape(shape), abs=0.51 / 255)
    assert fitted == pytest.approx(1 - target.reshape(shape), abs=0.51 / 255)
    gaps = np.abs(1 - 2 * target).mean(axis=1).reshape(5, 7)
    # Brighter where the error is larger: cividis rises in every sum of channels.
    order = np.argsort(gaps.ravel())
    assert (np.diff(error.sum(axis=2).ravel()[order]) >= -0.01).all()
    assert f"{gaps.max():.2f}" in report_page([made(fit=fit)])


def test_large_images_are_means_over_squares():
    target = GENERATOR.random((600 * 300, 1))
    page = report_page([made(fit=Fit(0, target, target, shape=(600, 300)))])
    shown = images(page)[0]
    assert shown.shape == (200, 100)
    means = target.reshape(200, 3, 100, 3).mean(axis=(1, 3))
    assert shown == pytest.approx(means, abs=0.51 / 255)
    assert "600 × 300 pixels, shown at 200 × 100" in read(page).text


def test_values_beyond_the_unit_interval_are_shown_in_their_range():
    target = np.linspace(-3, 5, 12).reshape(12, 1)
    page = report_page([made(fit=Fit(0, target, target, shape=(3, 4)))])
    assert images(page)[0].ravel() == pytest.approx(np.linspace(0, 1, 12), abs=0.51 / 255)
    assert "values -3 … 5 shown" in read(page).text


def test_a_line_is_drawn_along_its_coordinate():
    coords = np.array([0.5, -1.0, 1.0, 0.0])
    fit = Fit(2, coords[:, None] ** 2, coords[:, None], coords=coords)
    root = read(report_page([made(fit=fit)]))
    chart = root.one("svg", aria_label="the signal and the field against the coordinate")
    target, field = (points(each.attributes["d"]) for each in chart.all("path", class_="curve"))
    places = [x for x, _ in target]
    assert places == sorted(places)
    assert np.diff(places) == pytest.approx((places[-1] - places[0]) * np.array([0.5, 0.25, 0.25]))
    assert np.ptp([y for _, y in field]) == pytest.approx(2 * np.ptp([y for _, y in target]))
    assert "largest magnitude 2.0" in root.text


def test_what_has_no_picture_is_a_sentence():
    root = read(report_page([made(fit="There is no picture.")]))
    assert "There is no picture." in root.text
    assert not root.all("img")


# The page.


def test_training_is_told_in_numbers_of_full_precision():
    root = read(report_page([made()]))
    (rows,) = tables(root)["First, middle and last of 3 checkpoints"]
    table = metrics()
    assert values(rows["loss"]) == table["loss"].tolist()
    assert values(rows["PSNR (dB)"]) == table["psnr"].tolist()
    assert values(rows["gradient norm"]) == table["grad_norm"].tolist()
    assert values(rows["evaluations"]) == table["evaluations"].tolist()
    assert values(rows["seconds"]) == table["wall_s"].tolist()


def test_what_is_shown_is_what_is_exact():
    root = read(report_page([made()]))
    cells = root.all("data")
    assert len(cells) > 100
    for cell in cells:
        exact = float(cell.attributes["value"])
        shown = number(cell.text) / (100 if "%" in cell.text else 1)
        assert shown == pytest.approx(exact, rel=0.051, abs=0.0051)


def test_settings_provenance_and_attribution_are_there():
    text = read(report_page([made()])).text
    for words in ("lbfgs", "2.13", "abc", "Cameraman by Lav Varshney, CC0", "a note"):
        assert words in text
    assert "hessian-lab trace --run runs/a" in text


def test_the_page_needs_nothing_but_itself():
    assert_self_contained(report_page([made(), made()]))


def test_every_text_is_taken_for_text():
    plain, hostile = (read(report_page([made(text), made(text)])) for text in (None, HOSTILE))
    assert tags(hostile) == tags(plain)
    (run, _) = hostile.all("section", class_="run")
    assert run.text.count(HOSTILE) >= 15
    assert hostile.one("title").text == "2 runs · hessian-lab"
    alone = read(report_page([made(HOSTILE)]))
    assert HOSTILE in alone.one("title").text
    assert len(alone.all("script")) == len(frames(alone)) + 1


def test_names_of_layers_and_curves_are_taken_for_text():
    spectra = replace(SPECTRA, layers={HOSTILE: SECOND})
    zeros = replace(ZEROS, curves={HOSTILE: [0, 1]}, parts=[(HOSTILE, [HOSTILE])], told=HOSTILE)
    conditions = replace(CONDITIONS, scaled={HOSTILE: [KAPPA, KAPPA]}, exact={})
    root = assert_self_contained(report_page([made(measurements=[spectra, zeros, conditions])]))
    assert root.text.count(HOSTILE) == 8


def test_data_of_a_script_cannot_end_it():
    shown = {"x": 1.0, "paths": {"floor": "M0 0"}, "texts": {"step": HOSTILE}}
    page = through("", [shown, shown], [("step", HOSTILE)], [0, 1])
    data = read(page).one("script", type="application/json").text
    assert not set("<>&") & set(data)
    assert json.loads(data) == [shown, shown]


def test_several_runs_begin_with_a_summary_that_leads_to_each():
    runs = [made(title=f"run {k}", path=f"runs/{k}") for k in range(10)]
    runs[3] = replace(runs[3], status="diverged", told="It diverged.", measurements=[])
    root = read(report_page(runs))
    summary = root.one("section", class_="summary")
    links = [each.attributes["href"] for each in summary.all("a")]
    ids = [f"#{each.attributes['id']}" for each in root.all("section", class_="run")]
    assert links == ids
    assert len(ids) == 10
    rows = summary.one("tbody").all("tr")
    head = [each.text for each in summary.one("thead").all("th")]
    for place, row in enumerate(rows):
        labels = [cell.attributes["data-label"] for cell in row.all("td")]
        assert labels == head[1:]
        cells = dict(zip(labels, row.all("td"), strict=True))
        assert values([cells["loss"]]) == [metrics()["loss"].iloc[-1]]
        assert cells["steps"].text == ("2 (diverged)" if place == 3 else "2")
        assert cells["κ"].text == ("–" if place == 3 else "10")
    # Ten curves: eight colours, and two dashed.
    curves = summary.one("svg").all("path", class_="curve")
    assert len({each.attributes["class"] for each in curves}) == 10
    assert root.one("h1").text == "10 runs"
    assert len(root.all("h2")) == 10


def test_a_matrix_other_than_the_hessian_does_not_answer_for_it():
    part = replace(SPECTRA, plain=False)
    (run,) = read(report_page([made(measurements=[part])])).all("section", class_="run")
    assert "zero eigenvalues" not in run.one("dl", class_="stats").text
    (run,) = read(report_page([made(measurements=[SPECTRA])])).all("section", class_="run")
    assert "zero eigenvalues0.0\u202f%κ10" in run.one("dl", class_="stats").text


def test_a_status_is_told_first():
    run = made(status="interrupted", told="Training was interrupted: it reached step 2 of 9.")
    root = read(report_page([run]))
    assert root.one("p", class_="interrupted").text == run.told
    assert not read(report_page([made()])).all("p", class_="status")


def test_losses_that_are_not_finite_are_gaps():
    table = metrics(5)
    table.loc[2, "loss"] = math.nan
    table["psnr"] = math.nan
    root = read(report_page([made(metrics=table)]))
    curve = root.one("svg", aria_label="loss against optimizer steps").one("path", class_="curve")
    assert curve.attributes["d"].count("M") == 2
    assert root.one("svg", aria_label="gradient norm against optimizer steps")


def test_the_same_runs_make_the_same_bytes():
    run = made()
    assert report_page([run, run]) == report_page([run, run])


def test_pages_stay_small_by_showing_less():
    noise = GENERATOR.random((512 * 512, 3))
    runs = [made(fit=Fit(0, noise, noise, shape=(512, 512)))] * 16
    page = report_page(runs)
    assert len(page.encode()) < MAX_BYTES
    shapes = {pixels.shape[0] for pixels in images(page)}
    assert shapes < {256, 128, 64, 32, 16}
    assert len(page.encode()) > MAX_BYTES / 8


def test_refuses_more_runs_than_a_page_holds(monkeypatch):
    monkeypatch.setattr(report, "MAX_BYTES", 50_000)
    with pytest.raises(ValueError, match=r"must stay below 0\.05 MB, that of 20 runs takes \d"):
        report_page([made()] * 20)


def test_refuses_a_page_of_nothing():
    with pytest.raises(ValueError, match="runs must hold at least one run, got none"):
        report_page([])
