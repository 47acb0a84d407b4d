"""Are Hessian–vector products sparse, for which fields, and does that hide anything from ESGD?

P2 Figs 3 and 7, P3 Fig. 4: fields of five linear maps, 256 wide, on a 256×256 RGB image in batches
of 512 by ESGD as the papers' code runs it, and by Adam; Rademacher v; zeros at the start and along
the training, by layer, in both precisions, under both losses; small networks for what the theorems
say of *any* v and *any* network. The stand-in image is chelsea. Measured are hundreds of steps, in
a quarter of an hour of one core; the papers' 200 to 500 epochs of 128 steps want a GPU, and so do
the interventions that would tell whether zeros are why ESGD loses to Adam (C60).
"""

import base64
import copy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from analyses.hvp_sparsity_verdicts import verdicts
from analyses.study import Row, Study, main
from hessian_lab.fields.encoding import encode
from hessian_lab.fields.mlp import CoordinateMLP, make_field
from hessian_lab.losses import Loss, bce, mse
from hessian_lab.measures.sparsity import Settings, batch_of, products_and_gradient, shares_of
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.probe.parameters import Layout, selected_names
from hessian_lab.signal import Signal
from hessian_lab.signals import load_signal
from hessian_lab.training.loop import train
from hessian_lab.training.run import Run
from hessian_lab.training.setup import Setup

RELU = ({"act": "relu"}, {"act": "relu_pe", "octaves": 4}, {"act": "relu_pe", "octaves": 8})
SMOOTH = (
    {"act": "sine", "omega": 30.0},
    {"act": "gaussian", "sigma": 0.05},
    {"act": "wavelet", "omega": 10.0, "sigma": 0.0707},
)
RECIPES = {
    ("esgd", "relu"): "esgd-sparsity-pn",
    ("esgd", "relu_pe"): "esgd-sparsity-pn",
    ("esgd", "other"): "esgd-cvpr2025",
    ("adam", "relu_pe"): "adam-pn-relu-pe",
    ("adam", "sine"): "adam-pn-sine",
    ("adam", "other"): "adam-pn",
}
# Small ReLU fields: depth, width, octaves, and whether hidden biases are made positive.
SHAPES = (
    (1, 16, 0, False),
    (1, 64, 0, False),
    (1, 256, 0, False),
    (4, 16, 0, False),
    (4, 16, 0, True),
    (4, 64, 0, False),
    (1, 16, 4, False),
    (4, 16, 4, False),
    (4, 16, 8, False),
)


