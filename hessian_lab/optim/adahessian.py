"""AdaHessian: Adam over a diagonal estimate of the Hessian."""

from typing import Literal

from hessian_lab.optim.diagonal import Diagonal, Parameters
from hessian_lab.probe.vectors import Distribution


class AdaHessian(Diagonal):
    """Adam with an average over products ``Hv`` in place of that over squared gradients.

    ``x ← (1 − ηλ) x − η m̂ / (rᵖ + ε)``, where ``r`` is one of::

        equilibrated   √ EMA[(Hv)²]    → ‖H_i‖        published as AdaHessian
        jacobi         |EMA[v ⊙ Hv]|   → |H_ii|       the Hessian's diagonal
        pn-jacobi      √ EMA[|Hv|]     → √E|Hv|       published in 2025 as AdaHessian (J)

    The first is what the original computes: it squares before it averages, and ``v² = 1``, so that
    its limit is the norm of the row, not the diagonal. The third is neither: it is about the root
    of a row norm, and scales with the root of the loss. The second can be near 0 where rows are
    not, and asks for a rate some hundred times lower.

    A measured step costs a gradient with its graph and ``num_probes`` Hessian–vector products; two
    numbers are kept per parameter.

    Args:
        params: Parameters, or groups with ``lr``, ``betas``, ``eps``, ``weight_decay`` and
            ``hessian_power``.
        lr: ``η``.
        betas: ``β₁``, ``β₂``, each in [0, 1).
        eps: ``ε``, positive.
        weight_decay: ``λ``, decoupled.
        estimator: As above.
        hessian_power: ``p``, positive.
        num_probes: Products per measurement, on one graph; squares (or magnitudes) are averaged.
        update_every: Measure when so many steps have passed since the last measurement.
        warmup_steps: Before which every step measures.
        bias_correction: ``updates`` counts measurements; ``steps`` counts steps, as published:
            the same where every step measures.
        distribution: Of probes.
        seed: Of probes, each a function of it, of the measurement and of the parameter alone.

    Raises:
        ValueError: For a setting out of range.
        TypeError: For complex or sparse parameters.

    References:
        Yao et al. (2021), https://arxiv.org/abs/2006.00719.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.1,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        estimator: Literal["equilibrated", "jacobi", "pn-jacobi"] = "equilibrated",
        hessian_power: float = 1.0,
        num_probes: int = 1,
        update_every: int = 1,
        warmup_steps: int = 0,
        bias_correction: Literal["updates", "steps"] = "updates",
        distribution: Distribution = "rademacher",
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            hessian_power=hessian_power,
            estimator=estimator,
            accumulate="ema",
            bias_correction=bias_correction,
            momentum="ema",
            lr_warmup=0.0,
            num_probes=num_probes,
            update_every=update_every,
            warmup_steps=warmup_steps,
            distribution=distribution,
            seed=seed,
        )
