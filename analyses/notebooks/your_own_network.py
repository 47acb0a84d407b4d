# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Your own network in ten lines
#
# Any `nn.Module`, any loss that is a mean over points, any signal: the exact Hessian of what you
# have trained yourself, in whatever way, and what its eigenvalues say. Open it with `jupytext
# --to ipynb`, or run it as a script.

# %%
import torch
from torch import nn

import hessian_lab as hl

# %% [markdown]
# A network, points, and your own training loop. Double precision, because small eigenvalues
# matter.

# %%
torch.manual_seed(0)
network = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 1))
network = network.double()
coords = torch.linspace(-1, 1, 100, dtype=torch.float64).unsqueeze(1)
signal = hl.Signal(coords, torch.sin(4 * coords))
optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
for _ in range(300):
    optimizer.zero_grad()
    hl.mse(network(signal.coords), signal.values).backward()
    optimizer.step()

# %% [markdown]
# The whole spectrum, with its rounding floor: what lies below cannot be told from zero.

# %%
hessian = hl.dense_hessian(network, hl.mse, signal)
spectrum = hl.spectrum(hessian)
print(spectrum)

# %% [markdown]
# Products `v ↦ H v` for networks too large for a matrix; they agree with it to rounding.

# %%
operator = hl.HessianOperator(network, hl.mse, signal)
vector = torch.randn(operator.size, dtype=torch.float64)
gap = torch.linalg.vector_norm(operator @ vector - hessian @ vector)
print(f"‖Hv − (dense H)v‖ / ‖H‖ = {float(gap / torch.linalg.matrix_norm(hessian)):.1e}")
assert gap <= 1e-12 * torch.linalg.matrix_norm(hessian) * torch.linalg.vector_norm(vector)

# %%
figure = hl.plot_spectrum([spectrum], steps=[300], title="a network of my own")
