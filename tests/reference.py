"""What tests compare with: one tolerance rule, and dense references."""

import torch
from torch.func import functional_call, hessian

from hessian_lab.fields.mlp import make_field
from hessian_lab.signal import Signal


def points(num_points=37, num_inputs=2, num_outputs=1, seed=0):
    """Return a signal of random values at random places of the square, in float64."""
    generator = torch.Generator().manual_seed(seed)
    coords = 2 * torch.rand(num_points, num_inputs, dtype=torch.float64, generator=generator) - 1
    values = torch.rand(num_points, num_outputs, dtype=torch.float64, generator=generator)
    return Signal(coords, values)


def small_field(act="sine", num_outputs=1, depth=2, width=5, **options):
    """Return a field of 51 parameters by default, with weights of a seed of its own."""
    return make_field(act, 2, num_outputs, width=width, depth=depth, octaves=3, seed=1, **options)


def assert_same(actual, expected, *, scale=None, roundings=1e3):
    """Assert equality up to ``roundings`` machine epsilons of ``scale``.

    An error bound in epsilons of the scale of the problem (by default the largest expected entry),
    never a bare absolute number.
    """
    if scale is None:
        scale = float(expected.abs().max())
    tolerance = roundings * torch.finfo(expected.dtype).eps * scale
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def autograd_hessian(model, loss, signal):
    """Return the Hessian [n, n] by ``torch.func.hessian``: nothing of ours."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    sizes = [value.numel() for value in parameters.values()]

    def total(flat):
        parts = zip(parameters.items(), flat.split(sizes), strict=True)
        named = {name: part.view_as(value) for (name, value), part in parts}
        return loss(functional_call(model, named, (signal.coords,)), signal.values)

    return hessian(total)(torch.cat([value.flatten() for value in parameters.values()]))
