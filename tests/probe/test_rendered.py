import pytest
import torch
from torch import nn

from hessian_lab.errors import ResourceError
from hessian_lab.fields.radiance import make_radiance_field
from hessian_lab.losses import mse
from hessian_lab.probe import linearized, memory, rendered
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.hessian import closed_network, dense_ggn, dense_hessian
from hessian_lab.probe.kept_graph import ggn_rows, hessian_rows
from hessian_lab.signal import Signal
from tests.fields.test_radiance import some_rays
from tests.reference import assert_same, autograd_hessian


def scene(count=9):
    rays = some_rays(count)
    return Signal(rays, torch.rand(count, 3, dtype=torch.float64))


def small(act, **options):
    return make_radiance_field(
        act, **{"width": 4, "depth": 2, "samples": 5, "octaves": 2} | options
    )


@pytest.mark.parametrize("options", [{}, {"samples": 1}, {"depth": 0}, {"depth": 1, "width": 7}])
@pytest.mark.parametrize("act", ["gaussian", "relu_pe", "wavelet"])
def test_the_hessian_is_that_of_torch(act, options):
    field, signal = small(act, **options), scene()
    found = dense_hessian(field, mse, signal)
    assert_same(found, autograd_hessian(field, mse, signal))
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("loss", [mse, nn.HuberLoss(delta=0.2), nn.MSELoss()])
def test_other_losses_over_rays_have_the_closed_form_too(loss):
    field, signal = small("gaussian"), scene()
    assert_same(dense_hessian(field, loss, signal), autograd_hessian(field, loss, signal))
    assert_same(dense_ggn(field, loss, signal), ggn_rows(field, loss, signal))


def test_the_gauss_newton_matrix_is_that_of_the_colours():
    field, signal = small("sine"), scene()
    found = dense_ggn(field, mse, signal)
    assert_same(found, ggn_rows(field, mse, signal))
    jacobian = torch.autograd.functional.jacobian(
        lambda *values: torch.func.functional_call(
            field, dict(zip(dict(field.named_parameters()), values, strict=True)), (signal.coords,)
        ),
        tuple(value.detach() for value in field.parameters()),
    )
    rows = torch.cat([part.flatten(2) for part in jacobian], dim=2).flatten(0, 1)
    assert_same(found, rows.T @ rows / signal.num_points)


@pytest.mark.parametrize("output", [-50.0, 0.0, 60.0, 2000.0])
def test_mists_and_walls_have_a_curvature_too(output):
    field, signal = small("tanh"), scene()
    with torch.no_grad():
        field.field.maps[-1].bias[0] = output
    expected = autograd_hessian(field, mse, signal)
    assert bool(expected.isfinite().all())
    assert_same(dense_hessian(field, mse, signal), expected)
    assert_same(dense_ggn(field, mse, signal), ggn_rows(field, mse, signal))


def test_rays_that_miss_the_box_add_nothing():
    field, signal = small("gaussian"), scene()
    rays = signal.coords.clone()
    rays[3:, 6:8] = 0
    few = Signal(signal.coords[:3], signal.values[:3])
    missed = Signal(rays, signal.values)
    assert_same(dense_hessian(field, mse, missed), dense_hessian(field, mse, few) / 3)


def test_chunks_of_rays_sum_to_the_same(monkeypatch):
    field, signal = small("gaussian"), scene()
    whole = dense_hessian(field, mse, signal)
    monkeypatch.setattr(rendered, "PANEL_NUMBERS", 2 * 5 * 300)
    assert_same(dense_hessian(field, mse, signal), whole)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 4}, {"parameters": "field.layers.1.*"}])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("act", ["gaussian", "relu_pe"])
def test_products_are_those_of_double_backward(act, count, options, monkeypatch):
    monkeypatch.setattr("hessian_lab.probe.linearize.Linearizer._kept", None)
    # Tiles of a few rays.
    monkeypatch.setattr(linearized, "TILE_NUMBERS", 64 * 4)
    field, signal = small(act), scene(30)
    for kind, rows in ((HessianOperator, hessian_rows), (GGNOperator, ggn_rows)):
        operator, matrix = kind(field, mse, signal, **options), rows(field, mse, signal)
        if "parameters" in options:
            start = sum(v.numel() for v in field.field.layers[0].parameters())
            matrix = matrix[start : start + operator.size, start : start + operator.size]
        block = torch.randn(operator.size, count, dtype=torch.float64)
        assert_same(operator @ block, matrix @ block)
        assert operator.known_diagonal() is None
        assert operator.known_row_norms() is None


def test_a_head_and_frozen_parameters_take_products(monkeypatch):
    monkeypatch.setattr("hessian_lab.probe.hessian.rendered_matrix", None)
    signal = scene()
    headed = small("gaussian", directions=True)
    assert closed_network(headed) == (None, 1)
    assert_same(dense_hessian(headed, mse, signal), autograd_hessian(headed, mse, signal))
    frozen = small("gaussian")
    frozen.field.maps[0].weight.requires_grad_(False)
    assert_same(dense_hessian(frozen, mse, signal), hessian_rows(frozen, mse, signal))


def test_a_field_that_is_seen_otherwise_takes_products_and_is_right():
    field, signal = small("gaussian"), scene()
    known = field.radiance
    field.radiance = lambda places, ways: (2 * known(places, ways)[0], known(places, ways)[1])
    assert closed_network(field) == (None, 1)
    assert_same(dense_hessian(field, mse, signal), autograd_hessian(field, mse, signal))


def test_what_does_not_fit_is_refused_before_anything_is_allocated(monkeypatch):
    field, signal = small("gaussian"), scene()
    monkeypatch.setattr(memory, "available_bytes", lambda _device: 100_000)
    with pytest.raises(ResourceError, match="must fit in memory"):
        dense_hessian(field, mse, signal)


def test_a_loss_that_couples_rays_takes_products_and_is_right():
    def coupled(predictions, values):
        return (predictions - values).square().mean().sqrt()

    field, signal = small("gaussian"), scene()
    assert_same(dense_hessian(field, coupled, signal), autograd_hessian(field, coupled, signal))
    assert_same(dense_ggn(field, coupled, signal), ggn_rows(field, coupled, signal))
