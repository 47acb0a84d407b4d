import math

import pytest
import torch

from hessian_lab.fields.radiance import RadianceField, make_radiance_field
from hessian_lab.fields.volume import RAY, absorbed
from tests.reference import assert_same


def some_rays(count=5, *, grey=0.3, seed=0):
    """Return rays from outside the box towards its middle, in float64."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.nn.functional.normalize(
        torch.randn(count, 3, dtype=torch.float64, generator=generator), dim=1
    )
    directions = torch.nn.functional.normalize(
        -origins + 0.2 * torch.rand(count, 3, dtype=torch.float64, generator=generator), dim=1
    )
    phases = torch.rand(count, 1, dtype=torch.float64, generator=generator)
    ends = torch.tensor([[0.4, 1.7]], dtype=torch.float64).expand(count, 2)
    return torch.cat([origins, directions, ends, phases, torch.full_like(phases, grey)], dim=1)


def constant_field(density, colour, *, samples):
    """Return a field of one density and one colour everywhere."""
    field = make_radiance_field("tanh", width=2, depth=1, samples=samples)
    with torch.no_grad():
        for value in field.parameters():
            value.zero_()
        last = field.field.maps[-1].bias
        last[0] = 3 + math.log(math.expm1(density / 10))
        last[1:] = torch.logit(torch.tensor(colour, dtype=torch.float64))
    return field


@torch.no_grad()
def by_hand(field, rays):
    """Return the colours of rays by the sum of NeRF's eq. 3, in plain Python."""
    colours = []
    for ray in rays:
        near, far, phase, grey = (float(value) for value in ray[6:])
        through, colour = 1.0, torch.zeros(3, dtype=torch.float64)
        for i in range(field.samples):
            within = (phase + i * (math.sqrt(5) - 1) / 2) % 1
            place = ray[:3] + (near + (far - near) * (i + within) / field.samples) * ray[3:6]
            raw = field.field(place[None])[0]
            if field.head is not None:
                shade = field.head(torch.cat([raw[1:], ray[3:6]])[None])[0]
            else:
                shade = raw[1:]
            density = 10 * math.log1p(math.exp(float(raw[0]) - 3))
            alpha = 1 - math.exp(-density * (far - near) / field.samples)
            colour = colour + through * alpha / (1 + torch.exp(-shade))
            through *= 1 - alpha
        colours.append(colour + through * grey)
    return torch.stack(colours)


@pytest.mark.parametrize("directions", [False, True])
@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize("act", ["gaussian", "relu_pe"])
def test_colours_are_the_sum_over_samples(act, samples, directions):
    field = make_radiance_field(act, width=5, depth=2, samples=samples, directions=directions)
    rays = some_rays()
    assert_same(field(rays).detach(), by_hand(field, rays))


@pytest.mark.parametrize("samples", [1, 3, 64])
@pytest.mark.parametrize("density", [1e-3, 1.0, 40.0])
def test_a_mist_follows_the_law_of_beer_whatever_its_samples(density, samples):
    field, rays = constant_field(density, [0.2, 0.5, 0.9], samples=samples), some_rays()
    passed = math.exp(-density * 1.3)
    expected = (1 - passed) * torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64) + passed * 0.3
    assert_same(field(rays).detach(), expected.expand(5, 3))


def test_shares_of_light_sum_to_one():
    optical = torch.rand(4, 9, dtype=torch.float64) * torch.tensor([[0.0], [1e-9], [1.0], [1e3]])
    shares, behind = absorbed(optical)
    assert_same(shares.sum(dim=1, keepdim=True) + behind, torch.ones(4, 1, dtype=torch.float64))
    assert bool((shares >= 0).all())


def test_every_stratum_has_one_sample_that_the_ray_fixes():
    field, rays = make_radiance_field("sine", samples=50), some_rays()
    lengths, places = field.places(rays)
    share = (lengths - 0.4) / 1.3 * 50
    assert torch.equal(share.floor(), torch.arange(50.0, dtype=torch.float64).expand(5, 50))
    # Evenly within the strata.
    assert (share % 1).mean().item() == pytest.approx(0.5, abs=0.02)
    expected = rays[:, None, :3] + lengths[:, :, None] * rays[:, None, 3:6]
    assert_same(places, expected)
    assert torch.equal(field(rays), field(rays))


def test_a_ray_that_misses_the_box_has_the_colour_behind():
    rays = some_rays()
    rays[:, 6:8] = 0
    assert_same(
        make_radiance_field("sine")(rays).detach(), torch.full((5, 3), 0.3, dtype=torch.float64)
    )


def test_it_is_twice_differentiable():
    rays = some_rays(3)
    field = make_radiance_field("gaussian", width=3, depth=1, samples=4, sigma=0.5, directions=True)
    names = [name for name, _ in field.named_parameters()]

    def colours(*values):
        return torch.func.functional_call(field, dict(zip(names, values, strict=True)), (rays,))

    values = tuple(value.detach().requires_grad_() for value in field.parameters())
    assert torch.autograd.gradcheck(colours, values)
    assert torch.autograd.gradgradcheck(colours, values)


@torch.no_grad()
def test_density_does_not_depend_on_the_direction():
    field = make_radiance_field("sine", width=6, depth=2, directions=True)
    places, ways = torch.rand(2, 8, 3, dtype=torch.float64)
    density, colours = field.radiance(places, ways)
    other_density, other_colours = field.radiance(places, -ways)
    assert torch.equal(density, other_density)
    assert float((colours - other_colours).abs().max()) > 1e-3


def test_the_papers_field_has_the_parameters_of_its_page():
    # 3 → 8 × 256 → 4, the least that optimizers.md counts.
    field = make_radiance_field("gaussian", width=256, depth=8)
    assert sum(value.numel() for value in field.parameters()) == 462_596


def test_samples_must_be_positive():
    with pytest.raises(ValueError, match=r"samples must be at least 1, got 0\."):
        RadianceField(make_radiance_field("sine").field, samples=0)


def test_a_ray_has_ten_numbers():
    assert some_rays().shape[1] == RAY
