import sys

import numpy as np
import pytest

from hessian_lab.errors import InputError, ResourceError
from hessian_lab.probe import memory
from hessian_lab.signals import inside as inside_module
from hessian_lab.signals.inside import inside, inside_grid
from hessian_lab.signals.mesh_files import read_mesh
from hessian_lab.signals.meshes import Mesh, normalised
from tests.signals.solids import (
    box,
    data_file,
    icosphere,
    joined,
    rotation,
    torus,
    turned,
    winding_numbers,
)

# Exactly representable, so that many lie on faces, edges and vertices of boxes.
DYADIC = np.arange(-16, 17) / 8
BUMPY = Mesh(
    icosphere(3).vertices * (1 + 0.3 * np.random.default_rng(3).random((642, 1))),
    icosphere(3).faces,
)
SHAPES = {
    "sphere": icosphere(3, 0.8),
    "torus": torus(),
    "bumpy": BUMPY,
    "box": box(1, 1.5, 0.75),
    "turned torus": turned(torus()),
    "tilted box": Mesh(box(1, 1.5, 0.75).vertices @ rotation().T, box(1, 1, 1).faces),
    "two": joined(icosphere(2, 0.4), Mesh(box(0.5, 0.5, 0.5).vertices + 0.6, box(1, 1, 1).faces)),
}
each_shape = pytest.mark.parametrize("mesh", SHAPES.values(), ids=SHAPES)


def random_points(number=400, reach=1.3, seed=0):
    return np.random.default_rng(seed).uniform(-reach, reach, (number, 3))


def grid_points(x, y, z):
    return np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3)


# Against closed forms.


def test_a_sphere_holds_the_points_of_its_radius():
    points = random_points(4000)
    radii = np.linalg.norm(points, axis=1)
    # Between the spheres that an icosphere lies between, either may be.
    sure = (radii < 0.985) | (radii > 1)
    assert sure.mean() > 0.9
    assert (inside(icosphere(3), points) == (radii <= 1))[sure].all()


def test_a_torus_holds_the_points_near_its_ring():
    points = random_points(4000)
    x, y, z = points.T
    radii = np.hypot(np.hypot(x, y) - 0.6, z)
    sure = (radii < 0.235) | (radii > 0.25 + 0.005)
    found = inside(torus(), points)
    assert (found == (radii < 0.25))[sure].all()
    assert found.any()


def test_a_box_holds_the_points_between_its_sides():
    points = random_points(4000)
    expected = (np.abs(points) < np.array([0.5, 0.75, 0.375])).all(axis=1)
    assert (inside(SHAPES["box"], points) == expected).all()


def test_the_share_of_a_fine_grid_is_the_volume():
    axis = (np.arange(100) + 0.5) / 50 - 1
    for mesh in (SHAPES["torus"], SHAPES["sphere"]):
        found = inside_grid(mesh, axis, axis, axis)
        assert 8 * found.mean() == pytest.approx(mesh.volume, rel=1e-2)


# Against sums of solid angles.


@each_shape
def test_points_are_inside_where_the_solid_angles_add_up(mesh):
    points = random_points()
    numbers = winding_numbers(mesh, points)
    expected = np.abs(numbers) > 0.5
    assert np.abs(numbers - np.round(numbers)).max() < 1e-9
    assert (inside(mesh, points) == expected).all()
    assert 4 <= expected.sum() <= 360


@each_shape
def test_points_straight_above_and_below_vertices_edges_and_walls(mesh):
    generator = np.random.default_rng(1)
    middles = mesh.vertices[mesh.faces].mean(axis=1)
    edges = (mesh.vertices[mesh.faces[:, 0]] + mesh.vertices[mesh.faces[:, 1]]) / 2
    places = np.concatenate([mesh.vertices, edges, middles])
    points = places[generator.integers(0, len(places), 400)]
    points[:, 2] = generator.uniform(-1.3, 1.3, 400)
    # But for points of the surface itself: it is the same on all their sides.
    shifts = 1e-7 * np.array([[1, 1, 1], [-1, -1, -1], [1, -1, 1], [-1, 1, 1], [0.5, 1, -1]])
    around = [np.abs(winding_numbers(mesh, points + shift)) > 0.5 for shift in shifts]
    sure = np.all(around, axis=0) | ~np.any(around, axis=0)
    assert sure.mean() > 0.6
    assert (inside(mesh, points) == around[0])[sure].all()


