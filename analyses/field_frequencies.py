"""Which frequencies does a field fit first, and how smooth is what it has fitted?

P1 Fig. 3 (gradients and Laplacians), and what P1–P3 say of spectral bias, encodings, ω, σ and
initialisations. Fields of 4×64 on 50×50 images.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analyses.frequency_verdicts import BANDS, verdicts
from analyses.study import Row, Study, main
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.measures.derivatives import field_derivatives
from hessian_lab.probe.hessian import dense_hessian
from hessian_lab.signal import Signal
from hessian_lab.training.loop import train
from hessian_lab.training.setup import Setup

FIELDS: tuple[dict[str, Any], ...] = (
    {"act": "sine", "omega": 30.0},
    {"act": "gaussian", "sigma": 0.05},
    {"act": "tanh"},
    {"act": "relu"},
    {"act": "relu_pe", "octaves": 8},
)
INITIALISATIONS = ("siren", "kaiming", "xavier_normal")
OMEGAS = (5.0, 10.0, 30.0, 60.0, 188.5)
SIGMAS = (1.0, 0.5, 0.2, 0.1, 0.05)
NOISY = (*FIELDS[:2], FIELDS[3])


@dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        images: Bundled images.
        seeds: Of initialisations.
        size: Pixels per side.
        shape: Depth and width.
        steps: Of Adam, whose order of frequencies is measured, and of L-BFGS.
        draws: Fields at initialisation per ω and σ.
    """

    images: tuple[str, ...] = ("camera",)
    seeds: tuple[int, ...] = (0, 1)
    size: int = 50
    shape: tuple[int, int] = (4, 64)
    steps: tuple[int, int] = (300, 100)
    draws: int = 10


FULL = Config()
QUICK = replace(
    FULL, images=("camera",), seeds=(0,), size=24, shape=(2, 16), steps=(60, 15), draws=3
)


def cells(config: Config) -> list[Row]:
    """Return every fit and every field that is drawn."""
    pairs = [(image, seed) for image in config.images for seed in config.seeds]
    fits = [
        {"kind": kind, **field, "image": image, "seed": seed}
        for kind in ("bands", "derivatives")
        for field in FIELDS
        for image, seed in pairs
    ]
    begun = [
        {"kind": "init", **field, "init": init, "image": image, "seed": seed}
        for field in FIELDS[:2]
        for init in INITIALISATIONS
        for image, seed in pairs
    ]
    drawn = [
        {"kind": "drawn", "act": act, name: value}
        for act, name, values in (("sine", "omega", OMEGAS), ("gaussian", "sigma", SIGMAS))
        for value in values
    ]
    noise = [
        {"kind": "noise", **field, "frequency": frequency, "seed": seed}
        for field in NOISY
        for frequency in (1, 4, 12)
        for seed in config.seeds
    ]
    return [*fits, *begun, *drawn, *noise, {"kind": "size"}]


def measure(config: Config, cell: Row) -> Row:
    """Measure one cell."""
    depth, width = config.shape
    return {"shape": f"{depth}×{width}", **MEASURES[cell["kind"]](config, cell)}


def _setup(config: Config, cell: Row, **more: Any) -> Setup:
    names = ("act", "omega", "sigma", "octaves", "init", "seed")
    options = {name: cell[name] for name in names if name in cell}
    depth, width = config.shape
    return Setup(
        signal=cell["image"], size=config.size, depth=depth, width=width, **options, **more
    )


