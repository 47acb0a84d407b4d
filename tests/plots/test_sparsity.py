import numpy as np
import pytest

from hessian_lab.plots.sparsity import plot_sparsity
from hessian_lab.plots.style import save

TITLE = "relu_pe 4×256 (207107 parameters) on chelsea (65536 points), esgd by esgd-sparsity-pn"


def matrix(*shape, zero_rows=0):
    entries = np.random.default_rng(0).standard_normal(shape) ** 3
    entries[:zero_rows] = 0
    return entries


MATRICES = {
    "layers.0": matrix(16, 2),
    "layers.1": matrix(16, 16, zero_rows=4),
    "layers.2": matrix(3, 16, zero_rows=3),
}
LAYERS = {name: [0.1 * place, 0.5] for place, name in enumerate(MATRICES)}
WHOLE = {"H v exactly 0": [0.2, 0.4], "|H v| ≤1e-7 max": [0.3, 0.4], "gradient": [0.2, 0.4]}


def draw(matrices=MATRICES, steps=(0, 10), layers=LAYERS, whole=WHOLE, title=TITLE):
    figure = plot_sparsity(
        matrices, steps=steps, layers=layers, whole=whole, step=steps[-1], title=title
    )
    # The layout settles in two passes; saving takes as many.
    figure.draw_without_rendering()
    figure.draw_without_rendering()
    return figure


def panels(figure):
    """Return the pictures of matrices, and the two panels of curves."""
    pictures = [axes for axes in figure.axes if axes.images]
    curves = [axes for axes in figure.axes if axes.get_xlabel() == "optimizer step"]
    return pictures, curves


def test_pictures_are_the_matrices_with_exact_zeros_masked():
    pictures, _ = panels(draw())
    for axes, (name, entries) in zip(pictures, MATRICES.items(), strict=True):
        shown = axes.images[0].get_array()
        assert shown.shape == entries.shape
        assert (np.ma.getmaskarray(shown) == (entries == 0)).all()
        assert shown.compressed() == pytest.approx(abs(entries[entries != 0]))
        assert axes.get_title(loc="left").splitlines()[0] == name
    assert [axes.get_title(loc="left").splitlines()[1] for axes in pictures] == [
        "16×2, 0% zero",
        "16×16, 25% zero",
        "3×16, 100% zero",
    ]


def test_zeros_are_white_and_nothing_else_is():
    pictures, _ = panels(draw())
    image = pictures[1].images[0]
    colours = image.cmap(image.norm(image.get_array()))
    white = (colours[..., :3] > 0.97).all(axis=-1)
    assert (white == (MATRICES["layers.1"] == 0)).all()
    # Small entries take the last colour, not white.
    assert not (image.cmap(image.norm(1e-30))[2] > 0.97)


def test_curves_are_the_shares():
    _, (left, right) = panels(draw())
    for axes, curves in ((left, LAYERS), (right, WHOLE)):
        found = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
        assert found == curves
        assert all(list(line.get_xdata()) == [0, 10] for line in axes.lines)
        assert axes.get_ylim() == (0, 1)
    assert left.get_title(loc="left") == "exactly zero, by layer"


@pytest.mark.parametrize("count", [1, 5, 6, 12])
def test_any_number_of_layers_has_room(count):
    matrices = {f"layers.{place}": matrix(4, 4) for place in range(count)}
    figure = draw(matrices, layers={name: [0.0, 1.0] for name in matrices})
    pictures, _ = panels(figure)
    assert len(pictures) == count
    page = figure.bbox
    boxes = [axes.get_tightbbox() for axes in figure.axes if axes.axison]
    for place, box in enumerate(boxes):
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
        for other in boxes[:place]:
            apart = box.x1 <= other.x0 + 2 or other.x1 <= box.x0 + 2
            assert apart or box.y1 <= other.y0 + 2 or other.y1 <= box.y0 + 2
    assert figure._suptitle.get_window_extent().y0 > max(box.y1 for box in boxes)


@pytest.mark.parametrize("entries", [np.zeros((4, 4)), np.full((4, 4), 1e-300)])
def test_matrices_of_nothing_and_of_next_to_nothing_can_be_drawn(entries):
    assert draw({"layers.0": entries}, steps=(0,), layers={"layers.0": [1.0]}, whole={"all": [1.0]})


def test_it_can_be_saved(tmp_path):
    paths = save(draw(), tmp_path / "sparsity")
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("matrices", "steps"), [({}, (0, 10)), (MATRICES, ()), (MATRICES, (0, 1, 2))]
)
def test_refuses_curves_of_another_length(matrices, steps):
    with pytest.raises(ValueError, match=f"one share per step, {len(steps)}, above 0"):
        plot_sparsity(matrices, steps=steps, layers=LAYERS, whole=WHOLE, step=0)
