"""An optimizer from its name and options, with errors that name the option."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from hessian_lab.errors import ResourceError, UsageError
from hessian_lab.names import known, resolve, suggestion
from hessian_lab.optim import DEFAULT_RATES, OPTIMIZERS
from hessian_lab.optim.contract import Contract
from hessian_lab.optim.wrappers import WRAPPERS

FIRST = ("params", "model")


def make_optimizer(
    name: str, model: nn.Module, *, lr: float | None = None, **options: Any
) -> Contract:
    """Return an optimizer over the trainable parameters of a model.

    Args:
        name: One of ``OPTIMIZERS``.
        model: The module to train.
        lr: The learning rate; by default one that descends on the default signal.
        options: Of the class.

    Raises:
        UsageError: For an unknown name, an option that the optimizer does not have, or one out of
            range.
        ResourceError: If what it must hold does not fit.
    """
    return configured(name, model, lr, options)


def configured(
    name: str, model: nn.Module, lr: float | None, options: Mapping[str, Any]
) -> Contract:
    """Return ``make_optimizer``'s result, with options of any name in a mapping."""
    try:
        known("optimizer", name, OPTIMIZERS)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"model must be an nn.Module, got {type(model).__name__}. Its parameters alone are for "
            "the classes themselves, such as hessian_lab.optim.Adam."
        )
    kind = resolve(OPTIMIZERS[name])
    wrapper = type(model).__name__
    if kind.needs_graph and wrapper in WRAPPERS:
        raise UsageError(
            f"{name} differentiates twice, which {wrapper} does not survive. Pass what it wraps, "
            f"{WRAPPERS[wrapper]}."
        )
    signature = inspect.signature(kind.__init__).parameters
    allowed = {
        option: parameter
        for option, parameter in signature.items()
        if option not in ("self", "lr", *FIRST)
    }
    for option, value in options.items():
        if option not in allowed:
            raise UsageError(
                f"option of {name} must be one of {', '.join(allowed)}, "
                f"got {option!r}.{suggestion(option, allowed)}"
            )
        _check_kind(f"{option} of {name}", value, allowed[option])
    trainable = [value for value in model.parameters() if value.requires_grad]
    rate = DEFAULT_RATES[name] if lr is None else lr
    try:
        optimizer: Contract
        if "params" not in signature:
            optimizer = kind(model, lr=rate, **options)
        elif "model" in signature:
            optimizer = kind(trainable, lr=rate, model=model, **options)
        else:
            optimizer = kind(trainable, lr=rate, **options)
    except (UsageError, ResourceError):
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        text = str(error).rstrip(".")
        if text.startswith(("model must", "parameters must")):
            raise UsageError(f"{name}: {text}.") from error
        raise UsageError(f"options of {name} must be valid: {text}.") from error
    return optimizer


def has_option(name: str, option: str) -> bool:
    """Tell whether an optimizer takes an option."""
    return option in inspect.signature(resolve(OPTIMIZERS[name]).__init__).parameters


def _check_kind(name: str, value: object, parameter: inspect.Parameter) -> None:
    """Check an option against the type of its default, where that tells."""
    default = parameter.default
    words = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a tuple"}
    # torch writes the zeros of real options (momentum=0) as integers.
    kind = float if default == 0 and not isinstance(default, bool) else type(default)
    kind = bool if name.split()[0] in ("foreach", "fused") else kind
    if kind not in words or value is None or "str" in str(parameter.annotation):
        return
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (kind is not bool and isinstance(value, bool)):
        raise UsageError(f"{name} must be {words[kind]}, got {value!r}.")
