import math

import numpy as np
import pytest
import torch
from torch import nn

from hessian_lab.errors import InputError, ResourceError
from hessian_lab.fields.mlp import make_field
from hessian_lab.signals.inside import inside
from hessian_lab.signals.mesh_files import WRITERS, mesh_of_bytes
from hessian_lab.signals.surface import field_mesh, grid_logits, level_set, logits


class Solid(nn.Module):
    """A field with a closed form."""

    def __init__(self, formula, dtype=torch.float64):
        super().__init__()
        self.formula = formula
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))
        self.seen = []

    def forward(self, coords):
        assert coords.dtype == self.scale.dtype
        self.seen.append(len(coords))
        return self.scale * self.formula(coords).unsqueeze(1)


def ball(coords, radius=0.6):
    return radius - coords.norm(dim=1)


def ring(coords):
    x, y, z = coords.T
    return 0.25 - torch.hypot(torch.hypot(x, y) - 0.6, z)


@pytest.mark.parametrize(
    ("formula", "volume", "characteristic"),
    [(ball, 4 / 3 * math.pi * 0.6**3, 2), (ring, 2 * math.pi**2 * 0.6 * 0.25**2, 0)],
)
def test_the_surface_of_a_solid_encloses_its_volume_and_has_its_holes(
    formula, volume, characteristic
):
    mesh = field_mesh(Solid(formula), 64)
    assert mesh.volume == pytest.approx(volume, rel=5e-3)
    assert mesh.edges.oriented
    assert len(mesh.vertices) - mesh.edges.num_edges + len(mesh.faces) == characteristic


def test_vertices_lie_on_the_surface_to_the_square_of_the_spacing():
    errors = [
        np.abs(np.linalg.norm(field_mesh(Solid(ball), size).vertices, axis=1) - 0.6).max()
        for size in (17, 33)
    ]
    assert errors[0] < (2 / 16) ** 2 / 0.6
    assert errors[0] / errors[1] > 3


def test_every_axis_is_in_its_place():
    middle = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
    reach = torch.tensor([0.2, 0.3, 0.6], dtype=torch.float64)
    solid = Solid(lambda coords: 1 - ((coords - middle) / reach).norm(dim=1))
    low, high = field_mesh(solid, 65).bounds
    assert (low + high) / 2 == pytest.approx(middle.numpy(), abs=2e-3)
    assert (high - low) / 2 == pytest.approx(reach.numpy(), abs=5e-3)


def test_a_level_of_its_own():
    mesh = field_mesh(Solid(ball), 48, level=0.2)
    assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(0.4, abs=3e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_the_logits_does_not_matter(scale):
    expected = field_mesh(Solid(ball), 20).vertices
    found = field_mesh(Solid(lambda coords: scale * ball(coords)), 20).vertices
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_solid_that_reaches_the_box_is_cut_off_there():
    mesh = field_mesh(Solid(lambda coords: ball(coords, 1.2)), 40)
    assert mesh.edges.watertight
    assert np.abs(mesh.vertices).max() == 1
    # A ball of radius 1.2 without its six caps of height 0.2.
    caps = 6 * math.pi * 0.2**2 * (1.2 - 0.2 / 3)
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 1.2**3 - caps, rel=5e-3)


def test_a_full_box_is_a_cube():
    mesh = field_mesh(Solid(lambda coords: torch.ones_like(coords[:, 0])), 9)
    assert mesh.volume == pytest.approx(8, rel=1e-14)
    assert mesh.edges.watertight


@pytest.mark.parametrize("seed", range(3))
def test_even_noise_has_a_closed_surface_around_what_is_above(seed):
    volume = np.random.default_rng(seed).standard_normal((9, 10, 11))
    mesh = level_set(volume)
    assert mesh.edges.watertight
    points = np.stack(
        np.meshgrid(*[np.linspace(-1, 1, size) for size in volume.shape], indexing="ij"), axis=-1
    )
    within = (slice(1, -1),) * 3
    found = inside(mesh, points[within].reshape(-1, 3))
    assert (found == (volume[within] > 0).reshape(-1)).all()


def test_chunks_change_nothing():
    model = make_field("sine", 3, 1, width=8, depth=2)
    coords = torch.rand(100, 3, dtype=torch.float64)
    whole = logits(model, coords)
    assert torch.allclose(logits(model, coords, chunk_size=7), whole, rtol=0, atol=1e-14)
    assert not whole.requires_grad
    solid = Solid(ball)
    grid_logits(solid, 10, chunk_size=30)
    assert max(solid.seen) == 30


def test_a_field_in_single_precision_takes_points_in_double():
    solid = Solid(ball, torch.float32)
    values = logits(solid, torch.zeros(2, 3, dtype=torch.float64))
    assert values.dtype == torch.float64
    assert field_mesh(solid, 12).edges.watertight


def test_a_grid_has_its_ends_on_the_box():
    volume = grid_logits(Solid(lambda coords: coords @ torch.tensor([1.0, 10, 100]).double()), 3)
    assert volume[0, 0, 0] == -111
    assert volume[2, 0, 1] == 1 - 10
    assert volume[1, 1, 2] == 100


@pytest.mark.parametrize("ending", WRITERS)
def test_a_surface_is_written_and_read_back(ending):
    mesh = field_mesh(Solid(ring), 24)
    copy = mesh_of_bytes(WRITERS[ending](mesh), ending, mesh.source)
    assert (copy.triangles == mesh.triangles).all()


def test_refuses_a_field_that_is_outside_everywhere():
    with pytest.raises(InputError, match="mesh must enclose a volume, field is outside everywhere"):
        field_mesh(Solid(lambda coords: ball(coords, -1)), 8)


def test_refuses_logits_that_are_not_finite():
    with pytest.raises(InputError, match="finite logits, field has NaN or Inf"):
        field_mesh(Solid(lambda coords: ball(coords) / 0), 8)


def test_refuses_sizes_out_of_range():
    with pytest.raises(ValueError, match="resolution must be at least 2, got 1"):
        field_mesh(Solid(ball), 1)
    with pytest.raises(ResourceError, match="A grid of 1000000³ points must fit in memory"):
        field_mesh(Solid(ball), 10**6)
