"""Problems whose Hessian is known, and the optimizers that measure it, for their tests."""

import torch

from hessian_lab.optim.adahessian import AdaHessian
from hessian_lab.optim.esgd import ESGD, ESGDMax
from hessian_lab.optim.preconditioned_sgd import PreconditionedSGD

# name -> (class, options) with a measurement now and then, so that a resumed run has some to come.
FAMILY = {
    "esgd": (ESGD, {"update_every": 3, "warmup_steps": 2}),
    "esgd-steps": (ESGD, {"update_every": 3, "warmup_steps": 2, "bias_correction": "steps"}),
    "esgd-mean": (ESGD, {"update_every": 2, "accumulate": "mean", "distribution": "gaussian"}),
    "esgd-max": (ESGDMax, {"update_every": 3, "warmup_steps": 2}),
    "adahessian": (AdaHessian, {"num_probes": 2}),
    "adahessian-jacobi": (AdaHessian, {"estimator": "jacobi", "update_every": 2}),
    "psgd": (PreconditionedSGD, {"update_every": 3, "num_probes": 4}),
    "psgd-exact": (PreconditionedSGD, {"mode": "exact", "preconditioner": "jacobi"}),
    "psgd-abs": (
        PreconditionedSGD,
        {"mode": "exact", "preconditioner": "abs-hessian", "update_every": 3},
    ),
}
# |diag| and row norms differ, and one entry of the diagonal is nearly 0.
HESSIAN = torch.tensor(
    [
        [0.01, 0.9, 0.2, 0.0],
        [0.9, 2.0, -1.0, 0.3],
        [0.2, -1.0, -1.5, 0.7],
        [0.0, 0.3, 0.7, 4.0],
    ],
    dtype=torch.float64,
)


def quadratic(hessian=HESSIAN):
    """Return two parameters, of 1 entry and the rest, and a loss with that Hessian."""
    start = torch.linspace(-1, 1, len(hessian), dtype=torch.float64)
    parameters = [torch.nn.Parameter(start[:1].clone()), torch.nn.Parameter(start[1:].clone())]

    def closure():
        point = torch.cat(parameters)
        return point @ hessian @ point / 2

    return parameters, closure


def diagonal_quadratic(diagonal):
    """Return one parameter and a loss with a diagonal Hessian: its products have no noise."""
    diagonal = torch.as_tensor(diagonal, dtype=torch.float64)
    point = torch.nn.Parameter(torch.linspace(1, 2, len(diagonal), dtype=torch.float64))
    return point, lambda: (diagonal * point.square()).sum() / 2


def network(dtype=torch.float64):
    """Return a small network and its loss on fixed points."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    coords = torch.rand(11, 2, generator=generator).to(dtype)
    values = torch.rand(11, 1, generator=generator).to(dtype)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) / 2)
    model.to(dtype)
    return model, lambda: (model(coords) - values).square().mean()


def entries(parameters):
    """Return a copy of all entries as one vector."""
    return torch.cat([value.detach().flatten() for value in parameters])
