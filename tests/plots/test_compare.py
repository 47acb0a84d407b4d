import pandas as pd
import pytest

from hessian_lab.plots.compare import plot_comparison
from hessian_lab.plots.style import CYCLE

BANDS = pd.DataFrame(
    [
        (name, act, step, step * pace, start + step, start, start + 2 * step)
        for name, pace, start in (("adam", 1.0, 10.0), ("lbfgs", 2.0, 20.0))
        for act in ("sine", "relu")
        for step in (0, 5, 10)
    ],
    columns=["optimizer", "act", "step", "seconds", "median", "low", "high"],
)


def test_curves_are_medians_against_steps_and_seconds():
    figure = plot_comparison(BANDS, groups=("optimizer", "act"), title="a headline")
    left, right = figure.axes
    assert [line.get_ydata().tolist() for line in left.lines][2] == [20.0, 25.0, 30.0]
    assert [line.get_xdata().tolist() for line in right.lines][2] == [0.0, 10.0, 20.0]
    assert [line.get_color() for line in left.lines] == [CYCLE[0]] * 2 + [CYCLE[1]] * 2
    assert [line.get_linestyle() for line in left.lines] == ["-", "--"] * 2
    assert left.get_ylabel() == "PSNR (dB)"
    (legend,) = figure.legends
    assert legend.get_texts()[0].get_text() == "adam, sine"


def test_losses_are_on_a_log_scale():
    figure = plot_comparison(BANDS.assign(act="x"), groups=("optimizer",), quantity="loss")
    assert figure.axes[0].get_yscale() == "log"


def test_refuses_nothing():
    with pytest.raises(ValueError, match="must hold a curve"):
        plot_comparison(BANDS[:0], groups=("optimizer",))
