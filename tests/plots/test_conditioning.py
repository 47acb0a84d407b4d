import numpy as np
import pytest
from matplotlib.figure import Figure

from hessian_lab.plots.conditioning import LOOKS, plot_conditioning
from hessian_lab.plots.style import save
from hessian_lab.probe.conditioning import ConditionEnclosure
from hessian_lab.probe.conditions import Conditioning

TITLE = "gaussian 2×16 (321 parameters) on sines (256 points), psgd by psgd-condition-pn, seed 0"
STEPS = list(range(0, 60, 10))


def entry(kappa, resolved=True, eff10=1e3, eff10_resolved=True):
    return Conditioning(kappa, resolved, kappa, eff10, eff10_resolved, int(not resolved))


def curves(names=("identity", "equilibrated", "jacobi"), resolved=True):
    return {
        name: [entry(10.0 ** (9 - place + step / 10), resolved) for step in range(6)]
        for place, name in enumerate(names)
    }


PROVEN = {name: [ConditionEnclosure(30.0, 30.0)] * 6 for name in list(LOOKS)[:3]}
CASES = {
    "resolved": (curves(), None),
    "bounds": (curves(resolved=False), None),
    "all of both": (curves(tuple(LOOKS)), PROVEN),
    "proven beyond double precision": (
        curves(resolved=False),
        {name: [ConditionEnclosure(400.0, 400.0)] * 6 for name in PROVEN},
    ),
    "singular": (
        curves(resolved=False),
        {name: [ConditionEnclosure(np.inf, np.inf, singular=True)] * 6 for name in PROVEN},
    ),
    "one that is not finite": ({"identity": [entry(np.nan), *curves()["identity"][1:]]}, None),
}


def draw(case, title=TITLE):
    scaled, exact = CASES[case]
    return plot_conditioning(scaled, steps=STEPS, exact=exact, title=title)


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("case", CASES)
def test_the_picture_can_be_drawn(case):
    figure = draw(case)
    figure.draw_without_rendering()
    assert isinstance(figure, Figure)
    boxes = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    page = figure.bbox
    assert all(page.x0 <= box.x0 < box.x1 <= page.x1 and box.y0 >= page.y0 for box in boxes)
    for axes in figure.axes:
        ticks = [text for text in axes.get_xticklabels() if text.get_text()]
        places = sorted(tick.get_window_extent().x0 for tick in ticks)
        ends = sorted(tick.get_window_extent().x1 for tick in ticks)
        assert all(end < place for end, place in zip(ends, places[1:], strict=False))


def marked(axes, marker):
    """Return all points with a marker."""
    return np.concatenate(
        [line.get_xydata() for line in axes.lines if line.get_marker() == marker]
        or [np.empty((0, 2))]
    )


def test_values_are_solid_and_bounds_are_open_triangles():
    scaled = {"identity": [entry(10.0**step, resolved=step < 3) for step in range(6)]}
    left = plot_conditioning(scaled, steps=STEPS, title=None).axes[0]
    assert marked(left, "o")[:, 1] == pytest.approx([0, 1, 2])
    assert marked(left, "o")[:, 0] == pytest.approx([0, 10, 20])
    assert marked(left, "^")[:, 1] == pytest.approx([3, 4, 5])
    # Within their place on the axis, however far apart those of the scalings stand.
    assert abs(marked(left, "^")[:, 0] - [30, 40, 50]).max() < 2
    (solid,) = [line for line in left.lines if line.get_linestyle() == "-"]
    assert np.isfinite(solid.get_ydata()).tolist() == [True] * 3 + [False] * 3


def test_the_right_panel_shows_the_quantile_with_its_own_flag():
    scaled = {"jacobi": [entry(1e30, False, 10.0**step, step > 1) for step in range(6)]}
    right = plot_conditioning(scaled, steps=STEPS).axes[1]
    assert marked(right, "D")[:, 1] == pytest.approx([2, 3, 4, 5])
    assert marked(right, "^")[:, 1] == pytest.approx([0, 1])


def test_what_is_proven_lies_at_its_logarithm():
    left = draw("proven beyond double precision").axes[0]
    thick = [line for line in left.lines if line.get_linewidth() > 2]
    assert len(thick) == 3
    for line in thick:
        assert line.get_ydata() == pytest.approx([400] * 6)


def test_bounds_of_the_same_height_do_not_hide_each_other():
    left = draw("bounds").axes[0]
    places = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "^"]
    assert len(set(np.round(places, 3))) == 3


@pytest.mark.parametrize("exponent", [9.0, 13.15, 0.0])
def test_decades_are_told_once_where_all_values_are_alike(exponent):
    scaled = {"identity": [entry(10.0**exponent, False)] * 6}
    axes = plot_conditioning(scaled, steps=STEPS).axes[0]
    axes.figure.draw_without_rendering()
    low, high = axes.get_ylim()
    told = [
        text.get_text()
        for place, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        if low <= place <= high
    ]
    assert len(told) == len(set(told)) >= 2
    assert low < exponent < high


@pytest.mark.parametrize(
    ("case", "more"),
    [("resolved", []), ("bounds", ["lower bound"]), ("singular", ["lower bound", "κ, proven"])],
)
def test_the_legend_names_what_is_drawn(case, more):
    names = ["H", "$D^E$: row norms", "$D^J$: |diagonal|"]
    assert legend(draw(case)) == [*names, *more]


def test_long_runs_are_marked_at_some_checkpoints_only():
    many = {"identity": [entry(1e5)] * 500}
    left = plot_conditioning(many, steps=range(500)).axes[0]
    assert len(marked(left, "o")) <= 12


def test_it_can_be_saved(tmp_path):
    paths = save(draw("bounds"), tmp_path / "conditioning")
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("scaled", "steps", "exact"),
    [
        ({}, [0], None),
        (curves(), [0], None),
        (curves(), [], None),
        (curves(), STEPS, {"jacobi": []}),
    ],
)
def test_lengths_that_differ_are_refused(scaled, steps, exact):
    with pytest.raises(ValueError, match="one entry per step, and at least one"):
        plot_conditioning(scaled, steps=steps, exact=exact)
