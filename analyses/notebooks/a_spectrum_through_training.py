# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A spectrum through training
#
# Train a field, keep every iterate, and measure all eigenvalues of its Hessian along the way: how
# many are zero, how many are negative, and what becomes of them.

# %%
from tempfile import mkdtemp

import hessian_lab as hl
from hessian_lab.measures.eigenvalues import measure_eigenvalues

# %% [markdown]
# A run is a directory: the trajectory, the metrics, and whatever is measured of it. The same call
# continues where it was killed.

# %%
setup = hl.Setup(act="relu_pe", octaves=4, width=8, depth=2, signal="camera", size=24, steps=30)
run = hl.train(setup, out=mkdtemp() + "/run")
print(run.metrics[["step", "loss", "psnr", "evaluations"]].iloc[[0, 15, 30]])

# %%
found = measure_eigenvalues(run, every=5)
for one in found.measured:
    spectrum = one.spectrum
    zeros = spectrum.numerical_zeros / len(spectrum.values)
    negative = spectrum.negative / len(spectrum.values)
    largest = f"λmax {spectrum.lambda_max:.2e}"
    print(f"step {one.step:3d}: {zeros:.1%} zero, {negative:.1%} negative, {largest}")

# %% [markdown]
# *Structural* zeros are rows of the Hessian that are exactly zero: units that no point activates.
# The rest of the zeros lie below the rounding floor `n · eps · max|λ|`.

# %%
last = found.measured[-1].spectrum
print(
    f"{last.structural_zeros} structural, {last.numerical_zeros} in all, floor {last.tolerance:.1e}"
)
assert last.structural_zeros <= last.numerical_zeros

# %%
figure = hl.plot_spectrum(found.spectra, steps=[one.step for one in found.measured])

# %% [markdown]
# Three kinds of terms make up the Hessian: Gauss–Newton, the activation's curvature (none for
# ReLU), and what two layers' weights share.

# %%
field = run.model(30)
terms = hl.hessian_terms(field, run.loss, run.signal())
whole = hl.dense_hessian(field, run.loss, run.signal())
for name in ("ggn", "activation", "cross"):
    print(f"{name:>10}: {float(getattr(terms, name).norm() / whole.norm()):.1%} of ‖H‖")
assert float(terms.activation.abs().max()) == 0
