"""Optimizers by name."""

# name -> the class, resolved on use; each takes (parameters, lr=…, **options) and a closure that
# returns the loss with its graph and does not call backward.
OPTIMIZERS = {
    "sgd": "hessian_lab.optim.first_order:SGD",
    "adam": "hessian_lab.optim.first_order:Adam",
    "lbfgs": "hessian_lab.optim.lbfgs:LBFGS",
}

# The learning rate that each takes when none is given.
DEFAULT_RATES = {"sgd": 0.1, "adam": 1e-3, "lbfgs": 1.0}
