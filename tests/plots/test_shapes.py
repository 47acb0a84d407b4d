import numpy as np
import pytest
from matplotlib.colors import to_rgb

from hessian_lab.plots.shading import View, shade
from hessian_lab.plots.shapes import plot_shapes
from hessian_lab.plots.style import ORANGE, save
from tests.signals.solids import box, icosphere, joined, torus, turned

FRONT = View(0, 0)


def arrays(mesh):
    return mesh.vertices, mesh.faces


def hue(colour):
    """Return a colour without its brightness."""
    return colour[:3] / colour[:3].max()


# What a picture shows.


@pytest.mark.parametrize("azimuth", [0, 77])
def test_a_ball_covers_a_disc(azimuth):
    picture = shade(*arrays(icosphere(4, 0.5)), view=View(azimuth, 20), size=100)
    assert picture.shape == (100, 100, 4)
    assert 4 * picture[..., 3].mean() == pytest.approx(np.pi / 4, rel=1e-2)
    places = (np.arange(100) + 0.5) / 50 - 1
    radii = np.hypot(*np.meshgrid(places, places))
    assert (picture[radii < 0.47, 3] == 1).all()
    assert (picture[radii > 0.53, 3] == 0).all()


def test_a_ball_is_brightest_towards_the_lamp_and_smooth():
    picture = shade(*arrays(icosphere(4, 0.9)), view=FRONT, size=100)
    light = np.where(picture[..., 3] == 1, picture[..., :3].sum(axis=-1), 0)
    row, column = np.unravel_index(light.argmax(), light.shape)
    # Above and to the left.
    assert row < 35
    assert column < 45
    disc = light[30:70, 30:70]
    assert np.abs(np.diff(disc)).max() < 0.1


def test_the_inside_of_a_surface_is_lit_as_its_outside_would_be():
    pictures = [
        shade(*arrays(mesh), view=FRONT, size=60)[..., :3].sum(axis=-1)
        for mesh in (icosphere(3, 0.9), turned(icosphere(3, 0.9)))
    ]
    inner = (slice(15, 45), slice(15, 45))
    assert np.corrcoef(*[picture[inner].ravel() for picture in pictures])[0, 1] > 0.99


def test_what_is_near_hides_what_is_far():
    near, far = box(0.5, 0.5, 0.1), box(1, 1, 0.1)
    places = np.array([[0, 0, 0.8], [0, 0, -0.8]])
    stack = joined(near, turned(far))
    vertices = stack.vertices + np.repeat(places, 8, axis=0)
    picture = shade(vertices, stack.faces, view=FRONT, size=80)
    # The far one is turned inside out: orange around the near one.
    assert hue(picture[40, 40]) != pytest.approx(hue(np.array(to_rgb(ORANGE))), abs=0.2)
    assert hue(picture[40, 24]) == pytest.approx(hue(np.array(to_rgb(ORANGE))), abs=0.1)
    behind = shade(vertices, stack.faces, view=View(180, 0), size=80)
    assert hue(behind[40, 40]) == pytest.approx(hue(np.array(to_rgb(ORANGE))), abs=0.1)


MARKS = {
    # Where a mark at (0.6, 0, 0), (0, 0.6, 0), (0, 0, 0.6) is seen, to the right and up.
    (0, 0, "y"): [(0.6, 0), (0, 0.6), (0, 0)],
    (90, 0, "y"): [(0, 0), (0, 0.6), (-0.6, 0)],
    (0, 90, "y"): [(0.6, 0), (0, 0), (0, -0.6)],
    (0, 0, "z"): [(0.6, 0), (0, 0), (0, 0.6)],
    (90, 0, "z"): [(0, 0), (0.6, 0), (0, 0.6)],
    (0, 90, "z"): [(0.6, 0), (0, 0.6), (0, 0)],
}


