"""torch's SGD and Adam under the contract of this package."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hessian_lab.optim.contract import Closure, Contract, is_finite, order_of
from hessian_lab.optim.preconditioner import Preconditioner, diagonal_preconditioner


class FirstOrder(Contract):
    """A step of torch's own on gradients that a closure, or the caller, has filled in."""

    takes_groups = True
    needs_graph = False

    def _step(self, closure: Closure | None, take: Callable[[], object]) -> Tensor | None:
        """Take one step; return the loss before it, or None without a closure."""
        loss = None
        if closure is not None:
            loss = self._backward(closure)
        else:
            self.counters["evaluations"] += 1
        if not self._is_finite(loss):
            return loss
        take()
        self._length = None
        self._took()
        return loss

    def _is_finite(self, loss: Tensor | None) -> bool:
        """Tell whether the loss and the gradients are finite; else skip."""
        found = [value.grad for value in self.parameters if value.grad is not None]
        if loss is not None:
            found.append(loss)
        if not found or is_finite(found):
            return True
        bad = loss is not None and not math.isfinite(float(loss))
        self._skip(f"loss became {float(loss)}" if bad else "gradient was not finite")  # type: ignore[arg-type]
        return False

    def _backward(self, closure: Closure) -> Tensor:
        """Fill ``.grad``, unless the closure has done it; return the loss.

        It stays None for a parameter that the loss does not use, as after ``loss.backward``: torch
        then leaves it alone.
        """
        loss: Tensor = self._evaluate(closure)
        if all(value.grad is None for value in self.parameters):
            trained = [value for value in self.parameters if value.requires_grad]
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            for value, gradient in zip(trained, gradients, strict=True):
                value.grad = gradient
        return loss.detach()


class SGD(FirstOrder, torch.optim.SGD):
    """``torch.optim.SGD`` with a closure that returns the loss; it need not call backward."""

    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step; return the loss before it."""
        return self._step(closure, partial(_bare(torch.optim.SGD.step), self))


class Adam(FirstOrder, torch.optim.Adam):
    """``torch.optim.Adam`` with a closure that returns the loss; it need not call backward."""

    is_diagonal = True

    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step; return the loss before it."""
        return self._step(closure, partial(_bare(torch.optim.Adam.step), self))

    def preconditioner(self, model: nn.Module | None = None) -> Preconditioner:
        """Return ``P = diag(√v̂ + ε)``, with the moving average ``v̂`` of squared gradients.

        Raises:
            ValueError: Before the first step.
        """
        scales = []
        for group in self.param_groups:
            for value in group["params"]:
                state = self.state.get(value)
                if not state:
                    raise ValueError("Adam has no preconditioner before its first step.")
                name = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
                correction = 1 - group["betas"][1] ** float(state["step"])
                scales.append((state[name] / correction).sqrt() + group["eps"])
        ordered = [scales[place].flatten() for place in order_of(self.parameters, model)]
        return diagonal_preconditioner(torch.cat(ordered))


def _bare(step: Any) -> Callable[..., object]:
    """Return torch's step without the hooks that it gets once torch's own class is in use.

    Ours is hooked already, and hooks would be called twice.
    """
    bare: Callable[..., object] = step.__wrapped__ if hasattr(step, "hooked") else step
    return bare
