"""Optimizers by name. Importable without torch."""

from typing import Any

from hessian_lab.names import resolve
from hessian_lab.optim.recipes import RECIPES

# name -> the class, resolved on use; each takes (parameters, lr=…, **options), K-FAC's the model,
# and a closure that returns the loss with its graph and does not call backward.
OPTIMIZERS = {
    "sgd": "hessian_lab.optim.first_order:SGD",
    "adam": "hessian_lab.optim.first_order:Adam",
    "lbfgs": "hessian_lab.optim.lbfgs:LBFGS",
    "psgd": "hessian_lab.optim.preconditioned_sgd:PreconditionedSGD",
    "newton": "hessian_lab.optim.newton:Newton",
    "newton_cg": "hessian_lab.optim.newton_cg:NewtonCG",
    "nonlinear_cg": "hessian_lab.optim.nonlinear_cg:NonlinearCG",
    "bfgs": "hessian_lab.optim.bfgs:BFGS",
    "gauss_newton": "hessian_lab.optim.gauss_newton:GaussNewton",
    "kfac": "hessian_lab.optim.kfac:KFAC",
    "ekfac": "hessian_lab.optim.kfac:EKFAC",
    "shampoo": "hessian_lab.optim.shampoo:Shampoo",
    "esgd": "hessian_lab.optim.esgd:ESGD",
    "esgd_max": "hessian_lab.optim.esgd:ESGDMax",
    "adahessian": "hessian_lab.optim.adahessian:AdaHessian",
}

# The learning rate that each takes when none is given; of line searches, the first length tried.
DEFAULT_RATES = {
    "sgd": 0.1,
    "adam": 1e-3,
    "lbfgs": 1.0,
    "psgd": 0.1,
    "newton": 1.0,
    "newton_cg": 1.0,
    "nonlinear_cg": 1.0,
    "bfgs": 1.0,
    "gauss_newton": 1.0,
    "kfac": 0.1,
    "ekfac": 0.1,
    "shampoo": 0.05,
    "esgd": 0.1,
    "esgd_max": 1.0,
    "adahessian": 0.1,
}

# What each is, in a line.
SUMMARIES = {
    "sgd": "torch's stochastic gradient descent",
    "adam": "torch's Adam",
    "lbfgs": "limited-memory BFGS, strong Wolfe, one iteration per step",
    "psgd": "SGD over row norms, |diagonal| or |H|: the papers' Alg. 1",
    "newton": "Newton's method, |H| in place of H; dense",
    "newton_cg": "truncated Newton on Hessian-vector products",
    "nonlinear_cg": "nonlinear conjugate gradients: what the papers call Newton-CG",
    "bfgs": "BFGS with a dense inverse Hessian",
    "gauss_newton": "Gauss-Newton with Levenberg-Marquardt damping; closure: (loss, outputs)",
    "kfac": "Kronecker-factored Gauss-Newton; closure: (loss, outputs)",
    "ekfac": "the same with eigenvalues corrected; closure: (loss, outputs)",
    "shampoo": "fourth roots of gradient statistics on both sides",
    "esgd": "equilibrated SGD: a moving average of (H v)^2",
    "esgd_max": "equilibrated SGD: a decaying maximum of (H v)^2",
    "adahessian": "AdaHessian; by default esgd with every step measured; estimator=jacobi: |v H v|",
}

_HOMES = {reference.partition(":")[2]: reference for reference in OPTIMIZERS.values()} | {
    "make_optimizer": "hessian_lab.optim.make:make_optimizer",
    "Preconditioner": "hessian_lab.optim.preconditioner:Preconditioner",
}

__all__ = ["DEFAULT_RATES", "OPTIMIZERS", "RECIPES", "SUMMARIES", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return resolve(_HOMES[name])


def __dir__() -> list[str]:
    return sorted(__all__)