@pytest.mark.parametrize(("place", "seen"), MARKS.items())
def test_axes_are_where_the_view_says(place, seen):
    view = View(*place)
    for axis, (right, up) in enumerate(seen):
        mark = icosphere(1, 0.1)
        picture = shade(mark.vertices + 0.6 * np.eye(3)[axis], mark.faces, view=view, size=60)
        rows, columns = np.nonzero(picture[..., 3])
        assert (columns.mean() + 0.5) / 30 - 1 == pytest.approx(right, abs=0.02)
        assert 1 - (rows.mean() + 0.5) / 30 == pytest.approx(up, abs=0.02)


@pytest.mark.parametrize("view", [View(10, 20, "y"), View(200, -40, "z"), View(0, 90)])
def test_the_viewers_axes_are_a_rotation(view):
    assert view.axes @ view.axes.T == pytest.approx(np.eye(3), abs=1e-15)
    assert np.linalg.det(view.axes) == pytest.approx(1)


def test_large_flat_faces_have_no_gaps_and_one_shade():
    picture = shade(*arrays(box(1, 1, 1)), view=FRONT, size=64)
    inner = picture[18:46, 18:46]
    assert (inner[..., 3] == 1).all()
    assert np.ptp(inner[..., :3], axis=(0, 1)).max() < 1e-12


def test_what_lies_beyond_the_square_is_cut_off():
    picture = shade(*arrays(box(9, 9, 9)), view=FRONT, size=10)
    assert (picture[..., 3] == 1).all()
    aside = shade(icosphere(1).vertices + 5, icosphere(1).faces, view=FRONT, size=10)
    assert (aside == 0).all()


def test_faces_seen_from_the_edge_are_invisible():
    flat = np.array([[0.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    picture = shade(flat, np.array([[0, 1, 2]]), view=FRONT, size=10)
    assert np.isfinite(picture).all()


# The figure.


def test_shapes_stand_in_a_row_at_one_scale():
    figure = plot_shapes(
        {"large": arrays(box(2, 2, 2)), "small": arrays(box(1, 1, 1))},
        azimuth=0,
        elevation=0,
        title="two boxes",
    )
    assert [axes.get_title() for axes in figure.axes] == ["large", "small"]
    covers = [(axes.images[0].get_array()[..., 3] > 0.5).mean() for axes in figure.axes]
    assert covers[0] == pytest.approx(4 * covers[1], rel=0.02)
    assert covers[0] == pytest.approx(1 / 1.03**2, rel=0.02)


def test_nothing_overlaps_and_nothing_leaves_the_page():
    shapes = {name: arrays(torus()) for name in ("mesh", "gaussian 4×64, 1500 batches", "sine")}
    figure = plot_shapes(shapes, title="a torus " * 20)
    figure.draw_without_rendering()
    page, boxes = figure.bbox, [axes.get_tightbbox() for axes in figure.axes]
    for place, one in enumerate(boxes):
        assert page.x0 <= one.x0 < one.x1 <= page.x1
        assert page.y0 <= one.y0 < one.y1 <= page.y1
        for other in boxes[:place]:
            assert one.x1 <= other.x0 + 2 or other.x1 <= one.x0 + 2


def test_a_figure_is_saved(tmp_path):
    figure = plot_shapes({"ball": arrays(icosphere(1))})
    paths = save(figure, tmp_path / "shapes")
    assert all(path.stat().st_size > 1000 for path in paths)


def test_refuses_nothing_to_draw():
    empty = np.zeros((0, 3)), np.zeros((0, 3), dtype=int)
    for shapes in ({}, {"empty": empty}):
        with pytest.raises(ValueError, match="shapes must hold a surface, got none"):
            plot_shapes(shapes)


def test_refuses_another_upright_axis():
    with pytest.raises(ValueError, match="up must be one of y, z, got 'x'"):
        plot_shapes({"ball": arrays(icosphere(1))}, up="x")


@pytest.mark.parametrize(("options", "size"), [({"reach": 0}, 9), ({"reach": np.inf}, 9), ({}, 0)])
def test_refuses_sizes_out_of_range(options, size):
    with pytest.raises(ValueError, match="must be"):
        shade(*arrays(icosphere(0)), view=View(**options), size=size)
