# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # What a preconditioner does
#
# An optimizer that steps by `−η P⁻¹ m` sees the spectrum of `P^{-1/2} H P^{-1/2}`. Every
# optimizer of this package shows its `P`, so that the spectrum can be measured.

# %%
import torch

import hessian_lab as hl
from hessian_lab.measures.scaled import preconditioned_matrix, reordered
from hessian_lab.optim import make_optimizer

signal = hl.load_signal("camera", size=24)


def trained(name, **options):
    """Return a field after 40 steps, and its optimizer."""
    field = hl.make_field("gaussian", 2, 1, width=8, depth=2, sigma=0.2)
    optimizer = make_optimizer(name, field, **options)
    for _ in range(40):
        optimizer.step(lambda: hl.mse(field(signal.coords), signal.values))
    return field, optimizer


# %% [markdown]
# κ before and after, with `≥` where the smallest eigenvalue cannot be told from zero.

# %%
for name, options in (
    ("adam", {"lr": 1e-2}),
    ("esgd", {"lr": 0.3, "num_probes": 4}),
    ("lbfgs", {}),
    ("newton", {}),
):
    field, optimizer = trained(name, **options)
    hessian = hl.dense_hessian(field, hl.mse, signal)
    # A second time, from the same points in another order: the difference is what scaling makes of
    # rounding, and so the floor of the scaled matrix.
    again = hl.dense_hessian(field, hl.mse, reordered(signal))
    before = hl.spectrum(hessian)
    scaled, rounding = preconditioned_matrix(optimizer.preconditioner(field), hessian, again)
    after = hl.spectrum(scaled, rounding=rounding)
    told = [
        f"{'' if one.condition_number_resolved else '≥ '}{one.condition_number:.1e}"
        for one in (before, after)
    ]
    spread = f"{before.effective_rank:.1f} → {after.effective_rank:.1f}"
    print(f"{name:>6}: κ {told[0]} → {told[1]}, effective rank {spread}")

# %% [markdown]
# The papers' scalings: equilibration divides by the norms of rows, Jacobi by the diagonal.

# %%
matrix = hl.dense_hessian(field, hl.mse, signal)
norms, diagonal = matrix.norm(dim=1), matrix.diagonal().abs()
for name, scale in (("D^E", norms), ("D^J", diagonal)):
    root = scale.rsqrt()
    print(f"{name}: κ {hl.condition_number(matrix * torch.outer(root, root))}")

# %% [markdown]
# From products alone the same scale is an estimate with an error, from a handful of probes.

# %%
estimate = hl.equilibration(hl.HessianOperator(field, hl.mse, signal), num_products=40)
print(estimate)
ratio = (estimate.scale / norms).median()
print(f"estimated over exact norms, median {float(ratio):.2f}")
assert 0.5 < float(ratio) < 2