@dataclass(frozen=True)
class Config:
    """What is varied.

    Attributes:
        seeds: Of the runs by ESGD; those by Adam leave the last one out.
        steps: Of each run.
        every: Steps between checkpoints; half as many by Adam.
        long_steps: Of one longer run of each ReLU field by ESGD; 0 for none.
        octaves: Of further ReLU-PE fields, trained for ``every`` steps.
        size: Pixels per side.
        width: Of the fields.
        batch_size: Points per step, and of the measurement.
        batch_sizes: Others that zeros are counted on.
        num_probes: Rademacher v.
        num_batches: Of which the noise of the gradient is told.
        num_small: Seeds of every small network.
        small_size: Pixels per side of what small networks see.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 300
    every: int = 100
    long_steps: int = 1500
    octaves: tuple[int, ...] = (1, 2, 3, 6, 10)
    size: int = 256
    width: int = 256
    batch_size: int = 512
    batch_sizes: tuple[int, ...] = (32, 8192)
    num_probes: int = 8
    num_batches: int = 16
    num_small: int = 100
    small_size: int = 50


FULL = Config()
QUICK = replace(
    FULL, seeds=(0, 1), steps=40, every=20, long_steps=0, octaves=(1,), size=64, width=64,
    batch_sizes=(32,), num_small=10, small_size=20,
)  # fmt: skip


def cells(config: Config) -> list[Row]:
    """Return every run, and the small networks."""
    paths: list[Row] = []
    for optimizer, seeds in (("esgd", config.seeds), ("adam", config.seeds[:-1])):
        paths += [
            {"kind": "path", **one, "optimizer": optimizer, "seed": seed, "steps": config.steps}
            for one in (*RELU, *SMOOTH)
            for seed in seeds
        ]
    further = [
        {"kind": "path", "act": "relu_pe", "octaves": octaves, "seed": seed, "steps": config.every}
        for octaves in config.octaves
        for seed in config.seeds[:2]
    ]
    long = [
        {"kind": "path", **one, "seed": config.seeds[0], "steps": config.long_steps}
        for one in RELU
        if config.long_steps
    ]
    small = [
        {"kind": "small", "depth": depth, "width": width, "octaves": octaves, "positive": positive}
        for depth, width, octaves, positive in SHAPES
    ]
    counter = [
        {"kind": "counter", **one, "seed": seed}
        for one in (SMOOTH[0], {"act": "gaussian", "sigma": 0.1}, SMOOTH[2], {"act": "sinc"})
        for seed in config.seeds
    ]
    return [*counter, *small, *paths, *({**each, "optimizer": "esgd"} for each in further + long)]


def measure(config: Config, cell: Row) -> Row | list[Row]:
    """Measure one run, at every checkpoint, or one kind of small networks."""
    return {"path": _path, "small": _small, "counter": _counter}[cell["kind"]](config, cell)


def _path(config: Config, cell: Row) -> list[Row]:
    optimizer, act = cell["optimizer"], cell["act"]
    every = cell["steps"] // 6 if cell["steps"] > config.steps else config.every
    names = ("act", "octaves", "omega", "sigma", "seed", "steps")
    setup = Setup(
        signal="chelsea",
        size=config.size,
        width=config.width,
        depth=4,
        recipe=RECIPES.get((optimizer, act), RECIPES[optimizer, "other"]),
        # Adam's are compared at equal quality, which takes more of them.
        checkpoint_every=every // 2 if optimizer == "adam" else every,
        batch_size=config.batch_size,
        dtype="float32",
        threads=1,
        **{name: cell[name] for name in names if name in cell},
    )
    with TemporaryDirectory() as directory:
        run = train(setup, out=Path(directory) / "run")
        signal = run.signal()
        return [_state(config, cell, run, signal, step) for step in run.steps]


def _state(config: Config, cell: Row, run: Run, signal: Signal, step: int) -> Row:
    """Return what is measured of one iterate."""
    model = run.model(step)
    assert isinstance(model, CoordinateMLP)
    settings = Settings(config.num_probes, batch_size=config.batch_size, seed=cell["seed"])
    products, gradient = products_and_gradient(model, mse, signal, settings)
    whole = shares_of(products, gradient, settings.rtols)
    weights = _weights(model, products)
    entropy = _one(model, bce, signal, settings)
    double = copy.deepcopy(model).double()
    exact = signal.to(dtype=torch.float64)
    found: Row = {
        "step": step,
        "psnr": _short(float(run.metrics.set_index("step").loc[step, "psnr"])),
        "num_parameters": run.num_parameters,
        "zero": _short(whole.zero.mean),
        "zero_range": [_short(whole.zero.low), _short(whole.zero.high)],
        "within": [_short(each.mean) for each in whole.within],
        "zero_by_layer": [_short(_zero(each)) for each in weights],
        "gradient_zero": _short(whole.gradient_zero),
        "gradient_zero_where_zero": _short(whole.gradient_zero_where_zero),
        "zero_where_gradient": _short(whole.zero_where_gradient),
        "zero_float64": _short(_zero(_one(double, mse, exact, settings))),
        "zero_bce": _short(_zero(entropy)),
        "bce_differs": int(((entropy == 0) != (products[:, :1] == 0)).sum()),
        "zero_by_batch": [
            _short(_zero(_one(model, mse, signal, replace(settings, batch_size=size))))
            for size in config.batch_sizes
        ],
        **_pattern(weights[-2][:, :, 0]),
        **_activation_zeros(model, double, batch_of(signal, config.batch_size, cell["seed"])),
    }
    if cell["optimizer"] == "adam":
        found |= _noise(config, model, signal, cell["seed"])
    ends = step in (run.steps[0], run.steps[-1]) and cell["steps"] == config.steps
    if ends and cell["seed"] == config.seeds[0] and _is_drawn(cell):
        found["pattern"] = packed(weights[-2][:, :, 0] != 0)
    return found


def _is_drawn(cell: Row) -> bool:
    """Tell whether the pattern of a run is kept for the picture: ReLU-PE and Gaussian by ESGD."""
    drawn = cell["act"] == "gaussian" or cell.get("octaves") == 8
    return cell["optimizer"] == "esgd" and drawn


def packed(bits: Tensor) -> str:
    """Return a matrix of bits as text, rows one after the other, eight bits a byte, base 64."""
    return base64.b64encode(np.packbits(bits.numpy()).tobytes()).decode()


def _one(model: CoordinateMLP, loss: Loss, signal: Signal, settings: Settings) -> Tensor:
    """Return H v of the first probe [n, 1]."""
    return products_and_gradient(model, loss, signal, settings, num_probes=1)[0]


def _weights(model: CoordinateMLP, products: Tensor) -> list[Tensor]:
    """Return the products' parts of the weights, [out, in, m] of each layer."""
    slices = Layout(model, selected_names(model, None)).slices
    return [
        products[slices[f"layers.{layer}.weight"]].view(*part.weight.shape, -1)
        for layer, part in enumerate(model.maps)
    ]


def _pattern(matrix: Tensor) -> Row:
    """Return how the zeros of the penultimate layer's H v [out, in] lie: in rows and columns."""
    zero = matrix == 0
    rows, columns = zero.all(dim=1), zero.all(dim=0)
    inside = zero & (rows.unsqueeze(1) | columns)
    count = int(zero.sum())
    return {
        "zero_rows": _short(float(rows.double().mean())),
        "zero_columns": _short(float(columns.double().mean())),
        "zeros_in_lines": _short(int(inside.sum()) / count) if count else None,
    }


