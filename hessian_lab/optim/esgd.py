"""Equilibrated SGD: momentum over the row norms of the Hessian."""

from typing import Literal

from hessian_lab.optim.diagonal import Diagonal, Parameters
from hessian_lab.probe.vectors import Distribution


class ESGD(Diagonal):
    """SGD with momentum, over an average of ``(Hv)²`` whose expectation is ``‖H_i‖²``.

    At measured steps ``d ← β₂ d + (1 − β₂)(Hv)²``; at every step::

        m ← β₁ m + (1 − β₁) g
        x ← (1 − ηλ) x − η / (1 − β₁ᵗ) · m / (√(d / (1 − β₂ᵏ)) + ε)

    after ``t`` steps and ``k`` measurements. A measured step costs a gradient with its graph and
    ``num_probes`` Hessian–vector products, another step a gradient; two numbers are kept per
    parameter.

    Args:
        params: Parameters, or groups with ``lr``, ``betas``, ``eps`` and ``weight_decay``.
        lr: ``η``. As it divides curvature, it is near 0.1 where Adam's is near 1e-3.
        betas: ``β₁``, ``β₂``, each in [0, 1).
        eps: ``ε``, positive.
        weight_decay: ``λ``, decoupled.
        num_probes: Products per measurement, on one graph.
        update_every: Measure when so many steps have passed since the last measurement.
        warmup_steps: Before which every step measures.
        accumulate: ``ema`` as above; ``mean``, ``d = Σ(Hv)²/k``, as Dauphin et al.; ``sum``,
            ``d = Σ(Hv)²``, as Alg. 2 of Chng et al. but with this step's term already in it
            (theirs divides by 0 at first): the rate then falls like ``1/√k``.
        bias_correction: ``updates`` corrects by ``k``, so that ``d`` is right on average at all
            times; ``steps`` by ``t``, as published in 2025: between measurements the scale then
            shrinks to 0.28 of its value and recovers, a learning rate that is raised 3.6-fold.
        momentum: ``ema``, or ``nesterov``: ``β₁ m + (1 − β₁) g`` in place of ``m``.
        distribution: Of probes: ``rademacher`` has the lower variance.
        seed: Of probes, each a function of it, of ``k`` and of the parameter alone.

    Raises:
        ValueError: For a setting out of range.
        TypeError: For complex or sparse parameters.

    References:
        Dauphin, de Vries & Bengio (2015), https://arxiv.org/abs/1502.04390.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.1,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        num_probes: int = 1,
        update_every: int = 100,
        warmup_steps: int = 50,
        accumulate: Literal["ema", "sum", "mean"] = "ema",
        bias_correction: Literal["updates", "steps"] = "updates",
        momentum: Literal["ema", "nesterov"] = "ema",
        distribution: Distribution = "rademacher",
        seed: int = 0,
    ) -> None:
        if accumulate not in ("ema", "sum", "mean"):
            raise ValueError(f"accumulate must be one of ema, sum, mean, got {accumulate!r}.")
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            hessian_power=1.0,
            estimator="equilibrated",
            accumulate=accumulate,
            bias_correction=bias_correction,
            momentum=momentum,
            lr_warmup=0.0,
            num_probes=num_probes,
            update_every=update_every,
            warmup_steps=warmup_steps,
            distribution=distribution,
            seed=seed,
        )


class ESGDMax(Diagonal):
    """ESGD over a fading maximum: ``d ← max(β₂ d, (Hv)²)``, with Nesterov momentum.

    ``x ← (1 − η_k λ) x − η_k / (1 − β₁ᵗ⁺¹) · (β₁ m + (1 − β₁) g) / (√d + ε)``, with the rate
    ``η_k = η (1 − wᵏ)`` after ``k`` measurements. A maximum over probes is above the row norm, and
    is not an estimate of it. Costs what ``ESGD`` does.

    Args:
        params: Parameters, or groups with ``lr``, ``betas``, ``eps`` and ``weight_decay``.
        lr: ``η``.
        betas: ``β₁``, ``β₂``, each in [0, 1).
        eps: ``ε``, positive.
        weight_decay: ``λ``, decoupled.
        num_probes: Products per measurement, whose squares are averaged.
        update_every: Measure when so many steps have passed since the last measurement.
        warmup_steps: Before which every step measures.
        momentum: ``nesterov`` as above, or ``ema``.
        lr_warmup: ``w`` in [0, 1); 0 for none. It counts measurements, not steps.
        distribution: Of probes.
        seed: Of probes.

    Raises:
        ValueError: For a setting out of range.
        TypeError: For complex or sparse parameters.

    References:
        Crowson (2022), https://github.com/crowsonkb/esgd, second version.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        num_probes: int = 1,
        update_every: int = 100,
        warmup_steps: int = 50,
        momentum: Literal["ema", "nesterov"] = "nesterov",
        lr_warmup: float = 0.99,
        distribution: Distribution = "rademacher",
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            hessian_power=1.0,
            estimator="equilibrated",
            accumulate="max",
            bias_correction="updates",
            momentum=momentum,
            lr_warmup=lr_warmup,
            num_probes=num_probes,
            update_every=update_every,
            warmup_steps=warmup_steps,
            distribution=distribution,
            seed=seed,
        )