def _bands(config: Config, cell: Row) -> Row:
    """Return, by band, the step at which half of the signal's energy there was fitted."""
    steps = config.steps[0]
    setup = _setup(
        config, cell, optimizer="adam", lr=3e-3, steps=steps, checkpoint_every=max(1, steps // 60)
    )
    with TemporaryDirectory() as directory:
        run = train(setup, out=Path(directory) / "run")
        signal = run.signal()
        target = _band_energies(signal.values, config.size)
        left = []
        for step in run.steps:
            with torch.no_grad():
                rest = run.model(step)(signal.coords) - signal.values
            left.append(_band_energies(rest, config.size) / target)
    half = [
        next(
            (step for step, shares in zip(run.steps, left, strict=True) if shares[band] < 0.5), None
        )
        for band in range(len(BANDS) - 1)
    ]
    return {"half": half, "left": [round(float(each), 4) for each in left[-1]]}


def _band_energies(values: Tensor, size: int) -> NDArray[np.float64]:
    """Return the energy [bands] of an image by distance from frequency 0, its mean left out."""
    image = values.detach().double().view(size, size, -1)
    power = torch.fft.fft2(image - image.mean(dim=(0, 1)), dim=(0, 1)).abs().square().sum(dim=2)
    axis = torch.fft.fftfreq(size).abs() * 2
    radius = torch.maximum(axis[:, None], axis[None, :])
    found = []
    for low, high in pairwise(BANDS):
        inside = (radius > low) & (radius <= high)
        found.append(float(power[inside].sum()))
    return np.array(found)


def _derivatives(config: Config, cell: Row) -> Row:
    """Return errors of value, gradient and Laplacian against differences of the image."""
    with TemporaryDirectory() as directory:
        setup = _setup(
            config, cell, optimizer="lbfgs", steps=config.steps[1], checkpoint_every=10**6
        )
        run = train(setup, out=Path(directory) / "run")
        signal, model = run.signal(), run.model(run.steps[-1])
    found = field_derivatives(model, signal.coords)
    gradient, laplacian = found.gradient.sum(dim=1), found.laplacian.sum(dim=1)
    size = config.size
    spacing = float((signal.coords[:, 0].max() - signal.coords[:, 0].min()) / (size - 1))
    image = signal.values.sum(dim=1).view(size, size)
    inner = (slice(1, -1), slice(1, -1))
    first = torch.stack(torch.gradient(image, spacing=spacing))[(slice(None), *inner)]
    second = (
        image[2:, 1:-1] + image[:-2, 1:-1] + image[1:-1, 2:] + image[1:-1, :-2] - 4 * image[inner]
    ) / spacing**2
    norms = gradient.view(size, size, 2)[inner].norm(dim=-1)
    curved = laplacian.view(size, size)[inner]
    return {
        "psnr": round(float(run.metrics["psnr"].iloc[-1]), 2),
        "gradient_correlation": _correlation(norms, first.norm(dim=0)),
        "laplacian_correlation": _correlation(curved, second),
        "laplacian_zero": round(float((laplacian == 0).double().mean()), 4),
    }


def _correlation(one: Tensor, other: Tensor) -> float:
    pair = torch.stack([one.flatten().double(), other.flatten().double()])
    # The Laplacian of a ReLU field is zero everywhere.
    if not bool(pair.std(dim=1).all()):
        return 0.0
    return round(float(torch.corrcoef(pair)[0, 1]), 4)


def _init(config: Config, cell: Row) -> Row:
    with TemporaryDirectory() as directory:
        setup = _setup(
            config, cell, optimizer="lbfgs", steps=config.steps[1], checkpoint_every=10**6
        )
        run = train(setup, out=Path(directory) / "run")
    return {"psnr": round(float(run.metrics["psnr"].iloc[-1]), 2)}


def _drawn(config: Config, cell: Row) -> Row:
    """Return the mean frequency of fields at initialisation, in shares of the grid's highest."""
    size, found = 64, []
    axis = torch.linspace(-1, 1, size, dtype=torch.float64)
    coords = torch.cartesian_prod(axis, axis)
    name = "omega" if cell["act"] == "sine" else "sigma"
    for seed in range(config.draws):
        depth, width = config.shape
        field = make_field(
            cell["act"], 2, 1, width=width, depth=depth, seed=seed, **{name: cell[name]}
        )
        with torch.no_grad():
            image = field(coords).view(size, size)
        # Without it the jump from edge to edge would pass for high frequencies.
        window = torch.hann_window(size, dtype=image.dtype)
        power = torch.fft.fft2((image - image.mean()) * torch.outer(window, window)).abs().square()
        frequency = torch.fft.fftfreq(size).abs() * 2
        radius = torch.maximum(frequency[:, None], frequency[None, :])
        found.append(float((power * radius).sum() / power.sum()))
    return {"frequency": [float(f"{each:.4g}") for each in found]}


def _size(_: Config, __: Row) -> Row:
    """Return the parameters of the papers' 5×256 fields on RGB images."""
    counted = {}
    for octaves in (None, 4, 8):
        act = "relu" if octaves is None else "relu_pe"
        options = {} if octaves is None else {"octaves": octaves}
        field = make_field(act, 2, 3, width=256, depth=4, seed=0, **options)
        counted[act if octaves is None else f"relu_pe L={octaves}"] = sum(
            value.numel() for value in field.parameters()
        )
    tile = make_field("sine", 2, 3, width=64, depth=4, seed=0)
    bytes_of = 4 * sum(value.numel() for value in tile.parameters())
    return {"parameters": counted, "tile_bytes": bytes_of, "raw_bytes": 100 * 100 * 3}


def _noise(config: Config, cell: Row) -> Row:
    """Return ‖H_B − H‖ / ‖H‖ of batches of 256, at the start and after 300 steps of Adam."""
    axis = torch.linspace(-1, 1, 64, dtype=torch.float64)
    coords = torch.cartesian_prod(axis, axis)
    waves = torch.cos(math.pi * cell["frequency"] * coords)
    signal = Signal(coords, 0.5 + 0.5 * waves.prod(dim=1, keepdim=True))
    options = {name: cell[name] for name in ("act", "omega", "sigma") if name in cell}
    setup = Setup(
        depth=min(4, config.shape[0]),
        width=min(16, config.shape[1]),
        seed=cell["seed"],
        optimizer="adam",
        lr=3e-3,
        steps=config.steps[0] // 2,
        checkpoint_every=10**6,
        batch_size=256,
        **options,
    )
    with TemporaryDirectory() as directory:
        run = train(setup, out=Path(directory) / "run", signal=signal)
        found = [_relative_noise(run.model(step), signal, cell["seed"]) for step in run.steps]
    return {"noise": found, "psnr": round(float(run.metrics["psnr"].iloc[-1]), 2)}


def _relative_noise(model: nn.Module, signal: Signal, seed: int) -> float:
    whole = dense_hessian(model, mse, signal)
    generator, gaps = torch.Generator().manual_seed(seed), []
    for _ in range(6):
        chosen = torch.randperm(signal.num_points, generator=generator)[:256]
        batch = Signal(signal.coords[chosen], signal.values[chosen])
        gaps.append(float((dense_hessian(model, mse, batch) - whole).norm() / whole.norm()))
    return float(f"{np.median(gaps):.4g}")


MEASURES = {
    "bands": _bands,
    "derivatives": _derivatives,
    "init": _init,
    "drawn": _drawn,
    "noise": _noise,
    "size": _size,
}


STUDY = Study(
    name="field_frequencies",
    question="Which frequencies does a field fit first, and how smooth is what it has fitted?",
    full=FULL,
    quick=QUICK,
    cells=cells,
    measure=measure,
    verdicts=verdicts,
)

if __name__ == "__main__":
    main(STUDY)
