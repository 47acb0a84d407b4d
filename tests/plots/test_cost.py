import math

import pytest

from hessian_lab.plots.cost import plot_cost


def test_bars_are_the_numbers():
    figure = plot_cost(["adam", "newton"], [1.0, math.nan], [2.0, math.nan], title="a step")
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [1.0, 0.0]
    assert [bar.get_width() for bar in right.patches] == [2.0, 0.0]
    assert [text.get_text().strip() for text in left.texts] == ["1.00", "too large"]
    assert [text.get_text().strip() for text in right.texts] == ["2.00", "too large"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["adam", "newton"]
    assert figure.get_suptitle() == "a step"


def test_refuses_lengths_that_differ():
    for case in (([], [], []), (["adam"], [1.0, 2.0], [0])):
        with pytest.raises(ValueError, match="one length above 0"):
            plot_cost(*case)