def test_a_dyadic_grid_through_all_the_corners_of_boxes():
    meshes = [box(1, 1.5, 0.75), joined(box(1, 1, 1), box(2, 0.5, 0.25))]
    for mesh, lengths in zip(meshes, ([(1, 1.5, 0.75)], [(1, 1, 1), (2, 0.5, 0.25)]), strict=True):
        points = grid_points(DYADIC, DYADIC, DYADIC)
        found = inside_grid(mesh, DYADIC, DYADIC, DYADIC).reshape(-1)
        reach = np.array(lengths) / 2
        within = (np.abs(points)[:, None] < reach).all(axis=2).any(axis=1)
        beyond = (np.abs(points)[:, None] > reach).any(axis=2).all(axis=1)
        assert found[within].all()
        assert not found[beyond].any()
        assert within.any()


def test_stacked_boxes_leave_no_gap_and_no_overlap():
    # Half-open rules give every point of a face to one side.
    corners = grid_points(*[np.array([-0.5, 0.5])] * 3)
    cells = [Mesh(box(1, 1, 1).vertices + corner, box(1, 1, 1).faces) for corner in corners]
    axis = np.arange(-8, 8) / 8
    assert (sum(inside_grid(one, axis, axis, axis).astype(int) for one in cells) == 1).all()
    points = grid_points(axis, axis, axis)
    assert (sum(inside(one, points).astype(int) for one in cells) == 1).all()


def test_a_cut_that_rounding_takes_beyond_its_edge_does_not_open_the_surface():
    generator = np.random.default_rng(0)
    starts, ends = -generator.random(1000), generator.random(1000)
    # Where start + (end - start) is greater than end.
    place = np.flatnonzero(starts + (ends - starts) > ends)[0]
    start, end = starts[place], ends[place]
    ring = [(start, -1), (end + 1, -1), (end + 1, 1), (end - 2, 1), (end - 2, -1)]
    outline = np.array([*ring, (end, 0)])
    vertices = np.concatenate([np.c_[outline, np.full(6, z)] for z in (-1.0, 1.0)])
    top = [(6 + i, 6 + (i + 1) % 5, 11) for i in range(5)]
    bottom = [((i + 1) % 5, i, 5) for i in range(5)]
    walls = [
        face
        for i in range(5)
        for face in ((i, (i + 1) % 5, 6 + (i + 1) % 5), (i, 6 + (i + 1) % 5, 6 + i))
    ]
    mesh = Mesh(vertices, np.array(top + bottom + walls))
    assert mesh.edges.oriented
    # A line so near below the centre that its share of the edge rounds to 1.
    points = np.array([[end, -1e-17, z] for z in (-2, 0, 2)])
    assert inside(mesh, points).tolist() == [False, True, False]


def test_any_rounding_of_a_column_leaves_what_it_enters():
    # A fan of thin faces around a vertex, and columns within roundings of its edges.
    mesh = Mesh(BUMPY.vertices @ rotation(1).T, BUMPY.faces)
    generator = np.random.default_rng(0)
    starts, ends = mesh.vertices[mesh.faces[:, 0]], mesh.vertices[mesh.faces[:, 1]]
    share = generator.random((len(starts), 1))
    places = starts + share * (ends - starts)
    for step in (-1, 0, 1):
        columns = places.copy()
        columns[:, 0] += step * np.spacing(columns[:, 0])
        for height, expected in ((-2.0, False), (0.0, None), (2.0, False)):
            columns[:, 2] = height
            if expected is None:
                # The middle is inside wherever a column is well within the outline.
                expected = True
                columns = columns[np.hypot(*columns[:, :2].T) < 0.9]
            assert (inside(mesh, columns) == expected).all()


# The two ways.


@each_shape
@pytest.mark.parametrize("sizes", [(9, 10, 11), (1, 33, 4), (30, 1, 1)])
def test_grids_and_points_agree(mesh, sizes):
    axes = [np.linspace(-1.1, 1.2, size) for size in sizes]
    expected = inside(mesh, grid_points(*axes)).reshape(sizes)
    assert (inside_grid(mesh, *axes) == expected).all()
    assert expected.any() or min(sizes) == 1


@each_shape
def test_portions_do_not_matter(mesh, monkeypatch):
    points = random_points()
    expected = inside(mesh, points)
    monkeypatch.setattr(inside_module, "PAIRS", 7)
    assert (inside(mesh, points) == expected).all()


def test_one_point_and_none():
    assert inside(box(1, 1, 1), np.zeros((1, 3))).tolist() == [True]
    assert inside(box(1, 1, 1), np.full((1, 3), 2.0)).tolist() == [False]
    assert inside(box(1, 1, 1), np.zeros((0, 3))).shape == (0,)


# Invariance.


@each_shape
def test_moving_all_moves_nothing(mesh):
    points = random_points()
    expected = inside(mesh, points)
    for turn, shift in ((rotation(4), 0), (np.eye(3), [3, -7, 11]), (rotation(5), [0.1, 0.2, 0.3])):
        moved = Mesh(mesh.vertices @ turn.T + shift, mesh.faces)
        assert (inside(moved, points @ turn.T + shift) == expected).all()


