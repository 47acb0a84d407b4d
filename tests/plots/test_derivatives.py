import numpy as np
import pytest

from hessian_lab.plots.derivatives import plot_derivatives
from hessian_lab.plots.style import save

TITLE = "relu_pe 4×64 (14915 parameters) on chelsea (2500 points), lbfgs, 100 steps, luminance"


def made(*shape, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "values": generator.random(shape),
        "gradient": generator.standard_normal((*shape, len(shape))),
        "laplacian": generator.standard_normal(shape),
    }


FIELD, TARGET = made(6, 8), made(6, 8, seed=1)


def draw(field=FIELD, target=TARGET, title=TITLE):
    figure = plot_derivatives(field, target, title=title)
    figure.draw_without_rendering()
    return figure


def test_pictures_are_the_arrays_on_the_targets_scale():
    pictures = [axes for axes in draw().axes if axes.images]
    titles = [axes.get_title(loc="left") for axes in pictures]
    assert titles == [
        f"{name}: {kind}" for name in ("field", "target") for kind in ("f", "|∇f|", "Δf")
    ]
    for row, part in zip((pictures[:3], pictures[3:]), (FIELD, TARGET), strict=True):
        shown = [axes.images[0].get_array() for axes in row]
        lengths = np.sqrt((part["gradient"] ** 2).sum(axis=-1))
        for found, expected in zip(
            shown, (part["values"], lengths, part["laplacian"]), strict=True
        ):
            assert np.asarray(found) == pytest.approx(expected)
    for above, below in zip(pictures[:3], pictures[3:], strict=True):
        assert above.images[0].get_clim() == below.images[0].get_clim()
    top = np.quantile(abs(TARGET["laplacian"]), 0.99)
    assert pictures[2].images[0].get_clim() == pytest.approx((-top, top))
    assert pictures[0].images[0].get_clim() == (0, 1)


def test_values_outside_the_unit_interval_have_a_scale_of_their_own():
    target = TARGET | {"values": 3 * TARGET["values"] - 1}
    first = next(axes for axes in draw(target=target).axes if axes.images)
    ends = target["values"].min(), target["values"].max()
    assert first.images[0].get_clim() == pytest.approx(ends)


def test_a_line_has_one_panel_for_each():
    field, target = made(20), made(20, seed=1)
    figure = draw(field, target)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["f", "f′", "f″"]
    for axes, kind in zip(figure.axes, ("values", "gradient", "laplacian"), strict=True):
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        assert lines["field"] == pytest.approx(field[kind].reshape(-1))
        assert lines["target"] == pytest.approx(target[kind].reshape(-1))
        low, high = axes.get_ylim()
        assert low < target[kind].min() < target[kind].max() < high


@pytest.mark.parametrize("shape", [(6, 8), (20,)])
def test_nothing_overlaps_and_nothing_leaves_the_page(shape):
    figure = draw(made(*shape), made(*shape, seed=1))
    figure.draw_without_rendering()
    page, boxes = figure.bbox, [axes.get_tightbbox() for axes in figure.axes]
    for place, box in enumerate(boxes):
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
        for other in boxes[:place]:
            apart = box.x1 <= other.x0 + 2 or other.x1 <= box.x0 + 2
            assert apart or box.y1 <= other.y0 + 2 or other.y1 <= box.y0 + 2


def test_a_flat_target_can_be_drawn(tmp_path):
    flat = {"values": np.zeros((4, 4)), "gradient": np.zeros((4, 4, 2))}
    flat["laplacian"] = flat["values"]
    paths = save(draw(made(4, 4), flat), tmp_path / "derivatives")
    assert paths[0].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("field", "target"), [(made(4, 4), made(4, 5)), (made(2, 2, 2), made(2, 2, 2))]
)
def test_refuses_other_shapes(field, target):
    with pytest.raises(ValueError, match="field and target must have one shape"):
        plot_derivatives(field, target)
