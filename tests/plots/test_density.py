import re
from functools import cache

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from hessian_lab.plots.density import MOST_MARKS, plot_density
from hessian_lab.plots.style import save
from hessian_lab.probe.bands import Band
from hessian_lab.probe.density import spectral_measure
from hessian_lab.probe.log_density import LogDensity

# As long as those that the command line writes.
TITLE = "gaussian 4×256 (198401 parameters) on camera (2500 points), lbfgs, 5000 steps, seed 0"


@cache
def measured(scale=1.0, zeros=100):
    """Return the density of 300 eigenvalues of both signs over four decades, and of zeros."""
    values = torch.logspace(-4, 0, 300, dtype=torch.float64)
    values[::3] *= -1
    matrix = torch.diag(scale * torch.cat([values, torch.zeros(zeros, dtype=torch.float64)]))
    return spectral_measure(matrix, num_probes=4, num_steps=20).log_density()


def made(estimate, lump=(0.2, 0.1, 0.4), floor=1e-3, level=0.9):
    """Return a density over three decades above a floor, with a band of half and double."""
    grid = torch.linspace(np.log10(floor), np.log10(floor) + 3, len(estimate), dtype=torch.float64)
    share = torch.tensor(estimate, dtype=torch.float64)
    below = Band(*(torch.tensor(part, dtype=torch.float64) for part in lump), level)
    return LogDensity(grid, Band(share, share / 2, 2 * share, level), floor, below, 0.25)


SHARES = [0.3, 0.2, 0.25, 0.1]
CASES = {
    "measured": ([measured()], [(-1.0, 1.0)]),
    "tiny": ([measured(scale=1e-100)], [(-1e-100, 1e-100)]),
    "large": ([measured(scale=1e100)], [(-1e100, 1e100)]),
    "of three checkpoints": ([measured()] * 3, [(-1.0, 2.0), (-0.5, 1.0), (0.1, 1.0)]),
    "none": ([], [(-1.0, 1.0), (-0.5, 2.0)]),
    "nothing below the floor": ([made(SHARES, lump=(0, 0, 0.01))], [(0.001, 1.0)]),
    "all below the floor": ([made([0.0] * 4, lump=(1, 0.9, 1))], [(0.0, 1e-4)]),
    "a matrix without negative eigenvalues": ([measured()], [(0.0, 1.0), (0.1, 1.0)]),
    "a negative matrix": ([measured()], [(-2.0, -1.0), (-1.0, -0.5)]),
    "zero": (
        [
            spectral_measure(
                torch.zeros(5, 5, dtype=torch.float64), num_probes=2, num_steps=1
            ).log_density()
        ],
        [(0.0, 0.0)],
    ),
    "zero extremes alone": ([], [(0.0, 0.0), (0.0, 0.0)]),
    "one that is not finite": ([measured()], [(-1.0, 1.0), (float("nan"), float("nan"))]),
    "many checkpoints": ([measured()], [(-1.0, 1.0 + step) for step in range(200)]),
}
each_case = pytest.mark.parametrize("case", CASES)


def draw(case, title=TITLE):
    densities, extremes = CASES[case]
    return plot_density(densities, extremes=extremes, steps=range(len(extremes)), title=title)


@cache
def drawn(case):
    """Return a picture with everything in its place."""
    figure = draw(case)
    figure.draw_without_rendering()
    return figure


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def boxes(figure):
    """Return the boxes of all that is written in a figure, by what it says."""
    found = {}
    for axes in figure.axes:
        for text in (*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label):
            found[text.get_text()] = text.get_window_extent()
    if figure._suptitle is not None:
        found[figure.get_suptitle()] = figure._suptitle.get_window_extent()
    return found


@each_case
def test_the_picture_can_be_drawn(case):
    assert isinstance(drawn(case), Figure)


def test_curve_and_band_are_those_of_the_last_density():
    last = made(SHARES)
    figure = plot_density(
        [made([1.0] * 4), last], extremes=[(-1, 1), (-1, 2)], steps=[0, 50], title=None
    )
    left = figure.axes[0]
    curve = left.lines[0]
    assert curve.get_xdata() == pytest.approx(10 ** last.grid.numpy())
    assert curve.get_ydata() == pytest.approx(100 * np.array(SHARES))
    (band,) = [part for part in left.collections if part.get_label() == "90% band"]
    corners = band.get_paths()[0].vertices
    for place, share in zip(10 ** last.grid.numpy(), SHARES, strict=True):
        heights = corners[np.isclose(corners[:, 0], place), 1]
        assert heights.min() == pytest.approx(50 * share)
        assert heights.max() == pytest.approx(200 * share)
    assert left.get_title(loc="left") == "step 50"