@each_shape
def test_the_order_of_faces_corners_vertices_and_points_does_not_matter(mesh):
    generator = np.random.default_rng(2)
    points = grid_points(*[np.linspace(-1, 1, 8)] * 3)
    expected = inside(mesh, points)
    order = generator.permutation(len(mesh.vertices))
    faces = np.argsort(order)[mesh.faces]
    faces = np.roll(faces[generator.permutation(len(faces))], 1, axis=1)
    other = Mesh(mesh.vertices[order], faces)
    shuffled = generator.permutation(len(points))
    assert (inside(other, points[shuffled]) == expected[shuffled]).all()


@each_shape
def test_a_surface_inside_out_has_the_same_inside(mesh):
    points = random_points()
    assert (inside(turned(mesh), points) == inside(mesh, points)).all()


def test_a_shell_turned_inwards_is_a_hole_and_any_other_is_not():
    outer, inner = box(2, 2, 2), box(1, 1, 1)
    middle = np.zeros((1, 3))
    assert not inside(joined(outer, turned(inner)), middle).any()
    assert inside(joined(outer, inner), middle).all()
    assert inside(joined(outer, turned(inner)), np.array([[0.75, 0, 0]])).all()


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_parity_decides_where_faces_disagree(share):
    mesh = BUMPY
    faces = mesh.faces.copy()
    flip = np.random.default_rng(0).random(len(faces)) < share
    faces[flip] = faces[flip, ::-1]
    other = Mesh(mesh.vertices, faces)
    assert not other.edges.oriented
    points = random_points()
    assert (inside(other, points) == inside(mesh, points)).all()
    axis = np.linspace(-1.2, 1.2, 12)
    expected = inside_grid(mesh, axis, axis, axis)
    assert (inside_grid(other, axis, axis, axis) == expected).all()


# Real meshes.


@pytest.mark.parametrize("name", ["spot_low_resolution.obj", "nefertiti-lowres.obj"])
def test_real_meshes_agree_with_solid_angles(name):
    mesh = normalised(read_mesh(data_file(name)))
    points = random_points(300, 1)
    assert (inside(mesh, points) == (winding_numbers(mesh, points) > 0.5)).all()
    axis = (np.arange(64) + 0.5) / 32 - 1
    assert 8 * inside_grid(mesh, axis, axis, axis).mean() == pytest.approx(mesh.volume, rel=1e-2)


# Torn meshes.


def torn(mesh):
    return Mesh(mesh.vertices, mesh.faces[1:])


def test_refuses_a_torn_mesh_and_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "igl", None)
    mesh = torn(icosphere(1))
    message = (
        r"mesh must be watertight, mesh has 3 open edges of 120\. Close it, or let winding numbers "
        r"decide: pip install 'hessian-lab\[mesh\]'"
    )
    axis = np.linspace(-1, 1, 3)
    with pytest.raises(InputError, match=message):
        inside(mesh, random_points())
    with pytest.raises(InputError, match=message):
        inside_grid(mesh, axis, axis, axis)


def test_closed_meshes_do_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "igl", None)
    assert inside(icosphere(1), np.zeros((1, 3))).all()


@pytest.mark.parametrize("turn", [False, True])
def test_winding_numbers_decide_for_a_torn_mesh(turn):
    pytest.importorskip("igl", reason="needs libigl, the extra mesh")
    mesh = torn(turned(icosphere(3)) if turn else icosphere(3))
    points = random_points(2000)
    numbers = np.abs(winding_numbers(mesh, points))
    sure = np.abs(numbers - 0.5) > 0.05
    assert (inside(mesh, points) == (numbers > 0.5))[sure].all()
    axis = np.linspace(-0.9, 0.9, 5)
    expected = inside(mesh, grid_points(axis, axis, axis)).reshape(5, 5, 5)
    assert (inside_grid(mesh, axis, axis, axis) == expected).all()


# Refusals.


def test_refuses_points_of_another_shape():
    with pytest.raises(ValueError, match=r"points must have shape \[p, 3\], got \[4, 2\]"):
        inside(box(1, 1, 1), np.zeros((4, 2)))


def test_refuses_points_that_are_not_finite():
    with pytest.raises(ValueError, match="points must be finite, got NaN or Inf"):
        inside(box(1, 1, 1), np.array([[0, np.nan, 0]]))


def test_refuses_heights_that_do_not_ascend():
    with pytest.raises(ValueError, match="z must ascend"):
        inside_grid(box(1, 1, 1), np.zeros(1), np.zeros(1), np.array([1.0, 0.0]))


def test_refuses_a_grid_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(memory, "_system_bytes", lambda: 1000)
    axis = np.linspace(-1, 1, 10)
    with pytest.raises(ResourceError, match="A grid of 10×10×10 points must fit in memory"):
        inside_grid(box(1, 1, 1), axis, axis, axis)
