import numpy as np
import pytest

from hessian_lab.errors import InputError
from hessian_lab.signal import Source
from hessian_lab.signals.meshes import Mesh, mesh_of_polygons, normalised
from tests.signals.solids import CUBE, SQUARES, box, icosphere, joined, rotation, torus, turned

TRIANGLE = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
NAMED = Source("thing.obj", "", "")


# Areas, volumes, edges.


def test_the_area_and_volume_of_a_box_are_products_of_its_sides():
    mesh = box(1, 2, 3)
    assert mesh.areas.sum() == pytest.approx(2 * (2 + 6 + 3), rel=1e-14)
    assert mesh.volume == pytest.approx(6, rel=1e-14)
    assert turned(mesh).volume == pytest.approx(-6, rel=1e-14)


def test_the_volume_does_not_depend_on_the_place():
    mesh = box(1, 2, 3)
    moved = Mesh(mesh.vertices @ rotation().T + [50, -30, 20], mesh.faces)
    assert moved.volume == pytest.approx(6, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "volume", "area"),
    [
        (lambda level: icosphere(level, 0.7), 4 / 3 * np.pi * 0.7**3, 4 * np.pi * 0.7**2),
        (
            lambda level: torus(0.6, 0.25, 12 * 2**level, 6 * 2**level),
            2 * np.pi**2 * 0.6 * 0.25**2,
            4 * np.pi**2 * 0.6 * 0.25,
        ),
    ],
    ids=["sphere", "torus"],
)
def test_volume_and_area_tend_to_the_closed_forms_with_the_square_of_the_edges(make, volume, area):
    coarse, fine = make(2), make(3)
    for found, wanted, limit in (
        (fine.volume, coarse.volume, volume),
        (fine.areas.sum(), coarse.areas.sum(), area),
    ):
        assert found < limit
        assert (limit - wanted) / (limit - found) == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(
    ("mesh", "characteristic"), [(box(1, 1, 1), 2), (icosphere(2), 2), (torus(), 0)]
)
def test_closed_surfaces_have_their_euler_characteristic_and_no_open_edge(mesh, characteristic):
    edges = mesh.edges
    assert len(mesh.vertices) - edges.num_edges + len(mesh.faces) == characteristic
    assert (edges.num_open, edges.num_nonmanifold, edges.num_misoriented) == (0, 0, 0)
    assert edges.watertight
    assert edges.oriented


def test_a_missing_face_opens_its_three_edges():
    mesh = icosphere(1)
    assert Mesh(mesh.vertices, mesh.faces[1:]).edges.num_open == 3
    assert not Mesh(mesh.vertices, mesh.faces[1:]).edges.watertight


def test_a_missing_square_opens_its_four_edges():
    mesh = box(1, 1, 1)
    assert Mesh(mesh.vertices, mesh.faces[2:]).edges.num_open == 4


def test_a_turned_face_disagrees_with_its_three_neighbours():
    mesh = icosphere(1)
    faces = mesh.faces.copy()
    faces[5] = faces[5, ::-1]
    edges = Mesh(mesh.vertices, faces).edges
    assert edges.num_misoriented == 3
    assert edges.watertight
    assert not edges.oriented


def test_an_edge_of_four_faces_is_not_manifold_and_not_open():
    vertices = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
    tetrahedra = [(0, 1, 2, 3), (0, 1, 4, 5)]
    faces = [
        face for a, b, c, d in tetrahedra for face in ((a, c, b), (a, b, d), (a, d, c), (b, c, d))
    ]
    edges = Mesh(vertices, np.array(faces)).edges
    assert (edges.num_edges, edges.num_open, edges.num_nonmanifold) == (11, 0, 1)
    assert edges.oriented


def test_an_edge_of_three_faces_is_open_and_not_manifold():
    vertices = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [-1, 0, 0]])
    edges = Mesh(vertices, np.array([[0, 1, 2], [0, 1, 3], [0, 1, 4]])).edges
    assert (edges.num_edges, edges.num_open, edges.num_nonmanifold) == (7, 7, 1)


# From polygons.


def test_squares_become_the_triangles_of_a_cube():
    mesh = mesh_of_polygons(CUBE, np.ravel(SQUARES), [4] * 6)
    assert len(mesh.faces) == 12
    assert mesh.volume == pytest.approx(8, rel=1e-14)
    assert mesh.edges.oriented


def test_a_prism_over_a_polygon_that_is_not_convex_keeps_its_volume():
    # An L of three unit squares.
    outline = np.array([[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]])
    vertices = np.array([(x, y, z) for z in (0, 1) for x, y in outline])
    walls = [(i, (i + 1) % 6, (i + 1) % 6 + 6, i + 6) for i in range(6)]
    polygons = [tuple(range(5, -1, -1)), tuple(range(6, 12)), *walls]
    sizes = [len(one) for one in polygons]
    mesh = mesh_of_polygons(vertices, np.concatenate(polygons), sizes)
    assert mesh.volume == pytest.approx(3, rel=1e-14)
    assert mesh.edges.watertight


def test_vertices_at_one_place_become_one_in_the_order_of_first_mention():
    soup = box(1, 2, 3)
    corners = soup.vertices[soup.faces].reshape(-1, 3)
    mesh = mesh_of_polygons(corners, np.arange(36), [3] * 12)
    assert mesh.vertices.shape == (8, 3)
    assert (mesh.triangles == soup.triangles).all()
    first = list(dict.fromkeys(map(tuple, corners)))
    assert [tuple(vertex) for vertex in mesh.vertices] == first