def test_the_share_below_the_floor_is_a_bar_with_its_interval():
    left = plot_density([made(SHARES)], extremes=[(-1, 1)], steps=[0]).axes[0]
    (container,) = left.containers
    point, _, (bar,) = container.lines
    assert point.get_xdata()[0] == pytest.approx(1e-3 * 10**-0.5)
    assert point.get_ydata()[0] == pytest.approx(20)
    assert bar.get_segments()[0][:, 1] == pytest.approx([10, 40])
    assert legend(left) == ["90% band", "density", "20% lie below 1.0e-03"]


def test_the_density_ends_at_the_floor():
    one = measured()
    left = drawn("measured").axes[0]
    assert left.lines[0].get_xdata().min() == pytest.approx(one.floor)
    assert left.get_xlim()[0] == pytest.approx(one.floor / 10)
    (area,) = left.patches
    assert area.get_x() == pytest.approx(one.floor / 10)
    assert area.get_x() + area.get_width() == pytest.approx(one.floor)


def test_all_that_is_known_lies_inside_the_axes():
    left = plot_density([made(SHARES)], extremes=[(-1, 1)], steps=[0]).axes[0]
    low, high = left.get_ylim()
    assert low < 5
    assert high > 60
    assert left.get_xlim()[1] == pytest.approx(1)


def test_ends_of_the_spectrum_are_drawn_by_magnitude():
    figure = plot_density([], extremes=[(-3.0, 1.0), (0.5, 2.0)], steps=[0, 10])
    (axes,) = figure.axes
    largest, smallest = axes.lines
    assert list(largest.get_xdata()) == [0, 10]
    assert list(largest.get_ydata()) == [1, 2]
    assert smallest.get_ydata()[0] == 3
    assert np.isnan(smallest.get_ydata()[1])
    assert legend(axes) == ["λmax", "−λmin"]
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize(("count", "marked"), [(MOST_MARKS, True), (MOST_MARKS + 1, False)])
def test_few_checkpoints_are_marked_one_by_one(count, marked):
    figure = plot_density([], extremes=[(-1.0, 1.0)] * count, steps=range(count))
    assert (figure.axes[0].lines[0].get_marker() == "o") == marked


def test_axes_say_what_they_show():
    left, right = drawn("measured").axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("magnitude |λ|", "share per decade (%)")
    assert (right.get_xlabel(), right.get_ylabel()) == ("optimizer step", "eigenvalue")
    assert right.get_title(loc="left") == "ends of the spectrum"
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")


@pytest.mark.parametrize("words", [None, "sine, 4×16"])
def test_the_title_of_the_figure_is_the_one_given(words):
    assert draw("none", words).get_suptitle() == (words or "")


@pytest.mark.parametrize("case", ["measured", "none"])
def test_a_long_title_stays_in_the_picture_and_leaves_the_panels_their_height(case):
    words = "sine 4×16 on " + "a_photograph_with_a_long_name_" * 4 + " and some more words"
    figure, plain = draw(case, words), draw(case, "sine")
    for each in (figure, plain):
        each.draw_without_rendering()
    box, page = figure._suptitle.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert box.y1 <= page.y1
    assert figure.get_suptitle().replace("\n", "").replace(" ", "") == words.replace(" ", "")
    heights = [each.axes[0].get_window_extent().height for each in (figure, plain)]
    assert heights[0] > 0.9 * heights[1]


def test_what_lies_in_the_left_panel_does_not_leave_it():
    left = drawn("measured").axes[0]
    (note,) = left.texts
    box, (area,) = note.get_window_extent(), left.patches
    shaded = area.get_window_extent()
    assert shaded.x0 <= box.x0 < box.x1 <= shaded.x1


def test_a_matrix_without_negative_eigenvalues_has_one_end():
    (axes,) = plot_density([], extremes=[(0.0, 1.0), (1e-9, 2.0)], steps=[0, 1]).axes
    assert legend(axes) == ["λmax"]


def test_it_can_be_saved(tmp_path):
    paths = save(draw("measured"), tmp_path / "density-slq")
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("extremes", "steps"), [([], []), ([(-1.0, 1.0)], [0, 1]), ([(-1.0, 1.0)] * 2, [0])]
)
def test_refuses_steps_that_do_not_belong_to_the_extremes(extremes, steps):
    message = f"steps must hold one step per pair of extremes, got {len(steps)}."
    with pytest.raises(ValueError, match=re.escape(message)):
        plot_density([], extremes=extremes, steps=steps)
