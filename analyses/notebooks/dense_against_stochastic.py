# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Dense against stochastic, and what SLQ cannot see
#
# Stochastic Lanczos quadrature estimates the density of eigenvalues from products alone. It sees
# the large ones well, gives an honest band, and is blind to the null space.

# %%
import hessian_lab as hl

run = hl.train(
    hl.Setup(act="relu_pe", octaves=4, width=10, depth=2, signal="camera", size=24, steps=25),
    out="runs/notebook-slq",
)
field, signal = run.model(25), run.signal()

# %% [markdown]
# The truth: all eigenvalues.

# %%
spectrum = hl.spectrum(hl.dense_hessian(field, hl.mse, signal))
zeros = spectrum.numerical_zeros / len(spectrum.values)
print(spectrum)

# %% [markdown]
# The estimate: ten probes, sixty Lanczos steps each.

# %%
operator = hl.HessianOperator(field, hl.mse, signal)
measure = hl.spectral_measure(operator, num_probes=10, num_steps=60, seed=0)
pairs = hl.extreme_eigenpairs(operator, num=3, which="both")
print(pairs)
assert abs(float(pairs.values.max()) / spectrum.lambda_max - 1) < 1e-6

# %% [markdown]
# How much mass lies within a multiple of `max|λ|`: the band contains the truth where Lanczos
# steps resolve it. Below the resolution, the nodes say nothing.

# %%
radius = spectrum.spectral_radius
for exponent in (1, 2, 3, 5, 8):
    bound = 10.0**-exponent * radius
    truth = float((spectrum.magnitudes <= bound).double().mean())
    if bound < measure.resolution:
        print(f"|λ| ≤ 1e-{exponent} max: truth {truth:.1%}, not resolved")
        continue
    band = measure.mass_within(bound)
    low, high = float(band.lower), float(band.upper)
    print(f"|λ| ≤ 1e-{exponent} max: truth {truth:.1%}, estimate in [{low:.1%}, {high:.1%}]")
    assert low - 1e-9 <= truth <= high + 1e-9

# %% [markdown]
# The share of exact zeros is a question for the dense spectrum. From products there is an upper
# bound alone, and κ is a lower bound.

# %%
print(f"zero: {zeros:.1%} in truth; κ {hl.condition_number(operator)} from products")
