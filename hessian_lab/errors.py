"""The errors that the command line tells apart by exit status."""


class UsageError(ValueError):
    """What was asked for contradicts itself or what is there (exit status 2)."""


class InputError(ValueError):
    """An input is missing, unreadable, or of a newer format (exit status 4)."""


class ResourceError(MemoryError):
    """A request does not fit in memory or on the disk (exit status 1)."""


class DivergenceError(ArithmeticError):
    """Training reached a loss that is not finite (exit status 1)."""


class NonFiniteError(ArithmeticError):
    """A Hessian–vector product is NaN or infinite (exit status 1)."""


class RankError(RuntimeError):
    """Another process of the same job has failed or is gone (exit status 1)."""