def test_minus_zero_is_zero():
    doubled = np.concatenate([TRIANGLE, -TRIANGLE * [0, 1, 1] + TRIANGLE * [1, 0, 0]])
    assert np.signbit(doubled).any()
    mesh = mesh_of_polygons(doubled, [0, 1, 2, 3, 4, 2], [3, 3])
    assert len(mesh.vertices) == 3


def test_degenerate_faces_are_dropped_and_counted():
    vertices = np.concatenate([TRIANGLE, TRIANGLE[:1]])
    corners = [0, 1, 2, 0, 1, 1, 0, 3, 1, 0, 1, 2]
    mesh = mesh_of_polygons(vertices, corners, [3, 3, 3, 2, 1])
    assert mesh.faces.tolist() == [[0, 1, 2]]
    assert mesh.num_dropped == 4


def test_vertices_of_no_face_are_dropped():
    mesh = mesh_of_polygons(np.concatenate([[[99, 99, 99]], TRIANGLE]), [1, 2, 3], [3])
    assert mesh.bounds.max() == 1


def test_a_thin_face_between_three_places_of_a_line_holds_the_surface_together():
    vertices = np.concatenate([CUBE, [[-1.0, -1, 0]]])
    squares = [square for square in SQUARES if square != (0, 1, 3, 2)]
    # The edge 0–1 has a vertex in its middle on one side only; the face (0, 8, 1) closes the gap.
    corners = [*np.ravel(squares), 0, 8, 1, 3, 2, 0, 1, 8]
    mesh = mesh_of_polygons(vertices, corners, [4] * 5 + [5, 3])
    assert mesh.num_dropped == 0
    assert mesh.edges.watertight


@pytest.mark.parametrize("corners", [[0, 0, 0], [0, 1, 1], [0, 1, 3]])
def test_refuses_a_mesh_of_degenerate_faces(corners):
    line = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0]])
    with pytest.raises(
        InputError, match=r"mesh must have a face of some area, all 1 of thing.obj are degenerate\."
    ):
        mesh_of_polygons(line, corners, [3], NAMED)


def test_refuses_a_mesh_of_lines_and_points():
    with pytest.raises(InputError, match=r"all 2 of thing\.obj are degenerate"):
        mesh_of_polygons(TRIANGLE, [0, 1, 2], [2, 1], NAMED)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_refuses_vertices_that_are_not_finite(number):
    vertices = TRIANGLE.copy()
    vertices[1, 2] = number
    for make in (lambda: mesh_of_polygons(vertices, [0, 1, 2], [3]), lambda: Mesh(vertices, FACE)):
        with pytest.raises(InputError, match=r"mesh must have finite vertices, mesh has NaN or"):
            make()


FACE = np.array([[0, 1, 2]])


def test_refuses_coordinates_that_cannot_be_computed_with():
    with pytest.raises(InputError, match=r"coordinates of at most 1e\+50, mesh has 1e\+60"):
        Mesh(TRIANGLE * 1e60, FACE)


@pytest.mark.parametrize("index", [-1, 3, 2**62])
def test_refuses_indices_out_of_range(index):
    message = (
        f"mesh must have faces of its own 3 vertices .from 0., mesh has a face of vertex {index}"
    )
    with pytest.raises(InputError, match=message):
        Mesh(TRIANGLE, np.array([[0, 1, index]]))
    with pytest.raises(InputError, match=message):
        mesh_of_polygons(TRIANGLE, [0, 1, index], [3])


def test_refuses_no_face():
    with pytest.raises(InputError, match=r"mesh must have a face, mesh has none\."):
        Mesh(TRIANGLE, np.zeros((0, 3)))
    with pytest.raises(InputError, match=r"mesh must have a face, thing.obj has none\."):
        mesh_of_polygons(TRIANGLE, [], [], NAMED)


def test_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"vertices must have shape \[n, 3\], got \[3, 2\]"):
        Mesh(TRIANGLE[:, :2], FACE)


# Normalised.


@pytest.mark.parametrize("margin", [0, 0.1, 0.5])
def test_normalised_fills_the_box_but_for_the_margin_and_keeps_proportions(margin):
    mesh = box(1, 4, 2)
    moved = Mesh(1e-3 * mesh.vertices + [5, 6, -7], mesh.faces)
    found = normalised(moved, margin=margin)
    assert found.vertices == pytest.approx((1 - margin) / 2 * mesh.vertices, abs=1e-11)
    assert np.abs(found.vertices).max() <= 1 - margin + 1e-15


@pytest.mark.parametrize("scale", [1e-40, 1e40])
def test_any_scale_can_be_normalised(scale):
    mesh = joined(box(1, 1, 1), icosphere(1, 2))
    vertices = normalised(Mesh(mesh.vertices * scale, mesh.faces)).vertices
    assert vertices == pytest.approx(normalised(mesh).vertices, abs=1e-14)


def test_a_tiny_mesh_has_area():
    mesh = mesh_of_polygons(CUBE * 1e-40, np.ravel(SQUARES), [4] * 6)
    assert len(mesh.faces) == 12


@pytest.mark.parametrize("margin", [-0.1, 1, np.nan])
def test_refuses_a_margin_out_of_range(margin):
    with pytest.raises(ValueError, match=r"margin must be in \[0, 1\)"):
        normalised(box(1, 1, 1), margin=margin)


def test_refuses_to_normalise_a_point():
    with pytest.raises(InputError, match="mesh must have an extent"):
        normalised(Mesh(np.zeros((3, 3)), FACE))