def _activation_zeros(model: CoordinateMLP, double: CoordinateMLP, batch: Signal) -> Row:
    """Return shares of exact zeros of φ, φ′ and φ″ by hidden layer, and of dead units."""
    found: Row = {}
    pairs = (("float32", model, batch), ("float64", double, batch.to(dtype=torch.float64)))
    for name, field, points in pairs:
        state, shares, dead = encode(points.coords, field.octaves), [], []
        with torch.no_grad():
            for layer in field.maps[:-1]:
                state, slope, bend = field.activation.jet(layer(state))
                shares.append([_short(_zero(each)) for each in (state, slope, bend)])
                alone = ((state == 0) & (slope == 0)).all(dim=0)
                dead.append(_short(float(alone.double().mean())))
        found[f"phi_zero_{name}"] = [list(each) for each in zip(*shares, strict=True)]
        found[f"dead_{name}"] = dead
    return found


def _noise(config: Config, model: CoordinateMLP, signal: Signal, seed: int) -> Row:
    """Return the noise of mini-batch gradients, tr Cov g_B / ‖E g‖², and the roughness of ∇f."""
    rows = []
    for number in range(config.num_batches):
        batch = batch_of(signal, config.batch_size, 1000 * (seed + 1) + number)
        value = mse(model(batch.coords), batch.values)
        parts = torch.autograd.grad(value, list(model.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]).double())
    sample = torch.stack(rows)
    noise = float(sample.var(dim=0).sum())
    squared = float(sample.mean(dim=0).square().sum()) - noise / len(rows)
    points = batch_of(signal, 4 * config.batch_size, seed).coords
    here, steps = _slope(model, points), []
    for axis in range(points.shape[1]):
        moved = points.clone()
        moved[:, axis] += 2 / (config.size - 1)
        steps.append((_slope(model, moved) - here).square().mean())
    rough = (torch.stack(steps).mean() / here.square().mean()) ** 0.5
    return {
        "gradient_noise": _short(noise / squared) if squared > 0 else None,
        "roughness": _short(float(rough)),
    }


def _slope(model: CoordinateMLP, points: Tensor) -> Tensor:
    """Return the derivatives of the mean over channels by the coordinates [p, d]."""
    points = points.detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(points).mean(dim=1).sum(), points)
    return slope


def _small(config: Config, cell: Row) -> Row:
    """Return the shares of zeros of a small ReLU field over seeds, at the start."""
    signal = load_signal("camera", config.small_size)
    shares, entries = [], []
    for seed in range(config.num_small):
        act = "relu_pe" if cell["octaves"] else "relu"
        shape = {"width": cell["width"], "depth": cell["depth"]}
        field = make_field(act, 2, 1, octaves=cell["octaves"], seed=seed, **shape)
        if cell["positive"]:
            for layer in field.maps[:-1]:
                layer.bias.data.abs_()
        shares.append(_zero(_one(field, mse, signal, Settings(1, seed=seed))))
        if cell["depth"] * cell["width"] <= 64 and seed < 10:
            entries.append(_zero(dense_hessian(field, mse, signal)))
    quantiles = np.quantile(shares, (0, 0.25, 0.5, 0.75, 1))
    return {
        "seeds": config.num_small,
        "quantiles": [_short(float(each)) for each in quantiles],
        "without_zeros": int((np.array(shares) == 0).sum()),
        "above_half": int((np.array(shares) > 0.5).sum()),
        "entries_zero": _short(float(np.mean(entries))) if entries else None,
    }


def _counter(config: Config, cell: Row) -> Row:
    """Return H v for v = H⁻¹ e_k of a 4×16 field: dense in v, and one entry."""
    options = {name: cell[name] for name in ("omega", "sigma") if name in cell}
    field = make_field(cell["act"], 2, 1, width=16, depth=4, seed=cell["seed"], **options)
    signal = load_signal("camera", config.small_size)
    hessian = dense_hessian(field, mse, signal)
    unit = torch.zeros(len(hessian), dtype=torch.float64)
    unit[len(unit) // 2] = 1
    vector = torch.linalg.solve(hessian, unit)
    vector /= vector.abs().max()
    product = (HessianOperator(field, mse, signal, check=False) @ vector).abs()
    rest = product.clone()
    rest[len(unit) // 2] = 0
    random = _one(field, mse, signal, Settings(1, seed=cell["seed"]))
    magnitudes = torch.linalg.eigvalsh(hessian).abs()
    return {
        "size": len(unit),
        "v_zero": _short(_zero(vector)),
        "v_above": int((vector.abs() > 1e-3).sum()),
        "above": int((product > 1e-9 * product.max()).sum()),
        "rest": _short(float(rest.max() / product.max())),
        "condition": _short(float(magnitudes.max() / magnitudes.min())),
        "random_zero": _short(_zero(random)),
    }


def _zero(values: Tensor) -> float:
    return int((values == 0).sum()) / values.numel()


def _short(number: float) -> float:
    return float(f"{number:.5g}")


STUDY = Study(
    name="hvp_sparsity",
    question="Are Hessian–vector products sparse, and does that keep ESGD from scaling anything?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
