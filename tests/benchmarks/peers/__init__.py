"""Other ways to the same answers, one adapter per library.

An adapter takes a ``Problem`` and returns the function that is timed. Its library is imported
inside, so that one that is missing, or fails to load, is named in the table and stops nothing.
"""

from importlib.metadata import PackageNotFoundError, version

# Name in the table -> distribution.
LIBRARIES = {
    "torch.func.hessian": "torch",
    "kept double backward": "torch",
    "curvlinops": "curvlinops-for-pytorch",
    "hessian-eigenthings": "hessian-eigenthings",
    "PyHessian": "PyHessian",
    "BackPACK": "backpack-for-pytorch",
    "torch.optim.LBFGS": "torch",
    "pytorch_optimizer": "pytorch_optimizer",
}


def installed(library: str) -> str | None:
    """Return the version of a library, or None if it is not installed."""
    try:
        return version(LIBRARIES[library])
    except PackageNotFoundError:
        return None
