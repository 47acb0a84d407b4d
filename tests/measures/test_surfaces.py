import math

import numpy as np
import pytest
import torch

from hessian_lab.measures.surfaces import chamfer, num_components
from hessian_lab.signals.meshes import Mesh
from hessian_lab.signals.occupancy import on_surface
from tests.signals.solids import box, icosphere, torus


def brute_force(one, other):
    """Return the symmetric mean of nearest distances of two point clouds, pair by pair."""
    there = [min(math.dist(point, other_point) for other_point in other) for point in one]
    back = [min(math.dist(point, other_point) for other_point in one) for point in other]
    return (sum(there) / len(there) + sum(back) / len(back)) / 2


def test_the_chamfer_distance_is_that_of_a_double_loop():
    one, other = box(1.0, 1.2, 0.7), torus()
    generator = torch.Generator().manual_seed(3)
    clouds = [on_surface(mesh, 60, generator).tolist() for mesh in (one, other)]
    expected = brute_force(*clouds)
    assert chamfer(one, other, num_points=60, seed=3) == pytest.approx(expected, rel=1e-12)


def test_spheres_in_one_another_lie_the_difference_of_their_radii_apart():
    one, other = icosphere(4, radius=0.5), icosphere(4, radius=0.8)
    assert chamfer(one, other, num_points=20_000) == pytest.approx(0.3, abs=0.003)


def test_a_surface_is_as_far_from_itself_as_its_samples_are():
    sphere = icosphere(4)
    expected = math.sqrt(4 * math.pi / 10_000) / 2
    assert chamfer(sphere, sphere, num_points=10_000) == pytest.approx(expected, rel=0.03)


def test_points_are_needed():
    with pytest.raises(ValueError, match="num_points must be at least 1, got 0"):
        chamfer(box(1, 1, 1), box(1, 1, 1), num_points=0)


def test_components_are_pieces_that_share_no_vertex():
    one, other = box(1, 1, 1), torus()
    offset = len(one.vertices)
    both = Mesh(
        np.concatenate([one.vertices, other.vertices, [[9.0, 9.0, 9.0]]]),
        np.concatenate([one.faces, other.faces + offset]),
    )
    assert num_components(one) == 1
    # A vertex of no face is no piece.
    assert num_components(both) == 2
    touching = Mesh(both.vertices[:-1], np.concatenate([both.faces, [[0, 1, offset]]]))
    assert num_components(touching) == 1
